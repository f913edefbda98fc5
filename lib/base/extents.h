/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A list of extents.  It says for each part of a contiguous range of a backend
 * whether that part is data or a hole.
 */

#ifndef CLONE_EXTENTS_H
#define CLONE_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Flags of an extent, as in NBD's base:allocation.  An extent with EXTENT_ZERO
 * reads as zeroes.  The content of any other extent, also of a hole, is
 * unknown until it is read.
 */
#define EXTENT_HOLE 1
#define EXTENT_ZERO 2

struct extent {
  uint64_t offset; /* bytes */
  uint64_t length; /* bytes, not 0 */
  unsigned flags;
};

/* The extents are ascending and contiguous, and neighbours with equal flags are
 * merged.  The list covers [extent[0].offset, extents_end).  Not thread safe:
 * one user at a time.
 */
struct extents {
  struct extent *extent;
  size_t len, alloc;
};

#define EXTENTS_INIT ((struct extents){ 0 })

/* Append an extent.  It begins where the list ends; in an empty list it may
 * begin anywhere.  If its flags are those of the last extent, the two are
 * merged into one.  A length of 0 does nothing.  -1 with errno ENOMEM, or with
 * EINVAL if the extent does not begin at the list's end.
 */
extern int extents_add (struct extents *list, uint64_t offset,
                        uint64_t length, unsigned flags);

/* Where the list ends; 0 for an empty list. */
extern uint64_t extents_end (const struct extents *list);

/* The index of the first extent that ends after offset, or list->len.  Takes
 * log (len) steps.
 */
extern size_t extents_find (const struct extents *list, uint64_t offset);

/* Does the list say something about the byte at offset? */
extern bool extents_covers (const struct extents *list, uint64_t offset);

/* Append to `to' what `from' says about [start, end), where `from' covers
 * start.  Stops before end where `from' ends, or when `to' has max extents.  -1
 * with errno as extents_add.
 */
extern int extents_copy (const struct extents *from, uint64_t start,
                         uint64_t end, size_t max, struct extents *to);

/* Exchange the content of two lists. */
extern void extents_swap (struct extents *a, struct extents *b);

/* Remove all extents; keep the memory for new ones. */
extern void extents_clear (struct extents *list);

/* Free the list's memory. */
extern void extents_free (struct extents *list);
#define CLEANUP_EXTENTS_FREE __attribute__ ((cleanup (extents_free)))

#endif /* CLONE_EXTENTS_H */
