/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves what the backend for NBD exports promises about a lost peer: a loss is
 * an error at once, connections are made again in the right order and not too
 * often, and only a peer that makes no progress is given up.  The server here
 * fails in the ways that each test asks for.
 *
 * No test depends on the machine's speed.  Where a deadline must be missed, the
 * server never answers.  Where it must not be missed, the server delays for
 * several times the deadline a request that the deadline does not apply to.
 */

#include <config.h>

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <check.h>
#include <ev.h>

#include "backend/backend.h"
#include "backend/channel.h"
#include "backend/nbd-connection.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "run-suite.h"

#define SIZE (UINT64_C (1) << 20)
#define CLIENTS_MAX 64

/* ---- the server ---- */

/* What the server does with requests of a type, or during the handshake. */
enum conduct {
  GOOD,
  HOLD,     /* waits until its conduct changes */
  FAIL,     /* EIO */
  SHUTDOWN, /* ESHUTDOWN */
  CLOSE,    /* the connection */
  TRICKLE,  /* sends a byte now and then */
  STEADY,   /* sends slowly, but faster than TRICKLE */
  FLOOD,    /* sends replies without end */
};

enum { AT_ACCEPT, AT_META, AT_READY, AT_READ, AT_WRITE, AT_FLUSH, AT_STATUS,
       MOMENTS };

static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  enum conduct conduct[MOMENTS];
  unsigned came[MOMENTS];    /* how often that moment came */
  unsigned replied[MOMENTS];
  unsigned clients_max;
  bool ended;

  bool tcp, readonly;
  char dir[32], uri[160];
  int listener;
  int fd[CLIENTS_MAX];       /* -1: free */
  unsigned clients;
  pthread_t thread;
} server;

static bool
send_all (int fd, const void *buf, size_t count)
{
  const char *p = buf;

  while (count > 0) {
    ssize_t n = send (fd, p, count, MSG_NOSIGNAL);

    if (n <= 0)
      return false;
    p += n;
    count -= n;
  }
  return true;
}

static bool
recv_all (int fd, void *buf, size_t count)
{
  return count == 0 || recv (fd, buf, count, MSG_WAITALL) == (ssize_t)count;
}

