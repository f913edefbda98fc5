/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that hydration copies every region, holes as holes, within its limits;
 * that it shares blocks where that is possible, and copies the others; that a
 * client's write always wins against a copy.  Hydration stops on errors of the
 * destination and when it is paused, and goes on when it is resumed.  It sets
 * unreadable ranges of the source aside and tries them again.  It ends when the
 * clone is durably complete.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <check.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "hydration/hydrate.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)

static struct mock_disk *d;
static struct hydrate *h;
static uint8_t *model;
static _Atomic unsigned ends;

static void
on_end (void *opaque)
{
  ends++;
}

static const struct hydrate_settings defaults = {
  .threshold = HYDRATE_THRESHOLD_DEFAULT, .batch = HYDRATE_BATCH_DEFAULT
};

/* A disk that does not hydrate yet.  async: many requests are in flight at
 * once.
 */
static void
new_disk (uint64_t size, uint64_t region_size, bool async)
{
  d = mock_disk_new (size, region_size, 5000);
  if (async) {
    mock_set_async (d->source);
    mock_set_async (d->dest);
  }
  model = malloc (size);
  memcpy (model, mock_content (d->source), size);
  ends = 0;
}

static void
make_hole (uint64_t count, uint64_t offset)
{
  mock_fill (d->source, NULL, count, offset);
  memset (model + offset, 0, count);
}

static void
begin (const struct hydrate_settings *settings, bool paused)
{
  h = mock_disk_hydrate (d, settings, paused, on_end);
}

static void
stop (void)
{
  mock_disk_end_hydration (d, h);
  h = NULL;
}

static void
teardown (void)
{
  if (h)
    stop ();
  if (d)
    mock_disk_free (d);
  free (model);
  d = NULL;
  model = NULL;
}

static bool
has_state (void *opaque)
{
  struct hydrate_status st;

  hydrate_get_status (h, &st);
  return st.state == *(enum hydrate_state *)opaque;
}

static void
wait_for (enum hydrate_state state)
{
  mock_wait_until (has_state, &state);
}

static bool
has_ended (void *opaque)
{
  return ends > 0;
}

/* The clone is durably complete, the source is closed, and the destination has
 * all data.
 */
static void
check_content (void)
{
  ck_assert (clone_is_complete (d->clone));
  ck_assert (mock_is_closed (d->source));
  ck_assert_mem_eq (mock_content (d->dest), model, d->size);
  ck_assert_mem_eq (mock_durable (d->dest), model, d->size);
}

static void
check_complete (void)
{
  wait_for (HYDRATE_COMPLETE);
  mock_wait_until (has_ended, NULL);
  stop ();
  check_content ();
}

static void
must_write (uint8_t byte, uint64_t count, uint64_t offset)
{
  memset (model + offset, byte, count);
  ck_assert_int_eq (clone_pwrite (d->clone, model + offset, count, offset, 0),
                    0);
}

static const struct { uint64_t size, region_size; } shapes[] = {
  { 1, 4 * K }, { 511, 4 * K }, { 4096, 4 * K }, { 4097, 4 * K },
  { 3 * M + 77, 4 * K }, { 5 * M + 1, 64 * K }, { 9 * M + 513, 4 * M },
  { 2 * M, 32 * M },
};
#define SHAPES (int)(sizeof shapes / sizeof shapes[0])

/* Data and holes at random places, and some regions that clients have written:
 * the destination is right in the end, and each byte of data is read once.
 */
START_TEST (everything)
{
  const uint64_t size = shapes[_i / 4].size;
  const struct hydrate_settings settings = {
    .threshold = 3 * M, .batch = _i & 2 ? HYDRATE_BATCH_MIN * 3 : M
  };
  uint64_t seed = _i;

  new_disk (size, shapes[_i / 4].region_size, _i & 1);
  for (unsigned i = 0; i < 12; ++i) {
    uint64_t offset = round_down (mock_random (&seed) % size, 512);

    make_hole (1 + mock_random (&seed) % MIN (size - offset, 400 * K), offset);
  }
  for (unsigned i = 0; i < 10; ++i) {
    uint64_t offset = mock_random (&seed) % size;

    must_write (i + 1, 1 + mock_random (&seed) % MIN (size - offset, 9 * K),
                offset);
  }
  mock_log_clear (d->log);
  begin (&settings, false);
  check_complete ();
  ck_assert_uint_eq (ends, 1);
  ck_assert_uint_le (mock_bytes (d->source, MOCK_PREAD), size);
}
END_TEST

