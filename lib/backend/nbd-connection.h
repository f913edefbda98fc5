/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One connection to an NBD server: a libnbd handle, on which any number of
 * threads and loops have requests in flight.
 *
 * Callers send their requests themselves, under libnbd's lock.  One thread at
 * a time, the driver, polls the socket and receives all replies.  The driver is
 * the thread that holds the mutex `driving':
 *
 *   - the connection's own thread, while any request is in flight; or
 *   - a caller that finds no driver, until its own requests are done.  So a
 *     lone caller receives its reply without a switch to another thread.  And
 *     no thread is needed before nbd_connection_drive runs, while the process
 *     may still fork.
 *
 * Invariants:
 *
 *   - Only the driver calls nbd_aio_notify_*, and only while a request is in
 *     flight.  A notify_read that finds nothing leaves libnbd in the middle of
 *     a reply; in that state it queues new commands and does not send them.
 *   - A submitter wakes the driver and the connection's thread if libnbd wants
 *     more than is being polled for: there is no driver, the request was not
 *     sent completely, or the handle has died.
 *   - A caller that stops driving wakes the connection's thread if a request
 *     is in flight or the handle has died, because it may have consumed a
 *     wake-up that was meant for that thread.
 *   - libnbd calls completion functions with its lock held.  They only put the
 *     request on a list of the calling thread.  The request's done function is
 *     called after libnbd has returned.
 *
 * There are no timeouts here.  A server that is silent, or that sends without
 * end, blocks the threads that connect or call: libnbd does not return as long
 * as there is data to receive.  So another thread watches the progress and
 * kills the connection (nbd-pool.h).  A kill ends every call on the connection
 * at once, except a host name lookup.
 *
 * A dead connection stays dead: requests in flight, and all later ones, fail
 * with ENOTCONN.
 *
 *   nbd-connect.c     connecting and the handshake
 *   nbd-request.c     sending requests and completing them
 *   nbd-driver.c      the driver, and callers that wait
 *   nbd-connection.c  creation, death and the end
 */

#ifndef CLONE_NBD_CONNECTION_H
#define CLONE_NBD_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "backend/nbd-request.h"

struct nbd_connection {
  struct nbd_handle *nbd;  /* for questions about the server */
  atomic_uint users;       /* the last one frees it */
  atomic_bool alive;       /* false: dead */
  atomic_uint load;        /* requests in flight */
  atomic_uint slow;        /* requests in flight that may take a server very
                            * long: flush, zero, trim, and those with FUA */
  atomic_ullong progress;  /* counts steps of connecting, then replies */

  /* Private to the files listed above. */
  unsigned turns;          /* counts the driver's turns */
  atomic_uint armed;       /* directions that the driver polls for; 0 without
                            * a driver; ~0u while the driver does not poll, and
                            * so needs no wake-up */
  atomic_bool stop_driving; /* nbd_connection_stop_driving was called */
  pthread_mutex_t driving; /* held by the driver */
  int wakeup;              /* eventfd that the driver polls */
  int fd;                  /* a duplicate of libnbd's descriptor of the socket,
                            * which is closed when the handle dies */
  ino_t socket;            /* the socket's inode */
  pthread_mutex_t lock;    /* protects why, and fd until it is connected */
  char why[256];           /* why it died, or empty */

  /* The pool's, protected by its lock. */
  bool in_use;             /* false: it is being made */
  unsigned channels;       /* number of channels that use it */
  clockid_t clock;         /* CPU time of the thread that makes it */
  int64_t cpu;             /* value of clock when the making began */
  int64_t born;            /* when it came into use */
  int64_t pause;           /* the pool's pause at that time */
  int64_t since;           /* the last progress, or the last time that nothing
                            * was in flight */
  uint64_t seen, received; /* progress, and bytes received, at that time */
};

/* A connection that is not connected yet, with one user.  NULL with errno. */
extern struct nbd_connection *nbd_connection_new (void);

/* Drop one user.  The last one closes the connection; nothing may be in
 * flight.  NULL is allowed.
 */
extern void nbd_connection_put (struct nbd_connection *conn);

/* Connect; to be called once.  role is for libnbd's messages.  With again, the
 * kernel gives up sooner on a host that does not answer.  False: the
 * connection is dead.
 */
extern bool nbd_connection_connect (struct nbd_connection *conn,
                                    const char *role, const char *uri,
                                    bool again);

/* Drive the connection on its own thread.  Returns when it is dead and nothing
 * is in flight, or when nbd_connection_stop_driving was called and nothing is
 * in flight.
 */
extern void nbd_connection_drive (struct nbd_connection *conn);
extern void nbd_connection_stop_driving (struct nbd_connection *conn);

extern void nbd_connection_submit (struct nbd_connection *conn,
                                   struct nbd_request *req);

/* Submit n requests and wait for all of them.  Not on a loop's thread. */
extern void nbd_connection_call (struct nbd_connection *conn,
                                 struct nbd_request *req, size_t n);

/* Declare the connection dead.  The first reason is kept.  Requests in flight
 * fail soon, and connecting ends.  Any thread.
 */
extern void nbd_connection_kill (struct nbd_connection *conn, const char *why);

/* Return why the connection died, for example "the server closed it".  If no
 * reason was recorded, declare the connection dead and record one.  Call it
 * only after connecting or nbd_connection_call has failed on this thread, or
 * after nbd_connection_drive has returned.  The text lives as long as the
 * connection.
 */
extern const char *nbd_connection_confirm_death (struct nbd_connection *conn);

/* How many bytes have arrived on a connection in use; 0 if the kernel does not
 * count them.
 */
extern uint64_t nbd_connection_received (const struct nbd_connection *conn);

/* Is there something on a connection in use that the driver has not read:
 * bytes, or the news that the socket was closed or has failed?
 */
extern bool nbd_connection_has_unread (const struct nbd_connection *conn);

#endif /* CLONE_NBD_CONNECTION_H */
