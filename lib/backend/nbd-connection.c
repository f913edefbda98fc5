/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <netdb.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libnbd.h>

#include "backend/nbd-connection.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "base/thread.h"

/* How often the kernel repeats the first packet to an address, so that each
 * address of a name gets its turn: it gives up after 7 seconds, or 3.
 */
#define SYN_RETRIES 2
#define SYN_RETRIES_AGAIN 1

/* Milliseconds until a loss of the connection is seen at the latest, where
 * libnbd has gone to another socket at this moment.
 */
#define CONNECT_TICK 100

/* Callers are woken after at most so many turns of the driver. */
#define BATCH_MAX 16

/* ---- Connecting ---- */

/* What libnbd said last on this thread, without the name of its function. */
static const char *
libnbd_error (void)
{
  const char *error = nbd_get_error ();
  const char *colon;

  if (error == NULL)
    return "unknown error";
  colon = strstr (error, ": ");
  return strncmp (error, "nbd_", 4) == 0 && colon ? colon + 2 : error;
}

/* Reads are not initialised by libnbd but by on_chunk, and only where the
 * server left a gap.  Alignment is ours to see to: the last block of an export
 * whose size is no multiple of the block size could not be reached otherwise.
 */
static bool
set_up (struct nbd_conn *conn, const char *role)
{
  struct nbd_handle *nbd = conn->nbd = nbd_create ();

  return nbd &&
    nbd_set_handle_name (nbd, role) == 0 &&
    nbd_set_uri_allow_local_file (nbd, true) == 0 &&
    nbd_set_opt_mode (nbd, true) == 0 &&
    nbd_set_pread_initialize (nbd, false) == 0 &&
    nbd_set_strict_mode (nbd, nbd_get_strict_mode (nbd) &
                         ~LIBNBD_STRICT_ALIGN) == 0 &&
    nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0;
}

/* Notice a peer that has gone without a word: it has not answered the kernel
 * for 30 seconds.  Where this is no TCP the kernel knows at once.
 */
static void
set_timeouts (int fd, int syn_retries)
{
  const struct { int level, name, value; } options[] = {
    { SOL_SOCKET, SO_KEEPALIVE, 1 },
    { IPPROTO_TCP, TCP_KEEPIDLE, 10 }, /* and then 4 times 5 */
    { IPPROTO_TCP, TCP_KEEPINTVL, 5 },
    { IPPROTO_TCP, TCP_KEEPCNT, 4 },
    { IPPROTO_TCP, TCP_USER_TIMEOUT, 30000 }, /* milliseconds */
    { IPPROTO_TCP, TCP_SYNCNT, syn_retries },
  };

  for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
    setsockopt (fd, options[i].level, options[i].name, &options[i].value,
                sizeof options[i].value);
}

/* Learn which socket libnbd uses: with each address of a name it is another.
 * NULL, or why that failed.
 */
static const char *
adopt_socket (struct nbd_conn *conn, int syn_retries)
{
  const int fd = nbd_aio_get_fd (conn->nbd);
  struct stat st;
  LOCK_FOR_SCOPE (&conn->lock);

  if (fd == -1 || fstat (fd, &st) == -1)
    return libnbd_error ();
  if (conn->fd >= 0 && st.st_ino == conn->socket)
    return NULL;
  if (conn->fd >= 0)
    close (conn->fd);
  conn->fd = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (conn->fd == -1)
    return strerror (errno);
  conn->socket = st.st_ino;
  set_timeouts (fd, syn_retries);
  conn->progress++;
  return NULL;
}

/* The addresses of a URI's host, or NULL. */
static struct addrinfo *
resolve (const char *uri)
{
  const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
  const char *authority = strstr (uri, "://") + 3;
  const char *user_end = authority + strcspn (authority, "@/?#");
  char host[256], port[16] = "10809";
  struct addrinfo *list;

  if (*user_end == '@')
    authority = user_end + 1;
  if (sscanf (authority, "[%255[^]]]:%15[0-9]", host, port) < 1 &&
      sscanf (authority, "%255[^:/?#]:%15[0-9]", host, port) < 1)
    return NULL;
  return getaddrinfo (host, port, &hints, &list) == 0 ? list : NULL;
}

