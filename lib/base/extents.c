/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/extents.h"
#include "base/rounding.h"

int
extents_add (struct extents *list, uint64_t offset, uint64_t length,
             unsigned flags)
{
  struct extent *last = list->len ? &list->extent[list->len - 1] : NULL;

  if (length == 0)
    return 0;
  if (last && last->offset + last->length != offset) {
    errno = EINVAL;
    return -1;
  }
  if (last && last->flags == flags) {
    last->length += length;
    return 0;
  }

  if (list->len == list->alloc) {
    size_t alloc = list->alloc ? list->alloc * 2 : 16;
    struct extent *extent = reallocarray (list->extent, alloc,
                                          sizeof *extent);

    if (extent == NULL)
      return -1;
    list->extent = extent;
    list->alloc = alloc;
  }
  list->extent[list->len++] = (struct extent){
    .offset = offset, .length = length, .flags = flags
  };
  return 0;
}

uint64_t
extents_end (const struct extents *list)
{
  const struct extent *last;

  if (list->len == 0)
    return 0;
  last = &list->extent[list->len - 1];
  return last->offset + last->length;
}

size_t
extents_find (const struct extents *list, uint64_t offset)
{
  size_t low = 0, high = list->len;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const struct extent *e = &list->extent[middle];

    if (e->offset + e->length > offset)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

bool
extents_covers (const struct extents *list, uint64_t offset)
{
  return list->len > 0 && list->extent[0].offset <= offset &&
    offset < extents_end (list);
}

int
extents_copy (const struct extents *from, uint64_t start, uint64_t end,
              size_t max, struct extents *to)
{
  for (size_t i = extents_find (from, start);
       i < from->len && start < end && to->len < max; ++i) {
    const struct extent *e = &from->extent[i];
    const uint64_t stop = MIN (end, e->offset + e->length);

    if (extents_add (to, start, stop - start, e->flags) == -1)
      return -1;
    start = stop;
  }
  return 0;
}

void
extents_swap (struct extents *a, struct extents *b)
{
  const struct extents old = *a;

  *a = *b;
  *b = old;
}

void
extents_clear (struct extents *list)
{
  list->len = 0;
}

void
extents_free (struct extents *list)
{
  free (list->extent);
  *list = EXTENTS_INIT;
}