/* Has the client closed the connection? */
static bool
is_closed (int fd)
{
  char c;

  return recv (fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* Count this moment, on this connection, and return what to do.  Never HOLD:
 * waits instead, and returns CLOSE if the client closes the connection.
 */
static enum conduct
at (int moment, int fd)
{
  enum conduct c;
  LOCK_FOR_SCOPE (&server.lock);

  server.came[moment]++;
  pthread_cond_broadcast (&server.changed);
  while ((c = server.conduct[moment]) == HOLD && !server.ended) {
    struct timespec ts;

    clock_gettime (CLOCK_REALTIME, &ts);
    ts.tv_sec += (ts.tv_nsec + 10000000) / 1000000000;
    ts.tv_nsec = (ts.tv_nsec + 10000000) % 1000000000;
    pthread_cond_timedwait (&server.changed, &server.lock, &ts);
    if (is_closed (fd))
      return CLOSE;
  }
  return server.ended ? CLOSE : c;
}

static void
replied (int moment)
{
  LOCK_FOR_SCOPE (&server.lock);

  server.replied[moment]++;
}

struct option_reply {
  uint64_t magic;
  uint32_t option, type, length;
} __attribute__ ((packed));

/* The header announces length bytes; count of them follow here. */
static bool
reply_option (int fd, uint32_t option, uint32_t type, const void *data,
              uint32_t count, uint32_t length)
{
  const struct option_reply r = {
    htobe64 (0x3e889045565a9), htobe32 (option), htobe32 (type),
    htobe32 (length)
  };

  return send_all (fd, &r, sizeof r) && send_all (fd, data, count);
}

static bool
reply_meta (int fd)
{
  static const char context[] = "\0\0\0\1base:allocation";

  return reply_option (fd, 10, 4, context, sizeof context - 1,
                       sizeof context - 1);
}

static bool
trickle (int fd)
{
  while (send_all (fd, "", 1))
    usleep (10000);
  return false;
}

static bool
send_steadily (int fd, const char *p, size_t count)
{
  while (count > 0) {
    const size_t piece = MIN (count, (size_t)8192);

    if (!send_all (fd, p, piece))
      return false;
    p += piece;
    count -= piece;
    usleep (30000);
  }
  return true;
}

static bool
handshake (int fd)
{
  struct { uint64_t magic, version; uint16_t flags; }
    __attribute__ ((packed)) hello = {
    htobe64 (0x4e42444d41474943), htobe64 (0x49484156454f5054), htobe16 (3)
  };
  struct { uint16_t type; uint64_t size; uint16_t flags; }
    __attribute__ ((packed)) info = {
    0, htobe64 (SIZE), htobe16 (1 | 1 << 2 | 1 << 8 | (server.readonly ? 2 : 0))
  };
  struct { uint64_t magic; uint32_t option, length; } o;
  char data[4096];
  uint32_t flags;
  enum conduct c = at (AT_ACCEPT, fd);

  if (c == CLOSE)
    return false;
  if (!send_all (fd, &hello, sizeof hello) ||
      !recv_all (fd, &flags, sizeof flags))
    return false;
  while (recv_all (fd, &o, sizeof o) &&
         be32toh (o.length) <= sizeof data &&
         recv_all (fd, data, be32toh (o.length))) {
    const uint32_t option = be32toh (o.option);

    if (option == 10) {
      c = at (AT_META, fd);
      if (c == CLOSE)
        return false;
      /* Names of contexts may have this length. */
      if (c == TRICKLE)
        return reply_option (fd, 10, 4, NULL, 0, 4000) && trickle (fd);
      while (c == FLOOD && reply_meta (fd))
        ;
      if (!reply_meta (fd))
        return false;
    }
    else if (option == 7 && !reply_option (fd, 7, 3, &info, sizeof info,
                                            sizeof info))
      return false;
    if (option != 7 && option != 8 && option != 10) {
      /* NBD_REP_ERR_UNSUP, for extended headers for example. */
      if (!reply_option (fd, option, 0x80000001, NULL, 0, 0))
        return false;
      continue;
    }
    if (!reply_option (fd, option, 1, NULL, 0, 0))
      return false;
    if (option == 7)
      return true;
  }
  return false;
}

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie, offset;
  uint32_t length;
} __attribute__ ((packed));

struct chunk {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t cookie;
  uint32_t length;
} __attribute__ ((packed));

static bool
send_chunk (int fd, const struct request *r, uint16_t type, uint32_t length)
{
  const struct chunk c = {
    htobe32 (0x668e33ef), htobe16 (1), htobe16 (type), r->cookie,
    htobe32 (length)
  };

  return send_all (fd, &c, sizeof c);
}

static bool
reply_error (int fd, const struct request *r, uint32_t error)
{
  const struct { uint32_t error; uint16_t length; }
    __attribute__ ((packed)) e = { htobe32 (error), 0 };

  return send_chunk (fd, r, 0x8001, sizeof e) && send_all (fd, &e, sizeof e);
}

/* An extent for each byte that was asked for. */
static bool
reply_status (int fd, const struct request *r)
{
  const uint32_t n = be32toh (r->length);
  const uint32_t context = htobe32 (1);

  if (!send_chunk (fd, r, 5, 4 + 8 * n) || !send_all (fd, &context, 4))
    return false;
  for (uint32_t i = 0; i < n; i++) {
    const uint32_t entry[2] = { htobe32 (1), htobe32 (i % 2 * 3) };

    if (!send_all (fd, entry, sizeof entry))
      return false;
  }
  return true;
}

static bool
serve_one (int fd, const struct request *r)
{
  static const uint8_t moments[] = {
    [0] = AT_READ, [1] = AT_WRITE, [3] = AT_FLUSH, [7] = AT_STATUS
  };
  static _Thread_local char disk[SIZE];
  static const char zeroes[SIZE];
  const uint16_t type = be16toh (r->type);
  const uint32_t length = be32toh (r->length);
  enum conduct c;
  bool ok;

  if (type == 2 || type >= sizeof moments || length > SIZE ||
      (type == 1 && !recv_all (fd, disk, length)))
    return false;
  c = at (moments[type], fd);
  if (c == CLOSE)
    return false;
  if (c == FAIL || c == SHUTDOWN)
    ok = reply_error (fd, r, c == FAIL ? 5 : 108);
  else if (type == 0)
    ok = send_chunk (fd, r, 1, 8 + length) && send_all (fd, &r->offset, 8) &&
      (c == TRICKLE ? trickle (fd) :
       c == STEADY ? send_steadily (fd, zeroes, length) :
       send_all (fd, zeroes, length));
  else if (type == 7)
    ok = reply_status (fd, r);
  else
    ok = send_chunk (fd, r, 0, 0);
  replied (moments[type]);
  return ok;
}

static void *
client_thread (void *arg)
{
  int *place = arg;
  const int fd = *place;
  struct request r;

  if (handshake (fd) && at (AT_READY, fd) == GOOD)
    while (recv_all (fd, &r, sizeof r) && serve_one (fd, &r))
      ;
  LOCK_FOR_SCOPE (&server.lock);
  close (fd);
  *place = -1;
  server.clients--;
  pthread_cond_broadcast (&server.changed);
  return NULL;
}

static void
welcome (int fd)
{
  LOCK_FOR_SCOPE (&server.lock);
  pthread_t thread;
  int i = 0;

  if (server.clients >= server.clients_max || server.ended) {
    close (fd);
    return;
  }
  while (server.fd[i] != -1)
    i++;
  server.fd[i] = fd;
  server.clients++;
  ck_assert_int_eq (pthread_create (&thread, NULL, client_thread,
                                    &server.fd[i]), 0);
  pthread_detach (thread);
}

static void *
server_thread (void *arg)
{
  int fd;

  while ((fd = accept (server.listener, NULL, NULL)) >= 0)
    welcome (fd);
  return NULL;
}

static void
set (int moment, enum conduct conduct)
{
  LOCK_FOR_SCOPE (&server.lock);

  server.conduct[moment] = conduct;
  pthread_cond_broadcast (&server.changed);
}

static unsigned
came (int moment)
{
  LOCK_FOR_SCOPE (&server.lock);

  return server.came[moment];
}

/* Wait until that moment has come more than `before' times. */
static void
wait_came (int moment, unsigned before)
{
  LOCK_FOR_SCOPE (&server.lock);

  while (server.came[moment] <= before)
    pthread_cond_wait (&server.changed, &server.lock);
}

/* Cut n connections, and serve at most clients_max from now on. */
static void
cut (unsigned n, unsigned clients_max)
{
  LOCK_FOR_SCOPE (&server.lock);

  server.clients_max = clients_max;
  for (unsigned i = 0; i < CLIENTS_MAX && n > 0; i++)
    if (server.fd[i] != -1) {
      shutdown (server.fd[i], SHUT_RDWR);
      n--;
    }
}

static void
listen_unix (void)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };

  snprintf (a.sun_path, sizeof a.sun_path, "%s/s", server.dir);
  snprintf (server.uri, sizeof server.uri, "nbd+unix:///?socket=%s",
            a.sun_path);
  server.listener = socket (AF_UNIX, SOCK_STREAM, 0);
  ck_assert_int_eq (bind (server.listener, (struct sockaddr *)&a, sizeof a), 0);
}

