/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One request on the wire.
 *
 * The caller observes the server's limits: alignment, maximum size, and the
 * commands that it supports.  The memory stays the caller's until the request
 * is done.  nbd-connection.h says how requests are sent.
 */

#ifndef CLONE_NBD_REQUEST_H
#define CLONE_NBD_REQUEST_H

#include <stdint.h>
#include <sys/queue.h>

#include "base/extents.h"

struct nbd_connection;

enum nbd_request_type {
  NBD_REQUEST_READ,
  NBD_REQUEST_WRITE,
  NBD_REQUEST_ZERO,
  NBD_REQUEST_TRIM,
  NBD_REQUEST_FLUSH,
  NBD_REQUEST_EXTENTS,
};

/* The most extents of one reply that are kept.  The caller asks again for the
 * rest.
 */
#define EXTENTS_MAX_REPLY 65536

struct nbd_request {
  enum nbd_request_type type;
  uint32_t flags;          /* LIBNBD_CMD_FLAG_* */
  void *buf;               /* read and write; a write does not change it */
  uint64_t count, offset;  /* bytes */
  struct extents *extents; /* NBD_REQUEST_EXTENTS: empty before; filled in with
                            * at most EXTENTS_MAX_REPLY extents, which may
                            * cover more than was asked for, or nothing */

  /* Called when error is set, by the driver or by the submitter.  It must not
   * wait, and must not use the connection.  (nbd_connection_call sets it.)
   */
  void (*done) (struct nbd_request *req);
  void *opaque;

  /* When done: 0, an errno that the server sent, or ENOTCONN, which means that
   * the connection is dead.  (ESHUTDOWN from a server becomes ENOTCONN.)
   */
  int error;

  /* Private to nbd-request.c. */
  struct nbd_connection *conn;
  SLIST_ENTRY (nbd_request) link;
  uint64_t received; /* bytes of a read that have arrived */
  uint64_t mark;     /* all bytes of the buffer below this offset are set */
};

#endif /* CLONE_NBD_REQUEST_H */
