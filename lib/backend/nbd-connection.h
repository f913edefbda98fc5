/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One connection to an NBD server.
 *
 * Any number of threads and loops have requests in flight on one libnbd handle.
 * They send them themselves, under libnbd's lock; one thread, the driver, polls
 * the socket and receives for all.  This is whoever holds a mutex:
 *
 *   - the connection's own thread, as long as anything is in flight; or
 *   - a caller that finds that nobody drives, until its own requests are done.
 *     So a lone caller receives its reply with no hop to another thread; and
 *     before nbd_conn_drive runs, while the process may still fork, no thread
 *     is needed.
 *
 * What must stay true:
 *
 *   - Only the driver calls nbd_aio_notify_*, and only while something is in
 *     flight: a notify_read that finds nothing leaves libnbd in the middle of a
 *     reply, where new commands are queued and not sent.
 *   - A submitter wakes driver and thread where libnbd wants more than is
 *     polled for: nobody drives, not everything went out, or the handle has
 *     died.  A caller that ceases to drive wakes the thread if anything is in
 *     flight, or the handle has died: its wake-up may have been for the thread.
 *   - Completions, which libnbd calls with its lock held, only put the request
 *     on a list of the thread.  Its done is called when libnbd has returned.
 *
 * Nothing here has an end of its own: a server that is silent, or that sends
 * for ever, keeps whoever connects or calls.  (libnbd does not return as long
 * as there is something to receive.)  So another thread watches the progress
 * and kills the connection, as nbd-pool.h says.  This ends everything on it at
 * once, but for the resolution of a host's name.  A connection that was lost
 * does not come back: requests in flight, and all that follow, fail with
 * ENOTCONN.
 */

#ifndef CLONE_NBD_CONN_H
#define CLONE_NBD_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/extents.h"

enum nbd_req_type {
  NBD_REQ_READ, NBD_REQ_WRITE, NBD_REQ_ZERO, NBD_REQ_TRIM, NBD_REQ_FLUSH,
  NBD_REQ_EXTENTS
};

/* What a server says beyond so many extents is asked for again. */
#define EXTENTS_MAX_REPLY 65536

/* One request on the wire.  The caller sees to the server's limits: alignment,
 * maximum size, and what it supports.  Memory is the caller's until the
 * request is done.
 */
struct nbd_req {
  enum nbd_req_type type;
  uint32_t flags;          /* LIBNBD_CMD_FLAG_* */
  void *buf;               /* read; write, which does not change it */
  uint64_t count, offset;  /* bytes */
  struct extents *extents; /* NBD_REQ_EXTENTS: filled in, at most
                            * EXTENTS_MAX_REPLY; empty before.  May stay empty,
                            * may cover more than was asked */
  /* Called when error is set, by the driver or by the submitter.  It must not
   * wait, and not use the connection.  (nbd_conn_call has its own.)
   */
  void (*done) (struct nbd_req *req);
  void *opaque;

  /* When done: 0, an errno that the server sent, or ENOTCONN: the connection is
   * lost.  (A server that says ESHUTDOWN is taken at its word.)
   */
  int error;

  /* Below: nbd-conn.c's. */
  struct nbd_conn *conn;
  struct nbd_req *next;
  uint64_t received; /* bytes of a read that came */
  uint64_t mark;     /* up to here the read's buffer is initialised */
};

struct nbd_conn {
  struct nbd_handle *nbd;  /* for questions about the server */
  atomic_uint users;
  atomic_bool alive;       /* false: lost */
  atomic_uint load;        /* requests in flight, */
  atomic_uint slow;        /* of which so many may take a server very long:
                            * flush, zero, trim, and what has FUA */

  /* nbd-conn.c's */
  atomic_ullong progress;  /* counts replies and, before them, steps of
                            * connecting */
  unsigned turns;          /* the driver's */
  atomic_uint armed;       /* what the driver polls for, 0 without one */
  atomic_bool leaving;
  pthread_mutex_t driving; /* whoever has it drives */
  int wakeup;              /* eventfd, polled by the driver */
  int fd;                  /* the socket: not libnbd's descriptor, which is
                            * closed when the handle dies, but another */
  ino_t socket;            /* which one that is */
  pthread_mutex_t lock;    /* protects fd until it is connected, and */
  char why[256];           /* it was lost, or empty */

  /* The pool's, under its lock. */
  bool in_use;             /* else it is being made */
  unsigned channels;
  clockid_t clock;         /* processor time of the thread that makes it, */
  int64_t cpu;             /* and what had been used at the beginning */
  int64_t born, pause;     /* when it came into use, the pause before that */
  int64_t since;           /* the last progress, or nothing was in flight, */
  uint64_t seen, received; /* and what had come until then */
};

/* A connection that is not connected yet, for one user.  NULL with errno. */
extern struct nbd_conn *nbd_conn_new (void);

/* One user less; NULL is allowed.  The last one closes it, with nothing in
 * flight.
 */
extern void nbd_conn_put (struct nbd_conn *conn);

/* Connect, once.  role is for libnbd's messages; with again a host that does
 * not answer the kernel is given less time.  False: it is dead.
 */
extern bool nbd_conn_connect (struct nbd_conn *conn, const char *role,
                              const char *uri, bool again);

/* Drive it, on its own thread, until it is dead and nothing is in flight any
 * more; or until nothing is in flight and nbd_conn_leave was called.
 */
extern void nbd_conn_drive (struct nbd_conn *conn);
extern void nbd_conn_leave (struct nbd_conn *conn);

extern void nbd_conn_submit (struct nbd_conn *conn, struct nbd_req *req);

/* Do them, all in flight together, and wait.  Not on a loop's thread. */
extern void nbd_conn_call (struct nbd_conn *conn, struct nbd_req *req,
                           size_t n);

/* Make it a lost one, for this reason; the first one counts.  What is in flight
 * fails soon, and connecting ends.  Any thread.
 */
extern void nbd_conn_kill (struct nbd_conn *conn, const char *why);

/* Why it was lost: "the server closed it", for example.  Only where connecting
 * or nbd_conn_call has failed on this thread, or nbd_conn_drive has returned.
 * The text lives as long as the connection.
 */
extern const char *nbd_conn_why (struct nbd_conn *conn);

/* Of one that is in use: bytes that came, 0 where the kernel does not count;
 * and do some wait for the driver?
 */
extern uint64_t nbd_conn_received (const struct nbd_conn *conn);
extern bool nbd_conn_has_unread (const struct nbd_conn *conn);

#endif /* CLONE_NBD_CONN_H */