/* Put a socket that begins to connect to this address in the place of libnbd's.
 * 0 or an errno.
 */
static int
try_address (int fd, const struct addrinfo *a, int syn_retries)
{
  const int on = 1;
  CLEANUP_CLOSE int s = socket (a->ai_family, SOCK_STREAM | SOCK_NONBLOCK |
                                SOCK_CLOEXEC, a->ai_protocol);

  if (s == -1)
    return errno;
  setsockopt (s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  set_timeouts (s, syn_retries);
  if (connect (s, a->ai_addr, a->ai_addrlen) == -1 && errno != EINPROGRESS)
    return errno;
  return dup3 (s, fd, O_CLOEXEC) == -1 ? errno : 0;
}

/* libnbd (1.14) goes on when connecting has only begun, and so it never comes
 * to a name's second address.  Wait here; if it fails, try the others.  NULL,
 * or why it failed.
 */
static const char *
wait_connected (struct nbd_conn *conn, const char *uri, int syn_retries)
{
  const char *why = adopt_socket (conn, syn_retries);
  struct pollfd pfd = { .fd = nbd_aio_get_fd (conn->nbd), .events = POLLOUT };
  struct addrinfo *list = NULL, *next = NULL;
  int error = EINPROGRESS;

  while (why == NULL && error && conn->alive) {
    socklen_t len = sizeof error;

    if (poll (&pfd, 1, CONNECT_TICK) <= 0)
      continue;
    if (getsockopt (pfd.fd, SOL_SOCKET, SO_ERROR, &error, &len) == -1)
      error = errno;
    if (error && list == NULL && (list = resolve (uri)))
      next = list->ai_next;
    for (int tried = error; tried && next; next = next->ai_next) {
      tried = try_address (pfd.fd, next, syn_retries);
      if (tried == 0)
        error = EINPROGRESS;
    }
    why = error && error != EINPROGRESS ? strerror (error)
          : adopt_socket (conn, syn_retries);
  }
  if (list)
    freeaddrinfo (list);
  return why;
}

/* Let libnbd go on as far as it goes.  NULL, or why it failed. */
static const char *
negotiate (struct nbd_conn *conn)
{
  while (conn->alive && nbd_aio_is_connecting (conn->nbd))
    if (nbd_poll (conn->nbd, CONNECT_TICK) == -1)
      return libnbd_error ();
  conn->progress++;
  return NULL;
}

/* The server's reply to the name of the export.  Only this thread knows what
 * libnbd says of it.
 */
static int
on_opt_go (void *opaque, int *error)
{
  if (*error)
    nbd_conn_kill (opaque, libnbd_error ());
  return 1;
}

/* libnbd is stopped before it asks for the export: until then a server can
 * send only so much, and we have not learned the socket.
 */
static const char *
handshake (struct nbd_conn *conn, const char *role, const char *uri,
           int syn_retries)
{
  const nbd_completion_callback completion = { on_opt_go, conn, NULL };
  const char *why;

  if (!set_up (conn, role) || nbd_aio_connect_uri (conn->nbd, uri) == -1)
    return libnbd_error ();
  why = wait_connected (conn, uri, syn_retries);
  if (why == NULL)
    why = negotiate (conn);
  if (why == NULL && nbd_aio_is_negotiating (conn->nbd)) {
    if (nbd_aio_opt_go (conn->nbd, completion) == -1)
      return libnbd_error ();
    why = negotiate (conn);
  }
  if (why == NULL && !nbd_aio_is_ready (conn->nbd))
    why = "the server closed it";
  return why;
}

bool
nbd_conn_connect (struct nbd_conn *conn, const char *role, const char *uri,
                  bool again)
{
  const char *why = handshake (conn, role, uri,
                               again ? SYN_RETRIES_AGAIN : SYN_RETRIES);

  if (why)
    nbd_conn_kill (conn, why);
  return conn->alive;
}

/* ---- Life and death ---- */

struct nbd_conn *
nbd_conn_new (void)
{
  struct nbd_conn *conn = calloc (1, sizeof *conn);

  if (conn == NULL)
    return NULL;
  pthread_mutex_init (&conn->lock, NULL);
  pthread_mutex_init (&conn->driving, NULL);
  conn->users = 1;
  conn->alive = true;
  conn->fd = -1;
  conn->wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (conn->wakeup >= 0)
    return conn;
  nbd_conn_put (conn);
  return NULL;
}

void
nbd_conn_put (struct nbd_conn *conn)
{
  if (conn == NULL || atomic_fetch_sub (&conn->users, 1) > 1)
    return;
  assert (conn->load == 0);

  /* Say goodbye where that takes no waiting. */
  if (conn->nbd && conn->alive)
    nbd_aio_disconnect (conn->nbd, 0);
  nbd_close (conn->nbd);
  if (conn->fd >= 0)
    close (conn->fd);
  if (conn->wakeup >= 0)
    close (conn->wakeup);
  pthread_mutex_destroy (&conn->lock);
  pthread_mutex_destroy (&conn->driving);
  free (conn);
}

void
nbd_conn_kill (struct nbd_conn *conn, const char *why)
{
  LOCK_FOR_SCOPE (&conn->lock);

  conn->alive = false;
  if (conn->why[0] == '\0')
    snprintf (conn->why, sizeof conn->why, "%s", why);
  /* The driver finds its end.  Not libnbd's descriptor, which may be another's
   * by now.
   */
  if (conn->fd >= 0)
    shutdown (conn->fd, SHUT_RDWR);
}

const char *
nbd_conn_why (struct nbd_conn *conn)
{
  nbd_conn_kill (conn, conn->nbd && nbd_aio_is_closed (conn->nbd)
                 ? "the server closed it" : "sending failed");
  return conn->why;
}

uint64_t
nbd_conn_received (const struct nbd_conn *conn)
{
  struct tcp_info info = { 0 };
  socklen_t len = sizeof info;

  getsockopt (conn->fd, IPPROTO_TCP, TCP_INFO, &info, &len);
  return info.tcpi_bytes_received;
}

bool
nbd_conn_has_unread (const struct nbd_conn *conn)
{
  struct pollfd pfd = { .fd = conn->fd, .events = POLLIN };

  return poll (&pfd, 1, 0) > 0;
}

/* ---- Completion: called by libnbd, with the handle's lock held ---- */

/* What was completed on this thread, and is to be delivered. */
static THREAD_LOCAL struct nbd_req *completed;

/* May the server take as long as it likes for this? */
static bool
is_slow (const struct nbd_req *req)
{
  return req->type == NBD_REQ_FLUSH || req->type == NBD_REQ_ZERO ||
         req->type == NBD_REQ_TRIM || req->flags & LIBNBD_CMD_FLAG_FUA;
}

static void
complete (struct nbd_req *req, int error)
{
  struct nbd_conn *conn = req->conn;

  /* No server sends this one: it is libnbd's when a handle dies. */
  if (error == ENOTCONN)
    conn->alive = false;
  else
    conn->progress++;
  conn->slow -= is_slow (req);
  conn->load--;
  req->error = error;
  req->next = completed;
  completed = req;
}

/* Give requests back, after each call of libnbd that may complete some. */
static void
deliver (void)
{
  struct nbd_req *req = completed, *next;

  completed = NULL;
  for (; req; req = next) {
    next = req->next;
    req->done (req);
  }
}

static int
on_completion (void *opaque, int *error)
{
  struct nbd_req *req = opaque;

  /* Not all came.  libnbd finds out only in nbd_aio_command_completed. */
  if (*error == 0 && req->type == NBD_REQ_READ &&
      (req->received != req->count || req->mark != req->offset + req->count))
    *error = EPROTO;
  if (*error == ESHUTDOWN) {
    nbd_conn_kill (req->conn, "the server is shutting down");
    *error = ENOTCONN;
  }
  complete (req, *error);
  return 1;
}

/* A server may send the chunks of a read in any order.  One that leaves out a
 * part and sends another twice would make us pass on what was in the buffer
 * before.  All bytes below the mark have been received or cleared; nothing
 * above it has been received.
 */
static int
on_chunk (void *opaque, const void *subbuf, size_t count, uint64_t offset,
          unsigned status, int *error)
{
  struct nbd_req *req = opaque;

  if (status == LIBNBD_READ_ERROR)
    return 0;
  if (offset > req->mark)
    memset ((char *)req->buf + (req->mark - req->offset), 0,
            offset - req->mark);
  req->mark = MAX (req->mark, offset + count);
  req->received += count;
  return 0;
}

/* A second reply for the same context is none that the protocol allows. */
static int
on_extents (void *opaque, const char *context, uint64_t offset,
            uint32_t *entries, size_t nr_entries, int *error)
{
  struct nbd_req *req = opaque;

  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 ||
      req->extents->len > 0)
    return 0;
  for (size_t i = 0; i + 1 < nr_entries &&
                     req->extents->len < EXTENTS_MAX_REPLY; i += 2) {
    if (extents_add (req->extents, offset, entries[i],
                     entries[i + 1] & (EXTENT_HOLE | EXTENT_ZERO)) == -1) {
      *error = errno;
      return -1;
    }
    offset += entries[i];
  }
  return 0;
}

