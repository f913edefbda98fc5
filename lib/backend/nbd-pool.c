/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "backend/nbd-pool.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/thread.h"

/* All times are milliseconds, and all deadlines those without progress: for the
 * first connection; at most for each further one, since some servers accept so
 * many clients and leave the others waiting; for a call before nbd_pool_start;
 * to connect again, and then to show that it is the same export; for replies;
 * and what doubling ends with.
 */
#define FIRST_DEADLINE INT64_C (30000)
#define FURTHER_DEADLINE INT64_C (5000)
#define CALL_DEADLINE INT64_C (60000)
#define AGAIN_DEADLINE INT64_C (10000)
#define REPLY_DEADLINE INT64_C (30000)
#define DEADLINE_MAX INT64_C (600000)

/* So many bytes in a millisecond are progress. */
#define RATE_MIN 1

/* Processor time that connecting may use: only a server that sends
 * without end makes it use more.
 */
#define CONNECT_CPU INT64_C (1000)

/* Of a pause, a random part of up to a half is left out, so that many clients
 * do not come all at once to a server that has just started.
 */
#define PAUSE_MIN INT64_C (100)
#define PAUSE_MAX INT64_C (10000)

/* At most, between two looks at the connections, and at one being made. */
#define TICK INT64_C (1000)
#define CONNECT_TICK INT64_C (100)

/* A deadline: it is doubled, up to max, when it was missed. */
struct limit {
  int64_t normal, now, max;
};

struct place {
  struct nbd_pool *pool;
  struct nbd_conn *conn; /* in use, dying, or being made; or NULL */
  bool started;          /* the thread */
  pthread_t thread;
};

struct nbd_pool {
  struct nbd_pool_params params;
  struct backend_service service;
  unsigned connections;    /* places in use, at least 1, */
  unsigned clients;        /* of which the first so many are for clients */
  int64_t opened;          /* when the first connection was begun */
  bool running;            /* nbd_pool_start */
  pthread_t watcher;
  atomic_uint generation;

  pthread_mutex_t lock;    /* protects what follows, and the places */
  pthread_cond_t changed;
  bool news;               /* changed was signalled: the watcher should look */
  bool watching;           /* false: it should end */
  bool stopping;           /* nbd_pool_interrupt, */
  int64_t interrupted;     /* at this time, */
  int grace;               /* with this, -1: no limit */
  bool refused;            /* what came back is another disk */
  char reason[256];
  struct limit reply, connect;
  int64_t pause, next_try;
  int64_t backed_off;      /* when a death last changed the pause */
  bool flapping;           /* connections live shorter than the pause */
  bool missed;             /* a deadline */
  struct nbd_conn *made;   /* the one that is being made, */
  struct nbd_conn *witness;/* and its witness */
  bool lost;               /* together: lost is to be called */
  uint64_t losses;         /* how often it was */
  bool told_up;            /* in the log */
  unsigned told;           /* generation when changed was last called */
  unsigned short seed[3];
  struct place places[];
};

/* The lock is held. */
static void
signal_change (struct nbd_pool *pool)
{
  pool->news = true;
  pthread_cond_broadcast (&pool->changed);
}

/* The lock is held, and given up for this time. */
static void
wait_change (struct nbd_pool *pool, int64_t ms)
{
  const struct timespec end = monotonic_after (ms / 1000.0);

  pthread_cond_timedwait (&pool->changed, &pool->lock, &end);
}

/* So many milliseconds, or other seconds if they are not 0, unless a test has
 * another deadline.
 */
static void
set_limit (const struct nbd_pool *pool, struct limit *limit, int64_t normal,
           unsigned seconds)
{
  if (seconds)
    normal = seconds * INT64_C (1000);
  if (pool->params.deadline)
    normal = pool->params.deadline;
  limit->normal = limit->now = normal;
  limit->max = MAX (normal, DEADLINE_MAX);
}

/* ---- which connections there are: the lock is held ---- */

static bool
is_used (const struct place *place)
{
  return place->conn && place->conn->in_use;
}