/* Holes are not read, and become holes of the destination. */
START_TEST (holes)
{
  uint64_t from, to;

  new_disk (16 * M, 4 * K, _i);
  make_hole (6 * M, 2 * M);
  make_hole (4 * M, 12 * M);
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 6 * M);
  ck_assert_uint_eq (mock_bytes_in (d->source, MOCK_PREAD, 2 * M, 6 * M), 0);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PWRITE), 6 * M);
  for (size_t i = 0; i < mock_log_len (d->log); ++i)
    if (mock_log_call (d->log, i)->kind == MOCK_ZERO)
      ck_assert (mock_log_call (d->log, i)->flags & BACKEND_MAY_TRIM);
  from = mock_bytes_in (d->dest, MOCK_ZERO, 2 * M, 6 * M);
  to = mock_bytes_in (d->dest, MOCK_ZERO, 12 * M, 4 * M);
  ck_assert_uint_eq (from + to, 10 * M);
}
END_TEST

/* Where the destination can share the source's blocks, data is not read,
 * clients' writes stay, and holes are holes.
 */
START_TEST (shares)
{
  new_disk (16 * M + 1000, _i & 2 ? 4 * M : 64 * K, _i & 1);
  make_hole (4 * M, 4 * M);
  mock_set_share (d->dest, 0, 0);
  must_write (1, 300 * K, M + 5);
  mock_log_clear (d->log);
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 0);
  ck_assert_uint_eq (mock_bytes_in (d->dest, MOCK_PWRITE, 4 * M, 4 * M), 0);
  ck_assert_uint_ge (mock_shares (d->dest), 8);
}
END_TEST

/* Only blocks that cannot be shared are copied. */
START_TEST (shares_some)
{
  const uint64_t size = 16 * M;
  uint64_t copied;

  new_disk (size, _i & 2 ? 4 * M : 64 * K, _i & 1);
  mock_set_share (d->dest, 4, EINVAL);
  must_write (1, 64 * K, 8 * M);
  mock_log_clear (d->log);
  begin (&defaults, false);
  check_complete ();
  copied = mock_bytes (d->source, MOCK_PREAD);
  ck_assert_uint_ge (copied, 3 * M);
  ck_assert_uint_le (copied, 5 * M);
}
END_TEST

/* If no block can be shared, the destination is not asked again. */
START_TEST (shares_nothing)
{
  new_disk (16 * M, 64 * K, _i & 1);
  mock_set_share (d->dest, 1, EOPNOTSUPP);
  mock_log_clear (d->log);
  begin (&(struct hydrate_settings){ .threshold = 4 * M, .batch = 64 * K },
         false);
  check_complete ();
  /* Except by copies that were under way, in the asynchronous mock. */
  ck_assert_uint_le (mock_shares (d->dest), 64);
  ck_assert_uint_ge (mock_shares (d->dest), 1);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 16 * M);
}
END_TEST

/* Zeroes that the source does not report as a hole become a hole, too. */
START_TEST (unknown_zeroes)
{
  new_disk (8 * M, 4 * K, true);
  make_hole (4 * M, 2 * M);
  mock_backend (d->source)->knows_extents = false;
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_count (d->source, MOCK_EXTENTS), 0);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 8 * M);
  ck_assert_uint_ge (mock_bytes (d->dest, MOCK_ZERO), 2 * M);
}
END_TEST

/* Zeroes within a copy become holes, too, and holes of the destination are left
 * alone: only data is written.
 */
START_TEST (zeroes_within_copies)
{
  const uint64_t size = 16 * M + 1000, region_size = _i & 2 ? 2 * M : 4 * K;
  const uint64_t granule = MIN (region_size, 64 * K);
  uint64_t written = 0;

  new_disk (size, region_size, _i & 1);
  make_hole (size, 0);
  for (uint64_t pos = 0; pos < size; pos += 256 * K) {
    const uint64_t n = MIN (4 * K, size - pos);

    memset (model + pos, 1, n);
    mock_fill (d->source, model + pos, n, pos);
    written += MIN (granule, size - pos);
  }
  mock_backend (d->source)->knows_extents = false;
  mock_fill (d->dest, NULL, size, 0);
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PWRITE), written);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_ZERO), 0);
}
END_TEST

/* A destination that is to keep its space shares nothing, and its old data is
 * overwritten in place.
 */
START_TEST (space_is_kept)
{
  new_disk (8 * M, 64 * K, _i);
  d->clone->options.discard_passdown = false;
  mock_set_share (d->dest, 0, 0);
  make_hole (4 * M, 2 * M);
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_shares (d->dest), 0);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_ZERO), 4 * M);
  for (size_t i = 0; i < mock_log_len (d->log); ++i)
    if (mock_log_call (d->log, i)->kind == MOCK_ZERO)
      ck_assert (!(mock_log_call (d->log, i)->flags & BACKEND_MAY_TRIM));
}
END_TEST

