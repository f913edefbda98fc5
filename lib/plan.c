/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "rounding.h"

/* Pieces of a large region are multiples of this, which no server's minimum
 * block size exceeds.
 */
#define PIECE_ALIGN (UINT64_C (64) << 10)

void
plan_init (struct plan *p, const struct region_map *map, bool use_extents)
{
  *p = (struct plan){
    .map = map, .use_extents = use_extents, .disk.end = region_map_size (map),
  };
  ahead_init (&p->ahead, p->disk.end);
}

void
plan_destroy (struct plan *p)
{
  free (p->disk.cut);
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    free (p->wish[i].walk.cut);
  ahead_destroy (&p->ahead);
}

/* ---- extents ---- */

/* What is known from the disk's walk on ends here. */
static uint64_t
known_end (const struct plan *p)
{
  if (!p->use_extents)
    return region_map_size (p->map);
  return ahead_end (&p->ahead, p->disk.pos);
}

struct ahead_question *
plan_ask (struct plan *p)
{
  return p->use_extents ? ahead_ask (&p->ahead, p->disk.pos) : NULL;
}

int
plan_answer (struct plan *p, struct ahead_question *q,
             const struct extents *list)
{
  return ahead_answer (&p->ahead, q, list);
}

void
plan_unanswered (struct plan *p, struct ahead_question *q)
{
  ahead_unanswered (&p->ahead, q);
}

/* The part of the zeroes [start, end) that consists of whole granules, where
 * what is planned ends at limit.
 */
static void
whole_granules (uint64_t *start, uint64_t *end, uint64_t granule,
                uint64_t limit)
{
  *start = round_up (*start, granule);
  *end = *end >= limit ? limit : round_down (*end, granule);
}

/* Data begin at start.  Where does the first hole begin that is worth a range
 * of its own?  limit if there is none before it.
 */
static uint64_t
data_end (struct plan *p, uint64_t start, uint64_t granule, uint64_t limit)
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
    whole_granules (&hole, &end, granule, limit);
    if (hole < end && end - hole >= MIN (AHEAD_HOLE_MIN, limit - hole))
      return hole;
  }
  return limit;
}

/* ---- regions in pieces ---- */

static void
begin_cut (struct plan *p, struct plan_walk *walk)
{
  const uint64_t region_size = region_map_region_size (p->map);

  walk->cut = calloc (1, sizeof *walk->cut);
  if (walk->cut == NULL)
    return;
  walk->cut->start = walk->pos;
  walk->cut->end = MIN (walk->pos + region_size, region_map_size (p->map));
  p->open_cuts++;
}

void
plan_cut_done (struct plan *p, struct plan_cut *cut)
{
  p->open_cuts--;
  free (cut);
}

/* No more pieces of the region that is being cut. */
static void
end_cut (struct plan *p, struct plan_walk *walk, bool failed)
{
  struct plan_cut *cut = walk->cut;

  walk->cut = NULL;
  cut->planned = true;
  cut->failed |= failed;
  if (cut->pieces == 0)
    plan_cut_done (p, cut);
}

bool
plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok)
{
  cut->failed |= !ok;
  if (--cut->pieces > 0 || !cut->planned)
    return false;
  if (!cut->failed)
    return true;
  plan_cut_done (p, cut);
  return false;
}

/* ---- wishes ---- */

static void
close_if_done (struct plan_wish *wish)
{
  if (wish->walk.pos == wish->walk.end && wish->copies == 0)
    wish->open = false;
}

void
plan_range_done (struct plan *p, const struct plan_range *range)
{
  if (range->retry) {
    p->retry.copies--;
    if (!range->bad)
      bad_remove (&p->bad, range->start, range->end);
  }
  if (range->wish) {
    range->wish->copies--;
    close_if_done (range->wish);
  }
}

/* Take from [*start, *end) what belongs to an open wish. */
static void
cut_wishes_off (const struct plan *p, uint64_t *start, uint64_t *end)
{
  bool again;

  do {
    again = false;
    for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
      const struct plan_wish *w = &p->wish[i];

      if (!w->open || w->walk.end <= *start || w->start >= *end)
        continue;
      if (w->start > *start)
        *end = w->start;
      else {
        *start = MIN (w->walk.end, *end);
        again = true;           /* another one may begin here */
      }
    }
  } while (again && *start < *end);
}

/* A place for another wish: a free one, or that of the oldest of which nothing
 * was handed out.  NULL if there is none.
 */
