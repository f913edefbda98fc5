/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A channel carries one event loop's requests to a backend without waiting
 * for them.  Hydration uses channels; clients' requests come on threads of
 * their own and use backend.h.
 *
 * A request to a peer that is lost is done with ENOTCONN at once; a channel
 * uses another connection, if there is one, for the requests that follow.
 * Writes and zeroes cover whole blocks (backend.minimum_block).
 *
 * Threads: a channel belongs to the thread that runs its loop.  It calls
 * io->done on that thread, never from within channel_submit.
 */

#ifndef CLONE_CHANNEL_H
#define CLONE_CHANNEL_H

#include <stdint.h>

#include "backend/backend.h"

struct ev_loop;

enum io_type { IO_READ, IO_WRITE, IO_ZERO, IO_SHARE, IO_EXTENTS };

/* One request.  The caller owns the memory and keeps it until done is called,
 * which may free it or submit it again.
 */
struct io {
  enum io_type type;
  void *buf;               /* IO_READ, IO_WRITE */
  struct backend *from;    /* IO_SHARE, where backend_can_share */
  uint64_t count, offset;  /* bytes; IO_READ, IO_WRITE and IO_SHARE: at most
                            * 32 MiB, IO_ZERO: 1 GiB, IO_EXTENTS: 3 GiB */
  unsigned flags;          /* IO_ZERO: BACKEND_MAY_TRIM;
                            * IO_WRITE: BACKEND_WRITE_BEHIND; the channel then
                            * calls backend_write_behind */
  struct extents *extents; /* IO_EXTENTS: filled in; empty before */
  void (*done) (struct io *io);
  void *opaque;            /* the caller's */

  int error;               /* when done: 0, or an errno of backend.h's */

  struct io *next;         /* the channel's */
  void *channel;           /* the channel's */
};

#define CHANNEL_MAX_TRANSFER (UINT64_C (32) << 20)
#define CHANNEL_MAX_ZERO (UINT64_C (1) << 30)
#define CHANNEL_MAX_EXTENTS (UINT64_C (3) << 30)

struct channel_ops {
  void (*submit) (struct channel *ch, struct io *io);
  void (*free) (struct channel *ch);
};

struct channel {
  const struct channel_ops *ops;
};

/* NULL with errno set on failure; the reason is logged. */
extern struct channel *channel_new (struct backend *b, struct ev_loop *loop);

extern void channel_submit (struct channel *ch, struct io *io);

/* Nothing may be in flight.  NULL is allowed. */
extern void channel_free (struct channel *ch);

#endif /* CLONE_CHANNEL_H */
