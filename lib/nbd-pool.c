/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <libnbd.h>

#include "cleanup.h"
#include "clock.h"
#include "nbd-pool.h"
#include "rounding.h"
#include "thread.h"

/* All times are milliseconds, and all deadlines those without progress. */

/* For the first connection, and at most for each further one: some servers
 * accept so many clients and leave the others waiting.
 */
#define FIRST_DEADLINE INT64_C (30000)
#define FURTHER_DEADLINE INT64_C (5000)

/* For a call before nbd_pool_start. */
#define CALL_DEADLINE INT64_C (60000)

/* To connect again, and then to show that it is the same export. */
#define AGAIN_DEADLINE INT64_C (10000)

/* For replies. */
#define REPLY_DEADLINE INT64_C (30000)

/* What doubling ends with. */
#define DEADLINE_MAX INT64_C (600000)

/* So many bytes in a millisecond are progress. */
#define RATE_MIN 1

/* Processor time that an attempt to connect may use: only a server that sends
 * without end makes it use more.
 */
#define CONNECT_CPU INT64_C (1000)

/* Of a pause, a random part of up to a half is left out, so that many clients
 * do not come all at once to a server that has just started.
 */
#define PAUSE_MIN INT64_C (100)
#define PAUSE_MAX INT64_C (10000)

/* At most, between two looks at the connections, and at an attempt. */
#define TICK INT64_C (1000)
#define ATTEMPT_TICK INT64_C (100)

struct nbd_slot {
  struct nbd_conn *conn;
  bool for_clients;
  unsigned users;        /* who hold it: the pool, calls and channels */
  unsigned channels;

  /* The healer's. */
  int64_t born, pause;   /* when it was made, and the pause before that */
  int64_t since;         /* the last progress, or nothing was in flight, */
  uint64_t progress, received; /* and what had come until then */
  struct nbd_view view;  /* the last look */
};

/* A thread that does what can take for ever, and what is known about it. */
struct attempt {
  struct nbd_pool *pool;
  struct nbd_conn *conn; /* is killed when there is no progress */
  int64_t deadline;
  bool connecting;       /* not a call */
  pthread_t thread;
  int done;              /* eventfd */
  int64_t since;         /* the last progress, */
  uint64_t progress;     /* and what it was */
  bool missed;           /* the deadline */

  /* a call */
  struct nbd_req *req;
  size_t n;

  /* to connect */
  bool again;               /* not the first: it is to be checked */
  struct nbd_slot *witness; /* held */
  uint64_t losses;          /* pool->losses at the beginning */
  int differs;              /* as check returns it */
  char *why;                /* it failed, to be freed */
};

struct nbd_pool {
  struct nbd_pool_params params;
  struct backend_service service;
  struct nbd_slot **slots; /* NULL: there is none now */
  struct pollfd *poll;     /* the healer's: what it waits for */
  unsigned connections;    /* places in use, at least 1 */
  int64_t first;           /* what the first one took */
  unsigned clients;        /* of which the first so many are for clients */
  int wakeup;              /* eventfd: the healer should look */
  pthread_t healer;
  atomic_bool running;     /* it does */
  atomic_bool stopping;    /* nbd_pool_interrupt, */
  atomic_int grace;        /* with this; -1: no limit */
  atomic_uint generation;

  pthread_mutex_t lock;  /* protects what follows, and slots and users */
  bool ending;           /* nbd_pool_close */
  int64_t interrupted;   /* when nbd_pool_interrupt was called */
  bool refused;          /* what came back is another disk */
  char reason[256];

  /* The healer's. */
  int64_t reply_normal, reply_deadline;
  int64_t connect_normal, connect_deadline;
  int64_t pause, next_try;
  int64_t backed_off;    /* when a death last changed the pause */
  bool flapping;         /* connections live shorter than the pause */
  bool lost;             /* together: lost is to be called */
  uint64_t losses;       /* how often it was */
  bool told_up;          /* in the log */
  unsigned told;         /* generation when changed was last called */
  struct attempt attempt;
  bool attempting;
  unsigned short seed[3];
};

static bool
is_alive (const struct nbd_slot *slot)
{
  return slot && nbd_conn_is_alive (slot->conn);
}

