/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The watcher: kills connections that make no progress, logs what has happened,
 * and calls the functions of struct backend_service.  The deadlines are in
 * nbd-pool.c.  Functions are called with the pool's lock unless their comment
 * says otherwise.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "backend/nbd-pool-internal.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/text.h"
#include "base/thread.h"

/* Bytes per millisecond of the deadline that must arrive to count as progress.
 */
#define RATE_MIN 1

/* The most CPU time, in milliseconds, that connecting may use.  Only a server
 * that never stops sending makes it exceed this.
 */
#define CONNECT_CPU INT64_C (1000)

/* Connections in use are checked at least every TICK, and one that is being
 * made every CONNECT_TICK.
 */
#define TICK INT64_C (1000)
#define CONNECT_TICK INT64_C (100)

/* ---- Progress ---- */

static void
kill_silent (struct nbd_pool *pool, struct nbd_connection *conn,
             const char *what, struct nbd_deadline *deadline)
{
  char why[64];

  snprintf (why, sizeof why, "no %s for %g seconds", what,
            deadline->now / 1000.0);
  nbd_connection_kill (conn, why);
  deadline->now = MIN (deadline->now * 2, deadline->max);
  pool->missed = true;
}

/* Kill a connection that is being made if it takes too long. */
static void
watch_making (struct nbd_pool *pool, struct nbd_connection *conn, int64_t now)
{
  if (pool->stopping)
    nbd_connection_kill (conn, "stopping");
  else if (clock_ms (conn->clock) - conn->cpu >= CONNECT_CPU)
    nbd_connection_kill (conn, "the server sends too much");
  else if (now - conn->since >= pool->connect.now)
    kill_silent (pool, conn, "answer", &pool->connect);
}

/* Kill a connection in use if it makes no progress.  slow: a flush, zero, trim
 * or FUA request is in flight on any connection.  (Before nbd_pool_start, and
 * when the process is about to end, only replies count as progress.)
 */
static void
watch_use (struct nbd_pool *pool, struct nbd_connection *conn, bool slow,
           int64_t now)
{
  const bool ending = pool->grace >= 0;
  const uint64_t enough = pool->reply.now * RATE_MIN;
  const uint64_t received = nbd_connection_received (conn);

  if (conn->load == 0 ||
      (pool->running && !ending &&
       (slow || received - conn->received >= enough))) {
    conn->since = now;
    conn->received = received;
  }
  else if (ending && now - MAX (conn->since, pool->interrupted) >= pool->grace)
    nbd_connection_kill (conn, "stopping");
  else if (now - conn->since < pool->reply.now)
    ;
  else if (pool->running && nbd_connection_has_unread (conn))
    conn->since = now; /* we are late, not the server */
  else
    kill_silent (pool, conn, "reply", &pool->reply);
}

static void
see_progress (struct nbd_pool *pool, struct nbd_connection *conn, int64_t now)
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
    if (nbd_slot_is_alive (&pool->slots[i])) {
      see_progress (pool, pool->slots[i].conn, now);
      slow += pool->slots[i].conn->slow;
    }
  for (unsigned i = 0; i < pool->connections; i++)
    if (nbd_slot_is_alive (&pool->slots[i]))
      watch_use (pool, pool->slots[i].conn, slow > 0, now);
  if (pool->made && pool->made->alive) {
    see_progress (pool, pool->made, now);
    watch_making (pool, pool->made, now);
  }
}

/* ---- News ---- */

/* Has the connection lived at least as long as the pause before it? */
static bool
slot_is_steady (const struct nbd_slot *slot)
{
  return nbd_slot_is_alive (slot) &&
    (!slot->pool->flapping ||
     monotonic_ms () - slot->conn->born >= slot->conn->pause);
}

/* Without the lock. */
static const char *
consequence (const struct nbd_pool *pool)
{
  const struct backend_service *service = &pool->service;

  return service->consequence ? service->consequence (service->opaque) : "";
}

/* Log what has changed, once, and call service.changed.  If earlier connections
 * died quickly, say that the server is back only after a connection has lasted.
 * The lock is released meanwhile.
 */
static void
tell_news (struct nbd_pool *pool)
{
  const struct nbd_pool_params *params = &pool->params;
  const bool lost =
    pool->told_up && nbd_pool_count (pool, nbd_slot_is_used) == 0;
  const bool back = !pool->told_up && nbd_pool_count (pool, slot_is_steady) > 0;
  const bool changed = pool->told != pool->generation;
  const bool quiet = pool->stopping;
  const int64_t now = monotonic_ms ();
  const double seconds = (now - pool->told_lost) / 1000.0;
  char why[sizeof pool->reason];

  if (lost || back)
    pool->told_up = back;
  if (lost)
    pool->told_lost = now;
  if (back)
    pool->flapping = false;
  pool->told = pool->generation;
  memcpy (why, pool->reason, sizeof why);
  pthread_mutex_unlock (&pool->lock);
  if (lost && !quiet)
    log_error (params->log, "%s %s is lost: %s; requests that need it wait%s",
               params->role, params->uri, why, consequence (pool));
  if (back)
    log_info (params->log, "%s %s is back after %s%s", params->role,
              params->uri, text_time (seconds).s, consequence (pool));
  if (changed && pool->service.changed)
    pool->service.changed (pool->service.opaque);
  pthread_mutex_lock (&pool->lock);
}

/* Call service.lost: all connections to an export that is written to are dead.
 * The lock is released meanwhile.
 */
static void
tell_loss (struct nbd_pool *pool)
{
  pthread_mutex_unlock (&pool->lock);
  if (pool->service.lost)
    pool->service.lost (pool->service.opaque);
  pthread_mutex_lock (&pool->lock);
  pool->loss_pending = false;
  pool->losses++;
  pool->generation++;
  nbd_pool_signal_change (pool);
}

/* ---- The thread ---- */

/* Milliseconds until the next look. */
static int64_t
next_look (const struct nbd_pool *pool)
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
      tell_news (pool);
    if (pool->loss_pending && nbd_pool_count (pool, nbd_slot_is_used) == 0)
      tell_loss (pool);
    if (pool->watching && !pool->news)
      nbd_pool_wait_change (pool, next_look (pool));
  }
  return NULL;
}

int
nbd_watcher_begin (struct nbd_pool *pool)
{
  for (unsigned i = 0; i < pool->connections; i++)
    if (pool->slots[i].conn)
      pool->slots[i].conn->since = monotonic_ms ();
  pool->watching = true;
  if (thread_start (&pool->watcher, "nbd-watch", watcher_thread, pool,
                    pool->params.log) == 0)
    return 0;
  pool->watching = false;
  return -1;
}

void
nbd_watcher_end (struct nbd_pool *pool)
{
  if (!pool->watching)
    return;
  pthread_mutex_lock (&pool->lock);
  pool->watching = false;
  nbd_pool_signal_change (pool);
  pthread_mutex_unlock (&pool->lock);
  pthread_join (pool->watcher, NULL);
}
