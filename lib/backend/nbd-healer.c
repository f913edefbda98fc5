/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Making connections: the first ones, and new ones for those that died.  The
 * lock is held, and released for everything that waits.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/nbd-pool-internal.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"

/* Each pause is shortened by a random part, up to a half, so that many clients
 * do not come at the same time to a server that has just started.
 */
static void
set_next_try (struct nbd_pool *pool, int64_t pause)
{
  pool->pause = MIN (pause, NBD_PAUSE_MAX);
  pool->next_try = monotonic_ms () +
    (int64_t)(pool->pause * (1 - erand48 (pool->seed) / 2));
}

/* Connect, and check where that leads, unless it is the first connection.  The
 * lock is released meanwhile.
 */
static enum nbd_filled
connect_slot (struct nbd_slot *slot, char **why)
{
  struct nbd_pool *pool = slot->pool;
  struct nbd_connection *conn = slot->conn;
  const struct nbd_pool_params *params = &pool->params;
  enum nbd_filled r = NBD_UNFILLED;

  pthread_getcpuclockid (pthread_self (), &conn->clock);
  conn->cpu = clock_ms (conn->clock);
  conn->since = monotonic_ms ();
  pool->made = conn;
  if (pool->running && params->together)
    pool->witness = nbd_pool_pick (pool, false);
  nbd_pool_signal_change (pool);
  pthread_mutex_unlock (&pool->lock);
  if (nbd_connection_connect (conn, params->role, params->uri, pool->running)) {
    if (pool->connections == 0)
      r = NBD_FILLED;
    else
      r = (enum nbd_filled)params->check (params->opaque, conn, pool->witness,
                                          why);
  }
  pthread_mutex_lock (&pool->lock);
  nbd_connection_put (pool->witness);
  pool->witness = pool->made = NULL;
  return conn->alive ? r : NBD_UNFILLED;
}

/* The slot's connection comes into use. */
static void
use_slot (struct nbd_slot *slot)
{
  struct nbd_pool *pool = slot->pool;
  struct nbd_connection *conn = slot->conn;

  conn->in_use = true;
  conn->born = conn->since = monotonic_ms ();
  conn->seen = conn->progress; /* the steps of connecting are over */
  conn->pause = pool->pause;
  pool->connect.now = pool->connect.normal;
  pool->refused = false;
  pool->reason[0] = '\0';
  pool->generation++;
}

enum nbd_filled
nbd_slot_fill (struct nbd_slot *slot)
{
  struct nbd_pool *pool = slot->pool;
  const uint64_t losses = pool->losses;
  struct nbd_connection *conn = slot->conn = nbd_connection_new ();
  CLEANUP_FREE char *why = NULL;
  enum nbd_filled r = NBD_UNFILLED;

  if (conn)
    r = connect_slot (slot, &why);
  if (pool->stopping || pool->loss_pending || losses != pool->losses)
    r = NBD_OUTDATED;
  if (r == NBD_FILLED) {
    use_slot (slot);
    return r;
  }
  if (r != NBD_OUTDATED)
    nbd_pool_set_reason (pool, conn && !conn->alive
                         ? nbd_connection_confirm_death (conn) : why);
  nbd_connection_put (conn);
  slot->conn = NULL;
  return r;
}

/* Wait until this empty slot may be filled.  Empty slots are filled in their
 * order.  Where connections die together and there is no witness, none may have
 * been made since all died.  False: no connection is made any more.
 */
static bool
wait_turn (struct nbd_slot *slot)
{
  struct nbd_pool *pool = slot->pool;

  while (!pool->stopping) {
    const int64_t now = monotonic_ms ();
    const struct nbd_slot *first = pool->slots;
    bool may;

    while (first->conn)
      first++;
    may = first == slot && !pool->made && !pool->loss_pending &&
      (!pool->params.together || nbd_pool_count (pool, nbd_slot_is_used) == 0 ||
       nbd_pool_count (pool, nbd_slot_is_alive) > 0);
    if (may && now >= pool->next_try)
      return true;
    nbd_pool_wait_change (pool, may ? pool->next_try - now : NBD_PAUSE_MAX);
  }
  return false;
}

/* Fill the slot.  Log why that failed, but not the same reason twice. */
static void
heal_slot (struct nbd_slot *slot)
{
  struct nbd_pool *pool = slot->pool;
  const struct nbd_pool_params *params = &pool->params;
  char why[sizeof pool->reason];
  enum nbd_filled r;

  memcpy (why, pool->reason, sizeof why);
  r = nbd_slot_fill (slot);
  nbd_pool_signal_change (pool);
  if (r == NBD_FILLED || r == NBD_OUTDATED)
    return;
  set_next_try (pool, pool->pause * 2);
  if (strcmp (why, pool->reason) == 0)
    return;
  memcpy (why, pool->reason, sizeof why);
  if (r == NBD_OTHER && nbd_pool_count (pool, nbd_slot_is_used) == 0)
    pool->refused = true;
  pool->generation++;
  pthread_mutex_unlock (&pool->lock);
  if (r == NBD_OTHER)
    log_error (params->log, "%s %s came back and %s; it is not used: bring "
               "back the right one, or start again", params->role,
               params->uri, why);
  else
    log_info (params->log, "%s %s cannot be reached again: %s", params->role,
              params->uri, why);
  pthread_mutex_lock (&pool->lock);
}

/* The slot's connection is dead.  The pause takes account of the first death
 * only, among connections that were made before it.
 */
static void
empty_slot (struct nbd_slot *slot)
{
  struct nbd_pool *pool = slot->pool;
  struct nbd_connection *conn = slot->conn;
  const int64_t now = monotonic_ms ();

  if (!pool->loss_pending)
    nbd_pool_set_reason (pool, nbd_connection_confirm_death (conn));
  if (pool->params.together)
    pool->loss_pending = true;
  for (unsigned i = 0; i < pool->connections && pool->loss_pending; i++)
    if (pool->slots[i].conn)
      nbd_connection_kill (pool->slots[i].conn, pool->reason);
  if (conn->born >= pool->backed_off) {
    pool->flapping = now - conn->born < conn->pause;
    pool->backed_off = now;
    set_next_try (pool, pool->flapping ? pool->pause * 2 : NBD_PAUSE_MIN);
  }
  slot->conn = NULL;
  pool->generation++;
  nbd_connection_put (conn);
  nbd_pool_signal_change (pool);
}

void *
nbd_slot_thread (void *arg)
{
  struct nbd_slot *slot = arg;
  LOCK_FOR_SCOPE (&slot->pool->lock);

  while (slot->conn || wait_turn (slot)) {
    if (slot->conn == NULL) {
      heal_slot (slot);
      continue;
    }
    pthread_mutex_unlock (&slot->pool->lock);
    nbd_connection_drive (slot->conn);
    pthread_mutex_lock (&slot->pool->lock);
    if (slot->conn->stop_driving)
      break;
    empty_slot (slot);
  }
  return NULL;
}
