/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One test for each race that matters.  It brings about the worst order, and
 * proves that the result is right.
 *
 * The library is built with test points (lib/base/test-point.h).  A test holds
 * one thread at the moment that decides the race, lets the other threads do the
 * worst they can, and sees by the points' counters that each thread has been
 * where the test needs it.  No result depends on a clock: a test waits for
 * points to be reached, and mock_settle only gives a wrong program the time to
 * go wrong.
 *
 * test-scenarios.sh checks that these tests fail in builds that are broken by
 * patches of tests/controls.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "hydration/hydrate.h"
#include "mock-backend.h"
#include "points.h"
#include "run-suite.h"

#define K UINT64_C (1024)

static struct mock_disk *d;
static struct hydrate *h;
static uint8_t *model; /* what clients must read */

static void
new_disk (uint64_t size, uint64_t region_size)
{
  points_reset ();
  d = mock_disk_new (size, region_size, 5000);
  mock_set_async (d->source);
  mock_set_async (d->dest);
  model = malloc (size);
  memcpy (model, mock_content (d->source), size);
}

/* Hydrate in copies of `regions' regions, `copies' of them at once. */
static void
start_hydration (unsigned regions, unsigned copies)
{
  const struct hydrate_settings settings = {
    .batch = regions * d->region_size,
    .threshold = copies * regions * d->region_size
  };

  h = mock_disk_hydrate (d, &settings, false, NULL);
}

static void
stop_hydration (void)
{
  if (h == NULL)
    return;
  mock_disk_end_hydration (d, h);
  h = NULL;
}

static void
teardown (void)
{
  points_reset ();
  stop_hydration ();
  if (d)
    mock_disk_free (d);
  free (model);
  d = NULL;
  model = NULL;
}

static bool
is_valid (uint64_t region)
{
  return region_map_is_valid (d->clone->map, region);
}

static bool
all_are_valid (void *opaque)
{
  return region_map_count_valid (d->clone->map) ==
    region_map_regions (d->clone->map);
}

static bool
is_complete (void *opaque)
{
  return commit_is_complete (d->clone->commit);
}

static void
check_all (void)
{
  CLEANUP_FREE uint8_t *buf = malloc (d->size);

  ck_assert_int_eq (clone_pread (d->clone, buf, d->size, 0), 0);
  for (uint64_t i = 0; i < d->size; ++i)
    if (buf[i] != model[i])
      ck_abort_msg ("byte %" PRIu64 " reads as %02x%s, should be %02x", i,
                    buf[i], buf[i] == MOCK_GARBAGE ? " (garbage)" : "",
                    model[i]);
}

/* Each byte that was read is the model's or the source's. */
static void
check_either (const uint8_t *buf, uint64_t count, uint64_t offset)
{
  const uint8_t *source = mock_content (d->source) + offset;

  for (uint64_t i = 0; i < count; ++i)
    if (buf[i] != model[offset + i] && buf[i] != source[i])
      ck_abort_msg ("byte %" PRIu64 " reads as %02x%s, should be %02x or the "
                    "source's %02x", offset + i, buf[i],
                    buf[i] == MOCK_GARBAGE ? " (garbage)" : "",
                    model[offset + i], source[i]);
}

/* ---- requests ---- */

enum op_type { OP_READ, OP_WRITE, OP_ZERO, OP_TRIM, OP_CACHE, OP_FLUSH };

struct op {
  enum op_type type;
  uint8_t byte;
  uint64_t count, offset;
  unsigned flags;
  uint8_t *buf;
  struct mock_thread *thread;
  int result;
  _Atomic bool done;
};

static void
run_op (void *opaque)
{
  struct op *op = opaque;

  op->buf = malloc (op->count + 1);
  memset (op->buf, op->byte, op->count);
  switch (op->type) {
  case OP_READ:
    op->result = clone_pread (d->clone, op->buf, op->count, op->offset);
    break;
  case OP_WRITE:
    op->result = clone_pwrite (d->clone, op->buf, op->count, op->offset,
                               op->flags);
    break;
  case OP_ZERO:
    op->result = clone_zero (d->clone, op->count, op->offset, op->flags);
    break;
  case OP_TRIM:
    op->result = clone_trim (d->clone, op->count, op->offset, op->flags);
    break;
  case OP_CACHE:
    op->result = clone_cache (d->clone, op->count, op->offset);
    break;
  case OP_FLUSH:
    op->result = clone_flush (d->clone, NULL);
    break;
  }
  op->done = true;
}