/* Any thread, with whatever locks. */
static void
wake_healer (void *opaque)
{
  struct nbd_pool *pool = opaque;

  /* A counter that is full wakes as well as one that was written to. */
  (void)!eventfd_write (pool->wakeup, 1);
}

/* The deadline: so many milliseconds, or other seconds if they are not 0,
 * unless a test has another.
 */
static int64_t
deadline (const struct nbd_pool *pool, int64_t normal, unsigned seconds)
{
  if (pool->params.deadline)
    return pool->params.deadline;
  return seconds ? seconds * INT64_C (1000) : normal;
}

/* The lock is held, if there is a healer.  NULL is allowed. */
static void
set_reason (struct nbd_pool *pool, const char *why)
{
  if (why)
    snprintf (pool->reason, sizeof pool->reason, "%s", why);
}

static void
kill_silent (struct nbd_conn *conn, const char *what, int64_t ms)
{
  char why[64];

  snprintf (why, sizeof why, "no %s for %g seconds", what, ms / 1000.0);
  nbd_conn_kill (conn, why);
}

/* ---- slots ---- */

/* The lock is held, if there is a healer. */
static struct nbd_slot *
new_slot (struct nbd_pool *pool, unsigned place, struct nbd_conn *conn)
{
  struct nbd_slot *slot = pool->slots[place] = calloc (1, sizeof *slot);

  if (slot)
    *slot = (struct nbd_slot){
      .conn = conn, .for_clients = place < pool->clients, .users = 1,
      .born = monotonic_ms (), .pause = pool->pause, .since = monotonic_ms (),
      .progress = nbd_conn_progress (conn),
    };
  return slot;
}

/* The lock is held.  The last one closes it. */
static void
put_slot (struct nbd_slot *slot)
{
  if (--slot->users > 0)
    return;
  nbd_conn_close (slot->conn);
  free (slot);
}

static void
give_back (struct nbd_pool *pool, struct nbd_slot *slot)
{
  LOCK_FOR_SCOPE (&pool->lock);

  put_slot (slot);
}

/* ---- attempts ---- */

static void *
attempt_thread (void *arg)
{
  struct attempt *a = arg;
  const struct nbd_pool_params *params = &a->pool->params;

  if (!a->connecting)
    nbd_conn_call (a->conn, a->req, a->n);
  else if (nbd_conn_connect (a->conn, params->role, params->uri, a->again) &&
           a->again)
    a->differs = params->check (params->opaque, a->conn,
                                a->witness ? a->witness->conn : NULL, &a->why);
  (void)!eventfd_write (a->done, 1);
  return NULL;
}

/* -1, logged, with nothing to be ended. */
static int
attempt_begin (struct attempt *a)
{
  a->since = monotonic_ms ();
  a->progress = nbd_conn_progress (a->conn);
  a->done = eventfd (0, EFD_CLOEXEC);
  if (a->done == -1)
    return -1;
  if (thread_start (&a->thread, "connect", attempt_thread, a,
                    a->pool->params.log) == 0)
    return 0;
  close (a->done);
  return -1;
}

