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
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ev.h>
#include <libnbd.h>

#include "cleanup.h"
#include "nbd-conn.h"
#include "rounding.h"
#include "thread.h"

/* A peer that does not answer the kernel for so long is gone: the time from
 * the last sign of life, in milliseconds, and what makes keepalive end with it.
 */
#define PEER_TIMEOUT 30000
#define KEEPALIVE_IDLE 10 /* seconds, as the next */
#define KEEPALIVE_INTERVAL 5
#define KEEPALIVE_PROBES 4

/* How often the kernel repeats the first packet to an address, so that each
 * address of a name gets its turn: it gives up after 7 seconds, or 3.
 */
#define SYN_RETRIES 2
#define SYN_RETRIES_AGAIN 1

/* Milliseconds until a loss of the connection is seen at the latest, where
 * libnbd has gone to another socket at this moment.
 */
#define CONNECT_TICK 100

/* A thread in nbd_conn_call, on its stack.  Protected by the connection's
 * lock.
 */
struct nbd_worker {
  size_t pending; /* requests not done yet */
  pthread_t thread;
  bool waiting; /* on the connection's list */
  TAILQ_ENTRY (nbd_worker) link;

  /* A condition variable would make it wake up only to wait for the lock, and
   * each unlock after that a system call.
   */
  sem_t wakeup;
  bool called;  /* it has been posted, or will be by unlock_conn */
  struct nbd_worker *next_called;
};

struct nbd_attachment {
  struct nbd_conn *conn;
  struct ev_loop *loop;
  ev_prepare prepare;
  ev_io io;
  int armed;          /* what io polls for, 0 when it is stopped */
  uint64_t turn;      /* conn->turn when io was last looked at */
  ev_async wakeup;

  /* Protected by the connection's lock. */
  unsigned in_flight;
  bool busy;          /* the driver, and inside libnbd */
  struct nbd_req *done, **done_end;
  struct nbd_attachment *next;
};

struct nbd_conn {
  struct nbd_handle *nbd;
  int fd;            /* the socket: not libnbd's descriptor, which is closed
                      * when the handle dies, but another; the lock protects it
                      * until it is connected */
  ino_t socket;      /* which one that is */
  int wakeup;        /* eventfd, polled by the worker that drives */
  atomic_uint load;  /* requests in flight */
  atomic_uint slow;  /* of these, as in struct nbd_view */
  atomic_ullong progress;
  atomic_ullong turns; /* counts calls of notify */
  atomic_bool alive;
  void (*on_death) (void *opaque);
  void *opaque;

  pthread_mutex_t lock;
  /* The driver: at most one of these is not NULL. */
  struct nbd_worker *worker;
  struct nbd_attachment *loop;
  uint64_t turn;     /* counts the changes of the driver */
  /* Workers that wait for another driver, in order of arrival. */
  TAILQ_HEAD (, nbd_worker) workers;
  struct nbd_worker *called; /* to be woken when the lock is free */
  struct nbd_attachment *attachments;
  bool died;         /* why is not known yet, */
  pthread_t died_on; /* but to this thread */
  char *why;         /* NULL: nobody said why */
};

/* ---- Connecting ---- */

const char *
nbd_conn_strerror (void)
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
static int
set_up (struct nbd_conn *conn, const char *role)
{
  struct nbd_handle *nbd = conn->nbd = nbd_create ();

  if (nbd == NULL ||
      nbd_set_handle_name (nbd, role) == -1 ||
      nbd_set_uri_allow_local_file (nbd, true) == -1 ||
      nbd_set_opt_mode (nbd, true) == -1 ||
      nbd_set_pread_initialize (nbd, false) == -1 ||
      nbd_set_strict_mode (nbd, nbd_get_strict_mode (nbd) &
                           ~LIBNBD_STRICT_ALIGN) == -1 ||
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1)
    return -1;
  return 0;
}

static void
make_progress (struct nbd_conn *conn)
{
  atomic_fetch_add_explicit (&conn->progress, 1, memory_order_relaxed);
}

/* Notice a peer that has gone without a word.  Where this is no TCP the kernel
 * knows at once.
 */