static bool
is_alive (const struct place *place)
{
  return is_used (place) && place->conn->alive;
}

static unsigned
count (const struct nbd_pool *pool, bool (*is) (const struct place *))
{
  unsigned n = 0;

  for (unsigned i = 0; i < pool->connections; i++)
    n += is (&pool->places[i]);
  return n;
}

/* Hold the best connection for a client: that with the least to do of those for
 * clients, another where all of these were lost.  Or for a channel: that with
 * the fewest channels, since sharing with one of them is worse than sharing
 * with clients.  NULL if there is none.
 */
static struct nbd_conn *
pick (const struct nbd_pool *pool, bool for_channel)
{
  struct nbd_conn *best = NULL;
  unsigned lowest = 0;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_conn *conn = pool->places[i].conn;
    const bool clients = i < pool->clients;
    unsigned cost;

    if (!is_alive (&pool->places[i]))
      continue;
    cost = for_channel ? conn->channels * 2 + clients
           : clients ? conn->load : UINT_MAX;
    if (best == NULL || cost < lowest) {
      best = conn;
      lowest = cost;
    }
  }
  if (best)
    best->users++;
  return best;
}

/* ---- the watcher ---- */

static void
kill_silent (struct nbd_pool *pool, struct nbd_conn *conn, const char *what,
             struct limit *limit)
{
  char why[64];

  snprintf (why, sizeof why, "no %s for %g seconds", what,
            limit->now / 1000.0);
  nbd_conn_kill (conn, why);
  limit->now = MIN (limit->now * 2, limit->max);
  pool->missed = true;
}

/* Is it time to give up a connection that is being made? */
static void
watch_making (struct nbd_pool *pool, struct nbd_conn *conn, int64_t now)
{
  if (pool->stopping)
    nbd_conn_kill (conn, "the end");
  else if (clock_ms (conn->clock) - conn->cpu >= CONNECT_CPU)
    nbd_conn_kill (conn, "the server sends too much");
  else if (now - conn->since >= pool->connect.now)
    kill_silent (pool, conn, "answer", &pool->connect);
}

/* The same of one that is in use.  slow: some request in flight on the export
 * may take very long.  (At the start, and before the end, only replies count.)
 */
static void
watch_use (struct nbd_pool *pool, struct nbd_conn *conn, bool slow,
           int64_t now)
{
  const bool ending = pool->grace >= 0;
  const uint64_t enough = pool->reply.now * RATE_MIN;
  const uint64_t received = nbd_conn_received (conn);

  if (conn->load == 0 ||
      (pool->running && !ending &&
       (slow || received - conn->received >= enough))) {
    conn->since = now;
    conn->received = received;
  }
  else if (ending && now - MAX (conn->since, pool->interrupted) >= pool->grace)
    nbd_conn_kill (conn, "the end");
  else if (now - conn->since < pool->reply.now)
    ;
  else if (pool->running && nbd_conn_has_unread (conn))
    conn->since = now; /* it is us who are late */
  else
    kill_silent (pool, conn, "reply", &pool->reply);
}

static void
see_progress (struct nbd_pool *pool, struct nbd_conn *conn, int64_t now)
{
  const uint64_t progress = conn->progress;

  if (progress == conn->seen)
    return;
  if (conn->in_use && now - conn->since < pool->reply.normal)
    pool->reply.now = pool->reply.normal;
  conn->since = now;
  conn->seen = progress;
}

static void
watch_all (struct nbd_pool *pool)
{
  const int64_t now = monotonic_ms ();
  unsigned slow = 0;

  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (&pool->places[i])) {
      see_progress (pool, pool->places[i].conn, now);
      slow += pool->places[i].conn->slow;
    }
  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (&pool->places[i]))
      watch_use (pool, pool->places[i].conn, slow > 0, now);
  if (pool->made && pool->made->alive) {
    see_progress (pool, pool->made, now);
    watch_making (pool, pool->made, now);
  }
}

