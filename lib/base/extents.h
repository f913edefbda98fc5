/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A list of extents: what is known of a contiguous range of a backend. */

#ifndef CLONE_EXTENTS_H
#define CLONE_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

/* Flags of an extent, as in NBD's base:allocation.  Only EXTENT_ZERO says
 * what reading the extent gives; a hole that is not zero must be read.
 */
#define EXTENT_HOLE 1
#define EXTENT_ZERO 2

struct extent {
  uint64_t offset; /* bytes */
  uint64_t length; /* bytes, not 0 */
  unsigned flags;
};

/* Ascending, contiguous, neighbours of equal flags merged.  The list covers
 * [extent[0].offset, extents_end).  Not thread safe: one user at a time.
 */
struct extents {
  struct extent *extent;
  size_t len, alloc;
};

#define EXTENTS_INIT ((struct extents){ 0 })

/* Append an extent that begins where the list ends (anywhere, when the list is
 * empty).  A length of 0 does nothing.  -1 with errno ENOMEM or, where the
 * extent does not join the list, EINVAL.
 */
extern int extents_add (struct extents *list, uint64_t offset,
                        uint64_t length, unsigned flags);

/* Where the list ends; 0 for an empty list. */
extern uint64_t extents_end (const struct extents *list);

/* The index of the first extent that ends after offset; list->len if none does.
 * Takes log (len) steps.
 */
extern size_t extents_find (const struct extents *list, uint64_t offset);

/* Forget all extents, keep the memory for the next ones. */
extern void extents_clear (struct extents *list);

/* Free the list's memory. */
extern void extents_free (struct extents *list);
#define CLEANUP_EXTENTS_FREE __attribute__ ((cleanup (extents_free)))

#endif /* CLONE_EXTENTS_H */