static void
init (struct op *op, enum op_type type, uint8_t byte, uint64_t count,
      uint64_t offset)
{
  *op = (struct op){
    .type = type, .byte = byte, .count = count, .offset = offset
  };
}

static void
start (struct op *op, enum op_type type, uint8_t byte, uint64_t count,
       uint64_t offset)
{
  init (op, type, byte, count, offset);
  op->thread = mock_thread (run_op, op);
}

/* Apply a finished change to the model. */
static void
add_to_model (const struct op *op)
{
  if (op->type >= OP_WRITE && op->type <= OP_TRIM)
    memset (model + op->offset, op->type == OP_WRITE ? op->byte : 0,
            op->count);
}

static void
end (struct op *op)
{
  mock_join (op->thread);
  ck_assert_int_eq (op->result, 0);
  add_to_model (op);
  free (op->buf);
}

/* Run a request on this thread. */
static void
must (enum op_type type, uint8_t byte, uint64_t count, uint64_t offset)
{
  struct op op;

  init (&op, type, byte, count, offset);
  run_op (&op);
  ck_assert_int_eq (op.result, 0);
  add_to_model (&op);
  free (op.buf);
}

struct reached {
  enum test_point point;
  unsigned count;
};

static bool
has_reached (void *opaque)
{
  const struct reached *r = opaque;

  return points_count (r->point) >= r->count;
}

/* Wait until the point has been reached `count' times since points_reset. */
static void
wait_for (enum test_point point, unsigned count)
{
  mock_wait_until (has_reached, &(struct reached){ point, count });
}

/* keep_meta: the probability, in 256, that a sector of the metadata that was
 * not flushed is kept.
 */
static void
flush_and_cut_power (unsigned keep_meta)
{
  must (OP_FLUSH, 0, 0, 0);
  mock_disk_crash (d, 0, keep_meta, 1);
  ck_assert_int_eq (mock_disk_open (d), 0);
}

/* The worst case: the destination keeps only what was flushed, and the metadata
 * keeps everything.  If a bit was written too early, the destination's old
 * content becomes visible.
 */
static void
cut_power (void)
{
  mock_disk_crash (d, 0, 256, 1);
  ck_assert_int_eq (mock_disk_open (d), 0);
}

/* ---- changes against a copy in flight ---- */

enum copier { BY_HYDRATION, BY_CACHE, BY_READ, COPIERS };
enum moment { UNOWNED, OWNED, WRITING, WRITTEN, SET, MOMENTS };
#define CHANGES 5

static const enum test_point copy_points[2][MOMENTS] = {
  { POINT_HYDRATE_UNOWNED, POINT_HYDRATE_OWNED, 0, POINT_HYDRATE_WRITTEN,
    POINT_HYDRATE_SET },
  { POINT_COPY_UNOWNED, POINT_COPY_OWNED, 0, POINT_COPY_WRITTEN,
    POINT_COPY_SET },
};

/* Hydration, a cache request or copy-on-read copies the first region, and is
 * held at a moment of the copy.  Then a client sends a trim, a zero, or a write
 * of the whole region, of a part of it, or of a part of it and the whole second
 * region.  If the copy does not own the region yet, the change does not wait,
 * and the copy then leaves the region alone.  While the copy owns the region,
 * the change waits, and comes after the copy.  When the bit is set the change
 * does not wait.  In the end the change is there, in memory and in the
 * destination.  (dm-clone loses a write that follows such a trim.)
 */
