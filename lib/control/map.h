/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* GET /map: which parts of the disk are in which state.
 *
 *   durable    valid, and the bitmap on disk says so
 *   dirty      valid, not durable yet
 *   in_flight  invalid, and hydration has begun to copy it
 *   bad        invalid, and the source could not read it
 *   invalid    other invalid bytes
 *
 * Without arguments the answer has at most MAP_CELLS cells of equal length,
 * each with the number of bytes in each state ("invalid" then includes
 * in_flight and bad).  With offset=B or length=B, or both, it has the runs of
 * that range, at most MAP_RUNS, and "next", where to go on, or null.
 *
 * The map goes on changing while it is looked at, so the answer is not a
 * snapshot.  Looking takes no lock but hydration's, for a moment.
 */

#ifndef CLONE_MAP_H
#define CLONE_MAP_H

#include <microhttpd.h>

struct request;

#define MAP_CELLS 1024
#define MAP_RUNS 16384

/* The endpoint's handler (endpoints.h). */
extern enum MHD_Result map_handle (struct request *r);

#endif /* CLONE_MAP_H */
