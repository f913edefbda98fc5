/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
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

/* All times are milliseconds. */

/* For the first connection, and at most for each further one: some servers
 * accept so many clients and leave the others waiting.
 */
#define FIRST_TIMEOUT 30000
#define FURTHER_TIMEOUT 5000

/* To connect again, and then to show that it is the same export. */
#define AGAIN_TIMEOUT 10000

/* The pauses between tries to make one connection again: each is twice as long
 * as the one before, of which a random part of up to a half is left out, so
 * that many clients do not come all at once to a server that has just started.
 * They begin anew after a connection on which something was done.  A connection
 * that is made ends the others' pauses, since the server is there; the next
 * ones are no shorter for that.
 */
#define PAUSE_MIN 100u
#define PAUSE_MAX 10000u

/* The deadline for replies: with requests in flight nothing came for so long.
 * It doubles where a connection had to be killed before the first reply came,
 * since perhaps the server is only slow; but it is never longer than requests
 * may wait (backend_service.timeout).
 */
#define REPLY_MIN 30000
#define REPLY_MAX 600000

/* Between two looks at the connections. */
#define TICK 1000

struct nbd_slot {
  struct nbd_conn *conn; /* NULL: there is none now */
  unsigned users;        /* who hold it: calls and channels */
  unsigned channels;

  /* The healer's. */
  unsigned pause;
  int64_t next_try;
  uint64_t replies;      /* when it was last looked at */
  uint64_t first_replies; /* and when the connection came into use */
  int64_t since;         /* when that changed, or nothing was in flight */
};

struct nbd_pool {
  struct nbd_pool_params params;
  struct backend_service service;
  struct nbd_slot *slots;
  unsigned connections;  /* slots in use, at least 1 */
  unsigned clients;      /* of which the first so many are for clients */
  int wakeup;            /* eventfd: the healer should look */
  pthread_t healer;
  atomic_bool running;   /* it does */
  atomic_bool stopping;  /* nbd_pool_interrupt */

  pthread_mutex_t lock;  /* protects what follows, and the slots */
  pthread_cond_t changed; /* a connection came, or none will */
  struct nbd_listener *listeners;
  bool ending;           /* nbd_pool_close */
  int64_t kill_at;       /* when to end what is in flight, -1 for never */
  bool refused;
  bool broken;           /* together: a connection was lost, all must go */
  int64_t reply_deadline;

  /* The healer's. */
  enum backend_state told;
  char *why;             /* the first connection of this outage was lost */
  unsigned short seed[3];
};

static bool
is_alive (const struct nbd_slot *slot)
{
  return slot->conn && nbd_conn_is_alive (slot->conn);
}

/* Any thread, with whatever locks. */
static void
wake_healer (void *opaque)
{
  struct nbd_pool *pool = opaque;

  /* A counter that is full wakes as well as one that was written to. */
  (void)!eventfd_write (pool->wakeup, 1);
}

/* The lock is held. */
static void
wake_listeners (struct nbd_pool *pool)
{
  for (struct nbd_listener *l = pool->listeners; l; l = l->next)
    l->wake (l);
}

/* ---- use ---- */

/* The client connection that has the least to do.  One of the channels' where
 * all of those were lost.  NULL if there is none.
 */
static struct nbd_slot *
pick_for_call (struct nbd_pool *pool)
{
  struct nbd_slot *best = NULL;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = &pool->slots[i];

    if (is_alive (slot) &&
        (best == NULL || (i < pool->clients &&
                          nbd_conn_load (slot->conn) <
                          nbd_conn_load (best->conn))))
      best = slot;
  }
  return best;
}

int
nbd_pool_wait_error (struct nbd_pool *pool)
{
  if (pool->stopping)
    return ESHUTDOWN;
  return pool->running ? 0 : ENOTCONN;
}