START_TEST (change_against_copy)
{
  const enum copier copier = _i / (MOMENTS * CHANGES);
  const enum moment moment = _i / CHANGES % MOMENTS;
  const bool waits = moment >= OWNED && moment <= WRITTEN;
  const enum test_point point = copy_points[copier != BY_HYDRATION][moment];
  struct mock_gate *gate = NULL;
  struct op copy, change;

  new_disk (128 * K, 64 * K);
  must (OP_WRITE, 9, 64 * K, 64 * K);
  if (moment == WRITING)
    gate = mock_gate (d->dest, MOCK_PWRITE, 0, 64 * K, 1);
  else
    points_hold (point, 1);

  if (copier == BY_HYDRATION)
    start_hydration (1, 1);
  else {
    clone_set_copy_on_read (d->clone, copier == BY_READ);
    start (&copy, copier == BY_READ ? OP_READ : OP_CACHE, 0, 64 * K, 0);
  }
  if (gate)
    mock_gate_wait (gate);
  else
    points_wait (point, 1);

  switch (_i % CHANGES) {
  case 0: start (&change, OP_TRIM, 0, 64 * K, 0); break;
  case 1: start (&change, OP_ZERO, 0, 64 * K, 0); break;
  case 2: start (&change, OP_WRITE, 1, 64 * K, 0); break;
  case 3: start (&change, OP_WRITE, 2, 1000, 700); break;
  case 4: start (&change, OP_WRITE, 3, 128 * K - 512, 512); break;
  }
  if (waits) {
    /* The change asks for the region.  Give it time to go on, which would be
     * wrong.
     */
    wait_for (POINT_CHANGE_UNOWNED, 2);
    mock_settle ();
    ck_assert (!change.done);
    ck_assert_uint_eq (points_count (POINT_CHANGE_OWNED), 1);
    /* Other regions are not held up. */
    must (OP_WRITE, 4, 100, 100 * K);
  }
  else {
    end (&change);
    ck_assert (copier == BY_HYDRATION || !copy.done);
    /* A write that follows it is not lost either. */
    must (OP_WRITE, 5, 512, 32 * K);
  }

  if (gate)
    mock_gate_open (gate);
  else
    points_let_go (point);
  if (copier == BY_HYDRATION)
    mock_wait_until (all_are_valid, NULL);
  else {
    mock_join (copy.thread);
    ck_assert_int_eq (copy.result, 0);
    free (copy.buf);
  }
  if (waits) {
    const uint8_t other = 4;

    end (&change);
    if (change.offset + change.count > 100 * K) {
      /* The two writes were concurrent, so either of them may have won. */
      CLEANUP_FREE uint8_t *buf = malloc (100);

      ck_assert_int_eq (clone_pread (d->clone, buf, 100, 100 * K), 0);
      ck_assert (buf[0] == other || buf[0] == change.byte);
      memset (model + 100 * K, buf[0], 100);
    }
    ck_assert_uint_ge (points_count (POINT_CHANGE_OWNED), 1);
  }
  check_all ();
  stop_hydration ();
  flush_and_cut_power (0);
  check_all ();
  ck_assert_mem_eq (mock_content (d->dest), model, d->size);
}
END_TEST

/* ---- several writers on one invalid region ---- */

#define MAX_WRITERS 16

/* Two or sixteen clients write to parts of one invalid region.  All of them
 * have read the source's bytes around their part before one may own the region.
 * Then one owns it, and the others wait.  In the end every write is there, also
 * if hydration copies the region at the same time.
 */
START_TEST (writers_of_one_region)
{
  const unsigned n = _i & 1 ? MAX_WRITERS : 2;
  struct op op[MAX_WRITERS];

  new_disk (128 * K, 64 * K);
  if (_i & 2) {
    must (OP_WRITE, 9, 64 * K, 64 * K);
    points_hold (POINT_HYDRATE_UNOWNED, 1);
    start_hydration (1, 1);
    points_wait (POINT_HYDRATE_UNOWNED, 1);
  }
  points_hold (POINT_CHANGE_UNOWNED, n);
  points_hold (POINT_CHANGE_OWNED, 1);
  for (unsigned i = 0; i < n; ++i)
    start (&op[i], OP_WRITE, 100 + i, 700, 2000 + i * 3000);
  points_wait (POINT_CHANGE_UNOWNED, n);
  ck_assert (!is_valid (0));

  points_let_go (POINT_CHANGE_UNOWNED);
  points_let_go (POINT_HYDRATE_UNOWNED);
  points_wait (POINT_CHANGE_OWNED, 1);
  mock_settle ();
  ck_assert_uint_eq (points_held (POINT_CHANGE_OWNED), 1);
  points_let_go (POINT_CHANGE_OWNED);
  for (unsigned i = 0; i < n; ++i)
    end (&op[i]);
  check_all ();
  stop_hydration ();
  flush_and_cut_power (0);
  check_all ();
}
END_TEST

/* ---- a write of many regions ---- */

