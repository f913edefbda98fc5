/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* BACKEND_IF_DATA: zero a range, and leave alone what reads as zeroes already.
 * So a sparse destination stays sparse, whatever it can do, and allocated space
 * stays allocated.
 *
 *   1. Ask for the extents.  Zeroes among them are left alone.  A file system
 *      reports space that is allocated and not yet written as zeroes, too.
 *   2. Zero the others, if the backend has a faster way than writing zeroes.
 *   3. If it has not, read them, and write zeroes over what is not zero.
 *
 * This is the form that waits; a channel of an NBD export has its own
 * (nbd-channel-zero.c).
 */

#ifndef CLONE_ZERO_IF_DATA_H
#define CLONE_ZERO_IF_DATA_H

#include "backend/backend.h"

/* Bytes that are read at once, also by backend_is_zero, and those that are
 * compared at once.
 */
#define ZERO_PIECE (UINT64_C (1) << 20)
#define ZERO_GRANULE 4096

/* Step 2, or step 3?  Step 2 is left out where it could allocate space: a zero
 * without BACKEND_MAY_TRIM allocates holes, and a backend that does not report
 * extents does not say where they are.
 */
enum zero_how { ZERO_BY_REQUEST, ZERO_BY_READING };
extern enum zero_how zero_how (const struct backend *b, unsigned flags);

/* backend_zero with BACKEND_IF_DATA. */
extern int zero_if_data (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags);

#endif /* CLONE_ZERO_IF_DATA_H */