/* Wait for a change, or until this moment, -1 for ever.  0 or EIO. */
static int
wait_for_change (struct nbd_pool *pool, int64_t until)
{
  const struct timespec ts = {
    .tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000
  };

  if (until == -1)
    return pthread_cond_wait (&pool->changed, &pool->lock);
  return pthread_cond_timedwait (&pool->changed, &pool->lock, &ts) ? EIO : 0;
}

/* Hold a connection for a call.  NULL with *error set. */
static struct nbd_slot *
get_for_call (struct nbd_pool *pool, bool patient, int64_t until, int *error)
{
  LOCK_FOR_SCOPE (&pool->lock);
  struct nbd_slot *slot;

  /* Those that were lost may have waited long enough for a reply. */
  if (until != -1 && monotonic_ms () >= until) {
    *error = EIO;
    return NULL;
  }
  while ((slot = pick_for_call (pool)) == NULL) {
    *error = nbd_pool_wait_error (pool);
    if (*error == 0 && !patient)
      *error = ENOTCONN;
    if (*error == 0)
      *error = pool->refused ? EIO : wait_for_change (pool, until);
    if (*error)
      return NULL;
  }
  slot->users++;
  return slot;
}

static void
give_back (struct nbd_pool *pool, struct nbd_slot *slot)
{
  slot->users--;
  if (slot->users == 0 && !is_alive (slot))
    wake_healer (pool);
}

bool
nbd_pool_is_loss (struct nbd_pool *pool, struct nbd_slot *slot, int error)
{
  if (error == ESHUTDOWN && pool->running)
    nbd_conn_kill (slot->conn, "the server is shutting down");
  else if (error != ENOTCONN)
    return false;
  return pool->running;
}

/* Put those that were lost first.  Returns how many that are. */
static size_t
collect_lost (struct nbd_pool *pool, struct nbd_slot *slot,
              struct nbd_req *req, size_t n)
{
  size_t lost = 0;

  for (size_t i = 0; i < n; i++) {
    struct nbd_req r = req[i];

    if (!nbd_pool_is_loss (pool, slot, r.error))
      continue;
    if (r.extents)
      extents_clear (r.extents);
    req[i] = req[lost];
    req[lost++] = r;
  }
  return lost;
}

void
nbd_pool_call (struct nbd_pool *pool, struct nbd_req *req, size_t n,
               bool patient)
{
  const unsigned timeout = pool->service.timeout;
  const int64_t until = timeout ? monotonic_ms () + timeout * 1000LL : -1;
  struct nbd_slot *slot;
  int error;

  while (n > 0) {
    slot = get_for_call (pool, patient, until, &error);
    if (slot == NULL) {
      for (size_t i = 0; i < n; i++)
        req[i].error = error;
      return;
    }
    nbd_conn_call (slot->conn, req, n);
    n = patient ? collect_lost (pool, slot, req, n) : 0;

    LOCK_FOR_SCOPE (&pool->lock);
    give_back (pool, slot);
  }
}

/* ---- channels ---- */

void
nbd_pool_listen (struct nbd_pool *pool, struct nbd_listener *listener)
{
  LOCK_FOR_SCOPE (&pool->lock);

  listener->next = pool->listeners;
  pool->listeners = listener;
}

void
nbd_pool_unlisten (struct nbd_pool *pool, struct nbd_listener *listener)
{
  struct nbd_listener **p = &pool->listeners;
  LOCK_FOR_SCOPE (&pool->lock);

  while (*p != listener)
    p = &(*p)->next;
  *p = listener->next;
}

/* The less the better: sharing with a channel is worse than sharing with
 * clients.
 */
static unsigned
cost (const struct nbd_pool *pool, const struct nbd_slot *slot)
{
  return slot->channels * 2 + (slot < pool->slots + pool->clients);
}

/* The lock is held. */
static struct nbd_slot *
pick_for_channel (struct nbd_pool *pool)
{
  struct nbd_slot *best = NULL;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = &pool->slots[i];

    if (is_alive (slot) &&
        (best == NULL || cost (pool, slot) < cost (pool, best)))
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
  give_back (pool, slot);
}

