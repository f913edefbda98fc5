/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/rounding.h"
#include "clone/fetch.h"
#include "clone/install.h"
#include "clone/private.h"
#include "clone/retry.h"

/* A client's change of a range. */
struct change {
  enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM } type;
  const uint8_t *buf; /* CHANGE_WRITE: the byte at offset */
  uint64_t offset;
  unsigned flags;     /* BACKEND_FUA, BACKEND_MAY_TRIM, BACKEND_FAST */
};

/* What the last try of a change has seen, for the counters. */
struct seen {
  bool source;  /* it has read from the source */
  bool invalid; /* a region was invalid */
};

static const char *const change_name[] = {
  [CHANGE_WRITE] = "write", [CHANGE_ZERO] = "zero", [CHANGE_TRIM] = "trim",
};

static const enum counted_request change_counted[] = {
  [CHANGE_WRITE] = COUNTED_WRITE, [CHANGE_ZERO] = COUNTED_ZERO,
  [CHANGE_TRIM] = COUNTED_TRIM,
};

/* The source's bytes around a change, in the regions that it covers partly and
 * that were invalid at the first look.
 */
struct edges {
  uint64_t start, end;   /* the change, in whole regions */
  uint8_t *buf;          /* head, then tail */
  uint64_t head, tail;   /* how many bytes, 0: none are needed */
  bool copied;           /* they are in the destination instead, written since
                          * the gate had been closed so many times: */
  uint64_t closings;
};

/* How is FUA honoured for this range?  If its regions are durable, the
 * destination's own FUA is enough, unless a failing FUA could hide from the
 * next flush that data were lost (I8).  Otherwise a commit follows the writes:
 * true, and the flag is cleared.
 */
static bool
change_wants_commit (struct clone *c, uint32_t count, uint64_t offset,
                     unsigned *flags)
{
  uint64_t first, n;

  if (!(*flags & BACKEND_FUA))
    return false;
  clone_regions_of (c, offset, offset + count, &first, &n);
  if (region_map_is_durable (c->map, first, n) &&
      (!c->dest->fua_takes_errors || commit_is_complete (c->commit)))
    return false;
  *flags &= ~BACKEND_FUA;
  return true;
}

static int
change_valid (struct clone *c, const struct change *ch, uint64_t start,
              uint64_t end)
{
  switch (ch->type) {
  case CHANGE_WRITE:
    return backend_pwrite (c->dest, ch->buf + (start - ch->offset),
                           end - start, start, ch->flags);
  case CHANGE_ZERO:
    return backend_zero (c->dest, end - start, start, ch->flags);
  case CHANGE_TRIM:
    if (!c->options.discard_passdown)
      return 0;
    return backend_trim (c->dest, end - start, start, ch->flags);
  }
  __builtin_unreachable ();
}

/* How many source bytes the change needs: e.head before it in its first region,
 * e.tail after it in its last one.  0 if the region is valid or covered.
 */
static struct edges
change_find_edges (const struct clone *c, uint64_t start, uint64_t end)
{
  const uint64_t region_size = region_map_region_size (c->map);
  struct edges e = {
    .start = round_down (start, region_size),
    .end = MIN (round_up (end, region_size), c->size),
  };

  if (!region_map_is_valid (c->map, e.start / region_size))
    e.head = start - e.start;
  if (!region_map_is_valid (c->map, (e.end - 1) / region_size))
    e.tail = e.end - end;
  return e;
}

/* Read them from the source, which never changes, unowned and outside the gate.
 * Large ones are copied to the destination at once.
 */
static int
change_read_edges (struct clone *c, struct backend *source, struct edges *e)
{
  const uint64_t total = e->head + e->tail;
  struct segment seg[2] = {
    { NULL, e->head, e->start }, { NULL, e->tail, e->end - e->tail },
  };
  int r = 0;

  e->closings = gate_closings (&c->gate);
  e->copied = total > CLONE_COPY_MAX;
  e->buf = malloc (MIN (total, CLONE_COPY_MAX));
  if (e->buf == NULL)
    return -1;
  if (!e->copied) {
    seg[0].buf = e->buf;
    seg[1].buf = e->buf + e->head;
    return source_read (c, source, e->head ? seg : seg + 1,
                        (e->head > 0) + (e->tail > 0));
  }
  for (unsigned i = 0; i < 2 && r == 0; ++i)
    r = fetch_piecewise (c, source, e->buf, seg[i].offset,
                         seg[i].offset + seg[i].count);
  return r;
}