static struct plan_wish *
place_for_wish (struct plan *p)
{
  struct plan_wish *oldest = NULL;

  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
    struct plan_wish *w = &p->wish[i];

    if (!w->open)
      return w;
    if (w->walk.pos == w->start && w->walk.cut == NULL && w->copies == 0 &&
        (oldest == NULL || w->number < oldest->number))
      oldest = w;
  }
  return oldest;
}

void
plan_want (struct plan *p, uint64_t start, uint64_t end)
{
  const uint64_t size = region_map_size (p->map);
  const uint64_t region_size = region_map_region_size (p->map);
  const uint64_t first = p->disk.cut ? p->disk.cut->end : p->disk.pos;
  struct plan_wish *w;

  start = MAX (round_down (start, region_size), first);
  end = end < size ? MIN (round_up (end, region_size), size) : size;
  if (start >= end)
    return;
  cut_wishes_off (p, &start, &end);
  if (start == end)
    return;
  w = place_for_wish (p);
  if (w)
    *w = (struct plan_wish){
      .open = true, .start = start, .walk = { .pos = start, .end = end },
      .number = ++p->wishes,
    };
}

/* The latest wish of which something may be left to hand out. */
static struct plan_wish *
latest_wish (struct plan *p)
{
  struct plan_wish *latest = NULL;

  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i) {
    struct plan_wish *w = &p->wish[i];

    if (w->open && w->walk.pos < w->walk.end &&
        (latest == NULL || w->number > latest->number))
      latest = w;
  }
  return latest;
}

/* Hand out nothing more of it: the rest is for the disk's walk. */
static void
give_up_wish (struct plan *p, struct plan_wish *w)
{
  if (w->walk.cut) {
    w->walk.pos = w->walk.cut->end;
    end_cut (p, &w->walk, true);
  }
  w->walk.end = w->walk.pos;
  close_if_done (w);
}

/* ---- bad ranges ---- */

bool
plan_bad (struct plan *p, struct plan_range *range)
{
  const uint64_t count = range->end - range->start;
  uint64_t n;
  bool valid;

  range->bad = true;
  if (range->retry && ++p->retry.failures == PLAN_MAX_FAILURES)
    p->retry.on = false;
  n = region_map_run_bytes (p->map, range->start, range->end, &valid);
  if (valid && n == count)
    return false;
  bad_add (&p->bad, range->start, range->end,
           count > PLAN_BAD_PIECE ? PLAN_BAD_PIECE : REGION_SIZE_MIN);
  return !range->retry;
}

void
plan_sum_bad (const struct plan *p, struct plan_bad_sum *sum)
{
  const uint64_t region_size = region_map_region_size (p->map);
  uint64_t next = 0, n;         /* regions before that one are counted */
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

/* Forget the ranges all of which is valid. */
static void
forget_valid (struct plan *p)
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
  forget_valid (p);
  p->retry.on = true;
  p->retry.failures = 0;
}

/* Take from the regions [*start, *end) those with something bad in them. */
static void
cut_bad_off (const struct plan *p, uint64_t *start, uint64_t *end)
{
  const uint64_t region_size = region_map_region_size (p->map);
  const struct bad_range *b;

  while (*start < *end && (b = bad_find (&p->bad, *start)) != NULL &&
         b->start < *end) {
    if (round_down (b->start, region_size) > *start)
      *end = round_down (b->start, region_size);
    else
      *start = MIN (round_up (b->end, region_size), *end);
  }
}

/* The next range of the round, if there is one. */
static enum plan_result
next_bad (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  const uint64_t granule = region_size <= batch ? region_size : PIECE_ALIGN;
  const struct bad_range *b;
  uint64_t start, piece, n;
  bool valid;

  while (p->retry.on && (b = bad_find (&p->bad, p->retry.pos)) != NULL) {
    start = MAX (b->start, p->retry.pos);
    n = region_map_run_bytes (p->map, start, b->end, &valid);
    p->retry.pos = start + n;
    if (valid)
      continue;

    *range = (struct plan_range){
      .start = round_down (start, granule), .retry = true,
      .probe = region_size > batch,
    };
    piece = round_down (MIN (b->piece, batch), granule);
    range->end = MIN (round_up (start + n, granule),
                      range->start + MAX (piece, granule));
    range->end = MIN (range->end, region_map_size (p->map));
    p->retry.pos = range->end;
    p->retry.copies++;
    return PLAN_RANGE;
  }

  if (p->retry.on)
    p->retry = (struct plan_retry){ .copies = p->retry.copies };
  return PLAN_END;
}