static int64_t
cpu_used (const struct attempt *a)
{
  struct timespec ts;
  clockid_t clock;

  if (pthread_getcpuclockid (a->thread, &clock) != 0 ||
      clock_gettime (clock, &ts) == -1)
    return 0;
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void
attempt_watch (struct attempt *a)
{
  const int64_t now = monotonic_ms ();
  const uint64_t progress = nbd_conn_progress (a->conn);

  if (progress != a->progress) {
    a->since = now;
    a->progress = progress;
  }
  if (a->connecting && a->pool->stopping)
    nbd_conn_kill (a->conn, "the end");
  else if (a->connecting && cpu_used (a) >= CONNECT_CPU)
    nbd_conn_kill (a->conn, "the server sends too much");
  else if (now - a->since >= a->deadline && !a->missed) {
    a->missed = true;
    kill_silent (a->conn, "answer", a->deadline);
  }
}

static void
attempt_end (struct attempt *a)
{
  pthread_join (a->thread, NULL);
  close (a->done);
}

static void
attempt_clear (struct attempt *a)
{
  if (a->witness)
    give_back (a->pool, a->witness);
  nbd_conn_close (a->conn);
  free (a->why);
}

/* Without a healer: the caller watches.  -1, logged. */
static int
attempt_now (struct attempt *a)
{
  struct pollfd pfd;

  if (attempt_begin (a) == -1)
    return -1;
  pfd = (struct pollfd){ .fd = a->done, .events = POLLIN };
  while (poll (&pfd, 1, MIN (a->deadline / 4 + 1, ATTEMPT_TICK)) <= 0)
    attempt_watch (a);
  attempt_end (a);
  return 0;
}

/* To connect, for the first time or again.  On failure conn is NULL. */
static void
new_attempt (struct nbd_pool *pool, struct attempt *a, bool again,
             int64_t limit)
{
  *a = (struct attempt){
    .pool = pool, .conn = nbd_conn_new (wake_healer, pool), .deadline = limit,
    .connecting = true, .again = again,
  };
}

/* Why it failed, or NULL. */
static const char *
attempt_failure (const struct attempt *a)
{
  const char *lost = nbd_conn_why_lost (a->conn);

  return lost ? lost : a->why ? a->why : a->differs ? "out of memory" : NULL;
}

/* ---- use ---- */

/* Hold the client connection that has the least to do.  One of the channels'
 * where all of those were lost.  NULL if there is none.
 */
static struct nbd_slot *
get_for_call (struct nbd_pool *pool)
{
  struct nbd_slot *best = NULL;
  LOCK_FOR_SCOPE (&pool->lock);

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = pool->slots[i];

    if (is_alive (slot) &&
        (best == NULL || (i < pool->clients &&
                          nbd_conn_load (slot->conn) <
                          nbd_conn_load (best->conn))))
      best = slot;
  }
  if (best)
    best->users++;
  return best;
}

/* Before nbd_pool_start. */
static void
call_watched (struct nbd_pool *pool, struct nbd_slot *slot,
              struct nbd_req *req, size_t n)
{
  struct attempt a = {
    .pool = pool, .conn = slot->conn, .req = req, .n = n,
    .deadline = deadline (pool, CALL_DEADLINE, pool->params.timeout),
  };

  if (attempt_now (&a) == -1)
    for (size_t i = 0; i < n; i++)
      req[i].error = ENOMEM;
  set_reason (pool, nbd_conn_why_lost (slot->conn));
  if (a.missed)
    log_error (pool->params.log, "%s %s: the server did not answer for %g "
               "seconds; see whether it is well, and start again",
               pool->params.role, pool->params.uri, a.deadline / 1000.0);
}

void
nbd_pool_call (struct nbd_pool *pool, struct nbd_req *req, size_t n)
{
  struct nbd_slot *slot;

  assert_may_wait ();
  slot = get_for_call (pool);
  if (slot == NULL) {
    for (size_t i = 0; i < n; i++)
      req[i].error = ENOTCONN;
    return;
  }
  if (pool->running)
    nbd_conn_call (slot->conn, req, n);
  else
    call_watched (pool, slot, req, n);
  give_back (pool, slot);
}

/* ---- channels ---- */

/* The less the better: sharing with a channel is worse than sharing with
 * clients.
 */
static unsigned
cost (const struct nbd_slot *slot)
{
  return slot->channels * 2 + slot->for_clients;
}

/* The lock is held. */
static struct nbd_slot *
pick_for_channel (struct nbd_pool *pool)
{
  struct nbd_slot *best = NULL;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = pool->slots[i];

    if (is_alive (slot) && (best == NULL || cost (slot) < cost (best)))
      best = slot;
  }
  return best;
}

struct nbd_slot *
nbd_pool_take (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);
  struct nbd_slot *slot = pick_for_channel (pool);

  if (slot) {
    slot->users++;
    slot->channels++;
  }
  return slot;
}

void
nbd_pool_give_back (struct nbd_pool *pool, struct nbd_slot *slot)
{
  LOCK_FOR_SCOPE (&pool->lock);

  slot->channels--;
  put_slot (slot);
}

struct nbd_conn *
nbd_slot_conn (struct nbd_slot *slot)
{
  return slot->conn;
}

unsigned
nbd_pool_generation (struct nbd_pool *pool)
{
  return atomic_load_explicit (&pool->generation, memory_order_relaxed);
}

