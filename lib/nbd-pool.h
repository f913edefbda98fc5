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
 * HEALING.  From nbd_pool_start on a thread of the pool's own, the healer, sees
 * to it that there are as many connections as there were.
 *
 *   alive --> dead       the socket was closed, the kernel or libnbd found it
 *                        broken, the server said that it shuts down
 *                        (ESHUTDOWN), or requests were in flight and nothing
 *                        came for the deadline for replies
 *   dead  --> none       nobody holds it any more: all of its requests failed
 *                        with ENOTCONN, channels have let it go
 *   none  --> alive      after a pause, see nbd-pool.c, a new one was made and
 *                        it shows the same export
 *
 * A request whose connection dies is sent again, on another connection or when
 * there is one again; its caller only waits (struct backend_service: how long).
 *
 * A server that is reached again may have crashed, and have lost what it had
 * not flushed.  So where the export is written to, the connections live and die
 * together: when one is lost, all others are killed, then lost is called (struct
 * backend_service), and then all are made again, as many as can be had, and come
 * into use at once.
 *
 * Locks: the pool's lock may be held when a connection's is taken, and not the
 * other way round.  It is never held across I/O.
 */

#ifndef CLONE_NBD_POOL_H
#define CLONE_NBD_POOL_H

#include <stdbool.h>
#include <stddef.h>

#include "backend.h"
#include "log.h"
#include "nbd-conn.h"

struct nbd_pool;
struct nbd_slot; /* the place of one connection */

struct nbd_pool_params {
  const char *role, *uri; /* copied */
  unsigned connections;   /* in all, 1 where the server lacks multi-conn */
  bool together;          /* the export is written to, see above */
  const struct log *log;

  /* Does this new connection show another export than the first one did?  Then
   * say why, a string that is to be freed.  May do requests.  *error is set
   * where that is not known, because of this errno: the connection is of no
   * use, either.
   */
  char *(*differs) (void *opaque, struct nbd_conn *conn, int *error);
  void *opaque;
};

/* Make the first connection.  NULL on failure, which has been logged. */
extern struct nbd_pool *nbd_pool_open (const struct nbd_pool_params *params);

/* Make the others, as far as the server plays along. */
extern void nbd_pool_connect_further (struct nbd_pool *pool);

/* Nobody uses it any more.  NULL is allowed. */
extern void nbd_pool_close (struct nbd_pool *pool);

/* For questions about the server, before nbd_pool_start. */
extern struct nbd_handle *nbd_pool_handle (struct nbd_pool *pool);

/* Start the healer, after the process has forked for the last time.  Before,
 * lost connections are not made again, and requests fail.  -1, logged.
 */
extern int nbd_pool_start (struct nbd_pool *pool,
                           const struct backend_service *service);

/* The process is about to end: make no connections any more, so that whatever
 * waits, or will, for a lost server fails with ESHUTDOWN.  grace is how many
 * milliseconds are left for what is in flight, -1 for no limit.  Waits for
 * nothing.
 */
extern void nbd_pool_interrupt (struct nbd_pool *pool, int grace);

/* They wait for nothing. */
extern enum backend_state nbd_pool_state (struct nbd_pool *pool);
extern unsigned nbd_pool_alive (struct nbd_pool *pool);

/* Do these requests, all in flight together, on a connection for clients, and
 * return when all are done; the array's order may be another then.  Each one's
 * error is 0, what the server sent, EIO where it has waited long enough, or
 * ESHUTDOWN.  With patient false requests do not wait for a lost server, nor
 * are they sent again, but fail with ENOTCONN.
 */
extern void nbd_pool_call (struct nbd_pool *pool, struct nbd_req *req,
                           size_t n, bool patient);

/* ---- for channels ---- */

/* Who wants to hear when it should look again at its slot, or for one: wake is
 * called on any thread, with the pool's lock held.
 */
struct nbd_listener {
  void (*wake) (struct nbd_listener *listener);
  struct nbd_listener *next;
};

extern void nbd_pool_listen (struct nbd_pool *pool,
                             struct nbd_listener *listener);
extern void nbd_pool_unlisten (struct nbd_pool *pool,
                               struct nbd_listener *listener);

/* Get a slot whose connection is alive, that with the fewest channels, rather
 * one that clients do not use; NULL if there is none.  The connection stays
 * until it is given back, be it dead.  A channel gives back a dead one soon.
 */
extern struct nbd_slot *nbd_pool_take (struct nbd_pool *pool);
extern void nbd_pool_give_back (struct nbd_pool *pool, struct nbd_slot *slot);
extern struct nbd_conn *nbd_slot_conn (struct nbd_slot *slot);

/* Would nbd_pool_take find a better one, now? */
extern bool nbd_pool_has_better (struct nbd_pool *pool,
                                 const struct nbd_slot *slot);

/* Does a request that failed with this error want to be sent again?  The
 * connection it was sent on is then a dead one.
 */
extern bool nbd_pool_is_loss (struct nbd_pool *pool, struct nbd_slot *slot,
                              int error);

/* What a request fails with that would have to wait: 0 where it waits,
 * ESHUTDOWN after nbd_pool_interrupt, ENOTCONN before nbd_pool_start.
 */
extern int nbd_pool_wait_error (struct nbd_pool *pool);

#endif /* CLONE_NBD_POOL_H */
