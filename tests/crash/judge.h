/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opens a clone on an after-crash image with the real code, and looks at what a
 * client finds there.
 */

#ifndef CRASH_JUDGE_H
#define CRASH_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

#include "history.h"
#include "oracle.h"

struct judge;

extern struct judge *judge_new (const struct history *h, struct oracle *o);
extern void judge_free (struct judge *j);

/* How far to look. */
enum depth {
  DEPTH_READ,     /* read the window, twice */
  DEPTH_COPY,     /* read the whole disk, then copy its invalid regions, and
                   * look at the destination alone */
  DEPTH_HYDRATE,  /* the same by hydration, on its own threads */
};

/* Is this image legal after a cut at this tick?  If not, it has said why.  The
 * oracle is set to the cut.  values, those of the whole disk, become what a
 * client reads.
 */
extern bool judge_image (struct judge *j, uint64_t cut, const uint8_t *dest,
                         const uint8_t *meta, enum depth depth,
                         value_t *values);

#endif /* CRASH_JUDGE_H */