/* Does a connection last? */
static bool
is_steady (const struct place *place)
{
  return is_alive (place) &&
    (!place->pool->flapping ||
     monotonic_ms () - place->conn->born >= place->conn->pause);
}

/* Say what has changed, once; that it is back only when that lasts, if it did
 * not the last time.  The lock is held, and given up meanwhile.
 */
static void
tell (struct nbd_pool *pool)
{
  const struct nbd_pool_params *params = &pool->params;
  const bool lost = pool->told_up && count (pool, is_used) == 0;
  const bool back = !pool->told_up && count (pool, is_steady) > 0;
  const bool changed = pool->told != pool->generation;
  const bool quiet = pool->stopping;
  char why[sizeof pool->reason];

  if (lost || back)
    pool->told_up = back;
  if (back)
    pool->flapping = false;
  pool->told = pool->generation;
  memcpy (why, pool->reason, sizeof why);
  pthread_mutex_unlock (&pool->lock);
  if (lost && !quiet)
    log_error (params->log, "%s %s is lost: %s; what needs it waits",
               params->role, params->uri, why);
  if (back)
    log_info (params->log, "%s %s is back", params->role, params->uri);
  if (changed && pool->service.changed)
    pool->service.changed (pool->service.opaque);
  pthread_mutex_lock (&pool->lock);
}

/* All connections of an export that is written to are gone.  The lock is held,
 * and given up meanwhile.
 */
static void
begin_anew (struct nbd_pool *pool)
{
  pthread_mutex_unlock (&pool->lock);
  if (pool->service.lost)
    pool->service.lost (pool->service.opaque);
  pthread_mutex_lock (&pool->lock);
  pool->lost = false;
  pool->losses++;
  pool->generation++;
  signal_change (pool);
}

static int64_t
tick (const struct nbd_pool *pool)
{
  int64_t ms = MIN (TICK, pool->reply.normal / 4 + 1);

  if (pool->grace >= 0)
    ms = MIN (ms, pool->grace / 4 + 1);
  return pool->made ? MIN (ms, CONNECT_TICK) : ms;
}

static void *
watcher_thread (void *arg)
{
  struct nbd_pool *pool = arg;
  LOCK_FOR_SCOPE (&pool->lock);

  while (pool->watching) {
    pool->news = false;
    watch_all (pool);
    if (pool->running)
      tell (pool);
    if (pool->lost && count (pool, is_used) == 0)
      begin_anew (pool);
    if (pool->watching && !pool->news)
      wait_change (pool, tick (pool));
  }
  return NULL;
}

/* -1, logged. */
static int
watcher_begin (struct nbd_pool *pool)
{
  for (unsigned i = 0; i < pool->connections; i++)
    if (pool->places[i].conn)
      pool->places[i].conn->since = monotonic_ms ();
  pool->watching = true;
  if (thread_start (&pool->watcher, "nbd-watch", watcher_thread, pool,
                    pool->params.log) == 0)
    return 0;
  pool->watching = false;
  return -1;
}

static void
watcher_end (struct nbd_pool *pool)
{
  if (!pool->watching)
    return;
  pthread_mutex_lock (&pool->lock);
  pool->watching = false;
  signal_change (pool);
  pthread_mutex_unlock (&pool->lock);
  pthread_join (pool->watcher, NULL);
}

/* ---- making a connection ---- */

static void
set_next_try (struct nbd_pool *pool, int64_t pause)
{
  pool->pause = MIN (pause, PAUSE_MAX);
  pool->next_try = monotonic_ms () +
    (int64_t)(pool->pause * (1 - erand48 (pool->seed) / 2));
}

static void
set_reason (struct nbd_pool *pool, const char *why)
{
  snprintf (pool->reason, sizeof pool->reason, "%s",
            why ? why : "out of memory");
}

/* Fill the place: connect, and see what that leads to, unless it is the first
 * one.  0: it is in use; 1, -1: as check returns it, the reason says why; 2: it
 * is of no use any more.  The lock is held, and given up meanwhile.
 */
