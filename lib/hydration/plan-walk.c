/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Walks over a part of the disk.  A walk skips regions that are valid, and
 * those that it must not hand out.  It cuts ranges of zeroes, of data, and
 * pieces of regions larger than a batch.
 */

#include <config.h>

#include "base/rounding.h"
#include "hydration/plan-internal.h"

/* ---- zeroes and data ---- */

/* The source's extents are known from the disk's walk up to here. */
static uint64_t
plan_known_end (const struct plan *p)
{
  if (!p->use_extents)
    return region_map_size (p->map);
  return ahead_end (&p->ahead, p->disk.pos);
}

/* Shrink the zeroes [*start, *end) to whole granules.  Those at the limit of
 * the range being planned need not fill their granule.
 */
static void
plan_whole_granules (uint64_t *start, uint64_t *end, uint64_t granule,
                     uint64_t limit)
{
  *start = round_up (*start, granule);
  *end = *end >= limit ? limit : round_down (*end, granule);
}

/* Where does the first hole after start begin that is worth a range of its own?
 * limit if there is none before it.
 */
static uint64_t
plan_data_end (struct plan *p, uint64_t start, uint64_t granule,
               uint64_t limit)
{
  size_t n;
  const struct extent *e = ahead_from (&p->ahead, start, &n);

  for (; n > 0; ++e, --n) {
    uint64_t hole, end;

    p->ahead.looked_at++;
    if (e->offset >= limit)
      break;
    if (!(e->flags & EXTENT_ZERO))
      continue;
    hole = MAX (e->offset, start);
    end = e->offset + e->length;
    plan_whole_granules (&hole, &end, granule, limit);
    if (hole < end && end - hole >= MIN (AHEAD_HOLE_MIN, limit - hole))
      return hole;
  }
  return limit;
}

/* ---- regions to skip ---- */

void
plan_leave_out_list (const struct plan *p, const struct bad_ranges *list,
                     uint64_t *start, uint64_t *end)
{
  const uint64_t region_size = region_map_region_size (p->map);
  const struct bad_range *b;

  while (*start < *end && (b = bad_find (list, *start)) != NULL &&
         b->start < *end) {
    if (round_down (b->start, region_size) > *start)
      *end = round_down (b->start, region_size);
    else
      *start = MIN (round_up (b->end, region_size), *end);
  }
}

/* Move a walk to the next invalid byte that it may hand out.  Returns the end
 * of that run of invalid regions.  Without one, the walk is at its end, which
 * is returned.
 */
static uint64_t
plan_skip (struct plan *p, struct plan_walk *walk)
{
  const uint64_t region_size = region_map_region_size (p->map);
  uint64_t start, end;
  bool valid;

  /* A client may have made the region valid that is being cut. */
  if (walk->cut &&
      region_map_is_valid (p->map, walk->cut->start / region_size)) {
    walk->pos = walk->cut->end;
    plan_end_cut (p, walk, true);
  }
  if (walk->cut)
    return walk->cut->end;

  while (walk->pos < walk->end) {
    start = walk->pos;
    end = MIN (walk->pos + PLAN_MAX_ZERO, walk->end);
    if (walk == &p->disk)
      plan_leave_out_wishes (p, &start, &end);
    if (walk != &p->returned_walk)
      plan_leave_out_list (p, &p->returned, &start, &end);
    plan_leave_out_list (p, &p->bad, &start, &end);
    walk->pos = start;
    if (start == end)
      continue;
    end = start + region_map_run_bytes (p->map, start, end, &valid);
    if (!valid)
      return end;
    walk->pos = end;
  }
  return walk->end;
}

/* ---- the next range ---- */

/* Cut the next range off [pos, limit), in multiples of granule. */
static enum plan_result
plan_next_in_run (struct plan *p, struct plan_walk *walk, uint64_t limit,
                  uint64_t granule, uint64_t batch, struct plan_range *range)
{
  /* Only the disk's walk waits for extents.  For others, unknown is data. */
  const uint64_t known = walk == &p->disk ? plan_known_end (p) : limit;
  uint64_t start = walk->pos;
  uint64_t end = walk->zero ? limit : ahead_zeroes_end (&p->ahead, start);

  plan_whole_granules (&start, &end, granule, limit);
  range->zero = end > start && start == walk->pos;
  if (range->zero)
    end = MIN (end, start + MAX (round_down (p->max_zero, granule), granule));
  else {
    start = walk->pos;
    if (known < MIN (start + granule, limit))
      return PLAN_WANT_EXTENTS;
    end = MIN (start + MAX (round_down (batch, granule), granule), limit);
    end = plan_data_end (p, start, granule, end);
  }

  /* Whole granules whose extents are all known. */
  if (end > known)
    end = round_down (known, granule);
  if (end <= start)
    return PLAN_WANT_EXTENTS;

  range->start = start;
  range->end = end;
  return PLAN_RANGE;
}

enum plan_result
plan_next_of_walk (struct plan *p, struct plan_walk *walk, uint64_t batch,
                   struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  enum plan_result r;
  uint64_t limit;

  limit = plan_skip (p, walk);
  if (walk->pos == walk->end)
    return PLAN_END;
  if (walk == &p->disk)
    ahead_pass (&p->ahead, walk->pos);
  *range = (struct plan_range){ 0 };

  if (!walk->cut) {
    r = plan_next_in_run (p, walk, limit, region_size, batch, range);
    if (r == PLAN_RANGE &&
        region_size <= (range->zero ? MAX (batch, p->max_zero) : batch))
      goto out;
    if (region_size <= batch)
      return r;
    plan_begin_cut (p, walk);
    if (walk->cut == NULL)      /* no memory: the caller tries again later */
      return PLAN_WANT_EXTENTS;
    limit = walk->cut->end;
  }

  r = plan_next_in_run (p, walk, limit, PLAN_PIECE_ALIGN, batch, range);
  if (r != PLAN_RANGE)
    return r;
  range->cut = walk->cut;
  walk->cut->pieces++;

 out:
  walk->pos = range->end;
  if (walk->cut && walk->pos == walk->cut->end)
    plan_end_cut (p, walk, false);
  return PLAN_RANGE;
}
