/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fetch: copies that a client's thread makes itself, for cache requests and
 * copy-on-read.  change.c also uses it, for the bytes around a change if they
 * are too many for one buffer (CLONE_COPY_MAX).
 *
 * The source is read outside the gate and unowned.  Between the read and the
 * installation the map may be set back.  So `closings' is the value of
 * gate_closings before the first read, and a function fails with ENOTCONN if
 * the value has changed.  All return -1 with errno on failure.
 */

#ifndef CLONE_FETCH_H
#define CLONE_FETCH_H

#include <stdint.h>

#include "backend/backend.h"
#include "clone/clone.h"

/* The number of bytes that one call of fetch_install should install at most, so
 * that no client waits for more: a mebibyte, or one region.
 */
extern uint64_t fetch_step (const struct clone *c);

/* Make those of the whole regions [start, end) valid that are still invalid.
 * buf has the source's bytes; NULL: they are in the destination already.
 * Zeroes become a hole.
 */
extern int fetch_install (struct clone *c, uint64_t closings,
                          const uint8_t *buf, uint64_t start, uint64_t end);

/* Copy those of the whole regions [start, end) that are invalid. */
extern int fetch_regions (struct clone *c, struct backend *source,
                          uint64_t start, uint64_t end);

/* Copy [start, end), a part of one invalid region, without making the region
 * valid.  Stops if the region has become valid.  buf has room for
 * CLONE_COPY_MAX bytes, or for end - start if that is less.
 */
extern int fetch_piecewise (struct clone *c, struct backend *source,
                            uint8_t *buf, uint64_t start, uint64_t end);

#endif /* CLONE_FETCH_H */