struct nbd_conn *
nbd_slot_conn (struct nbd_slot *slot)
{
  return slot->conn;
}

bool
nbd_pool_has_better (struct nbd_pool *pool, const struct nbd_slot *slot)
{
  LOCK_FOR_SCOPE (&pool->lock);
  const struct nbd_slot *best = pick_for_channel (pool);

  return best && cost (pool, best) + 2 < cost (pool, slot);
}

/* ---- state ---- */

unsigned
nbd_pool_alive (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);
  unsigned alive = 0;

  for (unsigned i = 0; i < pool->connections; i++)
    alive += pool->slots[i].conn && nbd_conn_probe (pool->slots[i].conn);
  return alive;
}

/* The lock is held. */
static enum backend_state
get_state (struct nbd_pool *pool)
{
  for (unsigned i = 0; i < pool->connections; i++)
    if (is_alive (&pool->slots[i]))
      return BACKEND_UP;
  return pool->refused ? BACKEND_REFUSED : BACKEND_LOST;
}

enum backend_state
nbd_pool_state (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);

  return get_state (pool);
}

/* ---- the healer ---- */

/* Its own loop, with the lock held but where said otherwise. */

/* Forget what was known about the connection before this moment. */
static void
start_watching (struct nbd_slot *slot, int64_t now)
{
  slot->since = now;
  slot->replies = slot->first_replies = nbd_conn_replies (slot->conn);
}

/* No reply came for too long. */
static void
kill_silent (struct nbd_pool *pool, struct nbd_slot *slot)
{
  const bool useless = slot->replies == slot->first_replies;
  char why[64];

  snprintf (why, sizeof why, "no reply for %" PRId64 " seconds",
            pool->reply_deadline / 1000);
  nbd_conn_kill (slot->conn, why);
  pool->reply_deadline =
    useless ? MIN (pool->reply_deadline * 2, REPLY_MAX) : REPLY_MIN;
  if (pool->service.timeout)
    pool->reply_deadline = MIN (pool->reply_deadline,
                                pool->service.timeout * INT64_C (1000));
}

static void
watch (struct nbd_pool *pool, struct nbd_slot *slot, int64_t now)
{
  const uint64_t replies = nbd_conn_replies (slot->conn);

  if (!nbd_conn_probe (slot->conn))
    nbd_conn_kill (slot->conn, "the server closed it");
  else if (pool->kill_at != -1 && now >= pool->kill_at)
    nbd_conn_kill (slot->conn, "the end");
  else if (replies != slot->replies || nbd_conn_load (slot->conn) == 0) {
    slot->since = now;
    slot->replies = replies;
  }
  else if (now - slot->since >= pool->reply_deadline &&
           (int64_t)nbd_conn_silence (slot->conn) >= pool->reply_deadline)
    kill_silent (pool, slot);
}

/* See who lives, and kill whom it is time for. */
static void
watch_all (struct nbd_pool *pool, int64_t now)
{
  bool dead = false;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = &pool->slots[i];

    if (is_alive (slot))
      watch (pool, slot, now);
    if (slot->conn == NULL || is_alive (slot))
      continue;
    dead = true;
    /* Who held it has learned why. */
    if (slot->users == 0 && pool->why == NULL)
      pool->why = strdup (nbd_conn_why_lost (slot->conn));
  }
  if (!dead)
    return;

  pool->broken = pool->params.together;
  for (unsigned i = 0; i < pool->connections && pool->broken; i++)
    if (is_alive (&pool->slots[i]))
      nbd_conn_kill (pool->slots[i].conn, "another connection was lost");
  wake_listeners (pool);
}

/* The pause before the next try. */
static void
set_pause (struct nbd_pool *pool, struct nbd_slot *slot, unsigned pause)
{
  slot->pause = MIN (pause, PAUSE_MAX);
  slot->next_try = monotonic_ms () +
    (int64_t)(slot->pause * (1 - erand48 (pool->seed) / 2));
}

