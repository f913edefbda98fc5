/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Ranges that have to be tried again: those of the source that could not be
 * read, and, in another list, those that a lost server has interrupted.
 *
 * A sorted list with a bound: where there would be more than BAD_MAX, the two
 * ranges with the smallest gap between them become one, gap and all.  So the
 * list always covers everything that was added, and what lies in such a gap is
 * tried again with it.
 *
 * Offsets and sizes are bytes.  No lock: the user's protects it.
 */

#ifndef CLONE_BAD_RANGES_H
#define CLONE_BAD_RANGES_H

#include <stdint.h>

#define BAD_MAX 1024

struct bad_range {
  uint64_t start, end;
  uint64_t note; /* the user's, about all of these bytes */
};

/* Ascending and apart.  Neighbours have different notes, else they are one.
 * Where the bound makes one of two ranges it keeps the smaller note.  All
 * zeroes is an empty list.
 */
struct bad_ranges {
  unsigned len;
  struct bad_range range[BAD_MAX + 2]; /* the last two for a moment only */
};

/* Add these bytes, whatever the list has said of them before. */
extern void bad_add (struct bad_ranges *bad, uint64_t start, uint64_t end,
                     uint64_t note);

/* Take these bytes off the list. */
extern void bad_remove (struct bad_ranges *bad, uint64_t start, uint64_t end);

/* The first range that ends after pos, or NULL.  Valid until a change. */
extern const struct bad_range *bad_find (const struct bad_ranges *bad,
                                         uint64_t pos);

#endif /* CLONE_BAD_RANGES_H */