/* A write begins and ends in the middle of regions.  It covers one run of
 * invalid regions, or two with valid regions between them.  Either all regions
 * become valid after the write has read the bytes around it, and before it owns
 * anything: the first by another client's write, the others by hydration.  Or
 * hydration owns a range that ends in the middle of the write, which must wait.
 */
START_TEST (write_meets_hydration)
{
  struct op op;

  new_disk (8 * 16 * K, 16 * K);
  if (_i & 1)
    must (OP_WRITE, 8, 32 * K, 48 * K); /* two runs of invalid regions */
  if (_i & 2) {
    points_hold (POINT_HYDRATE_OWNED, 1);
    start_hydration (4, 1);
    points_wait (POINT_HYDRATE_OWNED, 1);
    start (&op, OP_WRITE, 1, 80 * K, 20 * K);
    wait_for (POINT_CHANGE_UNOWNED, 1 + (_i & 1));
    mock_settle ();
    ck_assert (!op.done);
    points_let_go (POINT_HYDRATE_OWNED);
  }
  else {
    points_hold (POINT_CHANGE_UNOWNED, 1);
    start (&op, OP_WRITE, 1, 7 * 16 * K, 4 * K);
    points_wait (POINT_CHANGE_UNOWNED, 1);
    must (OP_WRITE, 2, 16 * K, 0);
    start_hydration (1, 2);
    mock_wait_until (all_are_valid, NULL);
    must (OP_WRITE, 3, 2 * K, 126 * K);
    points_let_go (POINT_CHANGE_UNOWNED);
  }
  end (&op);
  ck_assert_uint_ge (points_count (POINT_CHANGE_OWNED), 1);
  check_all ();
  stop_hydration ();
  flush_and_cut_power (0);
  check_all ();
}
END_TEST

/* ---- reads that chose the source ---- */

/* A read has chosen the source.  Before it reads the source, a client's change
 * makes the region valid.  The read returns the old data or the new, and with
 * copy-on-read it does not overwrite the new data with the old.
 */
START_TEST (read_against_change)
{
  struct op read;

  new_disk (128 * K, 64 * K);
  clone_set_copy_on_read (d->clone, _i & 1);
  points_hold (POINT_READ_CHOSE_SOURCE, 1);
  start (&read, OP_READ, 0, 128 * K - 100, 50);
  points_wait (POINT_READ_CHOSE_SOURCE, 1);
  if (_i & 2)
    must (OP_TRIM, 0, 64 * K, 0);
  must (OP_WRITE, 1, 1000, 100);
  points_let_go (POINT_READ_CHOSE_SOURCE);
  mock_join (read.thread);
  ck_assert_int_eq (read.result, 0);
  check_either (read.buf, read.count, read.offset);
  free (read.buf);
  check_all ();
  flush_and_cut_power (0);
  check_all ();
}
END_TEST

/* The clone becomes complete while reads have chosen the source and have not
 * read it yet.  The source stays open until these reads are done.
 */
START_TEST (source_is_drained)
{
  struct op read[3], other;

  new_disk (256 * K, 64 * K);
  points_hold (POINT_READ_CHOSE_SOURCE, 3);
  for (unsigned i = 0; i < 3; ++i)
    start (&read[i], OP_READ, 0, 1000, i * 64 * K + 500);
  points_wait (POINT_READ_CHOSE_SOURCE, 3);

  points_hold (POINT_SOURCE_DROPPED, 1);
  start_hydration (1, 2);
  points_wait (POINT_SOURCE_DROPPED, 1);
  ck_assert (is_complete (NULL));
  /* The source is about to be dropped: reads and writes go on. */
  start (&other, OP_READ, 0, 128 * K, 0);
  end (&other);
  must (OP_WRITE, 1, 100, 200 * K);
  points_let_go (POINT_SOURCE_DROPPED);
  stop_hydration ();
  /* The clone has given up the source, but the held reads still use it. */
  ck_assert (committer_wait (&d->clone->committer, 60));
  ck_assert (!mock_is_closed (d->source));

  points_let_go (POINT_READ_CHOSE_SOURCE);
  for (unsigned i = 0; i < 3; ++i) {
    mock_join (read[i].thread);
    ck_assert_int_eq (read[i].result, 0);
    ck_assert_mem_eq (read[i].buf, model + read[i].offset, 1000);
    free (read[i].buf);
  }
  ck_assert (mock_is_closed (d->source));
  check_all ();
}
END_TEST