static void
listen_tcp (void)
{
  struct sockaddr_in a = { .sin_family = AF_INET };
  socklen_t len = sizeof a;

  a.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  server.listener = socket (AF_INET, SOCK_STREAM, 0);
  ck_assert_int_eq (bind (server.listener, (struct sockaddr *)&a, sizeof a), 0);
  getsockname (server.listener, (struct sockaddr *)&a, &len);
  snprintf (server.uri, sizeof server.uri, "nbd://127.0.0.1:%d",
            ntohs (a.sin_port));
}

static void
start_server (bool tcp, bool readonly)
{
  memset (&server, 0, sizeof server);
  pthread_mutex_init (&server.lock, NULL);
  pthread_cond_init (&server.changed, NULL);
  memset (server.fd, -1, sizeof server.fd);
  server.clients_max = CLIENTS_MAX;
  server.readonly = readonly;
  strcpy (server.dir, "/tmp/test-nbd-XXXXXX");
  ck_assert_ptr_nonnull (mkdtemp (server.dir));
  if (tcp)
    listen_tcp ();
  else
    listen_unix ();
  ck_assert_int_eq (listen (server.listener, 128), 0);
  ck_assert_int_eq (pthread_create (&server.thread, NULL, server_thread, NULL),
                    0);
}

static void
stop_server (void)
{
  char path[64];

  shutdown (server.listener, SHUT_RDWR);
  pthread_join (server.thread, NULL);
  close (server.listener);
  {
    LOCK_FOR_SCOPE (&server.lock);
    server.ended = true;
    pthread_cond_broadcast (&server.changed);
  }
  cut (CLIENTS_MAX, 0);
  {
    LOCK_FOR_SCOPE (&server.lock);
    while (server.clients > 0)
      pthread_cond_wait (&server.changed, &server.lock);
  }
  snprintf (path, sizeof path, "%s/s", server.dir);
  unlink (path);
  rmdir (server.dir);
}

/* ---- the backend ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
/* The lock protects these four lines. */
static char text[1 << 16];  /* what was logged */
static unsigned losses, changes;
static bool hold_lost;
static unsigned alive_in_lost;
static struct backend *b;

__attribute__ ((format (printf, 1, 0))) static void
log_line (const char *fmt, va_list args)
{
  LOCK_FOR_SCOPE (&lock);
  const size_t n = strlen (text);

  vsnprintf (text + n, sizeof text - n, fmt, args);
  strncat (text, "\n", sizeof text - strlen (text) - 1);
  pthread_cond_broadcast (&cond);
}

static bool
wants_nothing (enum log_topic topic)
{
  return false;
}

static const struct log logger = {
  log_line, log_line, log_line, wants_nothing
};

/* How often does the log contain this? */
static unsigned
said (const char *what)
{
  LOCK_FOR_SCOPE (&lock);
  unsigned n = 0;

  for (const char *p = text; (p = strstr (p, what)); p++)
    n++;
  return n;
}

static void
lost (void *opaque)
{
  LOCK_FOR_SCOPE (&lock);

  losses++;
  alive_in_lost = backend_connections (b);
  pthread_cond_broadcast (&cond);
  while (hold_lost)
    pthread_cond_wait (&cond, &lock);
}

static void
changed (void *opaque)
{
  LOCK_FOR_SCOPE (&lock);

  changes++;
  pthread_cond_broadcast (&cond);
}

static unsigned
get_losses (void)
{
  LOCK_FOR_SCOPE (&lock);

  return losses;
}

