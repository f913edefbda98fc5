/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Bad ranges, which the source cannot read, and the rounds in which they are
 * tried again (plan.h).
 */

#include <config.h>

#include "base/rounding.h"
#include "hydration/plan-internal.h"

/* A bit of a range's note, beside the size of its pieces: these do not grow. */
#define BAD_STAYS_SMALL 1

bool
plan_bad (struct plan *p, struct plan_range *range)
{
  const uint64_t count = range->end - range->start;
  uint64_t n;
  bool valid;

  range->bad = true;
  if (range->retry) {
    p->retry.piece = 0;
    if (++p->retry.failures == PLAN_MAX_FAILURES)
      p->retry.on = false;
  }
  n = region_map_run_bytes (p->map, range->start, range->end, &valid);
  if (valid && n == count)
    return false;
  bad_add (&p->bad, range->start, range->end,
           (count > PLAN_BAD_PIECE ? PLAN_BAD_PIECE : REGION_SIZE_MIN) |
           (range->grown ? BAD_STAYS_SMALL : 0));
  return !range->retry;
}

void
plan_sum_bad (const struct plan *p, struct plan_bad_sum *sum)
{
  const uint64_t region_size = region_map_region_size (p->map);
  uint64_t next = 0, n;         /* regions before next are counted */
  bool valid;

  *sum = (struct plan_bad_sum){ 0 };
  for (unsigned i = 0; i < p->bad.len; ++i) {
    const struct bad_range *b = &p->bad.range[i];

    for (uint64_t pos = b->start; pos < b->end; pos += n) {
      n = region_map_run_bytes (p->map, pos, b->end, &valid);
      if (valid)
        continue;
      next = MAX (next, pos / region_size);
      sum->regions += div_round_up (pos + n, region_size) - next;
      next = div_round_up (pos + n, region_size);
      sum->bytes += n;
      if (sum->ranges > 0 && sum->range[sum->ranges - 1].end == pos)
        sum->range[sum->ranges - 1].end += n;
      else if (sum->ranges < PLAN_BAD_SHOWN) {
        sum->range[sum->ranges].start = pos;
        sum->range[sum->ranges++].end = pos + n;
      }
    }
  }
}

/* Forget ranges that are entirely valid. */
static void
plan_forget_valid (struct plan *p)
{
  const struct bad_range *b;
  uint64_t pos = 0;
  bool valid;

  while ((b = bad_find (&p->bad, pos)) != NULL) {
    pos = b->end;
    if (region_map_run_bytes (p->map, b->start, b->end, &valid) ==
        b->end - b->start && valid)
      bad_remove (&p->bad, b->start, b->end);
  }
}

void
plan_retry (struct plan *p)
{
  if (p->retry.on || p->retry.copies > 0)
    return;
  plan_forget_valid (p);
  p->retry.on = true;
  p->retry.failures = 0;
  p->retry.piece = 0;
}

void
plan_retried_range_done (struct plan *p, const struct plan_range *range)
{
  p->retry.copies--;
  if (range->bad || range->returned || plan_is_old (p, range))
    return;
  bad_remove (&p->bad, range->start, range->end);
  p->retry.piece = MAX (p->retry.piece, range->end - range->start);
  p->retry.piece = MIN (2 * p->retry.piece, PLAN_MAX_ZERO);
}

/* Cut the next range off the n invalid bytes at start, in the bad range b. */
static void
plan_cut_bad (struct plan *p, const struct bad_range *b, uint64_t start,
              uint64_t n, uint64_t batch, struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  const uint64_t granule = region_size <= batch ? region_size
                                                : PLAN_PIECE_ALIGN;
  uint64_t own, piece;          /* the size in the note; and grown */

  *range = (struct plan_range){
    .start = round_down (start, granule), .retry = true,
    .probe = region_size > batch,
  };
  own = b->note & ~(uint64_t)BAD_STAYS_SMALL;
  own = MAX (round_down (MIN (own, batch), granule), granule);
  piece = own;
  if (!(b->note & BAD_STAYS_SMALL))
    piece = MAX (round_down (MIN (p->retry.piece, batch), granule), own);
  range->end = MIN (round_up (start + n, granule), range->start + piece);
  range->end = MIN (range->end, region_map_size (p->map));
  range->grown = range->end - range->start > own;
}

enum plan_result
plan_next_bad (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const struct bad_range *b;
  uint64_t start, n;
  bool valid;

  while (p->retry.on && (b = bad_find (&p->bad, p->retry.pos)) != NULL) {
    start = MAX (b->start, p->retry.pos);
    n = region_map_run_bytes (p->map, start, b->end, &valid);
    p->retry.pos = start + n;
    if (valid)
      continue;
    plan_cut_bad (p, b, start, n, batch, range);
    p->retry.pos = range->end;
    p->retry.copies++;
    return PLAN_RANGE;
  }

  if (p->retry.on)
    p->retry = (struct plan_retry){ .copies = p->retry.copies };
  return PLAN_END;
}