/* ---- bits and data ---- */

static const enum test_point set_points[][3] = {
  { POINT_CHANGE_OWNED, POINT_CHANGE_WRITTEN, POINT_CHANGE_SET },
  { POINT_COPY_OWNED, POINT_COPY_WRITTEN, POINT_COPY_SET },
  { POINT_HYDRATE_OWNED, POINT_HYDRATE_WRITTEN, POINT_HYDRATE_SET },
};

/* A region becomes valid after its bytes are in the destination, and while it
 * is owned (I2).  A commit before that moment does not make the region durable.
 * A commit after it does, even if the region is still owned.
 */
START_TEST (bit_after_data)
{
  const enum test_point point = set_points[_i / 3][_i % 3];
  struct op op = { 0 };

  new_disk (128 * K, 64 * K);
  must (OP_WRITE, 9, 64 * K, 64 * K);
  points_reset ();
  points_hold (point, 1);
  if (_i / 3 == 2)
    start_hydration (1, 1);
  else
    start (&op, _i / 3 ? OP_CACHE : OP_WRITE, 1, 64 * K, 0);
  points_wait (point, 1);

  ck_assert_int_eq (is_valid (0), _i % 3 == 2);
  ck_assert_int_eq (memcmp (mock_content (d->dest),
                            _i / 3 ? model : op.buf, 64 * K) == 0, _i % 3 > 0);
  must (OP_FLUSH, 0, 0, 0);
  ck_assert_uint_eq (region_map_count_durable (d->clone->map),
                     _i % 3 == 2 ? 2 : 1);
  points_let_go (point);
  if (_i / 3 == 2) {
    mock_wait_until (all_are_valid, NULL);
    stop_hydration ();
  }
  else
    end (&op);
  check_all ();
}
END_TEST

/* ---- commits ---- */

static const enum test_point commit_points[] = {
  POINT_COMMIT_SNAPSHOT, POINT_COMMIT_FLUSHED, POINT_COMMIT_WRITTEN,
  POINT_COMMIT_DURABLE,
};
#define COMMIT_POINTS (sizeof commit_points / sizeof commit_points[0])

#define REGIONS 64

/* A commit is held after one of its steps; each run of the test takes another
 * step.  Meanwhile other clients' writes complete, and make regions valid, in
 * the same sector of the bitmap and in a different one.  These writes are not
 * flushed.  After a power cut they may read as the source or as what was
 * written, but not as the destination's old content.  They would read as that
 * if a commit wrote their bits, and flushed the destination before their data
 * was there.
 */
START_TEST (write_during_commit)
{
  const enum test_point point = commit_points[_i];
  const uint64_t far = REGIONS_PER_SECTOR * 4 * K;
  struct op flush;

  new_disk (far + REGIONS * 4 * K, 4 * K);
  must (OP_WRITE, 1, 4 * K, 0);
  points_hold (point, 1);
  start (&flush, OP_FLUSH, 0, 0, 0);
  points_wait (point, 1);
  for (unsigned i = 1; i < 5; ++i) {
    must (OP_WRITE, 2, 4 * K, i * 8 * K);
    must (OP_WRITE, 2, 4 * K, far + i * 4 * K);
  }
  ck_assert (!flush.done);
  points_let_go (point);
  end (&flush);

  cut_power ();
  {
    CLEANUP_FREE uint8_t *buf = malloc (d->size);

    ck_assert_int_eq (clone_pread (d->clone, buf, d->size, 0), 0);
    ck_assert_mem_eq (buf, model, 4 * K);
    check_either (buf, d->size, 0);
  }
}
END_TEST

/* Flushes arrive while a commit is held after one of its steps.  They wait for
 * a later commit, whose snapshot is taken after they arrived.  What they cover
 * is durable when they return (I5, I6).
 */