static struct backend *
try_open (unsigned connections, unsigned deadline)
{
  const struct backend_params params = {
    .role = "source", .name = server.uri, .readonly = server.readonly,
    .connections = connections, .deadline = deadline,
  };

  text[0] = '\0';
  losses = changes = 0;
  hold_lost = false;
  return backend_open (&params, &logger);
}

/* Opening may fail on a slow machine: try again. */
static void
open_backend (unsigned connections, unsigned deadline)
{
  while ((b = try_open (connections, deadline)) == NULL ||
         backend_connections (b) < connections)
    backend_close (b);
}

/* Can the export that came back be read? */
static int
is_readable (void *opaque, struct backend *readable, char **why)
{
  char buf[512];

  *why = NULL;
  return backend_pread (readable, buf, sizeof buf, 0);
}

static void
start_backend (bool check)
{
  const struct backend_service service = {
    .lost = lost, .changed = changed,
    .same_disk = check ? is_readable : NULL,
  };

  ck_assert_int_eq (backend_start (b, &service), 0);
}

static void
end (void)
{
  backend_close (b);
  stop_server ();
}

/* The errno, or 0. */
static int
read_some (void)
{
  char buf[512];

  return backend_pread (b, buf, sizeof buf, 0) == -1 ? errno : 0;
}

/* These wait for changes that come with a call of lost or changed, or with a
 * message.
 */
static void
wait_connections (unsigned n)
{
  LOCK_FOR_SCOPE (&lock);

  while (backend_connections (b) != n)
    pthread_cond_wait (&cond, &lock);
}

static void
wait_loss (void)
{
  LOCK_FOR_SCOPE (&lock);

  while (losses == 0)
    pthread_cond_wait (&cond, &lock);
}

static void
wait_state (enum backend_state state)
{
  LOCK_FOR_SCOPE (&lock);

  while (backend_state (b) != state)
    pthread_cond_wait (&cond, &lock);
}

static void
wait_said (const char *what)
{
  LOCK_FOR_SCOPE (&lock);

  while (strstr (text, what) == NULL)
    pthread_cond_wait (&cond, &lock);
}

/* A request on a thread of its own. */
struct call {
  pthread_t thread;
  bool flush;
  int error;
};

static void *
call_thread (void *arg)
{
  struct call *c = arg;

  c->error = c->flush ? (backend_flush (b) == -1 ? errno : 0) : read_some ();
  return NULL;
}

static void
begin_call (struct call *c, bool flush)
{
  const int moment = flush ? AT_FLUSH : AT_READ;
  const unsigned before = came (moment);

  c->flush = flush;
  ck_assert_int_eq (pthread_create (&c->thread, NULL, call_thread, c), 0);
  wait_came (moment, before);
}

static int
end_call (struct call *c)
{
  pthread_join (c->thread, NULL);
  return c->error;
}

/* ---- a loss is an error ---- */

/* Requests in flight when the server goes, and requests while it is away, fail
 * with ENOTCONN at once.  When it is back, requests succeed.
 */
START_TEST (lost_is_error)
{
  struct call call;
  char why[256];

  start_server (false, true);
  open_backend (2, 0);
  start_backend (false);
  ck_assert_int_eq (read_some (), 0);
  set (AT_READ, HOLD);
  begin_call (&call, false);
  cut (CLIENTS_MAX, 0);
  ck_assert_int_eq (end_call (&call), ENOTCONN);
  wait_said (" is lost: ");
  ck_assert_int_eq (backend_state (b), BACKEND_LOST);
  for (int i = 0; i < 100; i++)
    ck_assert_int_eq (read_some (), ENOTCONN);
  backend_reason (b, why, sizeof why);
  ck_assert_str_ne (why, "");
  ck_assert_uint_eq (said (" is lost: "), 1);

  set (AT_READ, GOOD);
  cut (0, CLIENTS_MAX);
  wait_connections (2);
  ck_assert_int_eq (read_some (), 0);
  backend_reason (b, why, sizeof why);
  ck_assert_str_eq (why, "");
  ck_assert_uint_eq (said (" is back after "), 1);
  ck_assert_uint_eq (get_losses (), 0);
  end ();
}
END_TEST

/* A server that replies ESHUTDOWN is lost. */
START_TEST (shutdown_is_loss)
{
  start_server (false, true);
  open_backend (1, 0);
  start_backend (false);
  set (AT_READ, SHUTDOWN);
  ck_assert_int_eq (read_some (), ENOTCONN);
  set (AT_READ, GOOD);
  wait_connections (1);
  ck_assert_uint_eq (said ("shutting down"), 1);
  end ();
}
END_TEST

/* If the server refuses block status, all is data; if it is lost, that is an
 * error.  A reply is cut at EXTENTS_MAX_REPLY.
 */