/* A source whose extents cannot be read is copied as data. */
START_TEST (extents_fail)
{
  new_disk (2 * M, 4 * K, true);
  make_hole (M, 0);
  mock_fail (d->source, MOCK_EXTENTS, MOCK_ANYWHERE, 1, 0, EIO);
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 2 * M);
}
END_TEST

/* No more than the threshold is being read at once, and no copy is larger than
 * a batch; but several are in flight.
 */
START_TEST (limits)
{
  const struct hydrate_settings settings = {
    .threshold = 512 * K, .batch = 64 * K
  };

  new_disk (8 * M, 4 * K, true);
  mock_set_delay (d->source, 1000);
  begin (&settings, false);
  check_complete ();
  ck_assert_uint_le (mock_max_reading (d->source), 512 * K);
  ck_assert_uint_ge (mock_max_reading (d->source), 128 * K);
  for (size_t i = 0; i < mock_log_len (d->log); ++i) {
    const struct mock_call *call = mock_log_call (d->log, i);

    if (call->kind == MOCK_PREAD)
      ck_assert_uint_le (call->range[0].count, 64 * K);
  }
}
END_TEST

/* While no read is answered, the bytes being read at once reach the threshold,
 * except for less than a batch of each worker's share.  There are at most four
 * workers.  _i: small settings, the defaults.
 */
START_TEST (threshold_is_reached)
{
  const struct hydrate_settings small = {
    .threshold = M, .batch = 64 * K
  };
  struct hydrate_settings s = _i ? defaults : small;
  CLEANUP_FREE struct mock_gate **gate = NULL;
  unsigned copies, all;

  new_disk (2 * s.threshold, 64 * K, true);
  begin (&s, true);
  hydrate_get_settings (h, &s);
  copies = s.threshold / s.batch;
  all = 2 * copies;
  gate = calloc (all, sizeof *gate);
  for (unsigned i = 0; i < all; ++i)
    gate[i] = mock_gate (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  hydrate_resume (h);
  /* A call stops at the latest gate first. */
  for (unsigned i = 0; i < copies - 3; ++i)
    mock_gate_wait (gate[all - 1 - i]);
  mock_settle ();
  ck_assert_uint_ge (mock_max_reading (d->source), (copies - 3) * s.batch);
  ck_assert_uint_le (mock_max_reading (d->source), s.threshold);
  for (unsigned i = 0; i < all; ++i)
    mock_gate_open (gate[i]);
  check_complete ();
}
END_TEST

/* The default batch depends on the threshold, and is the same for one worker
 * and for four.
 */
START_TEST (batch_is_chosen)
{
  static const struct {
    uint64_t threshold, batch;
  } expected[] = {
    { M, 512 * K }, { 8 * M, 512 * K }, { 64 * M, M }, { 1024 * M, M },
  };

  new_disk (M, 64 * K, true);
  for (size_t i = 0; i < sizeof expected / sizeof expected[0]; ++i) {
    struct hydrate_settings s = defaults;

    s.threshold = expected[i].threshold;
    begin (&s, true);
    hydrate_get_settings (h, &s);
    ck_assert_uint_eq (s.threshold, expected[i].threshold);
    ck_assert_uint_eq (s.batch, expected[i].batch);
    stop ();
  }
}
END_TEST

/* A region larger than a batch is read in pieces of a batch, and is invalid
 * until the last piece is in the destination.
 */
START_TEST (large_regions)
{
  const struct hydrate_settings settings = {
    .threshold = M, .batch = 256 * K
  };
  struct mock_gate *gate;

  new_disk (8 * M + 100, 4 * M, true);
  gate = mock_gate (d->dest, MOCK_PWRITE, 4 * M - 1, 1, 1);
  begin (&settings, false);
  mock_gate_wait (gate);
  mock_settle ();
  ck_assert (!region_map_is_valid (d->clone->map, 0));
  mock_gate_open (gate);
  check_complete ();
  for (size_t i = 0; i < mock_log_len (d->log); ++i) {
    const struct mock_call *call = mock_log_call (d->log, i);

    if (call->kind == MOCK_PREAD)
      ck_assert_uint_le (call->range[0].count, 256 * K);
  }
}
END_TEST

static double
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* The rate limit is respected: 2 MiB at 2 MiB a second take about a second. */
START_TEST (rate)
{
  const struct hydrate_settings settings = {
    .threshold = 16 * M, .batch = 64 * K, .rate = 2 * M
  };
  const double then = now ();

  new_disk (2 * M, 4 * K, true);
  begin (&settings, false);
  check_complete ();
  ck_assert (now () - then > 0.8);
  ck_assert (now () - then < 20);
}
END_TEST

/* Paused from the start: nothing happens until it is resumed.  Paused later:
 * copies that are under way end, and no others begin.
 */
START_TEST (pause_and_resume)
{
  const struct hydrate_settings settings = {
    .threshold = 64 * K, .batch = 64 * K
  };
  struct mock_gate *gate;
  uint64_t valid;

  new_disk (4 * M, 4 * K, _i);
  begin (&settings, true);
  wait_for (HYDRATE_PAUSED);
  mock_settle ();
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 0);

  gate = mock_gate (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 5);
  hydrate_resume (h);
  mock_gate_wait (gate);
  hydrate_pause (h);
  mock_gate_open (gate);
  wait_for (HYDRATE_PAUSED);
  mock_settle ();
  mock_settle ();
  valid = region_map_count_valid (d->clone->map);
  ck_assert_uint_gt (valid, 0);
  ck_assert_uint_lt (valid, region_map_regions (d->clone->map));
  mock_settle ();
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), valid);
  hydrate_resume (h);
  check_complete ();
}
END_TEST

