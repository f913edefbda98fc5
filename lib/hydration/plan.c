/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/rounding.h"
#include "hydration/plan.h"

/* Pieces of a large region are multiples of this, which no server's minimum
 * block size exceeds.
 */
#define PIECE_ALIGN (UINT64_C (64) << 10)

/* The notes of returned ranges.  Where two become one the smaller note stays,
 * which is right for both.
 */
enum { RETURNED_DATA, RETURNED_ZERO, RETURNED_UNDER_WAY };

/* With so many of them wishes wait, so that the list has no end of ranges. */
#define RETURNED_MANY (BAD_MAX / 2)

/* In the note of a bad range: its pieces do not grow. */
#define BAD_STAYS_SMALL 1

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
  struct plan_cut *cut;

  while ((cut = LIST_FIRST (&p->cuts)) != NULL) {
    LIST_REMOVE (cut, link);
    free (cut);
  }
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
  walk->cut->walk = walk;
  LIST_INSERT_HEAD (&p->cuts, walk->cut, link);
  p->open_cuts++;
}

static struct plan_cut *
find_cut (const struct plan *p, uint64_t start)
{
  struct plan_cut *cut;

  LIST_FOREACH (cut, &p->cuts, link)
    if (cut->start == start)
      break;
  return cut;
}

/* A region that was returned comes again, or has already come, because the
 * disk's walk has begun anew: then it is that one's to come again.
 */
void
plan_cut_done (struct plan *p, struct plan_cut *cut)
{
  struct plan_cut *other;

  LIST_REMOVE (cut, link);
  p->open_cuts--;
  if (cut->again)
    bad_remove (&p->returned, cut->start, cut->end);
  if (cut->returned) {
    other = find_cut (p, cut->start);
    if (other)
      other->returned = true;
    else
      bad_add (&p->returned, cut->start, cut->end, RETURNED_DATA);
  }
  free (cut);
}

/* No more pieces of the region that is being cut. */
static void
end_cut (struct plan *p, struct plan_walk *walk, bool failed)
{
  struct plan_cut *cut = walk->cut;

  walk->cut = NULL;
  cut->walk = NULL;
  cut->failed |= failed;
  if (cut->pieces == 0)
    plan_cut_done (p, cut);
}

bool
plan_piece_done (struct plan *p, struct plan_cut *cut, bool ok)
{
  cut->failed |= !ok;
  if (--cut->pieces > 0 || cut->walk)
    return false;
  if (!cut->failed)
    return true;
  plan_cut_done (p, cut);
  return false;
}

/* ---- the end of a range ---- */

/* Has the map been set back since it was handed out?  Then it may be invalid
 * even though it was copied well, and the disk's walk, which has begun anew
 * since, may have gone around it.
 */
static bool
is_old (const struct plan *p, const struct plan_range *range)
{
  return range->restarts < p->set_back;
}

static void
close_if_done (struct plan_wish *wish)
{
  if (wish->walk.pos == wish->walk.end && wish->copies == 0)
    wish->open = false;
}

/* The range is a bad one that was tried again. */
static void
retry_done (struct plan *p, const struct plan_range *range)
{
  p->retry.copies--;
  if (range->bad || range->returned || is_old (p, range))
    return;
  bad_remove (&p->bad, range->start, range->end);
  p->retry.piece = MAX (p->retry.piece, range->end - range->start);
  p->retry.piece = MIN (2 * p->retry.piece, PLAN_MAX_ZERO);
}

void
plan_range_done (struct plan *p, const struct plan_range *range)
{
  if (range->retry)
    retry_done (p, range);
  if (range->again && !range->cut && !range->returned) {
    if (is_old (p, range))
      bad_add (&p->returned, range->start, range->end, RETURNED_DATA);
    else
      bad_remove (&p->returned, range->start, range->end);
  }
  if (range->wish) {
    range->wish->copies--;
    close_if_done (range->wish);
  }
}

/* ---- wishes ---- */

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
  p->retry.piece = 0;
}

/* Take from the regions [*start, *end) those with something of the list in
 * them.
 */