START_TEST (extents)
{
  struct extents list = EXTENTS_INIT;

  start_server (false, true);
  open_backend (1, 0);
  start_backend (false);
  ck_assert_int_eq (backend_extents (b, 70000, 0, 0, &list), 0);
  ck_assert_uint_eq (list.len, EXTENTS_MAX_REPLY);
  ck_assert_uint_eq (extents_end (&list), EXTENTS_MAX_REPLY);
  extents_clear (&list);
  set (AT_STATUS, FAIL);
  ck_assert_int_eq (backend_extents (b, 70000, 0, 0, &list), 0);
  ck_assert_uint_eq (list.len, 1);
  ck_assert_uint_eq (list.extent[0].flags, 0);
  extents_clear (&list);
  set (AT_STATUS, CLOSE);
  ck_assert_int_eq (backend_extents (b, 70000, 0, 0, &list), -1);
  ck_assert_int_eq (errno, ENOTCONN);
  extents_free (&list);
  end ();
}
END_TEST

/* ---- an export that is written to ---- */

/* When one connection dies, all others are killed, and lost is called when all
 * are dead.  Until it returns, no connection is made and requests fail.
 */
START_TEST (die_together)
{
  unsigned accepted;

  start_server (false, false);
  open_backend (4, 0);
  hold_lost = true;
  start_backend (false);
  accepted = came (AT_ACCEPT);
  cut (1, CLIENTS_MAX);
  wait_loss ();
  ck_assert_uint_eq (alive_in_lost, 0);
  {
    LOCK_FOR_SCOPE (&server.lock);
    while (server.clients > 0)
      pthread_cond_wait (&server.changed, &server.lock);
  }
  usleep (300000); /* longer than the first pause */
  ck_assert_int_eq (read_some (), ENOTCONN);
  ck_assert_int_eq (backend_state (b), BACKEND_LOST);
  ck_assert_uint_eq (came (AT_ACCEPT), accepted);
  {
    LOCK_FOR_SCOPE (&lock);
    hold_lost = false;
    pthread_cond_broadcast (&cond);
  }
  wait_connections (4);
  ck_assert_int_eq (read_some (), 0);
  ck_assert_uint_eq (get_losses (), 1);
  end ();
}
END_TEST

/* The first new connection is in use at once.  Each further one is made as soon
 * as the server accepts it, and comes into use only after the first one has
 * answered a request.
 */
START_TEST (topped_up)
{
  struct call call;

  start_server (false, false);
  open_backend (4, 0);
  start_backend (false);
  cut (1, 1);
  wait_loss ();
  wait_connections (1);
  ck_assert_int_eq (read_some (), 0);

  set (AT_READ, HOLD);
  begin_call (&call, false);
  cut (0, CLIENTS_MAX);
  {
    /* The second one has been made; only that answer is missing. */
    LOCK_FOR_SCOPE (&server.lock);
    while (server.clients < 2)
      pthread_cond_wait (&server.changed, &server.lock);
  }
  usleep (100000);
  ck_assert_uint_eq (backend_connections (b), 1);
  set (AT_READ, GOOD);
  ck_assert_int_eq (end_call (&call), 0);
  wait_connections (4);
  ck_assert_uint_eq (get_losses (), 1);
  end ();
}
END_TEST

/* A flush may take longer than the reply deadline, and so may requests that are
 * in flight beside it.
 */
START_TEST (slow_flush)
{
  struct call flush, read;

  start_server (false, false);
  open_backend (4, 100);
  set (AT_FLUSH, HOLD);
  set (AT_READ, HOLD);
  start_backend (false);
  begin_call (&flush, true);
  begin_call (&read, false);
  usleep (500000);
  set (AT_READ, GOOD);
  ck_assert_int_eq (end_call (&read), 0);
  set (AT_FLUSH, GOOD);
  ck_assert_int_eq (end_call (&flush), 0);
  ck_assert_uint_eq (get_losses (), 0);
  end ();
}
END_TEST

/* ---- how often it connects ---- */

/* If a server closes each connection after the handshake, the attempts are few,
 * and the log does not grow with them.
 */
START_TEST (no_storm)
{
  unsigned before;

  start_server (false, true);
  open_backend (16, 0);
  start_backend (false);
  before = came (AT_ACCEPT);
  set (AT_READY, CLOSE);
  cut (CLIENTS_MAX, CLIENTS_MAX);
  ck_assert_int_eq (read_some (), ENOTCONN);
  usleep (700000);
  /* The pauses last at least 50, 100, 200 and 400 ms.  A second connection may
   * be begun before the first one dies.
   */
  ck_assert_uint_gt (came (AT_ACCEPT) - before, 1);
  ck_assert_uint_le (came (AT_ACCEPT) - before, 10);
  ck_assert_uint_le (said (" is lost: "), 2);
  ck_assert_uint_le (said (" is back after "), 1);
  set (AT_READY, GOOD);
  wait_connections (16);
  ck_assert_int_eq (read_some (), 0);
  end ();
}
END_TEST

/* Why connecting fails is logged once, and is the reason. */
START_TEST (reason_once)
{
  char why[256];
  unsigned before;

  start_server (false, true);
  open_backend (1, 0);
  start_backend (false);
  set (AT_META, CLOSE);
  before = came (AT_META);
  cut (1, CLIENTS_MAX);
  wait_came (AT_META, before + 2);
  ck_assert_uint_eq (said ("cannot be reached again: "), 1);
  backend_reason (b, why, sizeof why);
  ck_assert_str_ne (why, "");
  end ();
}
END_TEST

