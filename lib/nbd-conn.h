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
 * Connecting makes no thread and no loop: a process may fork afterwards, and
 * one of the two may go on with the connection.
 *
 * A connection that was lost does not come back: nbd-pool.h makes another.
 * Requests in flight, and all that follow, fail with ENOTCONN.
 */

#ifndef CLONE_NBD_CONN_H
#define CLONE_NBD_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "extents.h"
#include "log.h"

struct ev_loop;
struct nbd_attachment;
struct nbd_conn;
struct nbd_handle;
struct nbd_worker;

enum nbd_req_type {
  NBD_REQ_READ, NBD_REQ_WRITE, NBD_REQ_ZERO, NBD_REQ_TRIM, NBD_REQ_FLUSH,
  NBD_REQ_EXTENTS
};

/* One request on the wire.  The caller sees to the server's limits: alignment,
 * maximum size, and what it supports.  Memory is the caller's until the
 * request is done.
 */
struct nbd_req {
  enum nbd_req_type type;
  uint32_t flags;          /* LIBNBD_CMD_FLAG_* */
  void *buf;               /* read; write, which does not change it */
  uint64_t count, offset;  /* bytes */
  struct extents *extents; /* NBD_REQ_EXTENTS: filled in; empty before.  May
                            * stay empty, may cover more than was asked */
  /* On a loop: called on its thread, when error is set. */
  void (*done) (struct nbd_req *req);

  /* When done: 0, an errno that the server sent, or ENOTCONN. */
  int error;

  /* Below: nbd-conn.c's. */
  struct nbd_conn *conn;
  struct nbd_worker *worker;
  struct nbd_attachment *attachment;
  struct nbd_req *next;
  uint64_t received; /* bytes of a read that came */
  uint64_t mark;     /* up to here the read's buffer is initialised */
};

struct nbd_conn_params {
  const char *role;  /* "source", ...: for messages */
  const char *uri;
  unsigned timeout;  /* milliseconds, from connect to the end of handshake */
  bool required;     /* a failure is an error; else it is logged as debug */
  const struct log *log;

  /* Called ten times a second by whoever waits in nbd_conn_open, or under
   * nbd_conn_limit: false to give up.  May be NULL.
   */
  bool (*go_on) (void *opaque);
  /* Called when the connection is lost, on any thread.  It must neither wait
   * nor call anything here.  May be NULL.
   */
  void (*on_death) (void *opaque);
  void *opaque;
};

/* NULL on failure, which has been logged. */
extern struct nbd_conn *nbd_conn_open (const struct nbd_conn_params *params);

/* Nothing may be in flight or attached.  NULL is allowed. */
extern void nbd_conn_close (struct nbd_conn *conn);

/* For questions about the server.  Never use it for requests. */
extern struct nbd_handle *nbd_conn_handle (struct nbd_conn *conn);

/* What libnbd said last on this thread, without the name of its function. */
extern const char *nbd_conn_strerror (void);

/* Do these requests, all in flight together, and return when all are done. */
extern void nbd_conn_call (struct nbd_conn *conn, struct nbd_req *req,
                           size_t n);

/* How many requests are in flight, at a glance. */
extern unsigned nbd_conn_load (struct nbd_conn *conn);

/* False when the connection was lost.  nbd_conn_probe also asks the socket of
 * an idle connection, of which nobody would hear otherwise.
 */
extern bool nbd_conn_is_alive (struct nbd_conn *conn);
extern bool nbd_conn_probe (struct nbd_conn *conn);

/* Make it a lost one, for this reason.  What is in flight fails soon, on the
 * threads that drive the connection.  Nothing happens to one that was lost.
 */
extern void nbd_conn_kill (struct nbd_conn *conn, const char *why);

/* From now on a worker's requests must end within so many milliseconds, or the
 * connection is killed; also when params.go_on says so.  -1 ends that.
 * For when nobody else uses the connection.
 */
extern void nbd_conn_limit (struct nbd_conn *conn, int milliseconds);

/* Why it was lost: "the server closed it", for example.  To be used before
 * the connection is closed.
 */
extern const char *nbd_conn_why_lost (struct nbd_conn *conn);

/* How many requests the server has replied to; and for how many milliseconds
 * nothing has come from the peer, UINT_MAX where the kernel does not count that.
 */
extern uint64_t nbd_conn_replies (struct nbd_conn *conn);
extern unsigned nbd_conn_silence (struct nbd_conn *conn);

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