/* A threshold of 0 is a pause, and another threshold ends the pause. */
START_TEST (threshold_of_zero)
{
  struct hydrate_settings settings = defaults, got;

  new_disk (2 * M, 4 * K, true);
  settings.threshold = 0;
  begin (&settings, false);
  wait_for (HYDRATE_PAUSED);
  mock_settle ();
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 0);
  settings.threshold = 128 * K;
  hydrate_set_settings (h, &settings);
  hydrate_get_settings (h, &got);
  ck_assert_uint_eq (got.threshold, 128 * K);
  check_complete ();
}
END_TEST

/* A client's write comes between the copy's read of the source and its write:
 * the client's data survives, and the client does not wait.  _i: part of the
 * region, or all of it; small regions, or one in pieces.
 */
START_TEST (write_wins)
{
  const uint64_t region = _i & 2 ? 4 * M : 64 * K;
  struct mock_gate *gate;

  new_disk (2 * region, region, true);
  gate = mock_gate_after (d->source, MOCK_PREAD, 0, 512, 1);
  begin (&defaults, false);
  mock_gate_wait (gate);
  if (_i & 1)
    must_write (1, region, 0);
  else
    must_write (1, 1000, 300);
  ck_assert (region_map_is_valid (d->clone->map, 0));
  mock_gate_open (gate);
  check_complete ();
}
END_TEST

struct writer {
  uint64_t count, offset;
  bool trim;
  _Atomic bool done;
};

static void
run_writer (void *opaque)
{
  struct writer *w = opaque;

  if (w->trim) {
    if (clone_trim (d->clone, w->count, w->offset, 0) == -1)
      abort ();
  }
  else if (clone_pwrite (d->clone, model + w->offset, w->count, w->offset,
                         0) == -1)
    abort ();
  w->done = true;
}

/* The copy owns its range, and is writing or sharing: clients wait for it, and
 * write afterwards.
 */
START_TEST (copy_in_flight)
{
  struct mock_gate *gate;
  struct mock_thread *thread;
  struct writer w = { .trim = _i % 3 == 2 };

  new_disk (128 * K, 64 * K, true);
  if (_i / 3)
    mock_set_share (d->dest, 0, 0);
  w.count = _i % 3 ? 64 * K : 1000;
  memset (model, w.trim ? 0 : 7, w.count);
  gate = mock_gate (d->dest, MOCK_PWRITE, 0, 64 * K, 1);
  begin (&defaults, false);
  mock_gate_wait (gate);
  thread = mock_thread (run_writer, &w);
  mock_settle ();
  ck_assert (!w.done);
  mock_gate_open (gate);
  mock_join (thread);
  /* The client may have come after the commit that made it complete. */
  wait_for (HYDRATE_COMPLETE);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  check_complete ();
}
END_TEST

static bool
others_are_valid (void *opaque)
{
  return region_map_count_valid (d->clone->map) == 15;
}

/* A copy waits for a client that owns the region.  Meanwhile other regions are
 * copied.  In the end, the client's data is there.
 */
START_TEST (copier_waits_for_client)
{
  struct mock_gate *gate;
  struct mock_thread *thread;
  struct writer w = { .count = 1000, .offset = 70 * K };

  new_disk (1 * M, 64 * K, true);
  memset (model + w.offset, 7, w.count);
  gate = mock_gate (d->dest, MOCK_PWRITE, 64 * K, 64 * K, 1);
  thread = mock_thread (run_writer, &w);
  mock_gate_wait (gate);
  begin (&(struct hydrate_settings){ .threshold = M, .batch = 64 * K }, false);
  mock_wait_until (others_are_valid, NULL);
  ck_assert (!region_map_is_valid (d->clone->map, 1));
  mock_gate_open (gate);
  mock_join (thread);
  check_complete ();
}
END_TEST

/* An error of the destination stops hydration, is logged once, and loses
 * nothing.  When the cause is removed, resuming completes the clone.
 */
