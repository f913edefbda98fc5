/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The connections to one NBD export, and how lost ones are made again.
 *
 * Where the server has multi-conn, half of the connections serve clients, each
 * request the least busy one, and each channel gets one of the others for
 * itself.  So no client's request stands in a queue behind those of hydration.
 * Without multi-conn a flush covers one connection only, so there is only one,
 * which everybody shares (nbd-conn.h says how).
 *
 * A LOSS IS AN ERROR.  Requests in flight on a connection that dies, and
 * requests for which there is no connection, fail with ENOTCONN at once.
 * Nothing here waits for the server or sends a request again.
 *
 * HEALING.  From nbd_pool_start on each connection has a thread for its life:
 *
 *   waits for its turn --> connects, and shows that it is the same export
 *     --> is in use, and is driven --> is dead --> waits for its turn
 *
 * It is dead when the kernel or libnbd found it broken, the server closed it or
 * said that it shuts down (ESHUTDOWN), or the watcher, one more thread, killed
 * it because it made no progress.  Whoever still has requests on it keeps the
 * memory.  The watcher also tells the user and the log what has happened.
 *
 * A server that is reached again may have crashed, and have lost what it had
 * not flushed.  So where the export is written to, the connections die
 * together: when one is lost, all others are killed; then lost is called
 * (struct backend_service); and only then is one made again, which is in use at
 * once.  Each further one comes into use after an older one, the witness, has
 * answered a request that was sent when the new one was connected: both lead to
 * the same incarnation of the server.
 *
 * PROGRESS.  A connection with requests in flight is killed when there was no
 * progress for the deadline for replies.  Progress is a reply, or as many bytes
 * as a slow line would bring.  The time during which the server waits for us
 * does not count, nor that during which a flush, zero or trim, which may take
 * very long, is in flight on any connection.  The deadline is doubled when it
 * was missed, since perhaps the server is only slow.  Connecting and calls
 * before nbd_pool_start have deadlines of their own; they run on the caller's
 * thread, and the watcher has ended when they return: the process may fork.
 *
 * PAUSES.  There is one pause for the pool, not one for each connection.  It is
 * doubled when connecting fails, and when a connection dies that lived shorter
 * than the pause before it; else it begins anew.  After a pause as many
 * connections are made as are missing, one after the other, until one fails.
 *
 * Locks: the pool's lock may be held when a connection's is taken, and not the
 * other way round.  It is never held across I/O or a call of the user's.
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
  unsigned connections;   /* in all, 1 where the server lacks multi-conn */
  bool together;          /* the export is written to, see above */
  unsigned timeout, deadline; /* see struct backend_params */
  const struct log *log;

  /* Does this new connection show the same export as the first one did?  0 yes,
   * and the witness, if any, has answered a request since the call; 1 no, or -1
   * that is not known, and *why is a text to be freed.  Waits for both.
   */
  int (*check) (void *opaque, struct nbd_conn *conn, struct nbd_conn *witness,
                char **why);
  void *opaque;
};

/* Make the first connection.  NULL on failure, which has been logged. */
extern struct nbd_pool *nbd_pool_open (const struct nbd_pool_params *params);

/* Make the others, as far as the server plays along. */
extern void nbd_pool_connect_further (struct nbd_pool *pool);

/* Nobody uses it any more.  Waits no longer than for the resolution of a host's
 * name.  NULL is allowed.
 */
extern void nbd_pool_close (struct nbd_pool *pool);

/* For questions about the server, before nbd_pool_start. */
extern struct nbd_handle *nbd_pool_handle (struct nbd_pool *pool);

/* Start the threads, after the process has forked for the last time.  Before,
 * lost connections are not made again, and one thread calls.  -1, logged.
 */
extern int nbd_pool_start (struct nbd_pool *pool,
                           const struct backend_service *service);

/* See interrupt in struct backend_ops. */
extern void nbd_pool_interrupt (struct nbd_pool *pool, int grace);

/* They wait for nothing. */
extern enum backend_state nbd_pool_state (struct nbd_pool *pool);
extern unsigned nbd_pool_alive (struct nbd_pool *pool);
extern void nbd_pool_reason (struct nbd_pool *pool, char *buf, size_t size);

/* nbd_conn_call on a connection for clients: ENOTCONN where there is none. */
extern void nbd_pool_call (struct nbd_pool *pool, struct nbd_req *req,
                           size_t n);

/* ---- for channels ---- */

/* Get a connection that is alive, or NULL.  To be given back, be it dead. */
extern struct nbd_conn *nbd_pool_take (struct nbd_pool *pool);
extern void nbd_pool_give_back (struct nbd_pool *pool, struct nbd_conn *conn);

/* Changes when a connection was lost or made: a reason to take anew. */
extern unsigned nbd_pool_generation (struct nbd_pool *pool);

#endif /* CLONE_NBD_POOL_H */
