/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Block status: where the clone has data, and where it has holes.
 *
 *   1. Look at the map: the runs of valid and of invalid regions in the range.
 *   2. For each run, in order, take what its side says about it: the source for
 *      an invalid run, the destination for a valid one.  A side is asked about
 *      everything up to its last run, and again only where that answer ends.
 *      So the cost is that of the extents, however many runs there are.
 *
 * WHY THE ANSWER IS RIGHT
 *
 * The destination is asked after the look, and what it says is used only for
 * regions that were valid at the look.  An answer from before the look could
 * show a hole where hydration has written data since, and a client would skip
 * the data.
 *
 * The source's answer may be older than the look, because the source is
 * immutable.  It may be used for a region that has become valid since the look:
 * at the look, which is within the request, the region read as the source does.
 * A write that ended before the request came is seen by the look.
 *
 * If the map is set back after the look, the destination is perhaps asked about
 * an invalid region, so the request begins again.  The look is made inside the
 * gate.  Otherwise it could see, after the gate was closed and counted, a map
 * that is set back a moment later.
 *
 * While a server is lost its runs are data.  That answer is not kept.
 * kept-extents.h says what is kept, and when it is true.
 */

#include <config.h>

#include <errno.h>

#include "base/cleanup.h"
#include "base/extents.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "clone/private.h"

/* The most runs and extents of one answer.  A range with more gets a shorter
 * answer.
 */
#define MAX_RUNS 32768
#define MAX_EXTENTS 32768

/* The same for an answer of one extent: runs that may belong to it. */
#define MAX_RUNS_ONE 32

/* Questions to each server for one request. */
#define MAX_ROUND_TRIPS 16

struct side {
  struct backend *backend;
  struct extents list; /* what it says */
  uint64_t runs_end;   /* the end of its last run */
  uint64_t ask_end;    /* ask as far as this */
  unsigned flags;      /* BACKEND_REQ_ONE */
  unsigned asked;      /* questions */
  bool failed;         /* its server is lost: the list is a guess */
};

/* The sides are also the flags of the extents in status.runs. */
enum { SOURCE, DEST };

struct status {
  struct clone *clone;
  uint64_t offset, end;
  bool one;           /* end after the first extent */
  struct extents runs;
  struct side side[2];
  struct extents answer;
};

static void
status_free (struct status *s)
{
  extents_free (&s->runs);
  extents_free (&s->answer);
  extents_free (&s->side[SOURCE].list);
  extents_free (&s->side[DEST].list);
}
#define CLEANUP_STATUS_FREE __attribute__ ((cleanup (status_free)))

/* Step 1. */
static int
status_look (struct status *s)
{
  const size_t max = s->one ? MAX_RUNS_ONE : MAX_RUNS;
  struct gate_pass pass;
  int r = 0;
  uint64_t n;
  bool valid;

  gate_enter (&s->clone->gate, &pass);
  for (uint64_t pos = s->offset;
       pos < s->end && s->runs.len < max && r == 0; pos += n) {
    n = region_map_run_bytes (s->clone->map, pos, s->end, &valid);
    /* If the source is closed, all is valid by now. */
    valid |= s->side[SOURCE].backend == NULL;
    r = extents_add (&s->runs, pos, n, valid ? DEST : SOURCE);
    s->side[valid ? DEST : SOURCE].runs_end = pos + n;
  }
  gate_leave (&s->clone->gate, &pass);
  TEST_POINT (STATUS_LOOKED);
  return r;
}

/* Ask for a new list that begins at start.  0 if the side has been asked often
 * enough.
 */
static int
side_ask (struct status *s, struct side *side, uint64_t start)
{
  const unsigned max = s->one ? 1 : MAX_ROUND_TRIPS;
  const uint64_t count = MAX (side->runs_end, side->ask_end) - start;

  if (backend_has_peer (side->backend) && side->asked == max)
    return 0;
  side->asked++;
  extents_clear (&side->list);
  if (backend_extents (side->backend, count, start, side->flags,
                       &side->list) == 0)
    return 1;
  if (errno != ENOTCONN)
    return -1;
  side->failed = true;
  extents_clear (&side->list);
  return extents_add (&side->list, start, count, 0) == -1 ? -1 : 1;
}

/* Append what the side says about the run [start, end) to the answer.  0 if the
 * answer ends within the run.
 */