START_TEST (errors)
{
  const unsigned before = mock_errors ();

  new_disk (4 * M, _i & 2 ? 2 * M : 4 * K, _i & 1);
  mock_fail (d->dest, MOCK_PWRITE, M, 64 * K, 1, 0, ENOSPC);
  begin (&(struct hydrate_settings){ .threshold = M, .batch = 256 * K },
         false);
  wait_for (HYDRATE_FAILED);
  mock_wait_until (has_ended, NULL);
  mock_settle ();
  ck_assert (has_state (&(enum hydrate_state){ HYDRATE_FAILED }));
  ck_assert_uint_eq (mock_errors (), before + 1);
  must_write (1, 5000, 3 * M + 7);

  mock_heal (d->dest);
  ends = 0;
  hydrate_resume (h);
  check_complete ();
}
END_TEST

static struct hydrate_status st;

/* So many bytes are bad, and no copy is under way. */
static bool
is_bad (void *opaque)
{
  const uint64_t *bytes = opaque;

  hydrate_get_status (h, &st);
  return st.bad.bytes == *bytes && st.hydrating == 0 &&
    st.state == HYDRATE_HYDRATING;
}

/* And everything else is valid. */
static bool
only_that_is_left (void *opaque)
{
  return is_bad (opaque) &&
    region_map_count_valid (d->clone->map) + st.bad.regions ==
    region_map_regions (d->clone->map);
}

static bool
resumed_until_bad (void *opaque)
{
  hydrate_resume (h);
  return is_bad (opaque);
}

/* The source cannot read one sector: everything else is hydrated.  In the end
 * only one region is bad, or one piece of a large region.  This is logged once,
 * and the sector is not read all the time.  Then a client writes it, or it
 * becomes readable.
 * _i: async, large regions, written; 8: rounds begin only by themselves.
 */
START_TEST (bad_sector)
{
  const uint64_t region_size = _i & 2 ? 2 * M : 4 * K;
  const uint64_t piece = _i & 2 ? 64 * K : 4 * K;
  const uint64_t sector = 2 * M + 70 * K + 512;
  const unsigned before = mock_errors ();
  uint8_t buf[4096];
  size_t reads;

  mock_watch_infos ("all unreadable ranges of the source have been read");
  new_disk (4 * M + 100, region_size, _i & 1);
  mock_fail (d->source, MOCK_PREAD, sector, 512, 1, 0, EIO);
  begin (&(struct hydrate_settings){ .threshold = M, .batch = 256 * K },
         false);
  if (_i != 8)
    mock_wait_until (resumed_until_bad, (void *)&piece);
  mock_wait_until (only_that_is_left, (void *)&piece);
  ck_assert_uint_eq (st.bad.regions, 1);
  ck_assert_uint_eq (st.bad.ranges, 1);
  ck_assert_uint_eq (st.bad.range[0].start, round_down (sector, piece));
  ck_assert_uint_eq (st.bad.range[0].end, round_down (sector, piece) + piece);
  ck_assert_uint_eq (mock_errors (), before + 1);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "cannot read"));

  reads = mock_count (d->source, MOCK_PREAD);
  for (unsigned i = 0; i < 4; ++i)
    mock_settle ();
  ck_assert_uint_le (mock_count (d->source, MOCK_PREAD), reads + 4);
  ck_assert_int_eq (clone_pread (d->clone, buf, 512, sector), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_pread (d->clone, buf, 4096, 4096), 0);
  ck_assert_uint_eq (ends, 0);

  if (_i & 4)
    must_write (1, region_size, round_down (sector, region_size));
  else {
    mock_heal (d->source);
    if (_i != 8)
      hydrate_resume (h);
  }
  check_complete ();
  ck_assert_uint_eq (ends, 1);
  ck_assert_uint_eq (mock_errors (), before + 1);
  ck_assert_uint_eq (mock_infos (), 1);
}
END_TEST

static bool
all_but (void *opaque)
{
  return region_map_bytes_valid (d->clone->map) + *(uint64_t *)opaque >=
    d->size;
}

/* A source that drops the connection whenever a certain sector is read, and is
 * back at once: all other ranges are copied.  If this one were tried again
 * without end, hydration would never get past it.
 */
START_TEST (sector_that_kills)
{
  uint64_t batch = 64 * K;

  new_disk (4 * M, 4 * K, _i);
  mock_fail (d->source, MOCK_PREAD, 512, 512, 1, 0, ENOTCONN);
  begin (&(struct hydrate_settings){ .threshold = batch, .batch = batch },
         false);
  mock_wait_until (all_but, &batch);
  mock_heal (d->source);
  hydrate_resume (h);
  check_complete ();
}
END_TEST