/* Write the change [start, end) and its edges, as the owner of its regions.
 * Look again: a region at an edge may have become valid since the source was
 * read.  It then holds newer data around the change, and its edge is not
 * written.
 */
static int
change_write_owned (struct clone *c, const struct change *ch, uint64_t start,
                    uint64_t end, const struct edges *e)
{
  const struct edges now = change_find_edges (c, start, end);
  const bool head = now.head > 0, tail = now.tail > 0;
  struct segment seg[3];
  size_t n = 0;

  /* Valid at the first look, and set back since: begin again. */
  if ((head && e->head == 0) || (tail && e->tail == 0))
    return clone_fail (ENOTCONN);

  if (head && !e->copied)
    seg[n++] = (struct segment){ e->buf, e->head, now.start };
  if (ch->type == CHANGE_WRITE)
    seg[n++] = (struct segment){
      (uint8_t *)ch->buf + (start - ch->offset), end - start, start
    };
  if (tail && !e->copied)
    seg[n++] = (struct segment){ e->buf + e->head, e->tail, end };

  /* Without FUA: a commit follows if the client wants it. */
  if (backend_pwritev (c->dest, seg, n, 0) == -1)
    return -1;
  if (ch->type == CHANGE_ZERO)
    return backend_zero (c->dest, end - start, start,
                         ch->flags & ~BACKEND_FUA);
  return 0;
}

/* Trim an invalid range.  It must read as zeroes afterwards, not as what the
 * destination held before the clone (I9).  Space that is allocated is released
 * if that is fast.
 */
static int
change_trim_invalid (struct clone *c, uint64_t start, uint64_t count)
{
  if (c->options.discard_passdown && c->dest->can_fast_zero) {
    int r = backend_zero (c->dest, count, start,
                          BACKEND_MAY_TRIM | BACKEND_FAST);

    if (r == 0 || errno != EOPNOTSUPP)
      return r;
  }
  return backend_zero (c->dest, count, start, install_zero_flags (c));
}

/* Trim whole regions, as their owner. */
static int
change_trim_owned (struct clone *c, const struct change *ch, uint64_t start,
                   uint64_t end)
{
  uint64_t n;
  bool valid;
  int r = 0;

  for (; start < end && r == 0; start += n) {
    n = region_map_run_bytes (c->map, start, end, &valid);
    r = valid ? change_valid (c, ch, start, start + n)
      : change_trim_invalid (c, start, n);
  }
  return r;
}

/* The end of the next step in an invalid run [pos, end).  Zeroes and trims of
 * long runs take several steps, each of whole regions (zero-step.h).
 */
static uint64_t
change_step_end (struct clone *c, const struct change *ch, uint64_t pos,
                 uint64_t end)
{
  const uint64_t region_size = region_map_region_size (c->map);
  const uint64_t step = MAX (zero_step_get (&c->dest->zero_step), region_size);

  if (ch->type == CHANGE_WRITE || end - pos <= step)
    return end;
  return round_down (pos + step, region_size);
}

/* Change [start, end), all of whose regions were invalid a moment ago. */
static int
change_invalid (struct clone *c, const struct change *ch, uint64_t start,
                uint64_t end, const struct edges *e)
{
  const uint64_t region_size = region_map_region_size (c->map);
  struct install i = { .clone = c, .by = INSTALL_CHANGE };
  int r;

  /* A trim changes whole regions only. */
  if (ch->type == CHANGE_TRIM && !clone_whole_regions (c, &start, &end))
    return 0;

  i.start = round_down (start, region_size);
  i.end = MIN (round_up (end, region_size), c->size);
  install_own (&i);
  r = install_may_set (&i);
  if (r == 0)
    r = ch->type == CHANGE_TRIM ? change_trim_owned (c, ch, start, end)
      : change_write_owned (c, ch, start, end, e);
  if (r == 0)
    install_set_all (&i, start, end);
  install_release (&i);
  return r;
}

