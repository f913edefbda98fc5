/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the backend for NBD exports (backend-nbd.c) and its channels
 * (nbd-channel.c) share, and nobody else knows.
 */

#ifndef CLONE_NBD_H
#define CLONE_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "backend/nbd-pool.h"
#include "base/range-lock.h"

struct nbd_conn;

/* The largest zero and trim, and the largest block status. */
#define NBD_MAX_RANGE (UINT64_C (1) << 30)
#define NBD_MAX_STATUS (UINT64_C (3) << 30)

struct nbd {
  struct backend b;
  struct nbd_pool *pool;
  struct nbd_conn *only;   /* if not NULL, for reads instead of the pool */
  /* See struct backend_service. */
  int (*same_disk) (void *opaque, struct backend *b, char **why);
  void *same_disk_opaque;

  uint64_t max_transfer;   /* a multiple of minimum_block */
  bool can_zero, can_trim, can_fua;
  struct range_lock blocks; /* minimum_block > 1: who writes to them */
};

/* For servers that cannot zero, and the most that one write takes of them.
 * They are never written to.
 */
extern char nbd_zeroes[1 << 20];
extern uint64_t nbd_zeroes_limit (const struct nbd *n);

/* An error as backend.h allows it. */
extern int nbd_to_errno (int error);

/* The server did not even try. */
extern bool nbd_is_refusal (int error);

extern uint32_t nbd_zero_flags (const struct nbd *n, unsigned flags);

/* Where the block begins in which an offset lies, where it ends, and does a
 * range consist of whole blocks?
 */
extern uint64_t nbd_block_start (const struct nbd *n, uint64_t offset);
extern uint64_t nbd_block_end (const struct nbd *n, uint64_t offset);
extern bool nbd_is_aligned (const struct nbd *n, uint64_t count,
                            uint64_t offset);

/* Give the caller what lies in its range of extents that a server sent for
 * that range rounded to blocks.  Where the server failed, sent nothing, or
 * nothing for the beginning, the range is data: reading it tells the truth, or
 * fails.  0, ENOMEM, or ENOTCONN where that is the error.
 */
extern int nbd_clip_extents (struct extents *list, const struct extents *reply,
                             int error, uint64_t count, uint64_t offset);

/* backend_open for an NBD URI. */
extern struct backend *backend_nbd_open (const struct backend_params *params,
                                         const struct log *log);

/* nbd-channel.c */
extern struct channel *nbd_channel_new (struct backend *b,
                                        struct ev_loop *loop);

#endif /* CLONE_NBD_H */
