/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One connection to an NBD server, and who drives it.
 *
 * Requests of many threads and loops are in flight on one libnbd handle.
 * Somebody must poll its socket and hand what arrives to libnbd: the driver.
 * There is no thread for that.  The driver is
 *
 *   - a worker, a thread in nbd_conn_call, until its own requests are done; or
 *   - an attached loop, as long as no worker waits; or
 *   - nobody, if and only if nothing is in flight or a worker has just been
 *     woken to take the role.
 *
 *   nobody -> worker   take_role: a worker has to wait
 *   loop   -> worker   take_role: the same, and the loop is not inside libnbd
 *   nobody -> loop     end_submit: the loop has sent a request
 *   worker -> loop     pass_role: no worker waits, the loop has requests
 *   worker -> nobody   pass_role: nothing in flight, or a worker was woken
 *   loop   -> loop     settle_role: its requests are done, another's are not
 *   loop   -> nobody   settle_role: nothing in flight, or a worker was woken
 *
 * So a lone worker sends, polls and receives itself, with no hop to another
 * thread; and sixteen workers have sixteen requests in flight, of which one
 * receives for all.  Workers go before loops because clients wait for them.
 *
 * What must stay true:
 *
 *   - Only the driver calls nbd_aio_notify_*, and only while something is in
 *     flight: a notify_read that finds nothing leaves libnbd in the middle of
 *     a reply, where new commands are queued and not sent.
 *   - Whoever submits and finds that not everything went out wakes the driver,
 *     which may be polling for input only.
 *   - Locks are taken in the order libnbd's handle, nbd_conn.  libnbd calls
 *     completions with its lock held, so nothing here calls libnbd with
 *     nbd_conn's lock held, but for nbd_aio_get_direction, which takes none.
 *
 * Nothing here has an end of its own: a server that is silent, or that sends
 * for ever, keeps whoever connects or calls.  (libnbd does not return as long
 * as there is something to receive.)  So another thread watches the
 * connection's progress, and kills it: nbd-pool.h says when.  A killed
 * connection ends everything on it at once, but for the resolution of a host's
 * name.
 *
 * A connection that was lost does not come back: nbd-pool.h makes another.
 * Requests in flight, and all that follow, fail with ENOTCONN.
 *
 * Connecting makes no thread and no loop: a process may fork afterwards, and
 * one of the two may go on with the connection.
 */

#ifndef CLONE_NBD_CONN_H
#define CLONE_NBD_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "extents.h"

struct ev_loop;
struct nbd_attachment;
struct nbd_conn;
struct nbd_handle;
struct nbd_worker;

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
  /* On a loop: called on its thread, when error is set. */
  void (*done) (struct nbd_req *req);

  /* When done: 0, an errno that the server sent, or ENOTCONN: the connection is
   * lost.  (A server that says ESHUTDOWN is taken at its word.)
   */
  int error;

  /* Below: nbd-conn.c's. */
  struct nbd_conn *conn;
  struct nbd_worker *worker;
  struct nbd_attachment *attachment;
  struct nbd_req *next;
  uint64_t received; /* bytes of a read that came */
  uint64_t mark;     /* up to here the read's buffer is initialised */
};

/* A connection that is not connected yet, so that another thread can watch how
 * it gets on.  on_death is called when the connection is lost and
 * nbd_conn_why_lost knows why, on any thread.  It must neither wait nor call
 * anything here.  NULL with errno set on failure.
 */
extern struct nbd_conn *nbd_conn_new (void (*on_death) (void *opaque),
                                      void *opaque);

/* Connect, once.  role is for libnbd's messages; with again a host that does
 * not answer the kernel is given less time.  False: it is dead,
 * nbd_conn_why_lost says why.
 */
extern bool nbd_conn_connect (struct nbd_conn *conn, const char *role,
                              const char *uri, bool again);

/* Nothing may be in flight or attached.  NULL is allowed. */
extern void nbd_conn_close (struct nbd_conn *conn);

/* For questions about the server.  Never use it for requests. */
extern struct nbd_handle *nbd_conn_handle (struct nbd_conn *conn);

/* What libnbd said last on this thread, without the name of its function. */
extern const char *nbd_conn_strerror (void);

/* Do these requests, all in flight together, and return when all are done.  Not
 * on a loop's thread.
 */
extern void nbd_conn_call (struct nbd_conn *conn, struct nbd_req *req,
                           size_t n);

/* How many requests are in flight, at a glance. */
extern unsigned nbd_conn_load (struct nbd_conn *conn);

/* False when the connection was lost. */
extern bool nbd_conn_is_alive (struct nbd_conn *conn);

/* Make it a lost one, for this reason.  What is in flight fails soon, on the
 * threads that drive the connection, and connecting ends.  Nothing happens to
 * one that was lost.
 */
extern void nbd_conn_kill (struct nbd_conn *conn, const char *why);

/* Why it was lost: "the server closed it", for example.  NULL: on_death is
 * still to be called.  The text lives as long as the connection.
 */
extern const char *nbd_conn_why_lost (struct nbd_conn *conn);

/* ---- for whoever watches it ---- */

/* Counts replies to requests and, before that, the steps of connecting. */
extern uint64_t nbd_conn_progress (struct nbd_conn *conn);

/* What else there is to see of a connection that was connected. */
struct nbd_view {
  int fd;            /* to poll for the peer's end */
  unsigned slow;     /* requests in flight that may take a server very long:
                      * flush, zero, trim, and what has FUA */
  uint64_t received; /* bytes that came, 0 where the kernel does not count */
  uint64_t turns;    /* counts what we did to receive and to send */
  bool waits;        /* something can be received, or sent, by us */
  bool ended;        /* the peer has closed it, which what is in flight tells,
                      * too, when it is received */
};
extern void nbd_conn_look (struct nbd_conn *conn, struct nbd_view *view);

/* Let a loop send requests on this connection.  Any number of loops may, at
 * the same time as workers.  NULL with errno set on failure.
 *
 * All three are called on the loop's thread, or before that runs.  Done is
 * never called from within nbd_attachment_submit, and it must not detach.
 */
extern struct nbd_attachment *nbd_conn_attach (struct nbd_conn *conn,
                                               struct ev_loop *loop);
extern void nbd_attachment_submit (struct nbd_attachment *attachment,
                                   struct nbd_req *req);
/* Nothing of this loop's may be in flight.  NULL is allowed. */
extern void nbd_conn_detach (struct nbd_attachment *attachment);

#endif /* CLONE_NBD_CONN_H */