/* Make the change, run by run, and the commit that it needs, all in one stay
 * inside the gate: if the destination's server is lost in between, both are
 * done again.
 */
static int
change_inside (struct clone *c, const struct change *ch, uint64_t end,
               const struct edges *e, bool commit, struct seen *seen)
{
  struct gate_pass pass;
  uint64_t n;
  bool valid;
  int r;

  gate_enter (&c->gate, &pass);
  r = e->copied ? clone_check_not_set_back (c, e->closings) : 0;
  for (uint64_t pos = ch->offset; pos < end && r == 0; pos += n) {
    n = region_map_run_bytes (c->map, pos, end, &valid);
    if (!valid) {
      seen->invalid = true;
      n = change_step_end (c, ch, pos, pos + n) - pos;
    }
    r = valid ? change_valid (c, ch, pos, pos + n)
      : change_invalid (c, ch, pos, pos + n, e);
    clone_check_dest (c, r, change_name[ch->type], n, pos);
  }
  if (r == 0 && !(ch->flags & BACKEND_FUA))
    commit_count_change (c->commit);
  if (r == 0 && commit)
    r = commit_flush (c->commit);
  gate_leave (&c->gate, &pass);
  if (r == -1)
    clone_note_commit (c);
  return r;
}

static int
change_once (struct clone *c, struct change ch, uint64_t end,
             struct seen *seen)
{
  const bool commit = change_wants_commit (c, end - ch.offset, ch.offset,
                                           &ch.flags);
  struct backend *source;
  struct edges e = { 0 };
  int r = 0, err;

  *seen = (struct seen){ 0 };
  if (ch.type != CHANGE_TRIM)
    e = change_find_edges (c, ch.offset, end);
  if (e.head + e.tail > 0 && (source = clone_source_get (c)) != NULL) {
    seen->source = seen->invalid = true;
    r = change_read_edges (c, source, &e);
    clone_source_put (c);
    if (r == 0 && retry_client_is_gone (c))
      r = clone_fail (ESHUTDOWN);
  }
  if (r == 0)
    r = change_inside (c, &ch, end, &e, commit, seen);
  err = errno;
  free (e.buf);
  if (r == -1)
    servers_set_back (c);
  else if (commit)
    source_drop_if_complete (c);
  errno = err;
  return r;
}

static void
change_count (struct clone *c, const struct change *ch,
              const struct seen *seen, uint64_t begin)
{
  const enum counted_sides sides = seen->source ? COUNTED_BOTH
                                                : COUNTED_DESTINATION;

  if (ch->type == CHANGE_WRITE)
    counters_end (&c->counters, COUNTED_WRITE, sides, !seen->invalid, begin);
  else
    counters_count (&c->counters, change_counted[ch->type], sides);
}

static int
change (struct clone *c, struct change ch, uint32_t count)
{
  const uint64_t begin = counters_begin (&c->counters);
  struct seen seen;
  int r;

  clone_count_request (c);
  /* While a change is between these two, no answer of block status is kept
   * (kept-extents.h).
   */
  atomic_fetch_add (&c->changes_begun, 1);
  r = RETRY_WHILE_LOST (c, change_once (c, ch, ch.offset + count, &seen));
  atomic_fetch_add (&c->changes_ended, 1);
  change_count (c, &ch, &seen, begin);
  return r;
}

int
clone_pwrite (struct clone *c, const void *buf, uint32_t count,
              uint64_t offset, unsigned flags)
{
  return change (c, (struct change){ CHANGE_WRITE, buf, offset, flags }, count);
}

int
clone_zero (struct clone *c, uint32_t count, uint64_t offset, unsigned flags)
{
  if (flags & BACKEND_FAST) {
    const struct edges e = change_find_edges (c, offset, offset + count);

    if (e.head + e.tail > 0)
      return clone_fail (EOPNOTSUPP);
  }
  return change (c, (struct change){ CHANGE_ZERO, NULL, offset, flags }, count);
}

int
clone_trim (struct clone *c, uint32_t count, uint64_t offset, unsigned flags)
{
  return change (c, (struct change){ CHANGE_TRIM, NULL, offset, flags }, count);
}
