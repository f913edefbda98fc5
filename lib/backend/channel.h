/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A channel carries the requests of one event loop to a backend, without
 * making the loop wait.  Hydration uses channels.  Clients' requests come on
 * threads of their own and use backend.h.
 *
 * When the peer is lost, a request is done with ENOTCONN at once.  For later
 * requests the channel uses another connection, if there is one.  Writes and
 * zeroes must cover whole blocks (backend.minimum_block).
 *
 * Threads: a channel belongs to the thread that runs its loop.  The channel
 * calls io->done on that thread, never inside channel_submit.
 */

#ifndef CLONE_CHANNEL_H
#define CLONE_CHANNEL_H

#include <stdint.h>
#include <sys/queue.h>

#include "backend/backend.h"

struct ev_loop;

enum io_type { IO_READ, IO_WRITE, IO_ZERO, IO_SHARE, IO_EXTENTS };

#define CHANNEL_MAX_TRANSFER (UINT64_C (32) << 20)
#define CHANNEL_MAX_ZERO (UINT64_C (1) << 30)
#define CHANNEL_MAX_EXTENTS (UINT64_C (3) << 30)

/* One request.  The caller owns the memory and keeps it until done is called;
 * done may free it or submit it again.
 */
struct io {
  enum io_type type;
  void *buf;               /* IO_READ, IO_WRITE.  IO_READ leaves the page
                            * cache as it is (backend_pread_once) */
  struct backend *from;    /* IO_SHARE, where backend_can_share */
  uint64_t count, offset;  /* bytes.  At most CHANNEL_MAX_ZERO for IO_ZERO,
                            * CHANNEL_MAX_EXTENTS for IO_EXTENTS, else
                            * CHANNEL_MAX_TRANSFER */
  unsigned flags;          /* IO_ZERO: BACKEND_MAY_TRIM.  IO_WRITE:
                            * BACKEND_WRITE_BEHIND; the channel then calls
                            * backend_write_behind itself */
  struct extents *extents; /* IO_EXTENTS: filled in; empty before */
  void (*done) (struct io *io);
  void *opaque;            /* the caller's */

  int error;               /* when done: 0, or an errno of backend.h's */

  /* Private to the channel. */
  STAILQ_ENTRY (io) link;
  void *channel;
};

STAILQ_HEAD (io_queue, io);

struct channel_ops {
  void (*submit) (struct channel *ch, struct io *io);
  void (*free) (struct channel *ch);
};

struct channel {
  const struct channel_ops *ops;
};

/* NULL with errno set, logged, on failure. */
extern struct channel *channel_new (struct backend *b, struct ev_loop *loop);

extern void channel_submit (struct channel *ch, struct io *io);

/* Nothing may be in flight.  NULL is allowed. */
extern void channel_free (struct channel *ch);

#endif /* CLONE_CHANNEL_H */