/* Take a dead connection that nobody holds out of its slot.  NULL if there is
 * none.
 */
static struct nbd_conn *
bury (struct nbd_pool *pool)
{
  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = &pool->slots[i];
    struct nbd_conn *conn = slot->conn;
    bool useful;

    if (conn == NULL || is_alive (slot) || slot->users > 0)
      continue;
    useful = nbd_conn_replies (conn) != slot->first_replies;
    set_pause (pool, slot, useful || slot->pause == 0 ? PAUSE_MIN
                           : slot->pause * 2);
    slot->conn = NULL;
    return conn;
  }
  return NULL;
}

/* Has all gone that was lost together? */
static bool
is_over (const struct nbd_pool *pool)
{
  if (!pool->broken)
    return false;
  for (unsigned i = 0; i < pool->connections; i++)
    if (pool->slots[i].conn)
      return false;
  return true;
}

/* Before anything is connected again.  Without the lock. */
static void
begin_anew (struct nbd_pool *pool)
{
  if (pool->service.lost)
    pool->service.lost (pool->service.opaque);

  LOCK_FOR_SCOPE (&pool->lock);
  pool->broken = false;
}

/* The slot to be filled next, if it is time.  *pause is reduced to how long
 * that may be slept on.
 */
static struct nbd_slot *
next_to_make (struct nbd_pool *pool, int64_t now, int *pause)
{
  struct nbd_slot *next = NULL;

  if (pool->stopping || pool->broken)
    return NULL;
  if (pool->params.together)
    next = pool->slots[0].conn ? NULL : &pool->slots[0];
  for (unsigned i = 0; i < pool->connections && !pool->params.together; i++) {
    struct nbd_slot *slot = &pool->slots[i];

    if (slot->conn == NULL && (next == NULL || slot->next_try < next->next_try))
      next = slot;
  }
  if (next && next->next_try > now) {
    *pause = MIN (*pause, (int)(next->next_try - now));
    next = NULL;
  }
  return next;
}

/* Say what has changed, once.  Without the lock. */
static void
tell (struct nbd_pool *pool)
{
  const struct nbd_pool_params *params = &pool->params;
  const enum backend_state state = nbd_pool_state (pool);

  if (state == pool->told || (state == BACKEND_LOST && pool->why == NULL))
    return;
  if (state == BACKEND_UP)
    log_info (params->log, "%s %s is back", params->role, params->uri);
  else if (pool->told == BACKEND_UP && !pool->stopping)
    log_error (params->log, "%s %s is lost: %s; what needs it waits until it "
               "is back%s", params->role, params->uri,
               pool->why ? pool->why : "out of memory",
               pool->service.timeout ? ", or for source-timeout" : "");
  if (state == BACKEND_UP) {
    free (pool->why);
    pool->why = NULL;
  }
  pool->told = state;
  if (pool->service.changed)
    pool->service.changed (pool->service.opaque);
}

/* While a connection is being made, the others are watched. */
static bool
go_on (void *opaque)
{
  struct nbd_pool *pool = opaque;

  {
    LOCK_FOR_SCOPE (&pool->lock);
    watch_all (pool, monotonic_ms ());
  }
  tell (pool);
  return !pool->stopping;
}

/* Without the lock. */
static struct nbd_conn *
connect_again (struct nbd_pool *pool, char **differs)
{
  const struct nbd_conn_params cp = {
    .role = pool->params.role, .uri = pool->params.uri,
    .log = pool->params.log, .timeout = AGAIN_TIMEOUT,
    .go_on = go_on, .on_death = wake_healer, .opaque = pool,
  };
  struct nbd_conn *conn = nbd_conn_open (&cp);
  int error = 0;

  if (conn == NULL)
    return NULL;
  nbd_conn_limit (conn, AGAIN_TIMEOUT);
  *differs = pool->params.differs (pool->params.opaque, conn, &error);
  nbd_conn_limit (conn, -1);
  if (*differs || error) {
    nbd_conn_close (conn);
    return NULL;
  }
  return conn;
}