/* Many bad sectors: the first are logged one by one, the others together. */
START_TEST (many_bad_sectors)
{
  const uint64_t all = 20 * 16 * K, left = 20 * 4 * K;
  const unsigned before = mock_errors ();

  new_disk (20 * 64 * K, 4 * K, _i);
  for (unsigned i = 0; i < 20; ++i)
    mock_fail (d->source, MOCK_PREAD, i * 64 * K + 20 * K, 1, 1, 0, EIO);
  begin (&(struct hydrate_settings){ .threshold = M, .batch = 16 * K }, false);
  mock_wait_until (only_that_is_left, (void *)&all);
  mock_wait_until (resumed_until_bad, (void *)&left);
  ck_assert_uint_eq (st.bad.regions, 20);
  ck_assert_uint_eq (st.bad.ranges, 20);
  ck_assert_uint_eq (mock_errors (), before + 9);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "12 more"));
  mock_heal (d->source);
  hydrate_resume (h);
  check_complete ();
}
END_TEST

/* A bad range becomes readable, but then the destination cannot be written:
 * this is handled like any other error of the destination.
 */
START_TEST (bad_source_then_destination)
{
  const uint64_t left = 4 * K;

  new_disk (M, 4 * K, true);
  mock_fail (d->source, MOCK_PREAD, 0, 1, 1, 0, EIO);
  begin (&defaults, false);
  mock_wait_until (resumed_until_bad, (void *)&left);
  mock_wait_until (only_that_is_left, (void *)&left);
  mock_fail (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1, 0, ENOSPC);
  mock_heal (d->source);
  hydrate_resume (h);
  wait_for (HYDRATE_FAILED);
  mock_heal (d->dest);
  ends = 0;
  hydrate_resume (h);
  check_complete ();
}
END_TEST

/* Stopped, paused and started again while only bad ranges are left. */
START_TEST (bad_and_paused)
{
  const uint64_t left = 4 * K;
  size_t reads;

  new_disk (M, 4 * K, true);
  mock_fail (d->source, MOCK_PREAD, 0, 1, 1, 0, EIO);
  begin (&defaults, false);
  mock_wait_until (resumed_until_bad, (void *)&left);
  mock_wait_until (only_that_is_left, (void *)&left);
  hydrate_pause (h);
  wait_for (HYDRATE_PAUSED);
  stop ();
  ck_assert_int_eq (mock_disk_close (d), 0);
  ck_assert_int_eq (mock_disk_open (d), 0);
  mock_log_clear (d->log);
  begin (&defaults, true);
  mock_settle ();
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 0);
  hydrate_resume (h);
  mock_wait_until (only_that_is_left, (void *)&left);
  /* Nothing else was read again. */
  reads = mock_bytes (d->source, MOCK_PREAD);
  ck_assert_uint_eq (mock_bytes_in (d->source, MOCK_PREAD, 0, 4 * K), reads);
  mock_heal (d->source);
  check_complete ();
}
END_TEST

/* The last commit fails: the clone is not complete, and the source stays open.
 * When the metadata device works again, resuming completes the clone.
 */
START_TEST (last_commit_fails)
{
  new_disk (M, 4 * K, true);
  mock_fail (d->meta, MOCK_FLUSH, MOCK_ANYWHERE, 1, 0, EIO);
  begin (&defaults, false);
  wait_for (HYDRATE_FAILED);
  ck_assert (!commit_is_complete (d->clone->commit));
  ck_assert (!mock_is_closed (d->source));
  mock_heal (d->meta);
  hydrate_resume (h);
  check_complete ();
}
END_TEST

/* The state is not complete before the bitmap is durably full. */
START_TEST (complete_when_durable)
{
  struct mock_gate *gate;

  new_disk (M, 4 * K, true);
  gate = mock_gate (d->meta, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  begin (&defaults, false);
  mock_gate_wait (gate);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map),
                     region_map_regions (d->clone->map));
  hydrate_get_status (h, &st);
  ck_assert_int_ne (st.state, HYDRATE_COMPLETE);
  ck_assert_uint_eq (ends, 0);
  ck_assert (!mock_is_closed (d->source));
  mock_gate_open (gate);
  check_complete ();
}
END_TEST

/* Clients write the whole disk: the flush that makes this durable ends
 * hydration, although hydration is paused.
 */