bool
nbd_pool_has_better (struct nbd_pool *pool, const struct nbd_slot *slot)
{
  LOCK_FOR_SCOPE (&pool->lock);
  const struct nbd_slot *best = pick_for_channel (pool);

  return best && cost (best) + 2 < cost (slot);
}

/* ---- state ---- */

unsigned
nbd_pool_alive (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);
  unsigned alive = 0;

  for (unsigned i = 0; i < pool->connections; i++)
    alive += is_alive (pool->slots[i]);
  return alive;
}

enum backend_state
nbd_pool_state (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);

  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (pool->slots[i]))
      return BACKEND_UP;
  return pool->refused ? BACKEND_REFUSED : BACKEND_LOST;
}

void
nbd_pool_reason (struct nbd_pool *pool, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&pool->lock);

  snprintf (buf, size, "%s", pool->reason);
}

/* ---- the healer: it watches ---- */

static void
miss_deadline (int64_t *limit, int64_t normal, unsigned timeout)
{
  *limit = MIN (*limit * 2, MAX (normal, DEADLINE_MAX));
  if (timeout)
    *limit = MIN (*limit, MAX (normal, timeout * INT64_C (1000)));
}

/* Has the connection, which was just looked at, made progress?  If not, is it
 * time to give it up?  slow: some request in flight on the export may take very
 * long.  (Before the end only replies count, since there is no time left.)
 */
static void
watch (struct nbd_pool *pool, struct nbd_slot *slot, bool slow, int64_t now)
{
  struct nbd_conn *conn = slot->conn;
  const bool hurry = pool->stopping && pool->grace >= 0;
  const bool replied = nbd_conn_progress (conn) != slot->progress;
  const uint64_t enough = pool->reply_deadline * RATE_MIN;

  if (slot->view.ended && nbd_conn_load (conn) == 0)
    nbd_conn_kill (conn, "the server closed it");
  else if (replied || nbd_conn_load (conn) == 0 ||
           (!hurry && (slow || slot->view.waits ||
                       slot->view.received - slot->received >= enough))) {
    if (replied && now - slot->since < pool->reply_normal)
      pool->reply_deadline = pool->reply_normal;
    slot->since = now;
    slot->progress = nbd_conn_progress (conn);
    slot->received = slot->view.received;
  }
  else if (hurry && now - MAX (slot->since, pool->interrupted) >= pool->grace)
    nbd_conn_kill (conn, "the end");
  else if (now - slot->since >= pool->reply_deadline) {
    kill_silent (conn, "reply", pool->reply_deadline);
    miss_deadline (&pool->reply_deadline, pool->reply_normal,
                   pool->service.timeout);
  }
}

static void
set_next_try (struct nbd_pool *pool, int64_t pause, int64_t now)
{
  pool->pause = MIN (pause, PAUSE_MAX);
  pool->next_try = now +
    (int64_t)(pool->pause * (1 - erand48 (pool->seed) / 2));
}

/* The lock is held.  See who lives, and kill whom it is time for. */
static void
watch_all (struct nbd_pool *pool, int64_t now)
{
  unsigned slow = 0;
  const char *why = NULL;

  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (pool->slots[i])) {
      struct nbd_view *view = &pool->slots[i]->view;
      const uint64_t turns = view->turns;

      nbd_conn_look (pool->slots[i]->conn, view);
      view->waits &= view->turns == turns; /* and nobody did it */
      slow += view->slow;
    }
  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = pool->slots[i];

    if (is_alive (slot))
      watch (pool, slot, slow > 0, now);
    if (slot && why == NULL)
      why = nbd_conn_why_lost (slot->conn);
  }
  if (why == NULL)
    return;
  set_reason (pool, why);
  pool->lost |= pool->params.together;
  for (unsigned i = 0; i < pool->connections && pool->lost; i++)
    if (pool->slots[i])
      nbd_conn_kill (pool->slots[i]->conn, pool->reason);
}

/* The lock is held.  Take dead connections, of which is known why, out of their
 * places.  Those that were made before the last time have had their say in the
 * pause.
 */