static int
fill (struct place *place)
{
  struct nbd_pool *pool = place->pool;
  const struct nbd_pool_params *params = &pool->params;
  const uint64_t losses = pool->losses;
  struct nbd_conn *conn = place->conn = pool->made = nbd_conn_new ();
  CLEANUP_FREE char *why = NULL;
  int r = -1;

  if (conn) {
    pthread_getcpuclockid (pthread_self (), &conn->clock);
    conn->cpu = clock_ms (conn->clock);
    conn->since = monotonic_ms ();
    if (pool->running && params->together)
      pool->witness = pick (pool, false);
    signal_change (pool);
    pthread_mutex_unlock (&pool->lock);
    if (nbd_conn_connect (conn, params->role, params->uri, pool->running))
      r = pool->connections == 0 ? 0
        : params->check (params->opaque, conn, pool->witness, &why);
    pthread_mutex_lock (&pool->lock);
    nbd_conn_put (pool->witness);
    pool->witness = pool->made = NULL;
    if (!conn->alive)
      r = -1;
  }

  if (pool->stopping || pool->lost || losses != pool->losses)
    r = 2;
  if (r == 0) {
    conn->in_use = true;
    conn->born = conn->since = monotonic_ms ();
    conn->seen = conn->progress; /* of making it */
    conn->pause = pool->pause;
    pool->connect.now = pool->connect.normal;
    pool->refused = false;
    pool->reason[0] = '\0';
    pool->generation++;
    return 0;
  }
  if (r != 2)
    set_reason (pool, conn && !conn->alive ? nbd_conn_why (conn) : why);
  nbd_conn_put (conn);
  place->conn = NULL;
  return r;
}

/* ---- the life of a connection: the lock is held, but given up to wait ---- */

/* Until this empty place is to be filled: the first one is.  Where there is no
 * witness, nothing must have been made since all were lost.  False: no
 * connection is made any more.
 */
static bool
wait_turn (struct place *place)
{
  struct nbd_pool *pool = place->pool;

  while (!pool->stopping) {
    const int64_t now = monotonic_ms ();
    const struct place *first = pool->places;
    bool may;

    while (first->conn)
      first++;
    may = first == place && !pool->made && !pool->lost &&
      (!pool->params.together || count (pool, is_used) == 0 ||
       count (pool, is_alive) > 0);
    if (may && now >= pool->next_try)
      return true;
    wait_change (pool, may ? pool->next_try - now : PAUSE_MAX);
  }
  return false;
}

/* Fill the place, and say why that has failed, once. */
static void
heal (struct place *place)
{
  struct nbd_pool *pool = place->pool;
  const struct nbd_pool_params *params = &pool->params;
  char why[sizeof pool->reason];
  int r;

  memcpy (why, pool->reason, sizeof why);
  r = fill (place);
  signal_change (pool);
  if (r == 0 || r == 2)
    return;
  set_next_try (pool, pool->pause * 2);
  if (strcmp (why, pool->reason) == 0)
    return;
  memcpy (why, pool->reason, sizeof why);
  pool->refused |= r == 1 && count (pool, is_used) == 0;
  pool->generation++;
  pthread_mutex_unlock (&pool->lock);
  if (r == 1)
    log_error (params->log, "%s %s came back and %s; it is not used: bring the "
               "right one back, or start again", params->role, params->uri,
               why);
  else
    log_info (params->log, "%s %s cannot be reached again: %s", params->role,
              params->uri, why);
  pthread_mutex_lock (&pool->lock);
}

/* The connection is dead.  Those that were made before the last time have had
 * their say in the pause.
 */