START_TEST (completed_by_clients)
{
  new_disk (M, 4 * K, true);
  begin (&defaults, true);
  must_write (1, M, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  check_complete ();
}
END_TEST

static void
run_stop (void *opaque)
{
  _Atomic bool *stopped = opaque;

  hydrate_stop (h);
  *stopped = true;
}

/* Stopping waits for the copies that are under way, and for nothing else.
 * Copied regions stay valid, and after a new start hydration continues there.
 * Before that, the source cannot read its end, so that something is always left
 * to copy, however late the stop comes.
 */
START_TEST (stop_in_flight)
{
  static _Atomic bool stopped;
  struct mock_thread *thread;
  struct mock_gate *gate[6];
  uint64_t valid;

  new_disk (8 * M, 4 * K, true);
  mock_fail (d->source, MOCK_PREAD, 8 * M - 4 * K, 4 * K, 1, 0, EIO);
  for (unsigned i = 0; i < 6; ++i)
    gate[i] = mock_gate_after (_i ? d->source : d->dest,
                               _i ? MOCK_PREAD : MOCK_PWRITE, MOCK_ANYWHERE,
                               1);
  begin (&(struct hydrate_settings){ .threshold = M, .batch = 64 * K }, false);
  for (unsigned i = 0; i < 6; ++i)
    mock_gate_wait (gate[i]);
  stopped = false;
  thread = mock_thread (run_stop, &stopped);
  mock_settle ();
  ck_assert (!stopped);
  for (unsigned i = 0; i < 6; ++i)
    mock_gate_open (gate[i]);
  mock_join (thread);
  stop ();

  mock_heal (d->source);
  valid = region_map_bytes_valid (d->clone->map);
  ck_assert_uint_gt (valid, 0);
  ck_assert_uint_lt (valid, 8 * M);
  ck_assert_int_eq (mock_disk_close (d), 0);
  ck_assert_int_eq (mock_disk_open (d), 0);
  ck_assert_uint_eq (region_map_bytes_valid (d->clone->map), valid);
  mock_log_clear (d->log);
  ends = 0;
  begin (&defaults, false);
  check_complete ();
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 8 * M - valid);
}
END_TEST

/* ---- lost servers ---- */

static void
new_servers (uint64_t size, uint64_t region_size)
{
  d = mock_disk_devices (size, region_size, 5000, false);
  mock_set_server (d->source);
  mock_set_server (d->dest);
  mock_set_server (d->meta);
  mock_set_async (d->source);
  mock_set_async (d->dest);
  mock_disk_create (d);
  model = malloc (size);
  memcpy (model, mock_content (d->source), size);
  ends = 0;
}

static void
lose (void *server)
{
  mock_server_crash (server, NULL, NULL);
}

static bool
is_idle (void *opaque)
{
  hydrate_get_status (h, &st);
  return st.hydrating == 0;
}

/* The source or the destination is lost while a copy reads or writes: the copy
 * returns its range, and nothing is under way until the server is back.  Then
 * everything is copied, including data that the destination has lost.  No error
 * is logged.  _i: source, destination; large regions, in pieces.
 */
START_TEST (servers_are_lost)
{
  const unsigned said = mock_errors ();
  const struct hydrate_settings settings = {
    .threshold = 512 * K, .batch = 64 * K
  };
  struct mock *server;
  struct mock_gate *gate;

  new_servers (4 * M, _i & 2 ? M : 4 * K);
  server = _i & 1 ? d->dest : d->source;
  gate = mock_gate (server, _i & 1 ? MOCK_PWRITE : MOCK_PREAD, M, M, 1);
  begin (&settings, false);
  mock_gate_wait (gate);
  lose (server);
  if (!(_i & 2))
    mock_wait_until (is_idle, NULL);
  hydrate_get_status (h, &st);
  ck_assert_int_eq (st.state, _i & 1 ? HYDRATE_HYDRATING : HYDRATE_WAITING);
  mock_server_back (server);
  check_complete ();
  ck_assert_uint_eq (mock_errors (), said);
}
END_TEST

static bool
clone_is_done (void *opaque)
{
  return clone_is_complete (d->clone);
}

/* The last commit waits for a disk on a thread that may wait.  Meanwhile the
 * loops end.
 */
START_TEST (loops_do_not_commit)
{
  struct mock_gate *gate;

  new_disk (M, 4 * K, true);
  gate = mock_gate (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  begin (&defaults, false);
  mock_gate_wait (gate);
  hydrate_stop (h);
  ck_assert (!clone_is_complete (d->clone));
  mock_gate_open (gate);
  mock_wait_until (clone_is_done, NULL);
  ck_assert_uint_eq (ends, 0); /* hydration has ended before */
  check_content ();
}
END_TEST

/* The last commit fails because of the metadata.  Then the destination is lost,
 * so that there is more to copy.  As soon as the metadata can be written again,
 * hydration goes on by itself.  Until then nothing is tried again and again in
 * vain, whatever the error is.
 */
START_TEST (metadata_fails_in_the_last_commit)
{
  new_servers (M, 4 * K);
  mock_fail (d->meta, _i & 1 ? MOCK_FLUSH : MOCK_PWRITE, MOCK_ANYWHERE, 1, 0,
             _i & 2 ? ENOSPC : EIO);
  begin (&defaults, false);
  wait_for (HYDRATE_FAILED);
  lose (d->dest);
  mock_server_back (d->dest);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 0);
  mock_heal (d->meta);
  ck_assert_int_eq (clone_commit (d->clone, false), 0);
  check_complete ();
}
END_TEST

