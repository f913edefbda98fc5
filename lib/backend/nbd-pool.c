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

#include "backend/nbd-pool-internal.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/thread.h"

/* Deadlines, in milliseconds without progress. */

/* To make the first connection. */
#define FIRST_DEADLINE INT64_C (30000)
/* To make each further connection: some servers limit the number of clients,
 * and let a further client wait.
 */
#define FURTHER_DEADLINE INT64_C (5000)
/* For a call before nbd_pool_start. */
#define CALL_DEADLINE INT64_C (60000)
/* To connect again, and then to show that the export is the same. */
#define AGAIN_DEADLINE INT64_C (10000)
/* For replies. */
#define REPLY_DEADLINE INT64_C (30000)
/* Doubling ends here. */
#define DEADLINE_MAX INT64_C (600000)

/* ---- Helpers, called with the lock ---- */

void
nbd_pool_signal_change (struct nbd_pool *pool)
{
  pool->news = true;
  pthread_cond_broadcast (&pool->changed);
}

void
nbd_pool_wait_change (struct nbd_pool *pool, int64_t ms)
{
  const struct timespec end = monotonic_after (ms / 1000.0);

  pthread_cond_timedwait (&pool->changed, &pool->lock, &end);
}

bool
nbd_slot_is_used (const struct nbd_slot *slot)
{
  return slot->conn && slot->conn->in_use;
}

bool
nbd_slot_is_alive (const struct nbd_slot *slot)
{
  return nbd_slot_is_used (slot) && slot->conn->alive;
}

unsigned
nbd_pool_count (const struct nbd_pool *pool,
                bool (*is) (const struct nbd_slot *))
{
  unsigned n = 0;

  for (unsigned i = 0; i < pool->connections; i++)
    n += is (&pool->slots[i]);
  return n;
}

struct nbd_connection *
nbd_pool_pick (const struct nbd_pool *pool, bool for_channel)
{
  struct nbd_connection *best = NULL;
  unsigned lowest = 0;

  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_connection *conn = pool->slots[i].conn;
    const bool clients = i < pool->clients;
    unsigned cost;

    if (!nbd_slot_is_alive (&pool->slots[i]))
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

void
nbd_pool_set_reason (struct nbd_pool *pool, const char *why)
{
  snprintf (pool->reason, sizeof pool->reason, "%s",
            why ? why : "out of memory");
}

/* ---- Use ---- */

void
nbd_pool_call (struct nbd_pool *pool, struct nbd_request *req, size_t n)
{
  struct nbd_connection *conn;

  assert_may_wait ();
  pthread_mutex_lock (&pool->lock);
  conn = nbd_pool_pick (pool, false);
  pthread_mutex_unlock (&pool->lock);
  if (conn == NULL || (!pool->running && nbd_watcher_begin (pool) == -1)) {
    for (size_t i = 0; i < n; i++)
      req[i].error = ENOTCONN;
    nbd_connection_put (conn);
    return;
  }
  nbd_connection_call (conn, req, n);
  if (!pool->running) {
    nbd_watcher_end (pool);
    if (!conn->alive)
      nbd_pool_set_reason (pool, nbd_connection_confirm_death (conn));
  }
  nbd_connection_put (conn);
}

struct nbd_connection *
nbd_pool_take (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);
  struct nbd_connection *conn = nbd_pool_pick (pool, true);

  if (conn)
    conn->channels++;
  return conn;
}

void
nbd_pool_give_back (struct nbd_pool *pool, struct nbd_connection *conn)
{
  pthread_mutex_lock (&pool->lock);
  conn->channels--;
  pthread_mutex_unlock (&pool->lock);
  nbd_connection_put (conn);
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

  return nbd_pool_count (pool, nbd_slot_is_alive);
}

enum backend_state
nbd_pool_state (struct nbd_pool *pool)
{
  LOCK_FOR_SCOPE (&pool->lock);

  return nbd_pool_count (pool, nbd_slot_is_alive) > 0 ? BACKEND_UP
    : pool->refused ? BACKEND_REFUSED : BACKEND_LOST;
}

void
nbd_pool_reason (struct nbd_pool *pool, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&pool->lock);

  snprintf (buf, size, "%s", pool->reason);
}

/* ---- Opening and closing ---- */

struct nbd_handle *
nbd_pool_handle (struct nbd_pool *pool)
{
  return pool->slots[0].conn->nbd;
}

/* Set a deadline to `normal' milliseconds; or to `seconds', if that is not 0.
 * A test's deadline replaces both.
 */
static void
set_deadline (const struct nbd_pool *pool, struct nbd_deadline *deadline,
              int64_t normal, unsigned seconds)
{
  if (seconds)
    normal = seconds * INT64_C (1000);
  if (pool->params.deadline)
    normal = pool->params.deadline;
  deadline->normal = deadline->now = normal;
  deadline->max = MAX (normal, DEADLINE_MAX);
}

/* Connect while there are no threads.  normal and seconds are as in
 * set_deadline.  -1, logged, as an error for the first connection.
 */