/* A disk that cannot be read is not refused as another disk. */
START_TEST (same_disk_unknown)
{
  unsigned before;

  start_server (false, true);
  open_backend (2, 0);
  start_backend (true);
  set (AT_READ, FAIL);
  before = came (AT_READY);
  cut (CLIENTS_MAX, CLIENTS_MAX);
  wait_came (AT_READY, before + 2);
  ck_assert_int_eq (backend_state (b), BACKEND_LOST);
  set (AT_READ, GOOD);
  wait_connections (2);
  end ();
}
END_TEST

/* ---- progress ---- */

/* If a server accepts and then never answers, answers byte by byte, or answers
 * without end, opening fails, with a message that says why.
 */
START_TEST (bad_handshake)
{
  static const struct { int moment; enum conduct conduct; unsigned deadline;
                        const char *says; } cases[] = {
    { AT_ACCEPT, HOLD, 200, "no answer for 0.2 seconds" },
    { AT_META, HOLD, 200, "no answer for 0.2 seconds" },
    { AT_META, TRICKLE, 200, "no answer for 0.2 seconds" },
    { AT_META, FLOOD, 0, "sends too much" },
  };

  start_server (_i % 2 == 0, true);
  set (cases[_i].moment, cases[_i].conduct);
  ck_assert_ptr_null (try_open (1, cases[_i].deadline));
  ck_assert_uint_eq (said ("cannot connect to source nbd"), 1);
  ck_assert_uint_eq (said (server.uri), 1);
  ck_assert_uint_eq (said (cases[_i].says), 1);
  b = NULL;
  end ();
}
END_TEST

/* The same for a server that does not answer the first requests. */
START_TEST (never_answers)
{
  start_server (false, true);
  open_backend (1, 200);
  set (AT_READ, HOLD);
  ck_assert_int_eq (read_some (), ENOTCONN);
  errno = ENOTCONN;
  backend_log_failure (b, "source", "cannot read it");
  ck_assert_uint_eq (said ("cannot read it: no reply for 0.2 seconds"), 1);
  end ();
}
END_TEST

/* A byte now and then is not progress. */
START_TEST (trickling_reply)
{
  start_server (_i, true);
  open_backend (1, 300);
  set (AT_READ, TRICKLE);
  start_backend (false);
  ck_assert_int_eq (read_some (), ENOTCONN);
  end ();
}
END_TEST

/* A reply that arrives steadily is progress, also if it takes several times the
 * deadline.  (The machine may be too busy to send steadily: then try again.)
 */
START_TEST (steady_reply)
{
  static char buf[256 << 10];
  bool done = false;

  start_server (true, true);
  set (AT_READ, STEADY);
  b = NULL;
  for (int i = 0; i < 20 && !done; i++) {
    backend_close (b);
    open_backend (1, 300);
    start_backend (false);
    done = backend_pread (b, buf, sizeof buf, 0) == 0;
  }
  ck_assert (done);
  end ();
}
END_TEST

/* ---- channels ---- */

struct my_io {
  struct io io;
  struct ev_loop *loop;
  bool submitting, done;
  char buf[65536];
};

static void
io_done (struct io *io)
{
  struct my_io *m = io->opaque;

  ck_assert (!m->submitting);
  m->done = true;
  ev_break (m->loop, EVBREAK_ONE);
}

static void
submit (struct channel *ch, struct my_io *m, struct ev_loop *loop)
{
  m->io = (struct io){
    .type = IO_READ, .buf = m->buf, .count = sizeof m->buf, .done = io_done,
    .opaque = m,
  };
  m->loop = loop;
  m->done = false;
  m->submitting = true;
  channel_submit (ch, &m->io);
  m->submitting = false;
}

static int
finish (struct my_io *m)
{
  while (!m->done)
    ev_run (m->loop, 0);
  return m->io.error;
}

/* A server is not silent while its reply waits for a busy loop to read it. */
START_TEST (unread_is_no_silence)
{
  struct ev_loop *loop = ev_loop_new (EVFLAG_NOENV);
  static struct my_io m;
  struct channel *ch;
  unsigned before = 0;

  start_server (_i, true);
  open_backend (2, 500);
  start_backend (false);
  ch = channel_new (b, loop);
  submit (ch, &m, loop);
  while (before == 0) {
    LOCK_FOR_SCOPE (&server.lock);
    before = server.replied[AT_READ];
  }
  usleep (1700000);
  ck_assert_int_eq (finish (&m), 0);
  ck_assert_uint_eq (backend_connections (b), 2);
  {
    LOCK_FOR_SCOPE (&lock);
    ck_assert_uint_eq (changes, 0);
  }
  channel_free (ch);
  ev_loop_destroy (loop);
  end ();
}
END_TEST

/* A channel whose connection dies uses another one at once.  Without any its
 * requests fail, but not inside channel_submit, until there is one again.
 */
