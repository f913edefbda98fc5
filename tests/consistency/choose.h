/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chooses a connection's next request, so that requests meet each other, and
 * the server's work in the background.
 *
 * A round has a window, the same for all connections, and in it a few spots.
 * Most requests are small and near a spot, or somewhere in the window; some are
 * anywhere, and some cover a block of a common size (a page, a region) or
 * several, exactly or nearly.  Windows alternate between random places and a
 * sweep over the disk, because a sector can be changed for the first time only
 * once.
 *
 * The same seed chooses the same requests in the same order for a connection.
 */

#ifndef CONSISTENCY_CHOOSE_H
#define CONSISTENCY_CHOOSE_H

#include <stdbool.h>
#include <stdint.h>

#include "request.h"

/* A server, and the part of its disk that is used; in bytes. */
struct area {
  uint64_t offset, size;
  uint64_t align;       /* of offsets and counts; SECTOR or more */
  uint64_t max_length;  /* of a request */
  bool can[REQUEST_TYPES];
  bool can_fua, can_fast_zero;
};

#define CHOOSE_SPOTS 4

struct chooser {
  const struct area *area;
  uint64_t seed;
  unsigned connection;

  uint64_t random;
  uint64_t window, window_size;
  uint64_t spot[CHOOSE_SPOTS];
};

extern void choose_begin_round (struct chooser *c, uint64_t round,
                                uint64_t rounds);

/* Sets type, flags, offset and count. */
extern void choose_request (struct chooser *c, struct request *r);

#endif /* CONSISTENCY_CHOOSE_H */