static void
set_timeouts (int fd, int syn_retries)
{
  const struct { int level, name, value; } options[] = {
    { SOL_SOCKET, SO_KEEPALIVE, 1 },
    { IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE },
    { IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL },
    { IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES },
    { IPPROTO_TCP, TCP_USER_TIMEOUT, PEER_TIMEOUT },
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
    return nbd_conn_strerror ();
  if (conn->fd >= 0 && st.st_ino == conn->socket)
    return NULL;
  if (conn->fd >= 0)
    close (conn->fd);
  conn->fd = fcntl (fd, F_DUPFD_CLOEXEC, 0);
  if (conn->fd == -1)
    return strerror (errno);
  conn->socket = st.st_ino;
  set_timeouts (fd, syn_retries);
  make_progress (conn);
  return NULL;
}

/* The addresses of a URI's host, or NULL. */
static struct addrinfo *
resolve (const char *uri)
{
  const struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
  struct addrinfo *list = NULL;
  char name[256], *host, *port, *end;

  if (sscanf (strstr (uri, "://"), "://%255[^/?#]", name) != 1)
    return NULL;
  host = strrchr (name, '@');
  host = host ? host + 1 : name;
  end = *host == '[' ? strchr (host, ']') : NULL;
  port = strchr (end ? end : host, ':');
  if (port)
    *port++ = '\0';
  if (end) {
    *end = '\0';
    host++;
  }
  if (getaddrinfo (host, port && *port ? port : "10809", &hints, &list) != 0)
    return NULL;
  return list;
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

  while (why == NULL && error && nbd_conn_is_alive (conn)) {
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
  while (nbd_conn_is_alive (conn) && nbd_aio_is_connecting (conn->nbd))
    if (nbd_poll (conn->nbd, CONNECT_TICK) == -1)
      return nbd_conn_strerror ();
  make_progress (conn);
  return NULL;
}

/* The server's reply to the name of the export.  Only this thread knows what
 * libnbd says of it.
 */
static int
on_opt_go (void *opaque, int *error)
{
  if (*error)
    nbd_conn_kill (opaque, nbd_conn_strerror ());
  return 1;
}

/* libnbd is stopped before it asks for the export: until then a server can
 * send only so much, and we have not learned the socket.
 */
static const char *
handshake (struct nbd_conn *conn, const char *role, const char *uri,
           int syn_retries)
{
  const nbd_completion_callback completion = {
    .callback = on_opt_go, .user_data = conn
  };
  const char *why;

  if (set_up (conn, role) == -1 || nbd_aio_connect_uri (conn->nbd, uri) == -1)
    return nbd_conn_strerror ();
  why = wait_connected (conn, uri, syn_retries);
  if (why == NULL)
    why = negotiate (conn);
  if (why == NULL && nbd_aio_is_negotiating (conn->nbd)) {
    if (nbd_aio_opt_go (conn->nbd, completion) == -1)
      return nbd_conn_strerror ();
    why = negotiate (conn);
  }
  if (why == NULL && !nbd_aio_is_ready (conn->nbd))
    why = "the server closed the connection";
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
  return nbd_conn_is_alive (conn);
}

struct nbd_conn *
nbd_conn_new (void (*on_death) (void *opaque), void *opaque)
{
  struct nbd_conn *conn = calloc (1, sizeof *conn);

  if (conn == NULL)
    return NULL;
  pthread_mutex_init (&conn->lock, NULL);
  TAILQ_INIT (&conn->workers);
  conn->on_death = on_death;
  conn->opaque = opaque;
  conn->alive = true;
  conn->fd = -1;
  conn->wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (conn->wakeup >= 0)
    return conn;
  nbd_conn_close (conn);
  return NULL;
}

void
nbd_conn_close (struct nbd_conn *conn)
{
  if (conn == NULL)
    return;
  assert (conn->attachments == NULL && TAILQ_EMPTY (&conn->workers));

  /* Say goodbye where that takes no waiting. */
  if (conn->nbd && conn->alive)
    nbd_aio_disconnect (conn->nbd, 0);
  nbd_close (conn->nbd);
  if (conn->fd >= 0)
    close (conn->fd);
  if (conn->wakeup >= 0)
    close (conn->wakeup);
  pthread_mutex_destroy (&conn->lock);
  free (conn->why);
  free (conn);
}

struct nbd_handle *
nbd_conn_handle (struct nbd_conn *conn)
{
  return conn->nbd;
}

unsigned
nbd_conn_load (struct nbd_conn *conn)
{
  return atomic_load_explicit (&conn->load, memory_order_relaxed);
}

bool
nbd_conn_is_alive (struct nbd_conn *conn)
{
  return atomic_load_explicit (&conn->alive, memory_order_relaxed);
}

/* The lock is held. */
static void
set_why (struct nbd_conn *conn, const char *why)
{
  conn->died = false;
  conn->why = strdup (why);
  conn->on_death (conn->opaque);
}

void
nbd_conn_kill (struct nbd_conn *conn, const char *why)
{
  LOCK_FOR_SCOPE (&conn->lock);

  if (!conn->alive)
    return;
  conn->alive = false;
  /* Whoever drives it finds its end.  Not libnbd's descriptor, which may be
   * another's by now.
   */
  if (conn->fd >= 0)
    shutdown (conn->fd, SHUT_RDWR);
  set_why (conn, why);
}

const char *
nbd_conn_why_lost (struct nbd_conn *conn)
{
  LOCK_FOR_SCOPE (&conn->lock);

  if (conn->alive || conn->died)
    return NULL;
  return conn->why ? conn->why : "out of memory";
}

uint64_t
nbd_conn_progress (struct nbd_conn *conn)
{
  return atomic_load_explicit (&conn->progress, memory_order_relaxed);
}

void
nbd_conn_look (struct nbd_conn *conn, struct nbd_view *view)
{
  struct pollfd pfd = { .fd = conn->fd, .events = POLLIN | POLLRDHUP };
  struct tcp_info info = { 0 };
  socklen_t len = sizeof info;

  view->fd = conn->fd;
  view->slow = atomic_load_explicit (&conn->slow, memory_order_relaxed);
  getsockopt (conn->fd, IPPROTO_TCP, TCP_INFO, &info, &len);
  view->received = info.tcpi_bytes_received;
  view->turns = atomic_load_explicit (&conn->turns, memory_order_relaxed);
  if (nbd_aio_get_direction (conn->nbd) & LIBNBD_AIO_DIRECTION_WRITE)
    pfd.events |= POLLOUT;
  view->waits = poll (&pfd, 1, 0) > 0;
  view->ended = (pfd.revents & POLLRDHUP) != 0;
}

/* ---- Waking workers ---- */

/* The lock is held.  The worker is woken by the next unlock_conn; so whoever
 * calls libnbd, which calls this through complete, must come to one soon.
 */
static void
call_worker (struct nbd_conn *conn, struct nbd_worker *w)
{
  if (w->called)
    return;
  w->called = true;
  w->next_called = conn->called;
  conn->called = w;
}

/* A worker that was woken may be gone at once. */
static void
unlock_conn (struct nbd_conn *conn)
{
  struct nbd_worker *w = conn->called, *next;

  conn->called = NULL;
  pthread_mutex_unlock (&conn->lock);
  for (; w; w = next) {
    next = w->next_called;
    sem_post (&w->wakeup);
  }
}

static void
cleanup_unlock_conn (struct nbd_conn **conn)
{
  unlock_conn (*conn);
}

/* As LOCK_FOR_SCOPE, and wake workers at its end. */
#define LOCK_CONN_FOR_SCOPE(conn)                                       \
  __attribute__ ((cleanup (cleanup_unlock_conn))) struct nbd_conn       \
  *scope_conn_ = (conn);                                                \
  pthread_mutex_lock (&scope_conn_->lock)

/* The lock is held, and is given up for the time that takes. */
static void
sleep_until_called (struct nbd_conn *conn, struct nbd_worker *me)
{
  unlock_conn (conn);
  while (sem_wait (&me->wakeup) == -1)
    ;
  pthread_mutex_lock (&conn->lock);
  me->called = false;
}

/* ---- The role of the driver ---- */

/* The lock is held.  Make the driver look again at what it polls for, and at
 * what is left for it to do.
 */
static void
wake_driver (struct nbd_conn *conn)
{
  /* A counter that is full wakes as well as one that was written to. */
  if (conn->worker)
    (void)!eventfd_write (conn->wakeup, 1);
  else if (conn->loop)
    ev_async_send (conn->loop->loop, &conn->loop->wakeup);
}

/* The lock is held, and the caller gives up the role.  A worker that waits is
 * woken, but not made the driver before it runs: another thread that comes by
 * until then may drive, so that replies do not wait for the scheduler.  It will
 * pass the role in its turn, so that no worker is forgotten.
 */
static void
pass_role (struct nbd_conn *conn)
{
  struct nbd_attachment *a = conn->attachments;

  conn->worker = NULL;
  conn->loop = NULL;
  conn->turn++;

  if (!TAILQ_EMPTY (&conn->workers)) {
    call_worker (conn, TAILQ_FIRST (&conn->workers));
    return;
  }
  while (a && a->in_flight == 0)
    a = a->next;
  conn->loop = a;
  wake_driver (conn);
}

/* Whoever was in a libnbd call calls this afterwards.  libnbd keeps the reason
 * for each thread, so that only one can tell it.
 */
static void
learn_why (struct nbd_conn *conn)
{
  const char *why;

  if (nbd_conn_is_alive (conn))
    return;
  why = nbd_aio_is_closed (conn->nbd) ? "the server closed it"
        : nbd_conn_strerror ();

  LOCK_FOR_SCOPE (&conn->lock);
  if (conn->died && pthread_equal (conn->died_on, pthread_self ()))
    set_why (conn, why);
}

static void
notify (struct nbd_conn *conn, bool readable)
{
  atomic_fetch_add_explicit (&conn->turns, 1, memory_order_relaxed);
  /* Errors reach the requests' completions. */
  if (readable)
    nbd_aio_notify_read (conn->nbd);
  else
    nbd_aio_notify_write (conn->nbd);
  learn_why (conn);
}

/* ---- Completion: called by libnbd, with the handle's lock held ---- */

/* The connection's lock is held. */
static void
unlist_worker (struct nbd_conn *conn, struct nbd_worker *w)
{
  TAILQ_REMOVE (&conn->workers, w, link);
  w->waiting = false;
}

/* A driver sees by itself what it completes.  But a connection may die in the
 * hands of another thread, which submits.
 */
static void
worker_completion (struct nbd_conn *conn, struct nbd_worker *w)
{
  if (--w->pending > 0)
    return;
  if (w->waiting) {
    unlist_worker (conn, w);
    call_worker (conn, w);
  }
  else if (conn->worker == w && !pthread_equal (w->thread, pthread_self ()))
    wake_driver (conn);
}

static void
loop_completion (struct nbd_attachment *a, struct nbd_req *req)
{
  a->in_flight--;
  req->next = NULL;
  *a->done_end = req;
  a->done_end = &req->next;
  if (!a->busy)
    ev_async_send (a->loop, &a->wakeup);
}

/* May the server take as long as it likes for this? */
static bool
is_slow (const struct nbd_req *req)
{
  return req->type == NBD_REQ_FLUSH || req->type == NBD_REQ_ZERO ||
         req->type == NBD_REQ_TRIM || req->flags & LIBNBD_CMD_FLAG_FUA;
}

/* After this the request belongs to its caller again. */
static void
complete (struct nbd_req *req, int error)
{
  struct nbd_conn *conn = req->conn;
  LOCK_FOR_SCOPE (&conn->lock);

  /* No server sends this one: it is libnbd's when a handle dies. */
  if (error == ENOTCONN && conn->alive) {
    conn->alive = false;
    conn->died = true;
    conn->died_on = pthread_self ();
  }
  req->error = error;
  if (error != ENOTCONN)
    make_progress (conn);
  atomic_fetch_sub_explicit (&conn->load, 1, memory_order_relaxed);
  if (is_slow (req))
    atomic_fetch_sub_explicit (&conn->slow, 1, memory_order_relaxed);
  if (req->worker)
    worker_completion (conn, req->worker);
  else
    loop_completion (req->attachment, req);
}

static int
on_completion (void *opaque, int *error)
{
  struct nbd_req *req = opaque;

  /* Not all of it came.  libnbd would find out only in
   * nbd_aio_command_completed.
   */
  if (*error == 0 && req->type == NBD_REQ_READ &&
      (req->received != req->count ||
       req->mark != req->offset + req->count))
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
    unsigned flags = entries[i + 1] & (EXTENT_HOLE | EXTENT_ZERO);

    if (extents_add (req->extents, offset, entries[i], flags) == -1) {
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

/* The request's cookie, or -1 and its callbacks will never be called. */
static int64_t
issue (struct nbd_handle *nbd, struct nbd_req *req)
{
  nbd_completion_callback completion = {
    .callback = on_completion, .user_data = req
  };

  switch (req->type) {
  case NBD_REQ_READ:
    req->received = 0;
    req->mark = req->offset;
    return nbd_aio_pread_structured (
      nbd, req->buf, req->count, req->offset,
      (nbd_chunk_callback){ .callback = on_chunk, .user_data = req },
      completion, req->flags);
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
    return nbd_aio_block_status (
      nbd, req->count, req->offset,
      (nbd_extent_callback){ .callback = on_extents, .user_data = req },
      completion, req->flags);
  }
  __builtin_unreachable ();
}

/* The request is in flight, or has been completed with an error. */
static void
submit (struct nbd_conn *conn, struct nbd_req *req)
{
  req->conn = conn;
  atomic_fetch_add_explicit (&conn->load, 1, memory_order_relaxed);
  if (is_slow (req))
    atomic_fetch_add_explicit (&conn->slow, 1, memory_order_relaxed);
  if (issue (conn->nbd, req) == -1) {
    int error = nbd_get_errno ();
    bool dead = nbd_aio_is_dead (conn->nbd) || nbd_aio_is_closed (conn->nbd);

    complete (req, dead ? ENOTCONN : error ? error : EIO);
  }
  learn_why (conn);
}

/* ---- Workers ---- */

/* One wait and one notification. */
static void
drive_once (struct nbd_conn *conn)
{
  unsigned direction = nbd_aio_get_direction (conn->nbd);
  struct pollfd fds[2] = {
    { .fd = conn->fd },
    { .fd = conn->wakeup, .events = POLLIN },
  };
  eventfd_t ignored;

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  /* A handle that died has completed all requests, ours included. */
  if (direction == 0)
    return;
  if (poll (fds, 2, -1) == -1)
    return;
  if (fds[1].revents)
    (void)!eventfd_read (conn->wakeup, &ignored);
  /* Reading may change what there is to write, so one at a time; and the
   * reply is older than what waits to be sent.
   */
  if (fds[0].revents)
    notify (conn, (fds[0].revents & ~POLLOUT) != 0);
}

/* The lock is held.  A loop that is not inside libnbd notices when it next
 * looks that it is not the driver any more.
 */
static bool
take_role (struct nbd_conn *conn, struct nbd_worker *me)
{
  if (conn->worker || (conn->loop && conn->loop->busy))
    return false;
  conn->loop = NULL;
  conn->worker = me;
  conn->turn++;
  return true;
}

/* The lock is held, and is given up for the time that takes. */
static void
drive (struct nbd_conn *conn, struct nbd_worker *me)
{
  while (me->pending > 0) {
    unlock_conn (conn);
    drive_once (conn);
    pthread_mutex_lock (&conn->lock);
  }
  pass_role (conn);
}

static void
worker_wait (struct nbd_conn *conn, struct nbd_worker *me)
{
  LOCK_CONN_FOR_SCOPE (conn);

  while (me->pending > 0) {
    if (take_role (conn, me)) {
      if (me->waiting)
        unlist_worker (conn, me);
      drive (conn, me);
      return;
    }
    if (!me->waiting) {
      TAILQ_INSERT_TAIL (&conn->workers, me, link);
      me->waiting = true;
      if (nbd_aio_get_direction (conn->nbd) & LIBNBD_AIO_DIRECTION_WRITE)
        wake_driver (conn);
    }
    sleep_until_called (conn, me);
  }
}

void
nbd_conn_call (struct nbd_conn *conn, struct nbd_req *req, size_t n)
{
  struct nbd_worker me = {
    .pending = n,
    .thread = pthread_self (),
  };

  assert_may_wait ();
  sem_init (&me.wakeup, 0, 0);
  for (size_t i = 0; i < n; i++) {
    req[i].worker = &me;
    submit (conn, &req[i]);
  }
  worker_wait (conn, &me);
  sem_destroy (&me.wakeup);
}

/* ---- Loops ---- */

/* Give the role away if there is nothing in flight for this loop, or somebody
 * to whom more depends on it.  The lock is held.
 */
static void
settle_role (struct nbd_attachment *a)
{
  struct nbd_conn *conn = a->conn;

  if (conn->loop == a && (a->in_flight == 0 || !TAILQ_EMPTY (&conn->workers)))
    pass_role (conn);
}

static struct nbd_req *
take_done (struct nbd_attachment *a)
{
  LOCK_CONN_FOR_SCOPE (a->conn);
  struct nbd_req *done = a->done;

  a->done = NULL;
  a->done_end = &a->done;
  settle_role (a);
  return done;
}

static void
call_done (struct nbd_attachment *a)
{
  struct nbd_req *req, *next;

  for (req = take_done (a); req; req = next) {
    next = req->next;
    req->done (req);
  }
}

static void
wakeup_cb (struct ev_loop *loop, ev_async *w, int revents)
{
  call_done (w->data);
}

/* Is the readiness that the loop found still true?  Not when another driver
 * has had a turn since: it may have read what there was.
 */
static bool
begin_notify (struct nbd_attachment *a)
{
  LOCK_FOR_SCOPE (&a->conn->lock);

  a->busy = a->conn->loop == a && a->conn->turn == a->turn &&
            a->in_flight > 0;
  return a->busy;
}

static void
end_notify (struct nbd_attachment *a)
{
  LOCK_CONN_FOR_SCOPE (a->conn);

  a->busy = false;
  settle_role (a);
}

static void
io_cb (struct ev_loop *loop, ev_io *w, int revents)
{
  struct nbd_attachment *a = w->data;

  if (!begin_notify (a))
    return;
  notify (a->conn, (revents & EV_READ) != 0);
  end_notify (a);
  call_done (a);
}

/* What to poll for: nothing, unless this loop drives. */
static int
wanted_events (struct nbd_attachment *a)
{
  LOCK_FOR_SCOPE (&a->conn->lock);
  unsigned direction;

  a->turn = a->conn->turn;
  if (a->conn->loop != a || a->in_flight == 0)
    return 0;
  direction = nbd_aio_get_direction (a->conn->nbd);
  return (direction & LIBNBD_AIO_DIRECTION_READ ? EV_READ : 0) |
         (direction & LIBNBD_AIO_DIRECTION_WRITE ? EV_WRITE : 0);
}

static void
prepare_cb (struct ev_loop *loop, ev_prepare *w, int revents)
{
  struct nbd_attachment *a = w->data;
  int events = wanted_events (a);

  if (events == a->armed)
    return;
  ev_io_stop (loop, &a->io);
  a->armed = events;
  if (events) {
    ev_io_set (&a->io, a->conn->fd, events);
    ev_io_start (loop, &a->io);
  }
}

struct nbd_attachment *
nbd_conn_attach (struct nbd_conn *conn, struct ev_loop *loop)
{
  struct nbd_attachment *a = calloc (1, sizeof *a);

  if (a == NULL)
    return NULL;
  a->conn = conn;
  a->loop = loop;
  a->done_end = &a->done;
  ev_io_init (&a->io, io_cb, conn->fd, 0);
  ev_prepare_init (&a->prepare, prepare_cb);
  ev_async_init (&a->wakeup, wakeup_cb);
  a->io.data = a->prepare.data = a->wakeup.data = a;
  ev_prepare_start (loop, &a->prepare);
  ev_async_start (loop, &a->wakeup);

  LOCK_FOR_SCOPE (&conn->lock);
  a->next = conn->attachments;
  conn->attachments = a;
  return a;
}

void
nbd_conn_detach (struct nbd_attachment *a)
{
  if (a == NULL)
    return;
  {
    struct nbd_attachment **p = &a->conn->attachments;
    LOCK_CONN_FOR_SCOPE (a->conn);

    assert (a->in_flight == 0 && a->done == NULL);
    settle_role (a);
    while (*p != a)
      p = &(*p)->next;
    *p = a->next;
  }
  ev_io_stop (a->loop, &a->io);
  ev_prepare_stop (a->loop, &a->prepare);
  ev_async_stop (a->loop, &a->wakeup);
  free (a);
}

static void
begin_submit (struct nbd_attachment *a)
{
  LOCK_FOR_SCOPE (&a->conn->lock);

  a->in_flight++;
}

/* Somebody must drive what was sent.  The loop's own poll is set right by
 * prepare_cb, before it next waits.
 */
static void
end_submit (struct nbd_attachment *a)
{
  struct nbd_conn *conn = a->conn;
  LOCK_CONN_FOR_SCOPE (conn);

  if (conn->worker == NULL && conn->loop == NULL) {
    if (a->in_flight > 0) {
      conn->loop = a;
      conn->turn++;
    }
  }
  else if (conn->loop != a &&
           nbd_aio_get_direction (conn->nbd) & LIBNBD_AIO_DIRECTION_WRITE)
    wake_driver (conn);
}

void
nbd_attachment_submit (struct nbd_attachment *a, struct nbd_req *req)
{
  req->worker = NULL;
  req->attachment = a;
  begin_submit (a);
  submit (a->conn, req);
  end_submit (a);
}