static void
cut_list_off (const struct plan *p, const struct bad_ranges *list,
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

/* The next range of the round, if there is one. */
static enum plan_result
next_bad (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  const uint64_t granule = region_size <= batch ? region_size : PIECE_ALIGN;
  const struct bad_range *b;
  uint64_t start, own, piece, n;
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
    own = b->note & ~(uint64_t)BAD_STAYS_SMALL;
    own = MAX (round_down (MIN (own, batch), granule), granule);
    piece = own;
    if (!(b->note & BAD_STAYS_SMALL))
      piece = MAX (round_down (MIN (p->retry.piece, batch), granule), own);
    range->end = MIN (round_up (start + n, granule), range->start + piece);
    range->end = MIN (range->end, region_map_size (p->map));
    range->grown = range->end - range->start > own;
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
  if (p->again.cut) {
    p->again.cut->returned = true; /* the disk's walk goes around it */
    end_cut (p, &p->again, true);
  }
  p->disk.pos = 0;
  p->restarts++;
  ahead_restart (&p->ahead);
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    if (p->wish[i].open)
      give_up_wish (p, &p->wish[i]);
}

void
plan_set_back (struct plan *p)
{
  struct plan_cut *cut;

  LIST_FOREACH (cut, &p->cuts, link) {
    cut->failed = true;
    cut->returned |= cut->again;
  }
  plan_restart (p);
  p->set_back = p->restarts;

  /* The disk's walk must not go around what of a wish was valid. */
  for (unsigned i = 0; i < PLAN_MAX_WISHES; ++i)
    p->wish[i].start = p->wish[i].walk.pos = p->wish[i].walk.end = 0;
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
    if (walk != &p->again)
      cut_list_off (p, &p->returned, &start, &end);
    cut_list_off (p, &p->bad, &start, &end);
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
  uint64_t start = walk->pos;
  uint64_t end = walk->zero ? limit : ahead_zeroes_end (&p->ahead, start);

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

/* ---- what was returned ---- */

/* End the planning of the region, so that no more of it is copied in vain. */
static void
return_cut (struct plan *p, struct plan_cut *cut)
{
  struct plan_walk *walk = cut->walk;

  cut->returned = true;
  if (walk) {
    walk->pos = cut->end;
    end_cut (p, walk, true);
  }
}

/* Where the disk's walk has begun anew since, and does not go around the range,
 * it comes to it.
 */
void
plan_return (struct plan *p, struct plan_range *range)
{
  range->returned = true;
  if (range->cut)
    return_cut (p, range->cut);
  else if (range->again ||
           (range->wish && !is_old (p, range)) ||
           (!range->retry && range->restarts == p->restarts))
    bad_add (&p->returned, range->start, range->end,
             range->zero ? RETURNED_ZERO : RETURNED_DATA);
}

/* Let the walk over returned ranges begin with another one. */
static bool
begin_again (struct plan *p)
{
  for (unsigned i = 0; i < p->returned.len; ++i) {
    const struct bad_range *b = &p->returned.range[i];

    if (b->note != RETURNED_UNDER_WAY) {
      p->again = (struct plan_walk){
        .pos = b->start, .end = b->end, .zero = b->note == RETURNED_ZERO,
      };
      return true;
    }
  }
  return false;
}

/* The walk has begun at start, and come to a range, or to none.  What it went
 * over is off the list: it is valid, or bad, which is another list.  What it
 * handed out is under way: all of a region in pieces.
 */
static void
go_around (struct plan *p, uint64_t start, enum plan_result r,
           const struct plan_range *range)
{
  struct plan_walk *walk = &p->again;
  uint64_t end;

  if (r != PLAN_RANGE) {
    bad_remove (&p->returned, start, walk->pos);
    return;
  }
  bad_remove (&p->returned, start, range->start);
  end = range->end;
  if (range->cut) {
    range->cut->again = true;
    end = range->cut->end;
    if (walk->cut)
      walk->end = end;
  }
  bad_add (&p->returned, range->start, end, RETURNED_UNDER_WAY);
}

static enum plan_result
next_returned (struct plan *p, uint64_t batch, struct plan_range *range)
{
  struct plan_walk *walk = &p->again;
  enum plan_result r;

  while (walk->cut || begin_again (p)) {
    const struct plan_cut *before = walk->cut;
    const uint64_t start = walk->pos;

    r = next_of_walk (p, walk, batch, range);
    if (r == PLAN_RANGE)
      range->again = true;
    if (before == NULL)
      go_around (p, start, r, range);
    if (r != PLAN_END)
      return r;
  }
  return PLAN_END;
}

static enum plan_result
next_of_all (struct plan *p, uint64_t batch, struct plan_range *range)
{
  struct plan_wish *wish;
  enum plan_result r;

  if (p->returned.len >= RETURNED_MANY &&
      (r = next_returned (p, batch, range)) != PLAN_END)
    return r;
  while ((wish = latest_wish (p)) != NULL) {
    if (next_of_walk (p, &wish->walk, batch, range) == PLAN_RANGE) {
      range->wish = wish;
      wish->copies++;
      return PLAN_RANGE;
    }
    give_up_wish (p, wish);
  }
  if ((r = next_returned (p, batch, range)) != PLAN_END ||
      (r = next_bad (p, batch, range)) != PLAN_END)
    return r;
  return next_of_walk (p, &p->disk, batch, range);
}

enum plan_result
plan_next (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const enum plan_result r = next_of_all (p, batch, range);

  range->restarts = p->restarts;
  return r;
}
