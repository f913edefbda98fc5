/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "clone/fetch.h"
#include "clone/private.h"
#include "clone/retry.h"

/* Segments handed to a backend at once. */
#define MAX_SEGMENTS 64

/* Two runs of a read that both need the source become one read of it when no
 * more than this lies between them: a round trip costs more.
 */
#define READ_GAP (UINT64_C (64) << 10)

/* From the source, or from the destination. */
static int
read_segments (struct clone *c, struct backend *b, const struct segment *seg,
               size_t n)
{
  if (n == 0)
    return 0;
  if (b != c->dest)
    return source_read (c, b, seg, n);
  return clone_check_dest (c, backend_preadv (b, seg, n), "read",
                           seg[0].count, seg[0].offset);
}

/* Read from b the runs of [offset, end) whose state is `wanted', and gaps of at
 * most max_gap bytes between them.  Returns the number of bytes, or -1.
 */
static int64_t
read_runs (struct clone *c, struct backend *b, bool wanted, uint64_t max_gap,
           uint8_t *buf, uint64_t offset, uint64_t end)
{
  struct segment seg[MAX_SEGMENTS];
  uint64_t stop = offset, run;
  int64_t count = 0;
  size_t n = 0;
  bool valid;

  for (uint64_t pos = offset; pos < end; pos += run) {
    run = region_map_run_bytes (c->map, pos, end, &valid);
    if (valid != wanted)
      continue;
    if (n == 0 || pos - stop > max_gap) {
      if (n == MAX_SEGMENTS) {
        if (read_segments (c, b, seg, n) == -1)
          return -1;
        n = 0;
      }
      seg[n++] = (struct segment){ buf + (pos - offset), 0, pos };
      stop = pos;
    }
    seg[n - 1].count += pos + run - stop;
    count += pos + run - stop;
    stop = pos + run;
  }
  return read_segments (c, b, seg, n) == -1 ? -1 : count;
}

/* Read the invalid runs from the source, and short valid gaps between them,
 * which are replaced later.
 */
static int
read_invalid (struct clone *c, struct backend *source, uint8_t *buf,
              uint64_t offset, uint64_t end)
{
  double before;
  int64_t count;
  bool valid;

  TELL (c, source_read, offset, end);
  before = monotonic_seconds ();
  count = read_runs (c, source, false, READ_GAP, buf, offset, end);
  /* Perhaps the source cannot be read in a gap: a client may have written there
   * for that reason.
   */
  if (count == -1 && errno != ENOTCONN &&
      region_map_run_bytes (c->map, offset, end, &valid) < end - offset)
    count = read_runs (c, source, false, 0, buf, offset, end);
  /* A read that failed, or found everything valid, tells nothing about the
   * source's speed.
   */
  if (count > 0)
    TELL (c, source_was_read, count, monotonic_seconds () - before);
  return count == -1 ? -1 : 0;
}

/* The read succeeds all the same. */
static void
read_log_not_kept (struct clone *c, uint64_t start, uint64_t end)
{
  log_debug (c->log, LOG_REGION, "bytes %" PRIu64 "+%" PRIu64
             ": read and not kept: %m", start, end - start);
}

/* copy-on-read, before the read: copy the region at pos, one end of the read,
 * if the read covers only a part of it.
 */
static void
read_keep_end (struct clone *c, struct backend *source, uint64_t pos)
{
  const uint64_t region_size = region_map_region_size (c->map);
  const uint64_t start = round_down (pos, region_size);
  const uint64_t end = MIN (start + region_size, c->size);

  if (pos > start && pos < end && fetch_regions (c, source, start, end) == -1)
    read_log_not_kept (c, start, end);
}

/* copy-on-read, after the read.  closings is the value of gate_closings when
 * the read began.  A region that is still invalid when it is owned was invalid
 * all the time, so buf has the source's bytes.
 */
static void
read_keep (struct clone *c, uint64_t closings, const uint8_t *buf,
           uint64_t offset, uint64_t end)
{
  const uint64_t step = fetch_step (c);
  uint64_t start = offset, n;

  if (!clone_whole_regions (c, &start, &end))
    return;
  for (; start < end; start += n) {
    n = MIN (step, end - start);
    if (fetch_install (c, closings, buf + (start - offset), start,
                       start + n) == -1) {
      read_log_not_kept (c, start, end);
      return;
    }
  }
}

/* Something was invalid at the first look.  Read the invalid runs from the
 * source, then the valid ones from the destination.  A region that becomes
 * valid in between is read from both, and the destination's bytes win.
 */
static int
read_both (struct clone *c, struct backend *source, uint8_t *buf,
           uint64_t offset, uint64_t end)
{
  const uint64_t closings = gate_closings (&c->gate);
  const bool keep = clone_copy_on_read (c);
  struct gate_pass pass;
  int r;

  TEST_POINT (READ_CHOSE_SOURCE);
  if (keep) {
    read_keep_end (c, source, offset);
    read_keep_end (c, source, end);
  }
  if (read_invalid (c, source, buf, offset, end) == -1)
    return -1;
  gate_enter (&c->gate, &pass);
  r = clone_check_not_set_back (c, closings);
  if (r == 0 && read_runs (c, c->dest, true, 0, buf, offset, end) == -1)
    r = -1;
  gate_leave (&c->gate, &pass);
  if (r == 0 && keep)
    read_keep (c, closings, buf, offset, end);
  return r;
}

static int
read_once (struct clone *c, void *buf, uint32_t count, uint64_t offset,
           enum counted_sides *sides)
{
  struct gate_pass pass;
  struct backend *source = NULL;
  uint64_t run;
  bool valid;
  int r = 0;

  gate_enter (&c->gate, &pass);
  run = region_map_run_bytes (c->map, offset, offset + count, &valid);
  if (run < count || !valid)
    source = clone_source_get (c);
  if (source == NULL)           /* all is valid by now */
    r = clone_check_dest (c, backend_pread (c->dest, buf, count, offset),
                          "read", count, offset);
  gate_leave (&c->gate, &pass);

  *sides = source == NULL ? COUNTED_DESTINATION
    : run < count ? COUNTED_BOTH : COUNTED_SOURCE;
  if (source) {
    r = read_both (c, source, buf, offset, offset + count);
    clone_source_put (c);
  }
  return r;
}

int
clone_pread (struct clone *c, void *buf, uint32_t count, uint64_t offset)
{
  const uint64_t begin = counters_begin (&c->counters);
  enum counted_sides sides;
  int r;

  clone_count_request (c);
  r = RETRY_WHILE_LOST (c, read_once (c, buf, count, offset, &sides));
  counters_end (&c->counters, COUNTED_READ, sides,
                sides == COUNTED_DESTINATION, begin);
  return r;
}