/* ---- Submission ---- */

_Static_assert (EXTENT_HOLE == LIBNBD_STATE_HOLE &&
                EXTENT_ZERO == LIBNBD_STATE_ZERO,
                "extent flags are those of base:allocation");

/* -1: its callbacks will never be called. */
static int64_t
issue (struct nbd_handle *nbd, struct nbd_req *req)
{
  const nbd_completion_callback completion = { on_completion, req, NULL };
  const nbd_chunk_callback chunk = { on_chunk, req, NULL };
  const nbd_extent_callback extent = { on_extents, req, NULL };

  switch (req->type) {
  case NBD_REQ_READ:
    req->received = 0;
    req->mark = req->offset;
    return nbd_aio_pread_structured (nbd, req->buf, req->count, req->offset,
                                     chunk, completion, req->flags);
  case NBD_REQ_WRITE:
    return nbd_aio_pwrite (nbd, req->buf, req->count, req->offset, completion,
                           req->flags);
  case NBD_REQ_ZERO:
    return nbd_aio_zero (nbd, req->count, req->offset, completion, req->flags);
  case NBD_REQ_TRIM:
    return nbd_aio_trim (nbd, req->count, req->offset, completion, req->flags);
  case NBD_REQ_FLUSH:
    return nbd_aio_flush (nbd, completion, req->flags);
  case NBD_REQ_EXTENTS:
    return nbd_aio_block_status (nbd, req->count, req->offset, extent,
                                 completion, req->flags);
  }
  __builtin_unreachable ();
}