/* ---- the order ---- */

void
plan_restart (struct plan *p)
{
  if (p->disk.cut)
    end_cut (p, &p->disk, true);
  p->disk.pos = 0;
  ahead_restart (&p->ahead);
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    if (p->wish[i].open)
      give_up_wish (p, &p->wish[i]);
}

/* Move a walk to the next byte that is invalid and that it may hand out.
 * Returns where that run of invalid regions ends, or the walk's end if there is
 * none.
 */
static uint64_t
skip_valid (struct plan *p, struct plan_walk *walk)
{
  const uint64_t region_size = region_map_region_size (p->map);
  uint64_t start, end;
  bool valid;

  /* A client may have made the region valid that is being cut. */
  if (walk->cut &&
      region_map_is_valid (p->map, walk->cut->start / region_size)) {
    walk->pos = walk->cut->end;
    end_cut (p, walk, true);
  }
  if (walk->cut)
    return walk->cut->end;

  while (walk->pos < walk->end) {
    start = walk->pos;
    end = MIN (walk->pos + PLAN_MAX_ZERO, walk->end);
    if (walk == &p->disk)
      cut_wishes_off (p, &start, &end);
    cut_bad_off (p, &start, &end);
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

/* Cut the next range off [pos, limit), in multiples of granule. */
static enum plan_result
next_in_run (struct plan *p, struct plan_walk *walk, uint64_t limit,
             uint64_t granule, uint64_t batch, struct plan_range *range)
{
  /* What a wish does not know is data. */
  const uint64_t known = walk == &p->disk ? known_end (p) : limit;
  uint64_t start = walk->pos, end = ahead_zeroes_end (&p->ahead, start);

  whole_granules (&start, &end, granule, limit);
  range->zero = end > start && start == walk->pos;
  if (!range->zero) {
    start = walk->pos;
    if (known < MIN (start + granule, limit))
      return PLAN_WANT_EXTENTS;
    end = MIN (start + MAX (round_down (batch, granule), granule), limit);
    end = data_end (p, start, granule, end);
  }

  /* Whole granules of which all is known. */
  if (end > known)
    end = round_down (known, granule);
  if (end <= start)
    return PLAN_WANT_EXTENTS;

  range->start = start;
  range->end = end;
  return PLAN_RANGE;
}

static enum plan_result
next_of_walk (struct plan *p, struct plan_walk *walk, uint64_t batch,
              struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  enum plan_result r;
  uint64_t limit;

  limit = skip_valid (p, walk);
  if (walk->pos == walk->end)
    return PLAN_END;
  if (walk == &p->disk)
    ahead_pass (&p->ahead, walk->pos);
  *range = (struct plan_range){ 0 };

  if (!walk->cut) {
    r = next_in_run (p, walk, limit, region_size, batch, range);
    if (r == PLAN_RANGE && (range->zero || region_size <= batch))
      goto out;
    if (region_size <= batch)
      return r;
    begin_cut (p, walk);
    if (walk->cut == NULL)      /* no memory: ask again later */
      return PLAN_WANT_EXTENTS;
    limit = walk->cut->end;
  }

  r = next_in_run (p, walk, limit, PIECE_ALIGN, batch, range);
  if (r != PLAN_RANGE)
    return r;
  range->cut = walk->cut;
  walk->cut->pieces++;

 out:
  walk->pos = range->end;
  if (walk->cut && walk->pos == walk->cut->end)
    end_cut (p, walk, false);
  return PLAN_RANGE;
}

enum plan_result
plan_next (struct plan *p, uint64_t batch, struct plan_range *range)
{
  struct plan_wish *wish;

  while ((wish = latest_wish (p)) != NULL) {
    if (next_of_walk (p, &wish->walk, batch, range) == PLAN_RANGE) {
      range->wish = wish;
      wish->copies++;
      return PLAN_RANGE;
    }
    give_up_wish (p, wish);
  }
  if (next_bad (p, batch, range) == PLAN_RANGE)
    return PLAN_RANGE;
  if (p->disk.pos == p->disk.end && p->lost) {
    p->lost = false;
    plan_restart (p);
  }
  return next_of_walk (p, &p->disk, batch, range);
}

void
plan_return (struct plan *p, struct plan_range *range)
{
  p->lost = true;
}

void
plan_set_back (struct plan *p)
{
  p->lost = true;
}

void
plan_unanswered (struct plan *p, struct ahead_question *q)
{
  q->state = AHEAD_TO_ASK;
}