static void
bury_all (struct nbd_pool *pool, int64_t now)
{
  bool died = false, young = false;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = pool->slots[i];

    if (slot == NULL || nbd_conn_why_lost (slot->conn) == NULL)
      continue;
    died |= slot->born >= pool->backed_off;
    young |= slot->born >= pool->backed_off && now - slot->born < slot->pause;
    pool->slots[i] = NULL;
    pool->generation++;
    put_slot (slot);
  }
  if (!died)
    return;
  pool->flapping = young;
  pool->backed_off = now;
  set_next_try (pool, young ? pool->pause * 2 : PAUSE_MIN, now);
}

/* The first place in which there is a connection, or none; connections
 * if there is no such place.  Only the healer changes that.
 */
static unsigned
find_place (const struct nbd_pool *pool, bool taken)
{
  unsigned i = 0;

  while (i < pool->connections && (pool->slots[i] != NULL) != taken)
    i++;
  return i;
}

static bool
is_empty (const struct nbd_pool *pool)
{
  return find_place (pool, true) == pool->connections;
}

/* ---- the healer: it connects ---- */

static void
attempt_failed (struct nbd_pool *pool, const char *failure, bool differs)
{
  const struct nbd_pool_params *params = &pool->params;
  char why[sizeof pool->reason];

  set_next_try (pool, pool->pause * 2, monotonic_ms ());
  snprintf (why, sizeof why, "%s", failure);
  if (strcmp (pool->reason, why) == 0)
    return;
  {
    LOCK_FOR_SCOPE (&pool->lock);
    memcpy (pool->reason, why, sizeof why);
    pool->refused |= differs && is_empty (pool);
    pool->generation++;
  }
  if (differs)
    log_error (params->log, "%s %s came back and %s; it is not used: bring the "
               "right one back, or start again", params->role, params->uri,
               why);
  else
    log_info (params->log, "%s %s cannot be reached again: %s", params->role,
              params->uri, why);
}

/* The new connection comes into use. */
static int
use_conn (struct nbd_pool *pool, struct nbd_conn *conn)
{
  LOCK_FOR_SCOPE (&pool->lock);

  if (new_slot (pool, find_place (pool, false), conn) == NULL)
    return -1;
  pool->connect_deadline = pool->connect_normal;
  pool->refused = false;
  pool->reason[0] = '\0';
  pool->generation++;
  return 0;
}

static void
finish_attempt (struct nbd_pool *pool)
{
  struct attempt *a = &pool->attempt;
  const char *why;

  attempt_end (a);
  pool->attempting = false;
  why = attempt_failure (a);
  if (a->missed)
    miss_deadline (&pool->connect_deadline, pool->connect_normal, 0);

  /* Is it of any use still? */
  if (pool->stopping || pool->lost || a->losses != pool->losses)
    ;
  else if (why)
    attempt_failed (pool, why, a->differs == 1);
  else if (use_conn (pool, a->conn) == 0)
    a->conn = NULL;
  else
    attempt_failed (pool, strerror (errno), false);
  attempt_clear (a);
}

/* Fill a place, if it is time.  Where there is no witness, nothing must have
 * been made since all were lost.
 */
static void
start_attempt (struct nbd_pool *pool, int64_t now)
{
  const bool needs_witness = pool->params.together && !is_empty (pool);
  struct attempt *a = &pool->attempt;
  struct nbd_slot *witness;

  if (pool->stopping || pool->lost || now < pool->next_try ||
      find_place (pool, false) == pool->connections)
    return;
  witness = needs_witness ? get_for_call (pool) : NULL;
  if (needs_witness && witness == NULL)
    return;
  new_attempt (pool, a, true, pool->connect_deadline);
  a->losses = pool->losses;
  a->witness = witness;
  pool->attempting = a->conn && attempt_begin (a) == 0;
  if (!pool->attempting) {
    attempt_failed (pool, strerror (errno), false);
    attempt_clear (a);
  }
}

/* All connections of an export that is written to are gone. */
static void
begin_anew (struct nbd_pool *pool)
{
  if (pool->attempting)
    nbd_conn_kill (pool->attempt.conn, "another connection was lost");
  if (pool->service.lost)
    pool->service.lost (pool->service.opaque);

  LOCK_FOR_SCOPE (&pool->lock);
  pool->lost = false;
  pool->losses++;
  pool->generation++;
}

/* ---- the healer: it tells ---- */