static bool
is_dead (const struct nbd_conn *conn)
{
  return nbd_aio_get_direction (conn->nbd) == 0;
}

static void
read_wakeup (struct nbd_conn *conn)
{
  eventfd_t ignored;

  (void)!eventfd_read (conn->wakeup, &ignored);
}

static void
wake_driver (struct nbd_conn *conn)
{
  /* A counter that is full wakes as well as one that was written to. */
  (void)!eventfd_write (conn->wakeup, 1);
}

void
nbd_conn_submit (struct nbd_conn *conn, struct nbd_req *req)
{
  unsigned direction;

  req->conn = conn;
  conn->load++;
  conn->slow += is_slow (req);
  if (issue (conn->nbd, req) == -1) {
    int error = nbd_get_errno ();
    bool dead = nbd_aio_is_dead (conn->nbd) || nbd_aio_is_closed (conn->nbd);

    complete (req, dead ? ENOTCONN : error ? error : EIO);
  }
  direction = nbd_aio_get_direction (conn->nbd);
  if (direction == 0 || direction & ~conn->armed)
    wake_driver (conn);
  deliver ();
}

/* ---- The driver ---- */

/* One wait and one notification. */
static void
drive_once (struct nbd_conn *conn)
{
  struct pollfd fds[2] = {
    { .fd = conn->fd },
    { .fd = conn->wakeup, .events = POLLIN },
  };
  unsigned armed;

  /* A submitter changes the direction before it looks at armed. */
  do
    conn->armed = armed = nbd_aio_get_direction (conn->nbd);
  while (armed != nbd_aio_get_direction (conn->nbd));
  fds[0].events = (armed & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                  (armed & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
  /* Wake callers when no more is to be had for now: each wake-up may cost this
   * thread its processor.
   */
  poll (fds, 2, completed ? 0 : -1);
  conn->armed = ~0u;
  if (fds[1].revents)
    read_wakeup (conn);
  if (fds[0].revents == 0) {
    deliver ();
    return;
  }
  /* Reading may change what there is to write, so one at a time; and the
   * reply is older than what waits to be sent.
   */
  if ((fds[0].revents & ~POLLOUT ? nbd_aio_notify_read (conn->nbd)
       : nbd_aio_notify_write (conn->nbd)) == -1)
    nbd_conn_kill (conn, libnbd_error ());
  if (conn->load == 0 || ++conn->turns % BATCH_MAX == 0)
    deliver ();
}

/* Until nothing is pending, or it is dead.  The mutex is held, and released. */
static void
drive (struct nbd_conn *conn, const atomic_uint *pending)
{
  while (!is_dead (conn) && (*pending > 0 || !conn->alive))
    drive_once (conn);
  deliver ();
  conn->armed = 0;
  pthread_mutex_unlock (&conn->driving);
}

/* Until the thread should drive, or the connection ends.  What woke it is left
 * for the driver to read, which may be a caller that has just begun.
 */
static void
wait_idle (struct nbd_conn *conn)
{
  struct pollfd fds[2] = {
    { .fd = conn->fd, .events = POLLRDHUP },
    { .fd = conn->wakeup, .events = POLLIN },
  };

  poll (fds, 2, -1);
  if (fds[0].revents && conn->load == 0)
    nbd_conn_kill (conn, "the server closed it");
}

void
nbd_conn_drive (struct nbd_conn *conn)
{
  while (!is_dead (conn) && !conn->leaving) {
    if (conn->load == 0 && conn->alive)
      wait_idle (conn);
    pthread_mutex_lock (&conn->driving);
    conn->armed = ~0u;
    read_wakeup (conn);
    drive (conn, &conn->load);
  }
}

void
nbd_conn_leave (struct nbd_conn *conn)
{
  conn->leaving = true;
  wake_driver (conn);
}

/* ---- Callers ---- */

/* On the caller's stack: gone when its semaphore has been posted. */
struct call {
  atomic_uint pending;
  sem_t done;
};

static void
call_done (struct nbd_req *req)
{
  struct call *call = req->opaque;

  if (atomic_fetch_sub (&call->pending, 1) == 1)
    sem_post (&call->done);
}

void
nbd_conn_call (struct nbd_conn *conn, struct nbd_req *req, size_t n)
{
  struct call call = { .pending = n };
  const bool drives = pthread_mutex_trylock (&conn->driving) == 0;

  assert_may_wait ();
  if (drives)
    conn->armed = ~0u;
  sem_init (&call.done, 0, 0);
  for (size_t i = 0; i < n; i++) {
    req[i].done = call_done;
    req[i].opaque = &call;
    nbd_conn_submit (conn, &req[i]);
  }
  if (drives) {
    drive (conn, &call.pending);
    if (conn->load > 0 || is_dead (conn))
      wake_driver (conn);
  }
  while (sem_wait (&call.done) == -1)
    ;
  sem_destroy (&call.done);
}
