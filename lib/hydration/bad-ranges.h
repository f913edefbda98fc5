/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A list of ranges to be tried again.  The plan has two: ranges that the source
 * cannot read, and ranges whose copies a lost server interrupted.
 *
 * The list is sorted and has a bound.  When there are more than BAD_MAX ranges,
 * the two with the smallest gap between them become one range, which includes
 * the gap.  So the list always covers everything that was added, and such a gap
 * is tried again, too.
 *
 * Offsets and sizes are bytes.  There is no lock: the caller's protects it.
 */

#ifndef CLONE_BAD_RANGES_H
#define CLONE_BAD_RANGES_H

#include <stdint.h>

#define BAD_MAX 1024

struct bad_range {
  uint64_t start, end;
  uint64_t note; /* the caller's, about all of these bytes */
};

/* The ranges ascend and do not overlap.  Adjacent ranges have different notes,
 * or else they are one range.  When the bound makes one range of two, it keeps
 * the smaller note.  A list of all zeroes is empty.
 */
struct bad_ranges {
  unsigned len;
  struct bad_range range[BAD_MAX + 2]; /* two more during a change */
};

/* Add these bytes with this note, which replaces notes that they have. */
extern void bad_add (struct bad_ranges *bad, uint64_t start, uint64_t end,
                     uint64_t note);

/* Take these bytes off the list. */
extern void bad_remove (struct bad_ranges *bad, uint64_t start, uint64_t end);

/* The first range that ends after pos, or NULL.  The next change of the list
 * invalidates it.
 */
extern const struct bad_range *bad_find (const struct bad_ranges *bad,
                                         uint64_t pos);

#endif /* CLONE_BAD_RANGES_H */