/* Does a connection last? */
static bool
is_steady (struct nbd_pool *pool, int64_t now)
{
  LOCK_FOR_SCOPE (&pool->lock);

  for (unsigned i = 0; i < pool->connections; i++) {
    const struct nbd_slot *slot = pool->slots[i];

    if (is_alive (slot) &&
        (!pool->flapping || now - slot->born >= slot->pause))
      return true;
  }
  return false;
}

/* Say what has changed, once; that it is back only when that lasts, if it did
 * not the last time.
 */
static void
tell (struct nbd_pool *pool, int64_t now)
{
  const struct nbd_pool_params *params = &pool->params;
  const bool up = nbd_pool_state (pool) == BACKEND_UP;

  if (pool->told_up && !up && is_empty (pool)) {
    pool->told_up = false;
    if (!pool->stopping)
      log_error (params->log, "%s %s is lost: %s; what needs it waits",
                 params->role, params->uri, pool->reason);
  }
  else if (!pool->told_up && is_steady (pool, now)) {
    pool->told_up = true;
    pool->flapping = false;
    log_info (params->log, "%s %s is back", params->role, params->uri);
  }
  if (pool->told != pool->generation) {
    pool->told = pool->generation;
    if (pool->service.changed)
      pool->service.changed (pool->service.opaque);
  }
}

/* Until something happens, an idle connection's end included: what is in flight
 * would tell of that.
 */
static void
sleep_on (struct nbd_pool *pool, int64_t now)
{
  const bool hurry = pool->stopping && pool->grace >= 0;
  struct pollfd *fds = pool->poll;
  int64_t pause = pool->attempting ? ATTEMPT_TICK : TICK;
  nfds_t n = 2;
  eventfd_t ignored;

  fds[0] = (struct pollfd){ .fd = pool->wakeup, .events = POLLIN };
  fds[1] = (struct pollfd){
    .fd = pool->attempting ? pool->attempt.done : -1, .events = POLLIN
  };
  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (pool->slots[i]) && nbd_conn_load (pool->slots[i]->conn) == 0)
      fds[n++] = (struct pollfd){
        .fd = pool->slots[i]->view.fd, .events = POLLRDHUP
      };
  if (!pool->attempting && pool->next_try > now)
    pause = MIN (pause, pool->next_try - now);
  pause = MIN (pause, (hurry ? pool->grace : pool->reply_normal) / 4 + 1);
  poll (fds, n, pause);
  if (fds[0].revents)
    (void)!eventfd_read (pool->wakeup, &ignored);
  if (fds[1].revents)
    finish_attempt (pool);
}

static void *
healer_thread (void *arg)
{
  struct nbd_pool *pool = arg;
  int64_t now;

  for (;;) {
    now = monotonic_ms ();
    {
      LOCK_FOR_SCOPE (&pool->lock);
      if (pool->ending)
        break;
      watch_all (pool, now);
      bury_all (pool, now);
    }
    tell (pool, now);
    if (pool->lost && is_empty (pool))
      begin_anew (pool);
    if (pool->attempting)
      attempt_watch (&pool->attempt);
    else
      start_attempt (pool, now);
    tell (pool, now);
    sleep_on (pool, now);
  }

  if (pool->attempting) {
    nbd_conn_kill (pool->attempt.conn, "the end");
    if (pool->attempt.witness)
      nbd_conn_kill (pool->attempt.witness->conn, "the end");
    finish_attempt (pool);
  }
  return NULL;
}

int
nbd_pool_start (struct nbd_pool *pool, const struct backend_service *service)
{
  const uint64_t seed = monotonic_seconds () * 1e9 + (uintptr_t)pool;

  memcpy (pool->seed, &seed, sizeof pool->seed);
  pool->service = *service;
  pool->reply_normal = pool->reply_deadline =
    MIN (deadline (pool, REPLY_DEADLINE, 0),
         deadline (pool, REPLY_DEADLINE, service->timeout));
  pool->connect_normal = pool->connect_deadline =
    deadline (pool, AGAIN_DEADLINE, 0);
  pool->pause = PAUSE_MIN;
  pool->told = pool->generation;
  for (unsigned i = 0; i < pool->connections; i++)
    pool->slots[i]->since = monotonic_ms ();
  if (thread_start (&pool->healer, "heal", healer_thread, pool,
                    pool->params.log) == -1)
    return -1;
  pool->running = true;
  return 0;
}