static void
bury (struct place *place)
{
  struct nbd_pool *pool = place->pool;
  struct nbd_conn *conn = place->conn;
  const int64_t now = monotonic_ms ();

  if (!pool->lost)
    set_reason (pool, nbd_conn_why (conn));
  pool->lost |= pool->params.together;
  for (unsigned i = 0; i < pool->connections && pool->lost; i++)
    if (pool->places[i].conn)
      nbd_conn_kill (pool->places[i].conn, pool->reason);
  if (conn->born >= pool->backed_off) {
    pool->flapping = now - conn->born < conn->pause;
    pool->backed_off = now;
    set_next_try (pool, pool->flapping ? pool->pause * 2 : PAUSE_MIN);
  }
  place->conn = NULL;
  pool->generation++;
  nbd_conn_put (conn);
  signal_change (pool);
}

static void *
life_thread (void *arg)
{
  struct place *place = arg;
  LOCK_FOR_SCOPE (&place->pool->lock);

  while (place->conn || wait_turn (place)) {
    if (place->conn == NULL) {
      heal (place);
      continue;
    }
    pthread_mutex_unlock (&place->pool->lock);
    nbd_conn_drive (place->conn);
    pthread_mutex_lock (&place->pool->lock);
    if (place->conn->leaving)
      break;
    bury (place);
  }
  return NULL;
}

/* ---- use ---- */

void
nbd_pool_call (struct nbd_pool *pool, struct nbd_req *req, size_t n)
{
  struct nbd_conn *conn;

  assert_may_wait ();
  pthread_mutex_lock (&pool->lock);
  conn = pick (pool, false);
  pthread_mutex_unlock (&pool->lock);
  if (conn == NULL || (!pool->running && watcher_begin (pool) == -1)) {
    for (size_t i = 0; i < n; i++)
      req[i].error = ENOTCONN;
    nbd_conn_put (conn);
    return;
  }
  nbd_conn_call (conn, req, n);
  if (!pool->running) {
    watcher_end (pool);
    if (!conn->alive)
      set_reason (pool, nbd_conn_why (conn));
  }
  nbd_conn_put (conn);
}

struct nbd_conn *
nbd_pool_take (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);
  struct nbd_conn *conn = pick (pool, true);

  if (conn)
    conn->channels++;
  return conn;
}

void
nbd_pool_give_back (struct nbd_pool *pool, struct nbd_conn *conn)
{
  pthread_mutex_lock (&pool->lock);
  conn->channels--;
  pthread_mutex_unlock (&pool->lock);
  nbd_conn_put (conn);
}

unsigned
nbd_pool_generation (struct nbd_pool *pool)
{
  return atomic_load_explicit (&pool->generation, memory_order_relaxed);
}

unsigned
nbd_pool_alive (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);

  return count (pool, is_alive);
}

enum backend_state
nbd_pool_state (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);

  return count (pool, is_alive) > 0 ? BACKEND_UP
    : pool->refused ? BACKEND_REFUSED : BACKEND_LOST;
}

void
nbd_pool_reason (struct nbd_pool *pool, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&pool->lock);

  snprintf (buf, size, "%s", pool->reason);
}

/* ---- opening and closing ---- */

struct nbd_handle *
nbd_pool_handle (struct nbd_pool *pool)
{
  return pool->places[0].conn->nbd;
}

/* Connect, as long as there are no threads.  For the deadline see set_limit.
 * -1, logged, as an error if it is the first.
 */
static int
connect_now (struct nbd_pool *pool, int64_t normal, unsigned seconds)
{
  const struct nbd_pool_params *params = &pool->params;
  int r;

  set_limit (pool, &pool->connect, normal, seconds);
  if (watcher_begin (pool) == -1)
    return -1;
  pthread_mutex_lock (&pool->lock);
  r = fill (&pool->places[pool->connections]);
  pthread_mutex_unlock (&pool->lock);
  watcher_end (pool);
  if (r == 0) {
    pool->connections++;
    return 0;
  }
  if (pool->connections == 0)
    log_error (params->log, "cannot connect to %s %s: %s%s", params->role,
               params->uri, pool->reason, pool->missed ?
               "; see whether its server is well and can be reached" : "");
  else
    log_debug (params->log, LOG_HYDRATE, "no further connection to %s %s: %s",
               params->role, params->uri, pool->reason);
  pool->reason[0] = '\0';
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
  const int64_t first = pool->places[0].conn->born - pool->opened;
  const int64_t limit = MIN (FURTHER_DEADLINE, 1000 + 10 * first);

  while (pool->connections < params->connections &&
         nbd_can_multi_conn (nbd_pool_handle (pool)) == 1 &&
         connect_now (pool, limit, 0) == 0)
    ;
  pool->clients = MAX (pool->connections / 2, 1u);
  log_debug (params->log, LOG_HYDRATE, "%s %s: %u connections, of which %u are "
             "for clients", params->role, params->uri, pool->connections,
             pool->clients);
}