START_TEST (flush_during_commit)
{
  const enum test_point point = commit_points[_i];
  struct op flush, late[4];
  uint64_t before;

  new_disk (REGIONS * 4 * K, 4 * K);
  must (OP_WRITE, 1, 4 * K, 0);
  points_hold (point, 1);
  start (&flush, OP_FLUSH, 0, 0, 0);
  points_wait (point, 1);
  before = commit_rounds (d->clone->commit);
  for (unsigned i = 0; i < 4; ++i) {
    must (OP_WRITE, 2 + i, 4 * K, (i + 1) * 8 * K);
    start (&late[i], OP_FLUSH, 0, 0, 0);
  }
  mock_settle ();
  for (unsigned i = 0; i < 4; ++i)
    ck_assert (!late[i].done);
  points_let_go (point);
  end (&flush);
  for (unsigned i = 0; i < 4; ++i)
    end (&late[i]);
  /* The held commit, and one for all late flushes; or two, if a flush arrived
   * after the first of these had begun.
   */
  ck_assert_uint_le (commit_rounds (d->clone->commit), before + 3);
  cut_power ();
  check_all ();
}
END_TEST

/* Clients and hydration set bits while commits are held, one after the other,
 * each after a different step.  No bit is lost, and all are durable in the end.
 */
START_TEST (commit_while_bits_are_set)
{
  const unsigned rounds = 32;

  /* In each round hydration copies the next region, and clients write to two,
   * from the disk's end backwards.
   */
  new_disk (3 * rounds * 16 * K, 16 * K);
  points_hold (POINT_HYDRATE_UNOWNED, 1);
  start_hydration (1, 1);
  for (unsigned i = 0; i < rounds; ++i) {
    const enum test_point point = commit_points[i % COMMIT_POINTS];
    const uint64_t end_of_two = d->size - i * 32 * K;
    struct op flush;

    points_wait (POINT_HYDRATE_UNOWNED, 1);
    must (OP_WRITE, i + 1, 5 * K, end_of_two - 10 * K);
    points_hold (point, 1);
    start (&flush, OP_FLUSH, 0, 0, 0);
    points_wait (point, 1);
    must (OP_WRITE, 100 + i, 16 * K, end_of_two - 32 * K);
    points_step (POINT_HYDRATE_UNOWNED);
    wait_for (POINT_HYDRATE_SET, i + 1);
    points_let_go (point);
    end (&flush);
  }
  points_let_go (POINT_HYDRATE_UNOWNED);
  mock_wait_until (all_are_valid, NULL);
  stop_hydration ();
  flush_and_cut_power (256);
  check_all ();
}
END_TEST

/* A client writes with FUA to a region that is valid and not durable.
 * Meanwhile a commit that has the region's bit is held after one of its steps.
 * The write waits for a commit that began after its data was written, and is
 * then durable.
 */
START_TEST (fua_during_commit)
{
  const enum test_point point = commit_points[_i];
  struct op flush, fua;

  new_disk (REGIONS * 4 * K, 4 * K);
  must (OP_WRITE, 1, 4 * K, 0);
  points_hold (point, 1);
  start (&flush, OP_FLUSH, 0, 0, 0);
  points_wait (point, 1);
  init (&fua, OP_WRITE, 2, 100, 1000);
  fua.flags = BACKEND_FUA;
  fua.thread = mock_thread (run_op, &fua);
  mock_settle ();
  ck_assert (!fua.done);
  points_let_go (point);
  end (&flush);
  end (&fua);
  cut_power ();
  check_all ();

  /* In a durable region FUA is left to the destination, without a commit. */
  points_reset ();
  init (&fua, OP_WRITE, 3, 100, 2000);
  fua.flags = BACKEND_FUA;
  run_op (&fua);
  ck_assert_int_eq (fua.result, 0);
  free (fua.buf);
  add_to_model (&fua);
  ck_assert_uint_eq (points_count (POINT_COMMIT_SNAPSHOT), 0);
  cut_power ();
  check_all ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("scenarios");
  TCase *tc = tcase_create ("scenarios");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, NULL, teardown);
  tcase_add_loop_test (tc, change_against_copy, 0,
                       COPIERS * MOMENTS * CHANGES);
  tcase_add_loop_test (tc, writers_of_one_region, 0, 4);
  tcase_add_loop_test (tc, write_meets_hydration, 0, 4);
  tcase_add_loop_test (tc, read_against_change, 0, 4);
  tcase_add_test (tc, source_is_drained);
  tcase_add_loop_test (tc, bit_after_data, 0, 9);
  tcase_add_loop_test (tc, write_during_commit, 0, COMMIT_POINTS);
  tcase_add_loop_test (tc, flush_during_commit, 0, COMMIT_POINTS);
  tcase_add_test (tc, commit_while_bits_are_set);
  tcase_add_loop_test (tc, fua_during_commit, 0, COMMIT_POINTS);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