/* Make n connections, or as many of them as can be had.  Without the lock. */
static unsigned
connect_some (struct nbd_pool *pool, struct nbd_conn **conn, unsigned n,
              char **differs)
{
  unsigned made = 0;

  while (made < n && *differs == NULL &&
         (conn[made] = connect_again (pool, differs)) != NULL)
    made++;
  while (*differs && made > 0)
    nbd_conn_close (conn[--made]);
  return made;
}

/* Fill this slot, or, where connections live together, all from it on: if they
 * came one after the other into use, the server could have crashed between them,
 * and the latest be used before anybody knows of that.  Without the lock.
 */
static void
make (struct nbd_pool *pool, struct nbd_slot *slot)
{
  const unsigned n = pool->params.together ? pool->connections : 1;
  CLEANUP_FREE struct nbd_conn **conn = calloc (n, sizeof *conn);
  CLEANUP_FREE char *differs = NULL;
  const unsigned made = conn ? connect_some (pool, conn, n, &differs) : 0;
  const int64_t now = monotonic_ms ();

  if (differs && pool->told != BACKEND_REFUSED)
    log_error (pool->params.log, "%s %s came back and %s; it is not used: "
               "bring the right one back, or start again", pool->params.role,
               pool->params.uri, differs);

  LOCK_FOR_SCOPE (&pool->lock);
  pool->refused = differs != NULL || (pool->refused && made == 0);
  if (made == 0)
    set_pause (pool, slot, differs ? PAUSE_MAX : slot->pause * 2);
  for (unsigned i = 0; i < made; i++) {
    slot[i].conn = conn[i];
    start_watching (&slot[i], now);
  }
  for (unsigned i = 0; i < pool->connections && made > 0; i++)
    pool->slots[i].next_try = MIN (pool->slots[i].next_try, now);
  pthread_cond_broadcast (&pool->changed);
  wake_listeners (pool);
}

static void
sleep_on (struct nbd_pool *pool, int pause)
{
  struct pollfd pfd = { .fd = pool->wakeup, .events = POLLIN };
  eventfd_t ignored;

  if (poll (&pfd, 1, pause) > 0)
    (void)!eventfd_read (pool->wakeup, &ignored);
}

static void *
healer_thread (void *arg)
{
  struct nbd_pool *pool = arg;
  struct nbd_conn *dead;
  struct nbd_slot *slot;
  bool over;
  int pause;

  for (;;) {
    {
      LOCK_FOR_SCOPE (&pool->lock);
      const int64_t now = monotonic_ms ();

      if (pool->ending)
        return NULL;
      pause = TICK;
      if (pool->kill_at > now)
        pause = MIN (pause, (int)(pool->kill_at - now));
      watch_all (pool, now);
      dead = bury (pool);
      over = is_over (pool);
      slot = dead ? NULL : next_to_make (pool, now, &pause);
    }
    tell (pool);
    if (dead)
      nbd_conn_close (dead);
    else if (over)
      begin_anew (pool);
    else if (slot)
      make (pool, slot);
    else
      sleep_on (pool, pause);
  }
}

int
nbd_pool_start (struct nbd_pool *pool, const struct backend_service *service)
{
  const uint64_t seed = monotonic_seconds () * 1e9 + (uintptr_t)pool;

  memcpy (pool->seed, &seed, sizeof pool->seed);
  pool->service = *service;
  pool->reply_deadline = REPLY_MIN;
  if (service->timeout)
    pool->reply_deadline = MIN (REPLY_MIN, service->timeout * INT64_C (1000));
  for (unsigned i = 0; i < pool->connections; i++)
    start_watching (&pool->slots[i], monotonic_ms ());
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

  pool->stopping = true;
  if (grace >= 0)
    pool->kill_at = monotonic_ms () + grace;
  pthread_cond_broadcast (&pool->changed);
  wake_listeners (pool);
  wake_healer (pool);
}