START_TEST (channel_changes_connection)
{
  struct ev_loop *loop = ev_loop_new (EVFLAG_NOENV);
  static struct my_io m[4];
  struct channel *ch;
  start_server (false, true);
  open_backend (2, 0);
  start_backend (false);
  ch = channel_new (b, loop);
  submit (ch, &m[0], loop);
  ck_assert_int_eq (finish (&m[0]), 0);

  set (AT_READ, HOLD);
  for (int i = 0; i < 3; i++)
    submit (ch, &m[i], loop);
  {
    /* The channel's connection is the second one. */
    LOCK_FOR_SCOPE (&server.lock);
    server.clients_max = 0;
    shutdown (server.fd[1], SHUT_RDWR);
  }
  for (int i = 0; i < 3; i++)
    ck_assert_int_eq (finish (&m[i]), ENOTCONN);
  set (AT_READ, GOOD);
  submit (ch, &m[3], loop);
  ck_assert_int_eq (finish (&m[3]), 0);

  cut (CLIENTS_MAX, 0);
  wait_state (BACKEND_LOST);
  submit (ch, &m[0], loop);
  ck_assert_int_eq (finish (&m[0]), ENOTCONN);
  cut (0, CLIENTS_MAX);
  wait_connections (2);
  submit (ch, &m[0], loop);
  ck_assert_int_eq (finish (&m[0]), 0);
  channel_free (ch);
  ev_loop_destroy (loop);
  end ();
}
END_TEST

/* ---- BACKEND_IF_DATA ---- */

#define IF_DATA (BACKEND_IF_DATA | BACKEND_MAY_TRIM)

/* The server cannot zero.  Of 64 bytes it reports every other one as data, and
 * all read as zeroes.  How often is it read and written to, and what is the
 * result, when each of the steps fails or loses the server?
 */
static const struct {
  enum conduct status, read, write;
  int error;
  unsigned reads, writes;
} zero_cases[] = {
  { GOOD, GOOD, GOOD, 0, 32, 0 },
  { FAIL, GOOD, GOOD, 0, 1, 0 },      /* all is data */
  { GOOD, FAIL, GOOD, 0, 32, 32 },    /* to write may repair it */
  { FAIL, FAIL, GOOD, 0, 1, 1 },
  { FAIL, FAIL, FAIL, EIO, 1, 1 },
  { CLOSE, GOOD, GOOD, ENOTCONN, 0, 0 },
  { GOOD, CLOSE, GOOD, ENOTCONN, 1, 0 },
  { FAIL, FAIL, CLOSE, ENOTCONN, 1, 1 },
};
#define ZERO_CASES (int)(sizeof zero_cases / sizeof zero_cases[0])

/* A caller that waits, or a channel. */
static int
zero_if_data_by (struct channel *ch, struct ev_loop *loop)
{
  static struct my_io m;

  if (ch == NULL)
    return backend_zero (b, 64, 0, IF_DATA) == -1 ? errno : 0;
  m = (struct my_io){
    .io = { .type = IO_ZERO, .count = 64, .flags = IF_DATA, .done = io_done,
            .opaque = &m },
    .loop = loop,
  };
  channel_submit (ch, &m.io);
  return finish (&m);
}

START_TEST (zero_if_data_fails)
{
  struct ev_loop *loop = ev_loop_new (EVFLAG_NOENV);
  const int i = _i / 2;
  struct channel *ch = NULL;

  start_server (false, false);
  open_backend (1, 0);
  start_backend (false);
  if (_i % 2)
    ch = channel_new (b, loop);
  set (AT_STATUS, zero_cases[i].status);
  set (AT_READ, zero_cases[i].read);
  set (AT_WRITE, zero_cases[i].write);
  ck_assert_int_eq (zero_if_data_by (ch, loop), zero_cases[i].error);
  ck_assert_uint_eq (came (AT_READ), zero_cases[i].reads);
  ck_assert_uint_eq (came (AT_WRITE), zero_cases[i].writes);
  channel_free (ch);
  ev_loop_destroy (loop);
  end ();
}
END_TEST

/* ---- many at once ---- */

/* Small reads, and writes that are larger than the socket's buffer. */
static void *
busy_thread (void *arg)
{
  static const char zeroes[SIZE / 2];

  for (int i = 0; i < 300; i++) {
    ck_assert (read_some () % ENOTCONN == 0);
    if (i % 10 == 0 && backend_pwrite (b, zeroes, sizeof zeroes, 0, 0) == -1)
      ck_assert_int_eq (errno, ENOTCONN);
  }
  return NULL;
}

/* Callers, a loop and the connection's thread take turns as the driver, and
 * every request is done, also when the connection dies.
 */
