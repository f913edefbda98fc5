/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files of the channels to NBD exports share.  Nothing else includes
 * this.
 */

#ifndef CLONE_NBD_CHANNEL_INTERNAL_H
#define CLONE_NBD_CHANNEL_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/channel.h"
#include "backend/nbd-internal.h"
#include "base/extents.h"

struct nbd_channel;

/* One io under way.  It belongs to the channel's loop. */
struct transfer {
  struct nbd_request req;  /* the piece in flight */
  struct io *io;
  struct nbd_channel *ch;
  struct nbd_connection *conn; /* of this piece, which uses it; or NULL */
  uint64_t next, end;      /* the rest of the io's range, in whole blocks */
  struct extents reply;    /* the server's last answer about extents */

  /* IO_ZERO */
  bool by_request;         /* with zero requests; else zeroes are written */
  uint64_t data_end;       /* [next, data_end) may hold data; if it is not after
                            * next, nothing is known yet */
  char *buf;               /* what was read: nbd_zeroes_limit bytes; or NULL */
  bool is_data;            /* and the piece in it is not zero */
  double begin;            /* when the io began */
};

/* ---- nbd-channel-zero.c ---- */

extern void nbd_channel_zero_begin (struct nbd *n, struct transfer *t);

/* The next piece of a zero: fill in t->req.  False if there is none. */
extern bool nbd_channel_zero_next (struct nbd *n, struct transfer *t);

/* The piece has ended.  0, or the error that ends the io. */
extern int nbd_channel_zero_done (struct nbd *n, struct transfer *t);

#endif /* CLONE_NBD_CHANNEL_INTERNAL_H */
