/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Unreadable ranges of the source: what is logged about them, and when they are
 * tried again.  Which of them comes next is decided in plan-bad.c.
 *
 * When only bad ranges are left, hydration rests.  After the rest, a round
 * tries each of them once more (plan.h).  The first rest takes BAD_DELAY, and
 * each later one twice as long as the one before, at most BAD_DELAY_MAX.  After
 * a round in which regions became valid, the rest is BAD_DELAY again.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "hydration/plan.h"
#include "hydration/private.h"

/* The first ranges that become bad are logged one by one.  The others are
 * counted, and one message at the end of each walk says how many.
 */
#define MAX_BAD_SAID 8

/* When the server is lost MAX_LOST_READS times in a row during the read of the
 * same range, the range is bad: perhaps the read makes the server fail.
 */
#define MAX_LOST_READS 5

/* What the user can do: the end of both messages. */
#define BAD_ADVICE "hydration goes on elsewhere and tries again: repair the " \
  "source, or write or discard these bytes"

/* Of all ranges whose reads were lost, the first on the disk is the suspect,
 * until a read of it succeeds or fails in another way.
 */
bool
bad_source_suspects (struct copy *copy, bool lost)
{
  struct hydrate *h = copy->w->h;
  struct bad_source *bad = &h->bad;
  const uint64_t start = copy->range.start;
  LOCK_FOR_SCOPE (&h->lock);

  if (lost && (bad->lost_reads == 0 || start < bad->suspect)) {
    bad->suspect = start;
    bad->lost_reads = 0;
  }
  if (bad->suspect != start)
    return false;
  bad->lost_reads = lost ? (bad->lost_reads + 1) % MAX_LOST_READS : 0;
  return lost && bad->lost_reads == 0;
}

void
bad_source_failed (struct copy *copy, int error)
{
  struct worker *w = copy->w;
  struct hydrate *h = w->h;
  bool new, said;

  {
    LOCK_FOR_SCOPE (&h->lock);
    new = plan_bad (&h->plan, &copy->range) && !h->stopping;
    said = new && h->bad.said < MAX_BAD_SAID;
    h->bad.said += said;
    h->bad.unsaid += new && !said;
  }
  errno = error;
  clone_note_error (h->clone, CLONE_SOURCE, "cannot read %" PRIu64
                    " bytes at offset %" PRIu64 ": %m", copy->io.count,
                    copy->io.offset);
  if (said)
    log_error (h->log, "source %s: cannot read %" PRIu64 " bytes at offset %"
               PRIu64 ": %m; " BAD_ADVICE, w->source->name, copy->io.count,
               copy->io.offset);
}

void
bad_source_summarize (struct worker *w)
{
  struct hydrate *h = w->h;
  struct plan_bad_sum sum;
  unsigned unsaid;

  {
    LOCK_FOR_SCOPE (&h->lock);
    unsaid = h->bad.unsaid;
    h->bad.unsaid = 0;
    plan_sum_bad (&h->plan, &sum);
  }
  if (unsaid > 0)
    log_error (h->log, "source %s: %u more reads have failed; in all, %" PRIu64
               " bytes in %" PRIu64 " regions are bad; " BAD_ADVICE,
               w->source->name, unsaid, sum.bytes, sum.regions);
}

bool
bad_source_rest (struct hydrate *h)
{
  const struct region_map *map = clone_map (h->clone);
  struct bad_source *bad = &h->bad;
  struct plan_bad_sum sum;
  uint64_t invalid, valid;

  plan_sum_bad (&h->plan, &sum);
  invalid = region_map_regions (map) - region_map_count_valid (map);
  if (invalid == 0 || sum.regions < invalid || h->plan.retry.on)
    return false;
  valid = region_map_bytes_valid (map);
  bad->rest = bad->rest && valid <= bad->valid_at_rest ?
    MIN (2 * bad->rest, (double)BAD_DELAY_MAX) : BAD_DELAY;
  bad->rest_until = monotonic_seconds () + bad->rest;
  bad->valid_at_rest = valid;
  return true;
}

/* If clients have written everything, hydration does not wait for the round. */
void
bad_source_tick (struct hydrate *h, uint64_t valid)
{
  if (!h->bad.rest_until || h->paused ||
      (valid < clone_size (h->clone) &&
       monotonic_seconds () < h->bad.rest_until))
    return;
  h->bad.rest_until = 0;
  plan_retry (&h->plan);
}

void
bad_source_retry (struct hydrate *h)
{
  h->bad.rest = h->bad.rest_until = 0;
  plan_retry (&h->plan);
}
