/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/rounding.h"
#include "hydration/bad-ranges.h"

/* The index of the first range that ends after pos. */
static unsigned
bad_index (const struct bad_ranges *bad, uint64_t pos)
{
  unsigned low = 0, high = bad->len;

  while (low < high) {
    const unsigned middle = (low + high) / 2;

    if (bad->range[middle].end > pos)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

static void
bad_insert (struct bad_ranges *bad, unsigned i, struct bad_range range)
{
  memmove (bad->range + i + 1, bad->range + i,
           (bad->len - i) * sizeof *bad->range);
  bad->range[i] = range;
  bad->len++;
}

/* Drop the ranges [i, j). */
static void
bad_drop (struct bad_ranges *bad, unsigned i, unsigned j)
{
  memmove (bad->range + i, bad->range + j,
           (bad->len - j) * sizeof *bad->range);
  bad->len -= j - i;
}

/* Make one range of the range i and the next one. */
static void
bad_join (struct bad_ranges *bad, unsigned i)
{
  struct bad_range *range = bad->range + i;

  range[0].end = range[1].end;
  range[0].note = MIN (range[0].note, range[1].note);
  bad_drop (bad, i + 1, i + 2);
}

static bool
bad_may_join (const struct bad_ranges *bad, unsigned i)
{
  const struct bad_range *range = bad->range + i;

  return range[0].end == range[1].start && range[0].note == range[1].note;
}

static void
bad_keep_bound (struct bad_ranges *bad)
{
  while (bad->len > BAD_MAX) {
    uint64_t smallest = UINT64_MAX;
    unsigned closest = 0;

    for (unsigned i = 0; i + 1 < bad->len; ++i) {
      const uint64_t gap = bad->range[i + 1].start - bad->range[i].end;

      if (gap < smallest) {
        smallest = gap;
        closest = i;
      }
    }
    bad_join (bad, closest);
  }
}

/* Take these bytes off the list.  Returns the index that they would have. */
static unsigned
bad_take_off (struct bad_ranges *bad, uint64_t start, uint64_t end)
{
  unsigned i = bad_index (bad, start), j;

  if (i < bad->len && bad->range[i].start < start) {
    struct bad_range rest = bad->range[i];

    bad->range[i++].end = start;
    if (rest.end > end) {
      rest.start = end;
      bad_insert (bad, i, rest);
    }
  }
  for (j = i; j < bad->len && bad->range[j].end <= end; ++j)
    ;
  bad_drop (bad, i, j);
  if (i < bad->len)
    bad->range[i].start = MAX (bad->range[i].start, end);
  return i;
}

void
bad_add (struct bad_ranges *bad, uint64_t start, uint64_t end, uint64_t note)
{
  const unsigned i = bad_take_off (bad, start, end);

  bad_insert (bad, i, (struct bad_range){ start, end, note });
  if (i + 1 < bad->len && bad_may_join (bad, i))
    bad_join (bad, i);
  if (i > 0 && bad_may_join (bad, i - 1))
    bad_join (bad, i - 1);
  bad_keep_bound (bad);
}

void
bad_remove (struct bad_ranges *bad, uint64_t start, uint64_t end)
{
  if (start < end)
    bad_take_off (bad, start, end);
  bad_keep_bound (bad);
}

const struct bad_range *
bad_find (const struct bad_ranges *bad, uint64_t pos)
{
  const unsigned i = bad_index (bad, pos);

  return i < bad->len ? &bad->range[i] : NULL;
}