static int
pool_connect_now (struct nbd_pool *pool, int64_t normal, unsigned seconds)
{
  const struct nbd_pool_params *params = &pool->params;
  enum nbd_filled r;

  set_deadline (pool, &pool->connect, normal, seconds);
  if (nbd_watcher_begin (pool) == -1)
    return -1;
  pthread_mutex_lock (&pool->lock);
  r = nbd_slot_fill (&pool->slots[pool->connections]);
  pthread_mutex_unlock (&pool->lock);
  nbd_watcher_end (pool);
  if (r == NBD_FILLED) {
    pool->connections++;
    return 0;
  }
  if (pool->connections == 0)
    log_error (params->log, "cannot connect to %s %s: %s%s", params->role,
               params->uri, pool->reason, pool->missed ?
               "; check that its server runs and can be reached" : "");
  else
    log_debug (params->log, LOG_HYDRATE, "no further connection to %s %s: %s",
               params->role, params->uri, pool->reason);
  pool->reason[0] = '\0';
  return -1;
}

/* A server that does not answer further connections must not delay the start
 * for long.  If the first handshake took a time T, each other handshake may
 * take a second and ten times T, at most FURTHER_DEADLINE.
 */
void
nbd_pool_connect_further (struct nbd_pool *pool)
{
  const struct nbd_pool_params *params = &pool->params;
  const int64_t first = pool->slots[0].conn->born - pool->opened;
  const int64_t limit = MIN (FURTHER_DEADLINE, 1000 + 10 * first);

  while (pool->connections < params->connections &&
         nbd_can_multi_conn (nbd_pool_handle (pool)) == 1 &&
         pool_connect_now (pool, limit, 0) == 0)
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
                                  sizeof pool->slots[0]);

  if (pool == NULL) {
    log_error (params->log, "%s %s: %m", params->role, params->uri);
    return NULL;
  }
  pool->params = *params;
  pool->params.connections = connections;
  for (unsigned i = 0; i < connections; i++)
    pool->slots[i].pool = pool;
  pool->clients = 1;
  pool->told_up = true;
  pool->grace = -1;
  pool->opened = monotonic_ms ();
  set_deadline (pool, &pool->reply, CALL_DEADLINE, params->timeout);
  pthread_mutex_init (&pool->lock, NULL);
  cond_init_monotonic (&pool->changed);
  if (pool_connect_now (pool, FIRST_DEADLINE, params->timeout) == 0)
    return pool;
  nbd_pool_close (pool);
  return NULL;
}

/* The deadline for replies, for the timeout of struct backend_service. */
static void
set_reply_deadline (struct nbd_pool *pool, unsigned seconds)
{
  const int64_t timeout = seconds ? seconds * INT64_C (1000) : DEADLINE_MAX;

  set_deadline (pool, &pool->reply, MIN (timeout, REPLY_DEADLINE), 0);
  pool->reply.max = MAX (pool->reply.normal, MIN (timeout, DEADLINE_MAX));
}

int
nbd_pool_start (struct nbd_pool *pool, const struct backend_service *service)
{
  const uint64_t seed = monotonic_seconds () * 1e9 + (uintptr_t)pool;

  memcpy (pool->seed, &seed, sizeof pool->seed);
  pool->service = *service;
  set_deadline (pool, &pool->connect, AGAIN_DEADLINE, 0);
  set_reply_deadline (pool, service->timeout);
  pool->pause = NBD_PAUSE_MIN;
  pool->told = pool->generation;
  pool->running = true;
  if (nbd_watcher_begin (pool) == -1)
    return -1;
  for (unsigned i = 0; i < pool->connections; i++) {
    struct nbd_slot *slot = &pool->slots[i];

    if (thread_start (&slot->thread, "nbd", nbd_slot_thread, slot,
                      pool->params.log) == -1)
      return -1;
    slot->started = true;
  }
  return 0;
}

void
nbd_pool_set_timeout (struct nbd_pool *pool, unsigned seconds)
{
  LOCK_FOR_SCOPE (&pool->lock);

  set_reply_deadline (pool, seconds);
  nbd_pool_signal_change (pool);
}

void
nbd_pool_interrupt (struct nbd_pool *pool, int grace)
{
  LOCK_FOR_SCOPE (&pool->lock);

  pool->interrupted = monotonic_ms ();
  pool->grace = grace;
  pool->stopping = true;
  nbd_pool_signal_change (pool);
}

void
nbd_pool_close (struct nbd_pool *pool)
{
  if (pool == NULL)
    return;
  nbd_watcher_end (pool);
  pthread_mutex_lock (&pool->lock);
  pool->stopping = true;
  if (pool->made)
    nbd_connection_kill (pool->made, "stopping");
  if (pool->witness)
    nbd_connection_kill (pool->witness, "stopping");
  for (unsigned i = 0; i < pool->connections; i++)
    if (nbd_slot_is_used (&pool->slots[i]))
      nbd_connection_stop_driving (pool->slots[i].conn);
  nbd_pool_signal_change (pool);
  pthread_mutex_unlock (&pool->lock);
  for (unsigned i = 0; i < pool->connections; i++) {
    if (pool->slots[i].started)
      pthread_join (pool->slots[i].thread, NULL);
    nbd_connection_put (pool->slots[i].conn);
  }
  pthread_cond_destroy (&pool->changed);
  pthread_mutex_destroy (&pool->lock);
  free (pool);
}
