/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files of the backend for NBD exports share.  Nothing else includes
 * this.
 */

#ifndef CLONE_NBD_INTERNAL_H
#define CLONE_NBD_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "backend/nbd-connection.h"
#include "backend/nbd-pool.h"
#include "base/range-lock.h"

struct nbd {
  struct backend b;
  struct nbd_pool *pool;
  struct nbd_connection *only; /* not NULL: reads use it, not the pool */
  /* See struct backend_service. */
  int (*same_disk) (void *opaque, struct backend *b, char **why);
  void *same_disk_opaque;

  uint64_t max_transfer;    /* bytes; a multiple of minimum_block */
  bool can_trim, can_fua;
  struct range_lock blocks; /* owned by writes, if minimum_block > 1 */
};

static inline struct nbd *
to_nbd (struct backend *b)
{
  return (struct nbd *)b;
}

/* ---- nbd-pieces.c: one operation, many requests ---- */

/* The largest zero and trim, and the largest block status. */
#define NBD_MAX_RANGE (UINT64_C (1) << 30)
#define NBD_MAX_STATUS (UINT64_C (3) << 30)

/* Written where the server cannot zero, at most nbd_zeroes_limit of them at
 * once.  Never changed.
 */
extern char nbd_zeroes[1 << 20];
extern uint64_t nbd_zeroes_limit (const struct nbd *n);

/* Transfer all segments, split at limit, in flight together.  0 or the first
 * error, as the server sent it.
 */
extern int nbd_transfer (struct nbd *n, enum nbd_request_type type,
                         const struct segment *seg, size_t nseg,
                         uint32_t flags, uint64_t limit);

/* The same for one range.  buf may be nbd_zeroes, or NULL for requests without
 * data.
 */
extern int nbd_transfer_range (struct nbd *n, enum nbd_request_type type,
                               void *buf, uint64_t count, uint64_t offset,
                               uint32_t flags);

/* Replace a server's error by one that backend.h allows. */
extern int nbd_to_errno (int error);

/* Return from an operation of the backend: 0, or -1 with errno set. */
extern int nbd_result (int error);

/* Does this error mean that the server did not even try? */
extern bool nbd_is_refusal (int error);

/* ---- nbd-blocks.c: the server's minimum block size ---- */

/* Start and end of the block that offset is in, and does a range consist of
 * whole blocks?
 */
extern uint64_t nbd_block_start (const struct nbd *n, uint64_t offset);
extern uint64_t nbd_block_end (const struct nbd *n, uint64_t offset);
extern bool nbd_is_aligned (const struct nbd *n, uint64_t count,
                            uint64_t offset);
extern bool nbd_all_aligned (const struct nbd *n, const struct segment *seg,
                             size_t nseg);

/* Own the blocks of a range while it is written. */
extern void nbd_own_blocks (struct nbd *n, struct owner *owner, uint64_t start,
                            uint64_t end);
extern void nbd_disown_blocks (struct nbd *n, struct owner *owner);

/* Read and write ranges that may cover blocks partly.  0 or an error. */
extern int nbd_read_part (struct nbd *n, const struct segment *seg);
extern int nbd_write_part (struct nbd *n, const void *data, uint64_t count,
                           uint64_t offset, unsigned flags);

/* ---- nbd-transfer.c ---- */

extern int nbd_backend_pread (struct backend *b, const struct segment *seg,
                              size_t nseg);
extern int nbd_backend_pwrite (struct backend *b, const struct segment *seg,
                               size_t nseg, unsigned flags);
extern int nbd_backend_flush (struct backend *b);

/* LIBNBD_CMD_FLAG_FUA, if flags ask for it and the server has it. */
extern uint32_t nbd_fua_flag (const struct nbd *n, unsigned flags);

/* The end of each operation that may have BACKEND_FUA: a flush, where the
 * server lacks FUA.  Then as nbd_result.
 */
extern int nbd_finish_write (struct nbd *n, int error, unsigned flags);

/* ---- nbd-zero.c ---- */

extern int nbd_backend_zero (struct backend *b, uint64_t count,
                             uint64_t offset, unsigned flags);
extern int nbd_backend_trim (struct backend *b, uint64_t count,
                             uint64_t offset, unsigned flags);

/* The flags of a zero request. */
extern uint32_t nbd_zero_flags (const struct nbd *n, unsigned flags);

/* ---- nbd-extents.c ---- */

extern int nbd_backend_extents (struct backend *b, uint64_t count,
                                uint64_t offset, unsigned flags,
                                struct extents *list);

/* Append to list the part of reply that lies in the caller's range; reply is
 * what the server sent for that range rounded to blocks.  Where the server
 * failed, or reported nothing for the start of the range, all of it is data:
 * reading it then gives the data, or the error.  0, ENOMEM, or ENOTCONN if
 * error is ENOTCONN.
 */
extern int nbd_clip_extents (struct extents *list, const struct extents *reply,
                             int error, uint64_t count, uint64_t offset);

/* ---- nbd-identity.c ---- */

/* Does this new connection lead to the export that the first one led to?  See
 * struct nbd_pool_params.
 */
extern int nbd_check_connection (void *opaque, struct nbd_connection *conn,
                                 struct nbd_connection *witness, char **why);

/* ---- nbd-channel.c ---- */

extern struct channel *nbd_channel_new (struct backend *b,
                                        struct ev_loop *loop);

#endif /* CLONE_NBD_INTERNAL_H */