void
nbd_pool_interrupt (struct nbd_pool *pool, int grace)
{
  LOCK_FOR_SCOPE (&pool->lock);

  pool->interrupted = monotonic_ms ();
  pool->grace = grace;
  pool->stopping = true;
  wake_healer (pool);
}

/* ---- opening and closing ---- */

struct nbd_handle *
nbd_pool_handle (struct nbd_pool *pool)
{
  return nbd_conn_handle (pool->slots[0]->conn);
}

/* Connect, as long as there is no healer.  -1, logged, as an error if it is the
 * first.
 */
static int
connect_now (struct nbd_pool *pool, bool first, int64_t limit)
{
  const struct nbd_pool_params *params = &pool->params;
  struct attempt a;
  const char *why = NULL;

  new_attempt (pool, &a, !first, limit);
  if (a.conn == NULL || attempt_now (&a) == -1 ||
      ((why = attempt_failure (&a)) == NULL &&
       new_slot (pool, pool->connections, a.conn) == NULL))
    why = strerror (errno);
  if (why == NULL) {
    pool->connections++;
    return 0;
  }
  if (first)
    log_error (params->log, "cannot connect to %s %s: %s%s", params->role,
               params->uri, why, a.missed ?
               "; see whether its server is well and can be reached" : "");
  else
    log_debug (params->log, LOG_HYDRATE, "no further connection to %s %s: %s",
               params->role, params->uri, why);
  attempt_clear (&a);
  return -1;
}

/* A server that is not going to answer should not delay the start for long:
 * one that took T for the first handshake does not need more than a multiple of
 * T.
 */
void
nbd_pool_connect_further (struct nbd_pool *pool)
{
  const struct nbd_pool_params *params = &pool->params;
  const int64_t limit = MIN (FURTHER_DEADLINE, 1000 + 10 * pool->first);

  while (pool->connections < params->connections &&
         nbd_can_multi_conn (nbd_pool_handle (pool)) == 1 &&
         connect_now (pool, false, deadline (pool, limit, 0)) == 0)
    ;
  pool->clients = MAX (pool->connections / 2, 1u);
  for (unsigned i = 0; i < pool->connections; i++)
    pool->slots[i]->for_clients = i < pool->clients;
  log_debug (params->log, LOG_HYDRATE, "%s %s: %u connections, of which %u are "
             "for clients", params->role, params->uri, pool->connections,
             pool->clients);
}

struct nbd_pool *
nbd_pool_open (const struct nbd_pool_params *params)
{
  struct nbd_pool *pool = calloc (1, sizeof *pool);
  const int64_t begin = monotonic_ms ();

  if (pool) {
    pool->params = *params;
    pool->params.connections = MAX (params->connections, 1u);
    pool->slots = calloc (pool->params.connections, sizeof *pool->slots);
    pool->poll = calloc (pool->params.connections + 2, sizeof *pool->poll);
    pool->wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
    pool->told_up = true;
    pool->clients = 1;
    pthread_mutex_init (&pool->lock, NULL);
  }
  if (pool == NULL || pool->slots == NULL || pool->poll == NULL ||
      pool->wakeup == -1)
    log_error (params->log, "%s %s: %m", params->role, params->uri);
  else if (connect_now (pool, true, deadline (pool, FIRST_DEADLINE,
                                              params->timeout)) == 0) {
    pool->first = monotonic_ms () - begin;
    return pool;
  }
  nbd_pool_close (pool);
  return NULL;
}

void
nbd_pool_close (struct nbd_pool *pool)
{
  if (pool == NULL)
    return;
  if (pool->running) {
    pthread_mutex_lock (&pool->lock);
    pool->ending = pool->stopping = true;
    pthread_mutex_unlock (&pool->lock);
    wake_healer (pool);
    pthread_join (pool->healer, NULL);
  }
  for (unsigned i = 0; i < pool->connections; i++)
    if (pool->slots[i]) {
      assert (pool->slots[i]->users == 1);
      put_slot (pool->slots[i]);
    }
  if (pool->wakeup >= 0)
    close (pool->wakeup);
  pthread_mutex_destroy (&pool->lock);
  free (pool->slots);
  free (pool->poll);
  free (pool);
}