/* ---- opening and closing ---- */

struct nbd_handle *
nbd_pool_handle (struct nbd_pool *pool)
{
  return nbd_conn_handle (pool->slots[0].conn);
}

/* A server that is not going to answer should not delay the start for long:
 * one that took T for the first handshake does not need more than a multiple of
 * T.
 */
void
nbd_pool_connect_further (struct nbd_pool *pool)
{
  struct nbd_pool_params *params = &pool->params;
  const struct nbd_conn_params cp = {
    .role = params->role, .uri = params->uri, .log = params->log,
    .timeout = MIN (FURTHER_TIMEOUT, 1000 + 10 * pool->slots[0].since),
    .on_death = wake_healer, .opaque = pool,
  };

  while (pool->connections < params->connections &&
         nbd_can_multi_conn (nbd_pool_handle (pool)) == 1) {
    struct nbd_conn *conn = nbd_conn_open (&cp);
    CLEANUP_FREE char *differs = NULL;
    int error = 0;

    if (conn == NULL)
      break;
    differs = params->differs (params->opaque, conn, &error);
    if (differs || error) {
      log_debug (params->log, LOG_HYDRATE, "no further connection to %s %s: "
                 "it %s", params->role, params->uri,
                 differs ? differs : "fails");
      nbd_conn_close (conn);
      break;
    }
    pool->slots[pool->connections++].conn = conn;
  }
  pool->clients = MAX (pool->connections / 2, 1u);
  log_debug (params->log, LOG_HYDRATE, "%s %s: %u connections, of which %u are "
             "for clients", params->role, params->uri, pool->connections,
             pool->clients);
}

static int
connect_first (struct nbd_pool *pool)
{
  const struct nbd_conn_params cp = {
    .role = pool->params.role, .uri = pool->params.uri,
    .log = pool->params.log, .timeout = FIRST_TIMEOUT, .required = true,
    .on_death = wake_healer, .opaque = pool,
  };
  const int64_t begin = monotonic_ms ();

  pool->slots[0].conn = nbd_conn_open (&cp);
  if (pool->slots[0].conn == NULL)
    return -1;
  pool->slots[0].since = monotonic_ms () - begin; /* until it is watched */
  pool->connections = pool->clients = 1;
  return 0;
}

struct nbd_pool *
nbd_pool_open (const struct nbd_pool_params *params)
{
  struct nbd_pool *pool = calloc (1, sizeof *pool);
  pthread_condattr_t attr;

  if (pool == NULL)
    goto no_memory;
  pool->params = *params;
  pool->params.role = strdup (params->role);
  pool->params.uri = strdup (params->uri);
  pool->params.connections = MAX (params->connections, 1u);
  pool->slots = calloc (pool->params.connections, sizeof *pool->slots);
  pool->wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  pool->kill_at = -1;
  pthread_mutex_init (&pool->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&pool->changed, &attr);
  pthread_condattr_destroy (&attr);

  if (pool->params.role == NULL || pool->params.uri == NULL ||
      pool->slots == NULL || pool->wakeup == -1)
    goto no_memory;
  if (connect_first (pool) == 0)
    return pool;
  nbd_pool_close (pool);
  return NULL;

 no_memory:
  log_error (params->log, "%s %s: %m", params->role, params->uri);
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
  for (unsigned i = 0; i < pool->connections; i++) {
    assert (pool->slots[i].users == 0);
    nbd_conn_close (pool->slots[i].conn);
  }
  if (pool->wakeup >= 0)
    close (pool->wakeup);
  pthread_cond_destroy (&pool->changed);
  pthread_mutex_destroy (&pool->lock);
  free (pool->slots);
  free (pool->why);
  free ((char *)pool->params.role);
  free ((char *)pool->params.uri);
  free (pool);
}