START_TEST (all_get_replies)
{
  struct ev_loop *loop = ev_loop_new (EVFLAG_NOENV);
  static struct my_io m;
  struct channel *ch;
  pthread_t threads[8];

  start_server (false, false);
  open_backend (_i, 0);
  start_backend (false);
  ch = channel_new (b, loop);
  for (int i = 0; i < 8; i++)
    ck_assert_int_eq (pthread_create (&threads[i], NULL, busy_thread, NULL), 0);
  for (int i = 0; i < 300; i++) {
    submit (ch, &m, loop);
    ck_assert (finish (&m) % ENOTCONN == 0);
    if (i % 100 == 50) {
      cut (CLIENTS_MAX, CLIENTS_MAX);
      wait_connections (_i);
    }
  }
  for (int i = 0; i < 8; i++)
    pthread_join (threads[i], NULL);
  channel_free (ch);
  ev_loop_destroy (loop);
  end ();
}
END_TEST

/* A caller that drives, and stops when its own request is done, does not leave
 * another caller without a driver.
 */
START_TEST (driver_leaves)
{
  struct call read, flush = { .flush = true };

  start_server (false, false);
  open_backend (1, 0);
  start_backend (false);
  set (AT_READ, HOLD);
  set (AT_FLUSH, HOLD);
  begin_call (&read, false);
  ck_assert_int_eq (pthread_create (&flush.thread, NULL, call_thread, &flush),
                    0);
  usleep (100000); /* it has been sent by now; if not, this proves less */
  set (AT_READ, GOOD);
  ck_assert_int_eq (end_call (&read), 0);
  set (AT_FLUSH, GOOD);
  ck_assert_int_eq (end_call (&flush), 0);
  end ();
}
END_TEST

/* Replaces libc's function: libnbd sends with it. */
static __thread bool sends_fail;

ssize_t
send (int fd, const void *buf, size_t count, int flags)
{
  if (sends_fail) {
    errno = EPIPE;
    return -1;
  }
  return sendto (fd, buf, count, flags, NULL, 0);
}

/* A request is done, once, if the connection dies while it is being issued.
 * (valgrind sees whether its command was used after it was freed.)
 */
START_TEST (dies_while_issuing)
{
  struct ev_loop *loop = ev_loop_new (EVFLAG_NOENV);
  static struct my_io m;
  struct channel *ch;

  start_server (false, false);
  open_backend (1, 0);
  start_backend (false);
  ch = channel_new (b, loop);
  for (int i = 0; i < 4; i++) {
    sends_fail = true;
    if (i % 2 == 0)
      ck_assert_int_eq (read_some (), ENOTCONN);
    else {
      submit (ch, &m, loop);
      ck_assert_int_eq (finish (&m), ENOTCONN);
    }
    sends_fail = false;
    wait_connections (1);
    ck_assert_int_eq (read_some (), 0);
  }
  channel_free (ch);
  ev_loop_destroy (loop);
  end ();
}
END_TEST

/* ---- the end ---- */

/* After an interrupt requests in flight fail, a connection that is being made
 * is given up, and no other one is made.
 */
START_TEST (interrupt_ends)
{
  struct call call;
  unsigned before;

  start_server (false, true);
  open_backend (2, 1000000); /* no deadline ends it */
  start_backend (false);
  set (AT_READ, HOLD);
  set (AT_ACCEPT, HOLD);
  before = came (AT_ACCEPT);
  {
    LOCK_FOR_SCOPE (&server.lock);
    shutdown (server.fd[1], SHUT_RDWR);
  }
  wait_came (AT_ACCEPT, before);
  begin_call (&call, false);
  backend_interrupt (b, 50);
  ck_assert_int_eq (end_call (&call), ENOTCONN);
  {
    LOCK_FOR_SCOPE (&server.lock);
    while (server.clients > 0)
      pthread_cond_wait (&server.changed, &server.lock);
  }
  before = came (AT_ACCEPT);
  usleep (300000);
  ck_assert_uint_eq (came (AT_ACCEPT), before);
  end ();
}
END_TEST

static Suite *
suite (void)
{
  Suite *s = suite_create ("nbd");
  TCase *tc = tcase_create ("nbd");

  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, lost_is_error);
  tcase_add_test (tc, shutdown_is_loss);
  tcase_add_test (tc, extents);
  tcase_add_test (tc, die_together);
  tcase_add_test (tc, topped_up);
  tcase_add_test (tc, slow_flush);
  tcase_add_test (tc, no_storm);
  tcase_add_test (tc, reason_once);
  tcase_add_test (tc, same_disk_unknown);
  tcase_add_loop_test (tc, bad_handshake, 0, 4);
  tcase_add_test (tc, never_answers);
  tcase_add_loop_test (tc, trickling_reply, 0, 2);
  tcase_add_test (tc, steady_reply);
  tcase_add_loop_test (tc, unread_is_no_silence, 0, 2);
  tcase_add_test (tc, channel_changes_connection);
  tcase_add_test (tc, driver_leaves);
  tcase_add_test (tc, dies_while_issuing);
  tcase_add_loop_test (tc, zero_if_data_fails, 0, 2 * ZERO_CASES);
  tcase_add_loop_test (tc, all_get_replies, 1, 4);
  tcase_add_test (tc, interrupt_ends);
  suite_add_tcase (s, tc);
  return s;
}

int
main (void)
{
  return run_suite (suite ());
}
