/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The connections to one NBD export, and how dead ones are replaced.
 *
 * If the server has multi-conn, half of the connections serve clients: each
 * request goes to the one with the fewest requests in flight.  Each channel
 * gets one of the others for itself.  So no client's request waits behind
 * hydration's.  Without multi-conn a flush covers one connection only, so the
 * pool has one connection, which clients and channels share
 * (nbd-connection.h).
 *
 * A LOSS IS AN ERROR.  Requests in flight on a connection that dies, and
 * requests for which there is no connection, fail with ENOTCONN at once.
 * Nothing here waits for the server or sends a request again.
 *
 * HEALING (nbd-healer.c).  From nbd_pool_start on each connection has a slot,
 * with a thread:
 *
 *   waits for its turn --> connects and checks that it is the same export
 *     --> is in use and driven --> is dead --> waits for its turn
 *
 * A connection is dead when the kernel or libnbd found it broken, when the
 * server closed it or announced its shutdown (ESHUTDOWN), or when the watcher
 * killed it because it made no progress.  Users that still have requests on it
 * keep its memory.
 *
 * A server that is reached again may have crashed and lost data that was not
 * flushed.  So the connections to an export that is written to die together.
 * When one dies, all others are killed.  Then the pool calls lost (struct
 * backend_service).  Only then a new connection is made, which comes into use
 * at once.  Each further connection has an older one as its witness.  It comes
 * into use when the witness has answered a request that was sent after the
 * further one connected.  This proves that both lead to the same incarnation of
 * the server.
 *
 * PROGRESS (nbd-watcher.c).  One more thread, the watcher, kills a connection
 * that has requests in flight and made no progress for the reply deadline.
 * Progress is a reply, or enough received bytes (RATE_MIN).  Time does not
 * count while the server waits for us, nor while a flush, zero, trim or FUA
 * request is in flight on any connection, because these may take very long.  A
 * deadline that was missed is doubled, since the server may only be slow.
 * Connecting, and calls before nbd_pool_start, have deadlines of their own.
 * Before nbd_pool_start both run on the caller's thread, and the watcher has
 * ended when they return, because the process may fork.  The watcher also logs
 * losses and returns, and calls the functions of struct backend_service.
 *
 * PAUSES.  The pool has one pause for all connections.  It doubles when
 * connecting fails, and when a connection dies that lived shorter than the
 * pause before it.  Otherwise it starts anew.  After a pause the missing
 * connections are made one after the other, until one fails.
 *
 * Locks: a thread that holds the pool's lock may take a connection's lock, not
 * the other way round.  No lock is held across I/O or a call of the user's
 * functions.
 */

#ifndef CLONE_NBD_POOL_H
#define CLONE_NBD_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "backend/nbd-connection.h"
#include "base/log.h"

struct nbd_pool;

struct nbd_pool_params {
  const char *role, *uri; /* must outlive the pool */
  unsigned connections;   /* in all; 1 where the server lacks multi-conn */
  bool together;          /* the export is written to, see above */
  unsigned timeout, deadline; /* see struct backend_params */
  const struct log *log;

  /* Does this new connection lead to the export that the first one led to?
   * 0: yes, and the witness, if not NULL, has answered a request since the
   * call.  1: no.  -1: not known.  For 1 and -1 *why is a text that the pool
   * frees.  The function may wait for both connections.
   */
  int (*check) (void *opaque, struct nbd_connection *conn,
                struct nbd_connection *witness, char **why);
  void *opaque;
};

/* Make the first connection.  NULL, logged, on failure. */
extern struct nbd_pool *nbd_pool_open (const struct nbd_pool_params *params);

/* Make the other connections, until there are enough, or one fails. */
extern void nbd_pool_connect_further (struct nbd_pool *pool);

/* No other thread may use the pool.  Waits at most for a host name lookup.
 * NULL is allowed.
 */
extern void nbd_pool_close (struct nbd_pool *pool);

/* For questions about the server, before nbd_pool_start. */
extern struct nbd_handle *nbd_pool_handle (struct nbd_pool *pool);

/* Start the threads, after the process has forked for the last time.  Before
 * that, dead connections are not replaced, and only one thread may call.  -1,
 * logged.
 */
extern int nbd_pool_start (struct nbd_pool *pool,
                           const struct backend_service *service);

/* See set_timeout and interrupt in struct backend_ops. */
extern void nbd_pool_set_timeout (struct nbd_pool *pool, unsigned seconds);
extern void nbd_pool_interrupt (struct nbd_pool *pool, int grace);

/* See struct backend_ops.  None of these waits for the server. */
extern enum backend_state nbd_pool_state (struct nbd_pool *pool);
extern unsigned nbd_pool_alive (struct nbd_pool *pool);
extern void nbd_pool_reason (struct nbd_pool *pool, char *buf, size_t size);

/* nbd_connection_call on a connection for clients.  ENOTCONN if there is no
 * connection.
 */
extern void nbd_pool_call (struct nbd_pool *pool, struct nbd_request *req,
                           size_t n);

/* ---- For channels ---- */

/* Get a connection that is alive, or NULL.  The caller gives it back, also
 * when it has died.
 */
extern struct nbd_connection *nbd_pool_take (struct nbd_pool *pool);
extern void nbd_pool_give_back (struct nbd_pool *pool,
                                struct nbd_connection *conn);

/* Changes when a connection died or was made.  A channel then gives its
 * connection back and takes one again.
 */
extern unsigned nbd_pool_generation (struct nbd_pool *pool);

#endif /* CLONE_NBD_POOL_H */