static int
status_add_run (struct status *s, struct side *side, uint64_t start,
                uint64_t end)
{
  int r;

  for (uint64_t pos = start; pos < end; pos = extents_end (&s->answer)) {
    if (!extents_covers (&side->list, pos)) {
      if (s->one && pos > start)
        return 0;
      r = side_ask (s, side, pos);
      if (r != 1)
        return r;
    }
    if (extents_copy (&side->list, pos, end, MAX_EXTENTS, &s->answer) == -1)
      return -1;
    if (s->answer.len == MAX_EXTENTS)
      return 0;
  }
  return 1;
}

/* Step 2.  An error is reported if it concerns the first extent.  After that it
 * ends the answer, and meets the client's next question.
 */
static int
status_answer (struct status *s)
{
  int r = 1;

  for (size_t i = 0; i < s->runs.len && r == 1; ++i) {
    const struct extent *run = &s->runs.extent[i];

    r = status_add_run (s, &s->side[run->flags], run->offset,
                        run->offset + run->length);
    if (s->one && s->answer.len > 1)
      break;
  }
  return r == -1 && s->answer.len == 0 ? -1 : 0;
}

/* Begin with what the source has said before. */
static int
status_use_kept (struct status *s)
{
  struct side *source = &s->side[SOURCE];
  size_t i = 0;

  while (i < s->runs.len && s->runs.extent[i].flags == DEST)
    i++;
  if (i == s->runs.len)
    return 0;
  return kept_source (&s->clone->kept, s->runs.extent[i].offset,
                      source->runs_end, s->one ? MAX_RUNS_ONE : MAX_EXTENTS,
                      &source->list);
}

/* Answer the client's question, and keep what can be kept. */
static int
status_finish (struct status *s, const struct kept_question *q,
               struct extents *list)
{
  struct side *source = &s->side[SOURCE];

  if (extents_copy (&s->answer, q->offset, q->offset + q->count,
                    q->one ? 1 : SIZE_MAX, list) == -1)
    return -1;
  if (source->failed || s->side[DEST].failed)
    extents_clear (&s->answer);
  if (source->failed || source->asked == 0)
    extents_clear (&source->list);
  kept_keep (&s->clone->kept, q, &s->answer, extents_end (list) - q->offset,
             &source->list);
  return 0;
}

static int
status_once (struct clone *c, const struct kept_question *q,
             struct extents *list)
{
  const bool first = q->unchanged == 0;
  const uint64_t ahead = kept_ahead (q->unchanged);
  const uint64_t count = q->one && !first ? ahead : MAX (q->count, ahead);
  CLEANUP_STATUS_FREE struct status s = {
    .clone = c, .offset = q->offset, .one = q->one && first,
    .end = q->offset + MIN (count, c->size - q->offset),
    .side[SOURCE] = {
      .backend = clone_source_get (c),
      .ask_end = q->offset + MIN (kept_ahead (q->walked), c->size - q->offset),
      .flags = q->one && q->walked == 0 ? BACKEND_REQ_ONE : 0,
    },
    .side[DEST] = {
      .backend = c->dest, .flags = q->one && first ? BACKEND_REQ_ONE : 0,
    },
  };
  int r = status_look (&s);

  if (r == 0)
    r = status_use_kept (&s);
  if (r == 0)
    r = status_answer (&s);
  if (s.side[SOURCE].backend)
    clone_source_put (c);
  return r == -1 ? -1 : status_finish (&s, q, list);
}

int
clone_extents (struct clone *c, uint32_t count, uint64_t offset,
               unsigned flags, struct extents *list)
{
  struct kept_question q = {
    .offset = offset, .count = count, .one = flags & BACKEND_REQ_ONE,
  };
  uint64_t ended;
  int r;

  do {
    extents_clear (list);
    ended = atomic_load (&c->changes_ended);
    q.changes = atomic_load (&c->changes_begun);
    q.quiet = q.changes == ended;
    q.closings = gate_closings (&c->gate);
    r = kept_find (&c->kept, &q, list);
    if (r == 0)
      r = status_once (c, &q, list);
    /* Perhaps only what is ahead of the walk cannot be read. */
    if (r == -1 && q.walked > 0) {
      q.walked = q.unchanged = 0;
      extents_clear (list);
      r = status_once (c, &q, list);
    }
  } while (r == 0 && q.closings != gate_closings (&c->gate));
  counters_count (&c->counters, COUNTED_EXTENTS, COUNTED_ALL);
  return r == -1 ? -1 : 0;
}