/* The last commit fails because the destination is full: lost data is copied
 * again, and the clone becomes complete by itself when there is room.
 */
START_TEST (full_in_the_last_commit)
{
  new_disk (M, 4 * K, true);
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 2, _i ? EDQUOT : ENOSPC);
  begin (&defaults, false);
  check_complete ();
}
END_TEST

static void
client (void *opaque)
{
  const unsigned number = (uintptr_t)opaque;
  uint64_t seed = number + 1;
  uint8_t buf[700];

  for (unsigned i = 0; i < 400; ++i) {
    uint64_t block = mock_random (&seed) % (d->size / 700 / 3);
    uint64_t offset = (block * 3 + number) * 700;

    if (i % 3 == 0) {
      if (clone_zero (d->clone, 700, offset, 0) == -1)
        abort ();
      memset (model + offset, 0, 700);
    }
    else {
      memset (buf, mock_random (&seed), 700);
      if (clone_pwrite (d->clone, buf, 700, offset, 0) == -1)
        abort ();
      memcpy (model + offset, buf, 700);
    }
    if (i % 50 == 0 && clone_flush (d->clone, NULL) == -1)
      abort ();
    if (clone_pread (d->clone, buf, 700, offset) == -1 ||
        memcmp (buf, model + offset, 700) != 0)
      abort ();
  }
}

/* Clients that write all over the disk while it hydrates, in regions that they
 * share with each other, never lose a byte.
 */
START_TEST (stress)
{
  struct mock_thread *thread[3];
  const struct hydrate_settings settings = {
    .threshold = M, .batch = 64 * K
  };

  new_disk (6 * M + 11, _i ? M : 4 * K, true);
  mock_log_enable (d->log, false);
  mock_set_delay (d->source, 500);
  mock_set_delay (d->dest, 100);
  begin (&settings, false);
  for (uintptr_t i = 0; i < 3; ++i)
    thread[i] = mock_thread (client, (void *)i);
  for (unsigned i = 0; i < 3; ++i)
    mock_join (thread[i]);
  wait_for (HYDRATE_COMPLETE);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  check_complete ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("hydrate");
  TCase *tc = tcase_create ("hydrate");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, NULL, teardown);
  tcase_add_loop_test (tc, everything, 0, SHAPES * 4);
  tcase_add_loop_test (tc, holes, 0, 2);
  tcase_add_loop_test (tc, shares, 0, 4);
  tcase_add_loop_test (tc, shares_some, 0, 4);
  tcase_add_loop_test (tc, shares_nothing, 0, 2);
  tcase_add_test (tc, unknown_zeroes);
  tcase_add_loop_test (tc, zeroes_within_copies, 0, 4);
  tcase_add_loop_test (tc, space_is_kept, 0, 2);
  tcase_add_test (tc, extents_fail);
  tcase_add_test (tc, limits);
  tcase_add_loop_test (tc, threshold_is_reached, 0, 2);
  tcase_add_test (tc, batch_is_chosen);
  tcase_add_test (tc, large_regions);
  tcase_add_test (tc, rate);
  tcase_add_loop_test (tc, pause_and_resume, 0, 2);
  tcase_add_test (tc, threshold_of_zero);
  tcase_add_loop_test (tc, write_wins, 0, 4);
  tcase_add_loop_test (tc, copy_in_flight, 0, 6);
  tcase_add_test (tc, copier_waits_for_client);
  tcase_add_loop_test (tc, errors, 0, 4);
  tcase_add_loop_test (tc, bad_sector, 0, 9);
  tcase_add_loop_test (tc, sector_that_kills, 0, 2);
  tcase_add_loop_test (tc, many_bad_sectors, 0, 2);
  tcase_add_test (tc, bad_source_then_destination);
  tcase_add_test (tc, bad_and_paused);
  tcase_add_test (tc, last_commit_fails);
  tcase_add_test (tc, complete_when_durable);
  tcase_add_test (tc, completed_by_clients);
  tcase_add_loop_test (tc, stop_in_flight, 0, 2);
  tcase_add_loop_test (tc, servers_are_lost, 0, 4);
  tcase_add_test (tc, loops_do_not_commit);
  tcase_add_loop_test (tc, metadata_fails_in_the_last_commit, 0, 4);
  tcase_add_loop_test (tc, full_in_the_last_commit, 0, 2);
  tcase_add_loop_test (tc, stress, 0, 2);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
