/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "plan.h"
#include "rounding.h"

/* Extents are asked for this far ahead of the cursor, and for so many bytes at
 * once.
 */
#define EXTENTS_AHEAD (UINT64_C (1) << 30)
#define EXTENTS_QUERY (UINT64_C (1) << 30)

/* A hole shorter than this does not end a copy: reading it costs less than
 * another request.
 */
#define HOLE_MIN (UINT64_C (64) << 10)

/* Pieces of a large region are multiples of this, which no server's minimum
 * block size exceeds.
 */
#define PIECE_ALIGN (UINT64_C (64) << 10)

void
plan_init (struct plan *p, const struct region_map *map, bool use_extents)
{
  *p = (struct plan){ .map = map, .use_extents = use_extents };
}

void
plan_destroy (struct plan *p)
{
  free (p->cut);
  extents_free (&p->known);
}

/* ---- extents ---- */

/* Drop what lies behind the cursor. */
static void
forget_extents (struct plan *p)
{
  size_t i = 0;

  while (i < p->known.len &&
         p->known.extent[i].offset + p->known.extent[i].length <= p->cursor)
    i++;
  if (i == 0)
    return;
  p->known.len -= i;
  memmove (p->known.extent, p->known.extent + i,
           p->known.len * sizeof *p->known.extent);
}

/* What is known from the cursor on ends here. */
static uint64_t
known_end (const struct plan *p)
{
  if (!p->use_extents)
    return region_map_size (p->map);
  return MAX (extents_end (&p->known), p->cursor);
}

bool
plan_wants_extents (struct plan *p, uint64_t *offset, uint64_t *count)
{
  const uint64_t size = region_map_size (p->map);
  const uint64_t end = known_end (p);

  if (end == size || end - p->cursor >= EXTENTS_AHEAD)
    return false;
  *offset = end;
  *count = MIN (size - end, EXTENTS_QUERY);
  return true;
}

int
plan_add_extents (struct plan *p, const struct extents *list)
{
  forget_extents (p);
  if (list->len && extents_end (&p->known) != list->extent[0].offset) {
    /* The cursor has moved meanwhile.  Over regions that became valid: then
     * what was known before is behind it.  Or back to the start: then this
     * answer comes too early.
     */
    extents_clear (&p->known);
    if (list->extent[0].offset > p->cursor)
      return 0;
  }

  for (size_t i = 0; i < list->len; ++i)
    if (extents_add (&p->known, list->extent[i].offset, list->extent[i].length,
                     list->extent[i].flags) == -1)
      return -1;
  return 0;
}

/* How far do zeroes reach from pos? */
static uint64_t
zeroes_end (const struct plan *p, uint64_t pos)
{
  for (size_t i = 0; i < p->known.len; ++i) {
    const struct extent *e = &p->known.extent[i];

    if (e->offset + e->length <= pos)
      continue;
    if (e->offset > pos || !(e->flags & EXTENT_ZERO))
      break;
    pos = e->offset + e->length;
  }
  return pos;
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
data_end (const struct plan *p, uint64_t start, uint64_t granule,
          uint64_t limit)
{
  for (size_t i = 0; i < p->known.len; ++i) {
    const struct extent *e = &p->known.extent[i];
    uint64_t hole = MAX (e->offset, start);
    uint64_t end = zeroes_end (p, hole);

    if (e->offset >= limit)
      break;
    if (!(e->flags & EXTENT_ZERO) || e->offset + e->length <= start)
      continue;
    whole_granules (&hole, &end, granule, limit);
    if (hole < end && end - hole >= MIN (HOLE_MIN, limit - hole))
      return hole;
  }
  return limit;
}

/* ---- regions in pieces ---- */

static void
begin_cut (struct plan *p)
{
  const uint64_t region_size = region_map_region_size (p->map);

  p->cut = calloc (1, sizeof *p->cut);
  if (p->cut == NULL)
    return;
  p->cut->start = p->cursor;
  p->cut->end = MIN (p->cursor + region_size, region_map_size (p->map));
  p->open_cuts++;
}

void
plan_cut_done (struct plan *p, struct plan_cut *cut)
{
  p->open_cuts--;
  free (cut);
}

/* No more pieces of the region at the cursor. */
static void
end_cut (struct plan *p, bool failed)
{
  struct plan_cut *cut = p->cut;

  p->cut = NULL;
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

/* ---- the order ---- */

void
plan_restart (struct plan *p)
{
  if (p->cut)
    end_cut (p, true);
  p->cursor = 0;
  extents_clear (&p->known);
}

/* Move the cursor to the next byte that is invalid and not handed out.  Returns
 * where that run of invalid regions ends, or the disk's size if there is none.
 */
static uint64_t
skip_valid (struct plan *p)
{
  const uint64_t size = region_map_size (p->map);
  const uint64_t region_size = region_map_region_size (p->map);
  bool valid;

  /* A client may have made the region valid that is being cut. */
  if (p->cut && region_map_is_valid (p->map, p->cut->start / region_size)) {
    p->cursor = p->cut->end;
    end_cut (p, true);
  }
  if (p->cut)
    return p->cut->end;

  while (p->cursor < size) {
    uint64_t n = region_map_run_bytes (p->map, p->cursor,
                                       MIN (p->cursor + PLAN_MAX_ZERO, size),
                                       &valid);
    if (!valid)
      return p->cursor + n;
    p->cursor += n;
  }
  return size;
}

/* Cut the next range off [cursor, limit), in multiples of granule. */
static enum plan_result
next_in_run (struct plan *p, uint64_t limit, uint64_t granule, uint64_t batch,
             struct plan_range *range)
{
  const uint64_t known = known_end (p);
  uint64_t start = p->cursor, end = zeroes_end (p, start);

  whole_granules (&start, &end, granule, limit);
  range->zero = end > start && start == p->cursor;
  if (!range->zero) {
    start = p->cursor;
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

enum plan_result
plan_next (struct plan *p, uint64_t batch, struct plan_range *range)
{
  const uint64_t region_size = region_map_region_size (p->map);
  enum plan_result r;
  uint64_t limit;

  limit = skip_valid (p);
  if (p->cursor == region_map_size (p->map))
    return PLAN_END;
  forget_extents (p);
  range->cut = NULL;

  if (!p->cut) {
    r = next_in_run (p, limit, region_size, batch, range);
    if (r == PLAN_RANGE && (range->zero || region_size <= batch))
      goto out;
    if (region_size <= batch)
      return r;
    begin_cut (p);
    if (p->cut == NULL)         /* no memory: ask again later */
      return PLAN_WANT_EXTENTS;
    limit = p->cut->end;
  }

  r = next_in_run (p, limit, PIECE_ALIGN, batch, range);
  if (r != PLAN_RANGE)
    return r;
  range->cut = p->cut;
  p->cut->pieces++;

 out:
  p->cursor = range->end;
  if (p->cut && p->cursor == p->cut->end)
    end_cut (p, false);
  return PLAN_RANGE;
}