struct nbd_pool *
nbd_pool_open (const struct nbd_pool_params *params)
{
  const unsigned connections = MAX (params->connections, 1u);
  struct nbd_pool *pool = calloc (1, sizeof *pool + connections *
                                  sizeof pool->places[0]);

  if (pool == NULL) {
    log_error (params->log, "%s %s: %m", params->role, params->uri);
    return NULL;
  }
  pool->params = *params;
  pool->params.connections = connections;
  for (unsigned i = 0; i < connections; i++)
    pool->places[i].pool = pool;
  pool->clients = 1;
  pool->told_up = true;
  pool->grace = -1;
  pool->opened = monotonic_ms ();
  set_limit (pool, &pool->reply, CALL_DEADLINE, params->timeout);
  pthread_mutex_init (&pool->lock, NULL);
  cond_init_monotonic (&pool->changed);
  if (connect_now (pool, FIRST_DEADLINE, params->timeout) == 0)
    return pool;
  nbd_pool_close (pool);
  return NULL;
}

int
nbd_pool_start (struct nbd_pool *pool, const struct backend_service *service)
{
  const uint64_t seed = monotonic_seconds () * 1e9 + (uintptr_t)pool;
  const int64_t timeout = service->timeout ? service->timeout * INT64_C (1000)
                          : DEADLINE_MAX;

  memcpy (pool->seed, &seed, sizeof pool->seed);
  pool->service = *service;
  set_limit (pool, &pool->connect, AGAIN_DEADLINE, 0);
  set_limit (pool, &pool->reply, MIN (timeout, REPLY_DEADLINE), 0);
  pool->reply.max = MAX (pool->reply.normal, MIN (timeout, DEADLINE_MAX));
  pool->pause = PAUSE_MIN;
  pool->told = pool->generation;
  pool->running = true;
  if (watcher_begin (pool) == -1)
    return -1;
  for (unsigned i = 0; i < pool->connections; i++) {
    struct place *place = &pool->places[i];

    if (thread_start (&place->thread, "nbd", life_thread, place,
                      pool->params.log) == -1)
      return -1;
    place->started = true;
  }
  return 0;
}

void
nbd_pool_interrupt (struct nbd_pool *pool, int grace)
{
  LOCK_FOR_SCOPE (&pool->lock);

  pool->interrupted = monotonic_ms ();
  pool->grace = grace;
  pool->stopping = true;
  signal_change (pool);
}

void
nbd_pool_close (struct nbd_pool *pool)
{
  if (pool == NULL)
    return;
  watcher_end (pool);
  pthread_mutex_lock (&pool->lock);
  pool->stopping = true;
  if (pool->made)
    nbd_conn_kill (pool->made, "the end");
  if (pool->witness)
    nbd_conn_kill (pool->witness, "the end");
  for (unsigned i = 0; i < pool->connections; i++)
    if (is_used (&pool->places[i]))
      nbd_conn_leave (pool->places[i].conn);
  signal_change (pool);
  pthread_mutex_unlock (&pool->lock);
  for (unsigned i = 0; i < pool->connections; i++) {
    if (pool->places[i].started)
      pthread_join (pool->places[i].thread, NULL);
    nbd_conn_put (pool->places[i].conn);
  }
  pthread_cond_destroy (&pool->changed);
  pthread_mutex_destroy (&pool->lock);
  free (pool);
}
