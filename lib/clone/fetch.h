/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fetch: copies that a client's thread makes itself, for cache requests, for
 * copy-on-read, and of the bytes around a change in a region that is too large
 * for memory.
 *
 * The source is read outside the gate and unowned.  Between that and the
 * installation the map may be set back; so the functions are given `closings',
 * what gate_closings was before the first read, and fail with ENOTCONN where it
 * has changed.  All return -1 with errno on failure.
 */

#ifndef CLONE_FETCH_H
#define CLONE_FETCH_H

#include <stdint.h>

#include "backend/backend.h"
#include "clone/clone.h"

/* The most that one call of fetch_install should install, so that no client
 * waits for more than that: a mebibyte, or one region.
 */
extern uint64_t fetch_step (const struct clone *c);

/* Make those of the whole regions [start, end) valid that are still invalid,
 * with the source's bytes in buf; NULL: these are in the destination already.
 * Zeroes become a hole.
 */
extern int fetch_install (struct clone *c, uint64_t closings,
                          const uint8_t *buf, uint64_t start, uint64_t end);

/* Copy those of the whole regions [start, end) that are invalid. */
extern int fetch_regions (struct clone *c, struct backend *source,
                          uint64_t start, uint64_t end);

/* Copy [start, end), a part of one invalid region, without making the region
 * valid; stops where that has become valid.  buf has CLONE_COPY_MAX bytes, or
 * as many as are copied.
 */
extern int fetch_piecewise (struct clone *c, struct backend *source,
                            uint8_t *buf, uint64_t start, uint64_t end);

#endif /* CLONE_FETCH_H */
