/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the request path gives each byte its last write, and before that
 * the source's byte, never what the destination held; that it reads from the
 * source no more than it must; and that of two requests that race for one
 * region none destroys the other's data (I1 to I4, I6, I7, I9, I10).
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)

static struct mock_disk *d;
static uint8_t *model; /* what a client must read */

static void
new_disk (uint64_t size, uint64_t region_size)
{
  d = mock_disk_new (size, region_size, 5000);
  model = malloc (size);
  memcpy (model, mock_content (d->source), size);
}

static void
teardown (void)
{
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

static void
check_read (uint64_t offset, uint64_t count)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  memset (buf, 0xcc, count);
  ck_assert_int_eq (clone_pread (d->clone, buf, count, offset), 0);
  for (uint64_t i = 0; i < count; ++i)
    if (buf[i] != model[offset + i])
      ck_abort_msg ("byte %zu reads as %02x, should be %02x",
                    (size_t)(offset + i), buf[i], model[offset + i]);
}

static void
check_all (void)
{
  check_read (0, d->size);
}

static void
write_model (uint8_t byte, uint64_t count, uint64_t offset)
{
  memset (model + offset, byte, count);
}

/* Write count times this byte. */
static int
write_bytes (uint8_t byte, uint64_t count, uint64_t offset, unsigned flags)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  memset (buf, byte, count);
  return clone_pwrite (d->clone, buf, count, offset, flags);
}

static void
must_write (uint8_t byte, uint64_t count, uint64_t offset)
{
  ck_assert_int_eq (write_bytes (byte, count, offset, 0), 0);
  write_model (byte, count, offset);
}

/* ---- requests on threads of their own ---- */

enum op_type { OP_READ, OP_WRITE, OP_ZERO, OP_TRIM, OP_CACHE, OP_FLUSH };

struct op {
  enum op_type type;
  uint64_t count, offset;
  uint8_t byte;
  struct mock_thread *thread;
  int result, error;
  _Atomic bool done;
};

static void
run_op (void *opaque)
{
  struct op *op = opaque;
  CLEANUP_FREE uint8_t *buf = malloc (op->count + 1);

  switch (op->type) {
  case OP_READ:
    op->result = clone_pread (d->clone, buf, op->count, op->offset);
    break;
  case OP_WRITE:
    op->result = write_bytes (op->byte, op->count, op->offset, 0);
    break;
  case OP_ZERO:
    op->result = clone_zero (d->clone, op->count, op->offset, 0);
    break;
  case OP_TRIM:
    op->result = clone_trim (d->clone, op->count, op->offset, 0);
    break;
  case OP_CACHE:
    op->result = clone_cache (d->clone, op->count, op->offset);
    break;
  case OP_FLUSH:
    op->result = clone_flush (d->clone, NULL);
    break;
  }
  op->error = errno;
  op->done = true;
}

static void
start (struct op *op, enum op_type type, uint8_t byte, uint64_t count,
       uint64_t offset)
{
  *op = (struct op){
    .type = type, .byte = byte, .count = count, .offset = offset
  };
  op->thread = mock_thread (run_op, op);
}

static void
end (struct op *op)
{
  mock_join (op->thread);
  ck_assert_int_eq (op->result, 0);
}

/* ---- one request at a time ---- */

static const uint64_t odd_sizes[] = {
  1, 511, 512, 513, 4095, 4096, 4097, 8191, 65535, 65536, 65537, 100000
};

static uint64_t
random_count (uint64_t *seed, uint64_t max)
{
  uint64_t n = mock_random (seed) % 2
    ? odd_sizes[mock_random (seed) %
                (sizeof odd_sizes / sizeof odd_sizes[0])]
    : 1 + mock_random (seed) % (3 * d->region_size);

  return MIN (n, max);
}

/* A trim changes what is valid, and invalid regions that are covered. */
static void
trim_model (uint64_t count, uint64_t offset)
{
  const uint64_t stop = offset + count;
  uint64_t pos = offset, n;

  for (; pos < stop; pos += n) {
    uint64_t region = pos / d->region_size;
    uint64_t from = region * d->region_size;
    uint64_t to = MIN (from + d->region_size, d->size);

    n = MIN (to, stop) - pos;
    if (is_valid (region) ? d->options.discard_passdown : n == to - from)
      write_model (0, n, pos);
  }
}

static void
random_op (uint64_t *seed)
{
  uint64_t offset = mock_random (seed) % d->size;
  uint64_t count;
  unsigned flags = mock_random (seed) % 8 == 0 ? BACKEND_FUA : 0;
  uint8_t byte = mock_random (seed);

  if (mock_random (seed) % 3 == 0)
    offset = round_down (offset, d->region_size);
  count = random_count (seed, d->size - offset);

  switch (mock_random (seed) % 12) {
  case 0: case 1: case 2: case 3:
    ck_assert_int_eq (write_bytes (byte, count, offset, flags), 0);
    write_model (byte, count, offset);
    break;
  case 4: case 5:
    if (mock_random (seed) % 2)
      flags |= BACKEND_MAY_TRIM;
    ck_assert_int_eq (clone_zero (d->clone, count, offset, flags), 0);
    write_model (0, count, offset);
    break;
  case 6:
    if (clone_zero (d->clone, count, offset, flags | BACKEND_FAST) == 0)
      write_model (0, count, offset);
    else
      ck_assert_int_eq (errno, EOPNOTSUPP);
    break;
  case 7:
    trim_model (count, offset);
    ck_assert_int_eq (clone_trim (d->clone, count, offset, flags), 0);
    break;
  case 8:
    ck_assert_int_eq (clone_cache (d->clone, count, offset), 0);
    break;
  case 9:
    ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
    break;
  default:
    check_read (offset, count);
  }
}

static const struct { uint64_t size, region_size; unsigned ops; } shapes[] = {
  { 1, 4 * K, 20 },
  { 511, 4 * K, 40 },
  { 512, 4 * K, 40 },
  { 4096, 4 * K, 40 },
  { 4097, 4 * K, 60 },
  { 300 * K + 513, 4 * K, 600 },
  { 2 * M + 1536, 64 * K, 600 },
  { 64 * K + 1, 64 * K, 100 },
  { 9 * M + 77, 4 * M, 200 },   /* a region is larger than CLONE_COPY_MAX */
};
#define SHAPES (int)(sizeof shapes / sizeof shapes[0])

/* Any sequence of requests, of any alignment, on disks of odd sizes: reads give
 * what the model says, and so does the destination alone in the end.
 */
START_TEST (random_against_model)
{
  const unsigned shape = _i / 4;
  const unsigned ops = shapes[shape].ops / (is_under_tool () ? 4 : 1);
  uint64_t seed = _i + 1;

  new_disk (shapes[shape].size, shapes[shape].region_size);
  d->options.discard_passdown = _i & 1;
  d->options.copy_on_read = _i & 2;
  d->clone->options = d->options;
  clone_set_copy_on_read (d->clone, d->options.copy_on_read);
  for (unsigned i = 0; i < ops; ++i) {
    random_op (&seed);
    if (i % 50 == 0)
      check_all ();
    if (i % 97 == 96) {
      ck_assert_int_eq (mock_disk_close (d), 0);
      ck_assert_int_eq (mock_disk_open (d), 0);
      check_all ();
    }
  }
  check_all ();

  ck_assert_int_eq (clone_cache (d->clone, d->size, 0), 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert (commit_is_complete (d->clone->commit));
  ck_assert (mock_is_closed (d->source));
  check_all ();
  ck_assert_mem_eq (mock_content (d->dest), model, d->size);
  ck_assert_mem_eq (mock_durable (d->dest), model, d->size);

  ck_assert_int_eq (mock_disk_close (d), 0);
  ck_assert_int_eq (mock_disk_open (d), 0);
  ck_assert_ptr_null (d->clone->source);
  check_all ();
}
END_TEST

/* Whole regions, the short last one included, are overwritten, zeroed and
 * trimmed without a byte from the source.
 */
START_TEST (whole_regions_read_nothing)
{
  new_disk (10 * 4 * K + 100, 4 * K);
  must_write (1, 8 * K, 4 * K);
  ck_assert_int_eq (clone_zero (d->clone, 8 * K, 12 * K, 0), 0);
  write_model (0, 8 * K, 12 * K);
  ck_assert_int_eq (clone_trim (d->clone, 4 * K, 20 * K, 0), 0);
  write_model (0, 4 * K, 20 * K);
  must_write (2, 100, 40 * K);
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 0);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_PREAD), 0);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 6);
  check_all ();
}
END_TEST

/* A write of parts of regions reads exactly the bytes around it, in one round
 * trip, and writes all with one call.
 */
START_TEST (partial_write_reads_around)
{
  const struct mock_call *read, *write;

  new_disk (1 * M, 64 * K);
  must_write (1, 3 * 64 * K, 64 * K + 1000);
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 1);
  read = mock_log_find (d->log, d->source, MOCK_PREAD, 0, NULL);
  ck_assert_uint_eq (read->n, 2);
  ck_assert_uint_eq (read->range[0].offset, 64 * K);
  ck_assert_uint_eq (read->range[0].count, 1000);
  ck_assert_uint_eq (read->range[1].offset, 4 * 64 * K + 1000);
  ck_assert_uint_eq (read->range[1].count, 64 * K - 1000);
  write = mock_log_find (d->log, d->dest, MOCK_PWRITE, 0, NULL);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_PWRITE), 1);
  ck_assert_uint_eq (write->n, 3);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PWRITE), 4 * 64 * K);

  /* Valid now: the next one reads nothing. */
  mock_log_clear (d->log);
  must_write (2, 5, 64 * K + 10);
  ck_assert_uint_eq (mock_log_len (d->log), 1);
  check_all ();

  /* At the short end of a region only what is missing. */
  mock_log_clear (d->log);
  must_write (3, 64 * K - 7, M - 64 * K);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 7);
  check_all ();
}
END_TEST

/* Of a region too large for memory the edges are copied in bounded pieces. */
START_TEST (large_region_in_pieces)
{
  new_disk (9 * M, 8 * M);
  must_write (1, 1000, 3 * M + 5);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 8 * M - 1000);
  for (size_t i = 0; i < mock_log_len (d->log); ++i) {
    const struct mock_call *call = mock_log_call (d->log, i);

    for (size_t j = 0; j < call->n; ++j)
      ck_assert_uint_le (call->range[j].count, CLONE_COPY_MAX);
  }
  ck_assert (is_valid (0));
  ck_assert (!is_valid (1));
  check_all ();
}
END_TEST

/* A read goes to each side for its runs, with one call, however many runs there
 * are; where all is in one state the other side hears nothing.
 */
START_TEST (read_by_runs)
{
  new_disk (8 * M, 4 * K);
  check_read (10, 100000);
  ck_assert_uint_eq (mock_log_len (d->log), 1);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 100000);

  must_write (1, 2 * M, 2 * M);
  mock_log_clear (d->log);
  check_read (2 * M + 5, 2 * M - 5);
  ck_assert_uint_eq (mock_log_len (d->log), 1);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PREAD), 2 * M - 5);

  mock_log_clear (d->log);
  check_read (1 * M + 1, 4 * M);
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 1);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_PREAD), 1);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 2 * M);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PREAD), 2 * M);

  /* Every other region, more runs than segments. */
  for (uint64_t r = 1024; r < 1400; r += 2)
    must_write (r, 4 * K, r * 4 * K);
  check_read (1023 * 4 * K + 7, 400 * 4 * K);
}
END_TEST

/* I9: a trim of part of an invalid region does nothing at all, one of whole
 * regions makes them zero, and nothing of what the destination held is ever
 * seen, also where trims are not passed down.
 */
START_TEST (trim_rules)
{
  new_disk (10 * 4 * K + 100, 4 * K);
  d->clone->options.discard_passdown = _i;

  ck_assert_int_eq (clone_trim (d->clone, 4 * K - 1, 4 * K, 0), 0);
  ck_assert_int_eq (clone_trim (d->clone, 4 * K, 6 * K, 0), 0);
  ck_assert_int_eq (clone_trim (d->clone, 1, 0, 0), 0);
  ck_assert_int_eq (clone_trim (d->clone, 99, 40 * K, 0), 0);
  ck_assert_uint_eq (mock_log_len (d->log), 0);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 0);

  ck_assert_int_eq (clone_trim (d->clone, 8 * K + 2, 8 * K - 1, 0), 0);
  write_model (0, 8 * K, 8 * K);
  ck_assert_int_eq (clone_trim (d->clone, 100, 40 * K, 0), 0);
  write_model (0, 100, 40 * K);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 3);
  check_all ();

  /* Of a valid region, any part. */
  must_write (1, 4 * K, 0);
  mock_log_clear (d->log);
  ck_assert_int_eq (clone_trim (d->clone, 1000, 500, 0), 0);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_TRIM), _i);
  if (_i)
    write_model (0, 1000, 500);
  check_all ();
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 1);
}
END_TEST

/* Where the destination does not trim, or leaves garbage behind, trimmed
 * invalid regions still read as zeroes.
 */
START_TEST (trim_of_a_strange_device)
{
  new_disk (64 * K, 4 * K);
  mock_set_trim (d->dest, _i ? MOCK_TRIM_GARBAGE : MOCK_TRIM_NOTHING);
  ck_assert_int_eq (clone_trim (d->clone, 64 * K, 0, 0), 0);
  write_model (0, 64 * K, 0);
  check_all ();
}
END_TEST

/* Where the destination has a hole and the clone has zeroes, whoever makes the
 * regions valid leaves the hole as it is, except a client that asks for zeroes.
 */
START_TEST (holes_stay)
{
  new_disk (256 * K, 4 * K);
  d->clone->options.discard_passdown = false;
  clone_set_copy_on_read (d->clone, _i == 2);
  mock_fill (d->dest, NULL, 256 * K, 0);
  mock_fill (d->source, NULL, 192 * K, 0);
  write_model (0, 192 * K, 0);
  switch (_i) {
  case 0:
    ck_assert_int_eq (clone_trim (d->clone, 256 * K, 0, 0), 0);
    write_model (0, 256 * K, 0);
    break;
  case 1:
    ck_assert_int_eq (clone_cache (d->clone, 256 * K, 0), 0);
    break;
  case 2:
    check_all ();
    break;
  }
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 64);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_ZERO), 0);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PWRITE), _i ? 64 * K : 0);
  check_all ();
}
END_TEST

/* A long zero or trim of invalid regions owns one step of them at a time. */
START_TEST (long_zero_in_steps)
{
  struct mock_gate *gate;
  struct op change, write;

  new_disk (8 * M, 64 * K);
  mock_backend (d->dest)->zero_step.bytes = 1 * M;
  gate = mock_gate (d->dest, MOCK_ZERO, MOCK_ANYWHERE, 2);
  start (&change, _i ? OP_TRIM : OP_ZERO, 0, 8 * M - 100, 100);
  mock_gate_wait (gate);
  /* The second step is under way.  The first one is over, and regions of the
   * third are still the source's.
   */
  write_model (0, 1 * M - 100 - (_i ? 64 * K - 100 : 0), _i ? 64 * K : 100);
  check_read (0, 1 * M);
  start (&write, OP_WRITE, 7, 64 * K, 4 * M);
  end (&write);
  mock_gate_open (gate);
  end (&change);
  write_model (0, 7 * M, 1 * M);
  check_all ();
}
END_TEST

/* A zero of part of an invalid region is a write of it. */
START_TEST (partial_zero)
{
  new_disk (64 * K, 16 * K);
  ck_assert_int_eq (clone_zero (d->clone, 100, 20 * K, BACKEND_MAY_TRIM), 0);
  write_model (0, 100, 20 * K);
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 16 * K - 100);
  check_all ();
}
END_TEST

/* A fast zero that would need the source's bytes, or that the destination
 * cannot do, fails and does nothing.
 */
START_TEST (fast_zero)
{
  new_disk (64 * K, 4 * K);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 100, BACKEND_FAST), -1);
  ck_assert_int_eq (errno, EOPNOTSUPP);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K - 1, 0, BACKEND_FAST), -1);
  ck_assert_int_eq (errno, EOPNOTSUPP);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 8 * K - 1, BACKEND_FAST), -1);
  ck_assert_uint_eq (mock_log_len (d->log), 0);
  check_all ();

  ck_assert_int_eq (clone_zero (d->clone, 8 * K, 4 * K, BACKEND_FAST), 0);
  write_model (0, 8 * K, 4 * K);
  check_all ();

  mock_backend (d->dest)->can_fast_zero = false;
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 32 * K, BACKEND_FAST), -1);
  ck_assert_int_eq (errno, EOPNOTSUPP);
  ck_assert (!is_valid (8));
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 4 * K, BACKEND_FAST), -1);
  ck_assert_int_eq (errno, EOPNOTSUPP);
  check_all ();
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 32 * K, 0), 0);
  write_model (0, 4 * K, 32 * K);
  check_all ();
}
END_TEST

/* FUA on durable regions is the destination's FUA and nothing else; elsewhere
 * it ends with a commit that makes data and bits durable.
 */
START_TEST (fua)
{
  new_disk (64 * K, 4 * K);

  /* Invalid: a commit. */
  ck_assert_int_eq (write_bytes (1, 100, 50, BACKEND_FUA), 0);
  write_model (1, 100, 50);
  ck_assert (region_map_is_durable (d->clone->map, 0, 1));
  ck_assert_uint_eq (mock_count (d->dest, MOCK_FLUSH), 1);
  ck_assert_mem_eq (mock_durable (d->dest), model, 4 * K);

  /* Durable: the write alone. */
  mock_log_clear (d->log);
  ck_assert_int_eq (write_bytes (2, 100, 60, BACKEND_FUA), 0);
  write_model (2, 100, 60);
  ck_assert_int_eq (clone_zero (d->clone, 10, 70, BACKEND_FUA), 0);
  write_model (0, 10, 70);
  ck_assert_int_eq (clone_trim (d->clone, 10, 90, BACKEND_FUA), 0);
  write_model (0, 10, 90);
  ck_assert_uint_eq (mock_log_len (d->log), 3);
  for (size_t i = 0; i < 3; ++i) {
    ck_assert_ptr_eq (mock_log_call (d->log, i)->mock, d->dest);
    ck_assert (mock_log_call (d->log, i)->flags & BACKEND_FUA);
  }
  ck_assert_mem_eq (mock_durable (d->dest), model, 4 * K);

  /* Valid and dirty: a commit, which has its bit too. */
  must_write (3, 4 * K, 8 * K);
  mock_log_clear (d->log);
  ck_assert_int_eq (write_bytes (4, 10, 8 * K, BACKEND_FUA), 0);
  write_model (4, 10, 8 * K);
  ck_assert (region_map_is_durable (d->clone->map, 2, 1));
  ck_assert_uint_eq (mock_count (d->meta, MOCK_FLUSH), 1);
  ck_assert_mem_eq (mock_durable (d->dest) + 8 * K, model + 8 * K, 4 * K);

  /* Durable and invalid in one request. */
  ck_assert_int_eq (write_bytes (5, 12 * K, 0, BACKEND_FUA), 0);
  write_model (5, 12 * K, 0);
  ck_assert (region_map_is_durable (d->clone->map, 0, 3));
  ck_assert_mem_eq (mock_durable (d->dest), model, 12 * K);

  /* A trim of part of an invalid region has nothing to make durable, but what
   * FUA asks for it may.
   */
  ck_assert_int_eq (clone_trim (d->clone, 10, 20 * K, BACKEND_FUA), 0);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 24 * K, BACKEND_FUA), 0);
  write_model (0, 4 * K, 24 * K);
  ck_assert (region_map_is_durable (d->clone->map, 6, 1));
  check_all ();
}
END_TEST

/* A destination whose FUA could take errors that a commit must see gets none as
 * long as a commit can follow: the write that would have failed is a flush that
 * fails, and what is dirty stays so for good.
 */
START_TEST (fua_that_takes_errors)
{
  new_disk (64 * K, 4 * K);
  d->clone->dest->fua_takes_errors = true;
  must_write (1, 4 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  must_write (2, 4 * K, 4 * K);

  mock_log_clear (d->log);
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (write_bytes (3, 4 * K, 0, BACKEND_FUA), -1);
  write_model (3, 4 * K, 0);
  ck_assert_int_eq (errno, EIO);
  for (size_t i = 0; i < mock_log_len (d->log); ++i)
    ck_assert (!(mock_log_call (d->log, i)->flags & BACKEND_FUA));
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  ck_assert (!region_map_is_durable (d->clone->map, 1, 1));
  check_all ();

  /* When it is complete no bit depends on that. */
  mock_disk_free (d);
  free (model);
  new_disk (64 * K, 4 * K);
  d->clone->dest->fua_takes_errors = true;
  must_write (4, 64 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_log_clear (d->log);
  ck_assert_int_eq (write_bytes (5, 4 * K, 0, BACKEND_FUA), 0);
  write_model (5, 4 * K, 0);
  ck_assert_uint_eq (mock_log_len (d->log), 1);
  ck_assert (mock_log_call (d->log, 0)->flags & BACKEND_FUA);
  check_all ();
}
END_TEST

/* ---- extents ---- */

/* What the clone says, as one flag a byte. */
static void
get_extents (uint64_t offset, uint64_t count, unsigned flags, uint8_t *say)
{
  const uint64_t stop = offset + count;

  while (offset < stop) {
    struct extents list = EXTENTS_INIT;

    ck_assert_int_eq (clone_extents (d->clone, stop - offset, offset, flags,
                                     &list), 0);
    ck_assert_uint_ge (list.len, 1);
    ck_assert_uint_eq (list.extent[0].offset, offset);
    ck_assert_uint_le (extents_end (&list), stop);
    for (size_t i = 0; i < list.len; ++i)
      memset (say + list.extent[i].offset, list.extent[i].flags,
              list.extent[i].length);
    offset = extents_end (&list);
    extents_free (&list);
  }
}

/* Extents are the source's where a region is invalid, the destination's where
 * it is valid, for any request and however little each side tells at once; what
 * is said to be zero is.
 */
START_TEST (extents)
{
  const uint64_t size = 64 * 4 * K + 512;
  CLEANUP_FREE uint8_t *want = malloc (size), *say = malloc (size);
  uint64_t seed = 3;

  new_disk (size, 4 * K);
  mock_fill (d->source, NULL, 20 * 4 * K, 10 * 4 * K);
  memset (model + 10 * 4 * K, 0, 20 * 4 * K);
  memset (want, 0, size);
  memset (want + 10 * 4 * K, EXTENT_HOLE | EXTENT_ZERO, 20 * 4 * K);

  must_write (1, 4 * K, 12 * 4 * K);
  memset (want + 12 * 4 * K, 0, 4 * K);
  ck_assert_int_eq (clone_trim (d->clone, 8 * K, 40 * 4 * K, 0), 0);
  write_model (0, 8 * K, 40 * 4 * K);
  memset (want + 40 * 4 * K, EXTENT_HOLE | EXTENT_ZERO, 8 * K);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 50 * 4 * K, 0), 0);
  write_model (0, 4 * K, 50 * 4 * K);
  memset (want + 50 * 4 * K, EXTENT_ZERO, 4 * K);
  /* The destination's garbage is data to it, but invalid. */

  for (size_t max = 0; max < 3; ++max) {
    mock_set_max_extents (d->source, max);
    mock_set_max_extents (d->dest, max);
    kept_forget (&d->clone->kept);
    get_extents (0, size, 0, say);
    ck_assert_mem_eq (say, want, size);
    kept_forget (&d->clone->kept);
    get_extents (0, size, BACKEND_REQ_ONE, say);
    ck_assert_mem_eq (say, want, size);
    for (unsigned i = 0; i < 200; ++i) {
      uint64_t offset = mock_random (&seed) % size;
      uint64_t count = 1 + mock_random (&seed) % (size - offset);

      if (i % 2 == 0)
        kept_forget (&d->clone->kept);
      get_extents (offset, count, i % 3 ? 0 : BACKEND_REQ_ONE, say);
      ck_assert_mem_eq (say + offset, want + offset, count);
    }
  }
  check_all ();
}
END_TEST

static void
run_extents (void *opaque)
{
  uint8_t *say = opaque;

  get_extents (0, d->size, 0, say);
}

/* A region that becomes valid, with data, while extents are being asked for:
 * whatever is said of it, the answer must not be the destination's from before,
 * when that was still a hole.  A client would skip the data.
 */
START_TEST (extents_against_hydration)
{
  CLEANUP_FREE uint8_t *say = malloc (64 * K);
  struct mock_gate *gate;
  struct mock_thread *thread;

  new_disk (64 * K, 4 * K);
  mock_fill (d->dest, NULL, 64 * K, 0); /* a new, sparse file */
  must_write (1, 4 * K, 0);
  gate = mock_gate_after (d->dest, MOCK_EXTENTS, MOCK_ANYWHERE, 1);
  thread = mock_thread (run_extents, say);
  mock_gate_wait (gate);
  ck_assert_int_eq (clone_cache (d->clone, 60 * K, 4 * K), 0);
  mock_gate_open (gate);
  mock_join (thread);
  for (uint64_t i = 0; i < 64 * K; ++i)
    ck_assert_msg (!(say[i] & EXTENT_ZERO) || model[i] == 0,
                   "byte %zu is said to be zero and is %02x", (size_t)i,
                   model[i]);
}
END_TEST

/* ---- races ---- */

/* A partial write that waits for the source's bytes; meanwhile another client
 * overwrites the whole region, which does not wait for the source.  The
 * overwrite's bytes around the partial write survive.
 * _i: small regions, or those whose edges are copied piece by piece.
 */
START_TEST (partial_write_against_overwrite)
{
  const uint64_t region = _i ? 4 * M : 64 * K;
  struct mock_gate *gate;
  struct op partial;

  new_disk (2 * region, region);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&partial, OP_WRITE, 1, 100, 1000);
  mock_gate_wait (gate);
  must_write (2, region, 0);
  ck_assert (is_valid (0));
  mock_gate_open (gate);
  end (&partial);
  write_model (1, 100, 1000);
  check_all ();
}
END_TEST

/* The same, with a trim and with a zero instead of the overwrite. */
START_TEST (partial_write_against_trim)
{
  struct mock_gate *gate;
  struct op partial;

  new_disk (128 * K, 64 * K);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&partial, OP_WRITE, 1, 100, 1000);
  mock_gate_wait (gate);
  if (_i)
    ck_assert_int_eq (clone_trim (d->clone, 64 * K, 0, 0), 0);
  else
    ck_assert_int_eq (clone_zero (d->clone, 64 * K, 0, 0), 0);
  write_model (0, 64 * K, 0);
  mock_gate_open (gate);
  end (&partial);
  write_model (1, 100, 1000);
  check_all ();
}
END_TEST

/* Two, and more, partial writes of one region, all with the source's bytes in
 * hand before any of them owns it: each one's bytes survive.
 */
START_TEST (partial_writes_of_one_region)
{
  struct mock_gate *gate[8];
  struct op op[8];

  new_disk (128 * K, 64 * K);
  for (unsigned i = 0; i < 8; ++i)
    gate[i] = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  for (unsigned i = 0; i < 8; ++i)
    start (&op[i], OP_WRITE, i + 1, 1000, 500 + i * 3000);
  for (unsigned i = 0; i < 8; ++i)
    mock_gate_wait (gate[i]);
  for (unsigned i = 0; i < 8; ++i)
    mock_gate_open (gate[i]);
  for (unsigned i = 0; i < 8; ++i) {
    end (&op[i]);
    write_model (i + 1, 1000, 500 + i * 3000);
  }
  check_all ();
}
END_TEST

/* A write over several regions: the one at its head becomes valid meanwhile,
 * the one at its tail does not.  Each edge is looked at for itself.
 */
START_TEST (one_edge_became_valid)
{
  struct mock_gate *gate;
  struct op wide;

  new_disk (64 * K, 4 * K);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&wide, OP_WRITE, 1, 12 * K, 2 * K);
  mock_gate_wait (gate);
  if (_i)
    must_write (2, 4 * K, 0);
  else
    must_write (2, 4 * K, 12 * K);
  mock_gate_open (gate);
  end (&wide);
  write_model (1, 12 * K, 2 * K);
  check_all ();
}
END_TEST

/* Hydration of a region (by a client's cache command) that has read the source
 * and is overtaken by a write, whole or partial: the write survives, and did
 * not wait for the copy.
 */
START_TEST (cache_against_write)
{
  const uint64_t region = _i & 2 ? 4 * M : 64 * K;
  struct mock_gate *gate;
  struct op cache;

  new_disk (2 * region, region);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&cache, OP_CACHE, 0, 2 * region, 0);
  mock_gate_wait (gate);
  if (_i & 1)
    must_write (1, region, 0);
  else
    must_write (1, 700, 300);
  ck_assert (!cache.done);
  mock_gate_open (gate);
  end (&cache);
  ck_assert (is_valid (0) && is_valid (1));
  check_all ();
  ck_assert_mem_eq (mock_content (d->dest), model, 2 * region);
}
END_TEST

/* copy-on-read keeps the whole regions that a read touches, and reads each byte
 * of them once from the source; zeroes become a hole.  What is kept is as
 * durable as anything else.
 */
START_TEST (copy_on_read)
{
  const uint64_t region = _i ? 2 * M : 16 * K; /* also past CLONE_COPY_MAX */
  const uint64_t size = 5 * region + 1000;

  new_disk (size, region);
  mock_fill (d->source, NULL, region, 2 * region);
  write_model (0, region, 2 * region);
  clone_set_copy_on_read (d->clone, true);
  must_write (1, 10, 3 * region + 100);
  mock_log_clear (d->log);

  check_read (region + 7, 2 * region); /* of three regions, the last is valid */
  ck_assert (!is_valid (0) && is_valid (1) && is_valid (2) && !is_valid (4));
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), 2 * region);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_PWRITE), region);
  ck_assert_uint_eq (mock_bytes (d->dest, MOCK_ZERO), region);
  check_read (5 * region + 990, 10);   /* of the last one, which is short */
  ck_assert (is_valid (5));
  check_read (10, 20);                 /* inside of one */
  ck_assert (is_valid (0) && !is_valid (4));
  check_all ();
  ck_assert_uint_eq (mock_bytes (d->source, MOCK_PREAD), size - region);

  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert (commit_is_complete (d->clone->commit));
  ck_assert_mem_eq (mock_durable (d->dest), model, size);
}
END_TEST

/* Without it, nothing is kept. */
START_TEST (no_copy_on_read)
{
  new_disk (64 * K, 4 * K);
  check_read (0, 64 * K);
  ck_assert_uint_eq (region_map_count_valid (d->clone->map), 0);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_PWRITE), 0);
}
END_TEST

/* The write that nbdkit's cow filter loses with cow-on-read: a read has the
 * source's bytes, slowly, and a write of the same region comes in between, as a
 * whole, in part, or as a zero or a trim.  It does not wait for the read, and
 * the read does not put the source's bytes on top of it.
 */
START_TEST (copy_on_read_against_write)
{
  const uint64_t region = _i / 4 ? 2 * M : 64 * K;
  struct mock_gate *gate;
  struct op read;

  new_disk (2 * region, region);
  clone_set_copy_on_read (d->clone, true);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  /* All of both regions; or some of the first one only. */
  if (_i & 1)
    start (&read, OP_READ, 0, 2 * region, 0);
  else
    start (&read, OP_READ, 0, 100, 50);
  mock_gate_wait (gate);
  switch (_i % 4) {
  case 0: case 1:
    must_write (1, region, 0);
    break;
  case 2:
    must_write (2, 30, 60);
    break;
  case 3:
    ck_assert_int_eq (clone_zero (d->clone, region / 2, 0, 0), 0);
    write_model (0, region / 2, 0);
    ck_assert_int_eq (clone_trim (d->clone, region, region, 0), 0);
    write_model (0, region, region);
  }
  ck_assert (!read.done);
  mock_gate_open (gate);
  end (&read);
  ck_assert (is_valid (0));
  check_all ();
}
END_TEST

/* What cannot be kept is read all the same: the destination is full, or no
 * region can become valid.
 */
START_TEST (copy_on_read_that_fails)
{
  new_disk (64 * K, 16 * K);
  clone_set_copy_on_read (d->clone, true);
  if (_i)
    mock_fail (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1, 0, ENOSPC);
  else {
    must_write (1, 16 * K, 0);
    mock_fail (d->meta, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
    ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  }
  check_read (32 * K, 16 * K);
  check_read (48 * K + 1, 100);
  check_all ();
  ck_assert (!is_valid (2) && !is_valid (3));

  mock_heal (d->dest);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  check_all ();
  ck_assert (is_valid (2) && is_valid (3));
}
END_TEST

/* A copy that is writing to the destination owns the region: a trim, a partial
 * write and a whole one wait for it, and come after it.  dm-clone lets the trim
 * pass, acknowledges the write, and loses it under the copy.
 */
START_TEST (copy_in_flight)
{
  struct mock_gate *gate;
  struct op cache, other;

  new_disk (128 * K, 64 * K);
  gate = mock_gate (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1);
  start (&cache, OP_CACHE, 0, 64 * K, 0);
  mock_gate_wait (gate);
  switch (_i) {
  case 0:
    start (&other, OP_TRIM, 0, 64 * K, 0);
    write_model (0, 64 * K, 0);
    break;
  case 1:
    start (&other, OP_WRITE, 1, 100, 50);
    write_model (1, 100, 50);
    break;
  case 2:
    start (&other, OP_WRITE, 1, 64 * K, 0);
    write_model (1, 64 * K, 0);
    break;
  default:
    start (&other, OP_ZERO, 0, 64 * K, 0);
    write_model (0, 64 * K, 0);
  }
  mock_settle ();
  ck_assert (!other.done);

  /* Other regions are not held up. */
  must_write (9, 10, 100 * K);
  mock_gate_open (gate);
  end (&cache);
  end (&other);
  check_all ();
}
END_TEST

/* A valid region is never waited for, whoever owns its neighbours: I4. */
START_TEST (valid_regions_do_not_wait)
{
  struct mock_gate *gate;
  struct op cache;

  new_disk (128 * K, 64 * K);
  must_write (1, 64 * K, 0);
  gate = mock_gate (d->dest, MOCK_PWRITE, 64 * K, 64 * K, 1);
  start (&cache, OP_CACHE, 0, 128 * K, 0);
  mock_gate_wait (gate);
  must_write (2, 1000, 10);
  check_read (0, 64 * K);
  /* Nor is an invalid one, for a read. */
  check_read (64 * K, 64 * K);
  mock_gate_open (gate);
  end (&cache);
  check_all ();
}
END_TEST

/* A region of a read becomes valid between the read's look at the source and
 * its look at the destination: old or new bytes, nothing else, and after the
 * write has returned the new ones.
 */
START_TEST (read_against_write)
{
  struct mock_gate *gate;
  struct op read;

  new_disk (64 * K, 4 * K);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&read, OP_READ, 0, 64 * K, 0);
  mock_gate_wait (gate);
  must_write (1, 8 * K, 8 * K);
  check_all ();
  mock_gate_open (gate);
  end (&read);
  check_all ();
}
END_TEST

/* ---- what is told of reads of the source ---- */

static struct {
  unsigned before, after;  /* how often each was called */
  uint64_t start, end;     /* what the last one said */
  uint64_t count;
  bool overtake;           /* write all of it before it is read */
} told;

static void
on_source_read (void *opaque, uint64_t start, uint64_t end)
{
  told.before++;
  told.start = start;
  told.end = end;
  if (told.overtake)
    must_write (9, end - start, start);
}

static void
on_source_was_read (void *opaque, uint64_t count, double took)
{
  told.after++;
  told.count = count;
  ck_assert (took >= 0);
}

/* Who wants to know how long the source takes is told of reads that had it
 * answer, with the bytes that were read there, and of no others: not of one of
 * valid regions, not of one that failed, and not of one that needed nothing of
 * the source any more when it came to read, which takes no time at all.
 */
START_TEST (reads_that_are_timed)
{
  uint8_t buf[4096];

  new_disk (1 * M, 4 * K);
  memset (&told, 0, sizeof told);
  mock_disk_listen (d, &(struct clone_events){
                .source_read = on_source_read,
                .source_was_read = on_source_was_read });

  check_read (8 * K + 100, 3000);
  ck_assert_uint_eq (told.before, 1);
  ck_assert_uint_eq (told.after, 1);
  ck_assert_uint_eq (told.start, 8 * K + 100);
  ck_assert_uint_eq (told.end, 8 * K + 3100);
  ck_assert_uint_eq (told.count, 3000);

  /* Of the last 512K a half is valid, which is no small gap. */
  must_write (1, 256 * K, 768 * K);
  check_read (512 * K, 512 * K);
  ck_assert_uint_eq (told.after, 2);
  ck_assert_uint_eq (told.count, 256 * K);

  check_read (768 * K, 4 * K);
  ck_assert_uint_eq (told.before, 2);
  ck_assert_uint_eq (told.after, 2);

  mock_fail (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_pread (d->clone, buf, 4 * K, 16 * K), -1);
  ck_assert_uint_eq (told.before, 3);
  ck_assert_uint_eq (told.after, 2);

  told.overtake = true;
  mock_log_clear (d->log);
  check_read (32 * K, 8 * K);
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 0);
  ck_assert_uint_eq (told.before, 4);
  ck_assert_uint_eq (told.after, 2);
}
END_TEST

/* ---- the end of the source ---- */

static _Atomic unsigned completions;

static void
on_complete (void *opaque)
{
  completions++;
}

/* A reader that is in the source when the clone becomes complete keeps it open
 * until it is done; the source is closed then, once, and completion is told
 * once.
 */
START_TEST (source_is_drained)
{
  struct mock_gate *gate;
  struct op read;

  new_disk (64 * K, 4 * K);
  completions = 0;
  mock_disk_listen (d, &(struct clone_events){ .complete = on_complete });
  gate = mock_gate (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  start (&read, OP_READ, 0, 64 * K, 0);
  mock_gate_wait (gate);
  must_write (1, 64 * K, 0);
  ck_assert_uint_eq (completions, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert (commit_is_complete (d->clone->commit));
  ck_assert_uint_eq (completions, 1);
  ck_assert (!mock_is_closed (d->source));
  check_all ();
  mock_gate_open (gate);
  end (&read);
  ck_assert (mock_is_closed (d->source));
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert_int_eq (clone_commit (d->clone, false), 0);
  ck_assert_int_eq (clone_cache (d->clone, 100, 0), 0);
  ck_assert_uint_eq (completions, 1);
  ck_assert_uint_eq (mock_count (d->source, MOCK_CLOSE), 1);
  ck_assert_ptr_null (clone_source_get (d->clone));
  check_all ();
}
END_TEST

/* All regions valid, but not durable: the source stays. */
START_TEST (not_complete_before_durable)
{
  new_disk (64 * K, 4 * K);
  must_write (1, 64 * K, 0);
  ck_assert (!mock_is_closed (d->source));
  mock_fail (d->meta, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  ck_assert (!mock_is_closed (d->source));
  ck_assert_int_eq (clone_commit (d->clone, false), 0);
  ck_assert (mock_is_closed (d->source));
}
END_TEST

/* ---- failing devices ---- */

/* The source fails: reads and partial writes of invalid regions fail and change
 * nothing; all else works, and they do too when the source is back.
 */
START_TEST (source_fails)
{
  uint8_t buf[100];

  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 0);
  mock_fail (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1, 0, EIO);
  ck_assert_int_eq (clone_pread (d->clone, buf, 100, 8 * K), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (write_bytes (2, 100, 8 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_cache (d->clone, 100, 8 * K), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert (!is_valid (2));
  check_read (0, 4 * K);
  must_write (3, 4 * K, 12 * K);
  must_write (4, 10, 100);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_heal (d->source);
  check_all ();
}
END_TEST

/* The source cannot read what a client has written meanwhile: a read of that
 * and of invalid regions around it works, and one try is enough where it does
 * not.
 */
START_TEST (source_fails_in_a_gap)
{
  uint8_t buf[16 * K];

  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 4 * K);
  mock_fail (d->source, MOCK_PREAD, 4 * K, 4 * K, 1, 0, EIO);
  check_all ();
  mock_fail (d->source, MOCK_PREAD, 16 * K, 1, 1, 0, EIO);
  mock_log_clear (d->log);
  ck_assert_int_eq (clone_pread (d->clone, buf, 16 * K, 8 * K), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_uint_eq (mock_count (d->source, MOCK_PREAD), 1);
}
END_TEST

/* The destination is full: what could not be written stays invalid and reads as
 * the source; the client learns why; later it works.
 */
START_TEST (destination_is_full)
{
  static const enum mock_kind kinds[] = {
    MOCK_PWRITE, MOCK_PWRITE, MOCK_ZERO, MOCK_ZERO, MOCK_PWRITE
  };
  int r = 0;

  new_disk (64 * K, 4 * K);
  mock_fail (d->dest, kinds[_i], MOCK_ANYWHERE, 1, 1, ENOSPC);
  switch (_i) {
  case 0: r = write_bytes (1, 4 * K, 4 * K, 0); break;
  case 1: r = write_bytes (1, 10, 4 * K + 7, 0); break;
  case 2: r = clone_zero (d->clone, 4 * K, 4 * K, 0); break;
  case 3: r = clone_trim (d->clone, 4 * K, 4 * K, 0); break;
  case 4: r = clone_cache (d->clone, 4 * K, 4 * K); break;
  }
  ck_assert_int_eq (r, -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert (!is_valid (1));
  check_all ();
  must_write (2, 100, 4 * K + 1000);
  check_all ();
}
END_TEST

/* Mode ro: what would make a region valid fails with EIO, before anything is
 * written; reads, and writes of valid regions, work; a flush fails while
 * something is not durable.
 */
START_TEST (read_only_mode)
{
  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 0);
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);

  ck_assert_int_eq (write_bytes (2, 4 * K, 4 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (write_bytes (2, 10, 4 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_zero (d->clone, 4 * K, 4 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_trim (d->clone, 4 * K, 4 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_cache (d->clone, 4 * K, 4 * K), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert (!is_valid (1));
  must_write (3, 100, 100);
  check_all ();
  ck_assert_int_eq (write_bytes (4, 1, 0, BACKEND_FUA), -1);
  ck_assert_int_eq (errno, EIO);
  model[0] = 4;
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  check_all ();

  /* And a restart gets out of it, with what was durable. */
  ck_assert_int_eq (mock_disk_close (d), -1);
  ck_assert_int_eq (mock_disk_open (d), 0);
  memcpy (model, mock_content (d->source), 4 * K);
  check_all ();
  must_write (5, 4 * K, 4 * K);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
}
END_TEST

/* The metadata cannot be written: a flush and FUA fail, no region can become
 * valid, and what was written before stays, in memory and behind it.  When the
 * periodic commit gets through, all works, and nothing of it is lost in a power
 * cut.
 */
START_TEST (metadata_fails)
{
  /* _i: the error, and the step that fails */
  static const struct { enum mock_kind kind; int error; } faults[] = {
    { MOCK_PWRITE, ENOSPC }, { MOCK_PWRITE, EPERM }, { MOCK_FLUSH, EIO }
  };
  const int error = faults[_i].error == ENOSPC ? ENOSPC : EIO;

  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  must_write (2, 4 * K, 4 * K);
  mock_fail (d->meta, faults[_i].kind, MOCK_ANYWHERE, 1, 0, faults[_i].error);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  ck_assert_int_eq (errno, error);
  ck_assert_int_eq (write_bytes (3, 10, 4 * K, BACKEND_FUA), -1);
  ck_assert_int_eq (errno, error);
  write_model (3, 10, 4 * K);
  ck_assert_int_eq (write_bytes (4, 4 * K, 8 * K, 0), -1);
  ck_assert_int_eq (errno, EIO);
  /* Of a durable region not even FUA needs the metadata. */
  ck_assert_int_eq (write_bytes (5, 10, 100, BACKEND_FUA), 0);
  write_model (5, 10, 100);
  check_all ();
  ck_assert_int_eq (clone_commit (d->clone, false), -1);

  mock_heal (d->meta);
  ck_assert_int_eq (clone_commit (d->clone, false), 0);
  must_write (6, 4 * K, 8 * K);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_disk_crash (d, 0, 0, 1);
  ck_assert_int_eq (mock_disk_open (d), 0);
  check_all ();
}
END_TEST

/* A write over regions of different states fails in its middle: what was
 * reached is written, the rest is as it was, and no region is valid whose bytes
 * are not there.
 */
START_TEST (write_fails_in_the_middle)
{
  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 4 * K);
  must_write (2, 4 * K, 12 * K);
  /* invalid, valid, invalid (fails), valid */
  mock_fail (d->dest, _i ? MOCK_ZERO : MOCK_PWRITE, 8 * K, 4 * K, 1, 1,
             ENOSPC);
  if (_i)
    ck_assert_int_eq (clone_zero (d->clone, 16 * K, 0, 0), -1);
  else
    ck_assert_int_eq (write_bytes (9, 16 * K, 0, 0), -1);
  ck_assert_int_eq (errno, ENOSPC);
  write_model (_i ? 0 : 9, 8 * K, 0);
  ck_assert (is_valid (0));
  ck_assert (!is_valid (2));
  check_all ();
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_disk_crash (d, 0, 0, 1);
  ck_assert_int_eq (mock_disk_open (d), 0);
  check_all ();
}
END_TEST

/* ---- many threads ---- */

#define THREADS 4

struct client {
  unsigned number;
  struct mock_thread *thread;
};

/* Each client has every THREADSth 700 byte block of the disk, so that all share
 * regions, and checks its own.
 */
static void
client (void *opaque)
{
  const struct client *me = opaque;
  uint64_t seed = me->number + 1;
  uint8_t buf[700];

  for (unsigned i = 0; i < 800; ++i) {
    uint64_t block = mock_random (&seed) % (d->size / 700 / THREADS);
    uint64_t offset = (block * THREADS + me->number) * 700;
    uint64_t from = mock_random (&seed) % 700;
    uint64_t count = 1 + mock_random (&seed) % (700 - from);
    uint8_t byte = mock_random (&seed);

    offset += from;
    switch (mock_random (&seed) % 6) {
    case 0: case 1:
      if (write_bytes (byte, count, offset, i % 16 ? 0 : BACKEND_FUA) == -1)
        abort ();
      write_model (byte, count, offset);
      break;
    case 2:
      if (clone_zero (d->clone, count, offset, BACKEND_MAY_TRIM) == -1)
        abort ();
      write_model (0, count, offset);
      break;
    case 3:
      if (clone_cache (d->clone, count, offset) == -1)
        abort ();
      break;
    case 4:
      if (i % 8 == 0 && clone_flush (d->clone, NULL) == -1)
        abort ();
      break;
    }
    if (clone_pread (d->clone, buf, count, offset) == -1 ||
        memcmp (buf, model + offset, count) != 0) {
      fprintf (stderr, "client %u reads wrong data at %zu\n", me->number,
               (size_t)offset);
      abort ();
    }
  }
}

/* Clients whose blocks share regions never lose a byte to each other. */
START_TEST (stress)
{
  struct client c[THREADS];

  if (_i & 1)
    new_disk (3 * M + 11, 2 * M);
  else
    new_disk (300 * K + 11, 4 * K);
  clone_set_copy_on_read (d->clone, _i & 2);
  mock_log_enable (d->log, false);
  mock_set_delay (d->source, 30);
  for (unsigned i = 0; i < THREADS; ++i) {
    c[i].number = i;
    c[i].thread = mock_thread (client, &c[i]);
  }
  for (unsigned i = 0; i < THREADS; ++i)
    mock_join (c[i].thread);
  mock_set_delay (d->source, 0);
  check_all ();
  ck_assert_int_eq (clone_cache (d->clone, d->size, 0), 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert_mem_eq (mock_durable (d->dest), model, d->size);
}
END_TEST

/* ---- power cuts ---- */

/* For each sector all that it may read as: what the last flush covered, and
 * every version since.
 */
struct versions {
  uint8_t (*content)[MOCK_SECTOR];
  size_t n;
};

static struct versions *versions;

#define SECTORS div_round_up (d->size, MOCK_SECTOR)

static uint64_t
sector_size (uint64_t s)
{
  return MIN ((uint64_t)MOCK_SECTOR, d->size - s * MOCK_SECTOR);
}

static void
add_versions (void)
{
  for (uint64_t s = 0; s < SECTORS; ++s) {
    struct versions *v = &versions[s];
    const uint8_t *now = model + s * MOCK_SECTOR;

    if (v->n > 0 && memcmp (v->content[v->n - 1], now, sector_size (s)) == 0)
      continue;
    v->content = realloc (v->content, (v->n + 1) * MOCK_SECTOR);
    memcpy (v->content[v->n++], now, sector_size (s));
  }
}

/* The sectors in [first, end) are durable as they are now. */
static void
forget_versions (uint64_t first, uint64_t last)
{
  for (uint64_t s = first; s < last; ++s) {
    struct versions *v = &versions[s];

    memcpy (v->content[0], v->content[v->n - 1], MOCK_SECTOR);
    v->n = 1;
  }
}

static void
check_versions (void)
{
  CLEANUP_FREE uint8_t *now = malloc (d->size);

  ck_assert_int_eq (clone_pread (d->clone, now, d->size, 0), 0);
  for (uint64_t s = 0; s < SECTORS; ++s) {
    const uint8_t *p = now + s * MOCK_SECTOR;
    bool found = false;

    for (size_t i = 0; i < versions[s].n && !found; ++i)
      found = memcmp (versions[s].content[i], p, sector_size (s)) == 0;
    if (!found)
      ck_abort_msg ("sector %zu has none of its %zu versions, but %02x...%s",
                    (size_t)s, versions[s].n, p[0],
                    p[0] == MOCK_GARBAGE ? " (what the destination held)"
                    : "");
    memcpy (model + s * MOCK_SECTOR, p, sector_size (s));
  }
}

/* A request; what it makes durable is forgotten. */
static void
request_before_cut (uint64_t *seed)
{
  uint64_t offset = mock_random (seed) % d->size;
  uint64_t count = 1 + mock_random (seed) % MIN (d->size - offset, 10 * K);
  unsigned flags = mock_random (seed) % 6 == 0 ? BACKEND_FUA : 0;
  uint8_t byte = mock_random (seed);

  switch (mock_random (seed) % 8) {
  case 0:
    ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
    forget_versions (0, SECTORS);
    return;
  case 1:
    ck_assert_int_eq (clone_commit (d->clone, false), 0);
    return;
  case 2:
    ck_assert_int_eq (clone_cache (d->clone, count, offset), 0);
    return;
  case 3:
    ck_assert_int_eq (clone_zero (d->clone, count, offset, flags), 0);
    write_model (0, count, offset);
    break;
  case 4:
    trim_model (count, offset);
    ck_assert_int_eq (clone_trim (d->clone, count, offset, 0), 0);
    flags = 0;
    break;
  default:
    ck_assert_int_eq (write_bytes (byte, count, offset, flags), 0);
    write_model (byte, count, offset);
  }
  add_versions ();
  if (flags & BACKEND_FUA)
    forget_versions (offset / MOCK_SECTOR,
                     div_round_up (offset + count, MOCK_SECTOR));
}

/* Requests, a power cut that keeps any sectors of either device, again and
 * again: each sector reads as its last durable version or a later one (I7).
 * The worst cases are there: all of one device kept and nothing of the other.
 */
START_TEST (power_cuts)
{
  static const struct { unsigned dest, meta; } keep[] = {
    { 128, 128 }, { 0, 256 }, { 256, 0 }, { 0, 0 }, { 256, 256 },
  };
  uint64_t seed = _i;

  new_disk (100 * K + 77, _i % 3 ? 4 * K : 16 * K);
  mock_log_enable (d->log, false);
  versions = calloc (SECTORS, sizeof *versions);
  add_versions ();
  for (unsigned cut = 0; cut < 40; ++cut) {
    unsigned requests = mock_random (&seed) % 30;

    for (unsigned i = 0; i < requests; ++i)
      request_before_cut (&seed);
    mock_disk_crash (d, keep[cut % 5].dest, keep[cut % 5].meta, seed);
    ck_assert_int_eq (mock_disk_open (d), 0);
    check_versions ();
    /* What was read may be lost again: it is a version like others. */
    add_versions ();
  }
  for (uint64_t s = 0; s < SECTORS; ++s)
    free (versions[s].content);
  free (versions);
}
END_TEST

/* ---- servers that are lost ---- */

static atomic_bool gone;

static bool
client_is_gone (void)
{
  return gone;
}

static void
new_servers (uint64_t size, uint64_t region_size)
{
  gone = false;
  d = mock_disk_devices (size, region_size, 5000, false);
  d->options.client_is_gone = client_is_gone;
  d->service.source_timeout = 0;
  mock_set_server (d->source);
  mock_set_server (d->dest);
  mock_set_server (d->meta);
  mock_disk_create (d);
  mock_log_clear (d->log);
  model = malloc (size);
  memcpy (model, mock_content (d->source), size);
}

static void
lose (struct mock *server)
{
  mock_server_crash (server, NULL, NULL);
}

static bool
source_was_read (void *opaque)
{
  return mock_count (d->source, MOCK_PREAD) > 0;
}

/* A client writes to a part of a region, and waits for the source, which is
 * lost, or slow.  It goes away.  Another client writes to the region, and when
 * the source answers, the old write does not land on top of that (L11).
 */
START_TEST (gone_client_does_not_write)
{
  struct mock_gate *gate = NULL;
  struct op op;

  new_servers (64 * K, 16 * K);
  if (_i)
    gate = mock_gate (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  else
    lose (d->source);
  start (&op, OP_WRITE, 1, 1000, 2000);
  if (gate)
    mock_gate_wait (gate);
  else
    mock_wait_until (source_was_read, NULL);
  ck_assert (!op.done);
  gone = true;
  must_write (2, 16 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_log_clear (d->log);
  if (gate)
    mock_gate_open (gate);
  else
    mock_server_back (d->source);
  mock_join (op.thread);
  ck_assert_int_eq (op.result, -1);
  ck_assert_int_eq (op.error, ESHUTDOWN);
  ck_assert_uint_eq (mock_count (d->dest, MOCK_PWRITE), 0);
  check_all ();
}
END_TEST

/* With source-timeout a request that needs a lost source fails with EIO, and
 * one that does not need it is done at once.
 */
START_TEST (source_timeout)
{
  struct op op;

  new_servers (64 * K, 16 * K);
  mock_disk_close (d);
  d->service.source_timeout = 1;
  ck_assert_int_eq (mock_disk_open (d), 0);
  must_write (1, 16 * K, 0);
  lose (d->source);
  start (&op, _i ? OP_WRITE : OP_READ, 2, 1000, 20 * K);
  check_read (0, 16 * K);
  must_write (3, 16 * K, 32 * K);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_join (op.thread);
  ck_assert_int_eq (op.result, -1);
  ck_assert_int_eq (op.error, EIO);
  mock_server_back (d->source);
  check_all ();
}
END_TEST

/* All requests that need a server which is lost wait, and are done when it is
 * there again; the others are done meanwhile.
 */
START_TEST (requests_wait)
{
  /* Regions 0 to 3, of 16K, are valid and durable; no region is made valid by
   * two of these.
   */
  static const struct {
    enum op_type type;
    uint64_t offset, count;
    bool source, dest, meta;
  } requests[] = {
    { OP_READ, 100, 16 * K, false, true, false },
    { OP_READ, 60 * K, 8 * K, true, true, false },
    { OP_READ, 128 * K, 1000, true, false, false },
    { OP_WRITE, 16 * K, 700, false, true, false },
    { OP_WRITE, 144 * K, 16 * K, false, true, false },
    { OP_WRITE, 162 * K, 700, true, true, false },
    { OP_ZERO, 16 * K + 5, 700, false, true, false },
    { OP_ZERO, 178 * K, 20 * K, true, true, false },
    { OP_TRIM, 16 * K, 16 * K, false, true, false },
    { OP_TRIM, 208 * K, 16 * K, false, true, false },
    { OP_CACHE, 226 * K, 1000, true, true, false },
    { OP_CACHE, 10 * K, 1000, false, false, false },
    { OP_FLUSH, 0, 0, false, true, true },
  };
  const unsigned n = sizeof requests / sizeof requests[0];
  struct op op[sizeof requests / sizeof requests[0]];
  struct mock *server;

  new_servers (256 * K, 16 * K);
  server = _i == 0 ? d->source : _i == 1 ? d->dest : d->meta;
  must_write (1, 64 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  /* The flush has something to do. */
  if (_i == 2)
    must_write (2, 16 * K, 240 * K);
  lose (server);
  for (unsigned i = 0; i < n; ++i)
    if (requests[i].type != OP_FLUSH || _i != 0)
      start (&op[i], requests[i].type, 3, requests[i].count,
             requests[i].offset);
  mock_settle ();
  for (unsigned i = 0; i < n; ++i) {
    const bool waits = _i == 0 ? requests[i].source : _i == 1 ?
                       requests[i].dest : requests[i].meta;

    if (requests[i].type == OP_FLUSH && _i == 0)
      continue;
    if (waits)
      ck_assert_msg (!op[i].done, "request %u has not waited", i);
    else
      end (&op[i]);
  }
  mock_server_back (server);
  for (unsigned i = 0; i < n; ++i) {
    const bool waits = _i == 0 ? requests[i].source : _i == 1 ?
                       requests[i].dest : requests[i].meta;

    if (waits)
      end (&op[i]);
  }
}
END_TEST

/* ---- counters and the latest errors ---- */

static struct clone_counters
counters (void)
{
  struct clone_counters sum;

  clone_get_counters (d->clone, &sum);
  return sum;
}

/* So many requests of this type have used source, destination and both. */
static void
check_sides (enum counted_request request, uint64_t source, uint64_t dest,
             uint64_t both)
{
  const struct clone_counters sum = counters ();
  const uint64_t *n = sum.counts.requests[request];

  ck_assert_uint_eq (n[COUNTED_SOURCE], source);
  ck_assert_uint_eq (n[COUNTED_DESTINATION], dest);
  ck_assert_uint_eq (n[COUNTED_BOTH], both);
  ck_assert_uint_eq (n[COUNTED_ALL], 0);
}

/* Each request is counted once, for the sides that it uses, and so are the
 * bytes that clients read from the source.
 */
START_TEST (requests_are_counted)
{
  uint8_t buf[16 * K];
  struct extents list = EXTENTS_INIT;

  new_disk (64 * K, 4 * K);
  ck_assert_int_eq (clone_pread (d->clone, buf, 100, 8 * K), 0);
  check_sides (COUNTED_READ, 1, 0, 0);
  must_write (1, 4 * K, 0);
  check_sides (COUNTED_WRITE, 0, 1, 0);
  ck_assert_int_eq (clone_pread (d->clone, buf, 100, 50), 0);
  check_sides (COUNTED_READ, 1, 1, 0);
  ck_assert_int_eq (clone_pread (d->clone, buf, 8 * K, 0), 0);
  check_sides (COUNTED_READ, 1, 1, 1);
  ck_assert_uint_eq (counters ().counts.source_bytes[COUNTED_CLIENTS],
                     100 + 4 * K);
  must_write (2, 1000, 4 * K + 96);
  check_sides (COUNTED_WRITE, 0, 1, 1);
  ck_assert_int_eq (clone_zero (d->clone, 100, 12 * K, 0), 0);
  ck_assert_int_eq (clone_zero (d->clone, 100, 12 * K, 0), 0);
  check_sides (COUNTED_ZERO, 0, 1, 1);
  ck_assert_int_eq (clone_trim (d->clone, 8 * K, 16 * K, 0), 0);
  check_sides (COUNTED_TRIM, 0, 1, 0);
  ck_assert_int_eq (clone_cache (d->clone, 4 * K, 24 * K), 0);
  ck_assert_int_eq (clone_extents (d->clone, 64 * K, 0, 0, &list), 0);
  extents_free (&list);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  for (unsigned i = COUNTED_FLUSH; i <= COUNTED_EXTENTS; ++i)
    ck_assert_uint_eq (counters ().counts.requests[i][COUNTED_ALL],
                       i == COUNTED_FLUSH ? 2 : 1);
  ck_assert_uint_eq (counters ().counts.source_bytes[COUNTED_CLIENTS],
                     mock_bytes (d->source, MOCK_PREAD));
  ck_assert_uint_eq (counters ().counts.source_bytes[COUNTED_HYDRATION], 0);
  ck_assert_uint_eq (counters ().commits, 1);
  ck_assert_uint_eq (counters ().flushes, 2);
  ck_assert_uint_eq (counters ().flushes_shared, 0);
}
END_TEST

static bool
a_flush_waits (void *opaque)
{
  return commit_count_waiting (d->clone->commit) == 2;
}

/* Of two flushes that wait while a commit runs, one runs the next commit, and
 * the other shares it.
 */
START_TEST (shared_flushes_are_counted)
{
  struct op flush[3];
  struct mock_gate *gate;

  new_disk (64 * K, 4 * K);
  must_write (1, 4 * K, 0);
  gate = mock_gate (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);
  start (&flush[0], OP_FLUSH, 0, 0, 0);
  mock_gate_wait (gate);
  start (&flush[1], OP_FLUSH, 0, 0, 0);
  start (&flush[2], OP_FLUSH, 0, 0, 0);
  mock_wait_until (a_flush_waits, NULL);
  mock_gate_open (gate);
  for (unsigned i = 0; i < 3; ++i)
    end (&flush[i]);
  ck_assert_uint_eq (counters ().flushes, 3);
  ck_assert_uint_eq (counters ().flushes_shared, 1);
}
END_TEST

static uint64_t
count_times (const struct counted_times *times)
{
  uint64_t n = 0;

  for (unsigned i = 0; i <= COUNTERS_BOUNDS; ++i)
    n += times->bucket[i];
  return n;
}

/* Times are measured if that is wanted: of reads and writes, apart for requests
 * whose regions were all valid.
 */
START_TEST (times_are_measured)
{
  uint8_t buf[8 * K];
  struct clone_counters sum;
  uint64_t n;

  new_disk (64 * K, 4 * K);
  ck_assert_int_eq (mock_disk_close (d), 0);
  d->options.timed = _i;
  ck_assert_int_eq (mock_disk_open (d), 0);
  must_write (1, 4 * K, 0);
  must_write (2, 4 * K, 0);
  must_write (3, 10, 9 * K);
  for (unsigned i = 0; i < 4; ++i)
    ck_assert_int_eq (clone_pread (d->clone, buf, 4 * K, 0), 0);
  ck_assert_int_eq (clone_pread (d->clone, buf, 8 * K, 0), 0);
  sum = counters ();
  ck_assert_uint_eq (count_times (&sum.counts.times[1][1]), 1 * _i);
  ck_assert_uint_eq (count_times (&sum.counts.times[1][0]), 2 * _i);
  ck_assert_uint_eq (count_times (&sum.counts.times[0][1]), 4 * _i);
  ck_assert_uint_eq (count_times (&sum.counts.times[0][0]), 1 * _i);
  ck_assert_int_eq (sum.counts.times[0][1].nanoseconds > 0, _i);

  /* A read that takes 2 ms or more is in none of the buckets below 1 ms. */
  mock_set_delay (d->source, 4000);
  ck_assert_int_eq (clone_pread (d->clone, buf, 4 * K, 32 * K), 0);
  n = sum.counts.times[0][0].nanoseconds;
  sum = counters ();
  n = sum.counts.times[0][0].nanoseconds - n;
  ck_assert_int_eq (n >= 2000000, _i);
  n = 0;
  for (unsigned i = 0; counters_bound[i] <= 1000000; ++i)
    n += sum.counts.times[0][0].bucket[i];
  ck_assert_uint_le (n, 1 * _i);
  ck_assert_uint_eq (count_times (&sum.counts.times[0][0]), 2 * _i);
}
END_TEST

static void
check_error (enum clone_side side, const char *expect)
{
  char text[LAST_ERROR_MAX];

  clone_last_error (d->clone, side, text, sizeof text);
  ck_assert_str_eq (text, expect);
}

/* The latest error of each side stays when it is over. */
START_TEST (latest_errors)
{
  uint8_t buf[100];

  new_disk (64 * K, 4 * K);
  /* The metadata's errors are not the destination's, and neither is it an error
   * of the destination that no region can become valid because of them.
   */
  must_write (1, 4 * K, 40 * K);
  mock_fail (d->meta, MOCK_PWRITE, MOCK_ANYWHERE, 1, 0, ENOSPC);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  ck_assert_int_eq (write_bytes (1, 4 * K, 44 * K, 0), -1);
  mock_heal (d->meta);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  check_error (CLONE_SOURCE, "");
  check_error (CLONE_DESTINATION, "");
  mock_fail (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_pread (d->clone, buf, 100, 8 * K), -1);
  ck_assert_int_eq (errno, EIO);
  check_error (CLONE_SOURCE, "cannot read 100 bytes at offset 8192: "
               "Input/output error");
  check_error (CLONE_DESTINATION, "");
  mock_fail (d->dest, MOCK_PWRITE, MOCK_ANYWHERE, 1, 1, ENOSPC);
  ck_assert_int_eq (write_bytes (1, 4 * K, 4 * K, 0), -1);
  ck_assert_int_eq (errno, ENOSPC);
  check_error (CLONE_DESTINATION, "cannot write 4096 bytes at offset 4096: "
               "No space left on device");
  must_write (1, 4 * K, 4 * K);
  mock_fail (d->dest, MOCK_PREAD, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_pread (d->clone, buf, 10, 4 * K), -1);
  check_error (CLONE_DESTINATION, "cannot read 10 bytes at offset 4096: "
               "Input/output error");
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (clone_flush (d->clone, NULL), -1);
  check_error (CLONE_DESTINATION, "flush failed: Input/output error");
  /* The mode is ro because of that. */
  ck_assert_int_eq (write_bytes (1, 4 * K, 16 * K, 0), -1);
  check_error (CLONE_DESTINATION, "flush failed: Input/output error");
  ck_assert_int_eq (clone_pread (d->clone, buf, 100, 8 * K), 0);
  check_error (CLONE_SOURCE, "cannot read 100 bytes at offset 8192: "
               "Input/output error");
}
END_TEST

/* What a client has written is lost with the destination's server: each
 * client's next flush fails, once; so does that of a client which comes before
 * anybody was told, but not that of a later one.
 */
START_TEST (losses_are_told_once)
{
  struct clone_client first, second, early, late;

  new_servers (64 * K, 16 * K);
  clone_client_init (d->clone, &first);
  clone_client_init (d->clone, &second);
  must_write (1, 16 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, &first), 0);
  lose (d->dest);
  mock_server_back (d->dest);
  ck_assert_int_eq (clone_flush (d->clone, &first), 0);
  check_all ();

  must_write (2, 100, 1000);
  lose (d->dest);
  mock_server_back (d->dest);
  write_model (1, 100, 1000);
  check_all ();
  clone_client_init (d->clone, &early);
  for (unsigned i = 0; i < 2; ++i) {
    ck_assert_int_eq (clone_flush (d->clone, &first), i ? 0 : -1);
    if (i == 0)
      ck_assert_int_eq (errno, EIO);
  }
  clone_client_init (d->clone, &late);
  ck_assert_int_eq (clone_flush (d->clone, &late), 0);
  ck_assert_int_eq (clone_flush (d->clone, &early), -1);
  ck_assert_int_eq (clone_flush (d->clone, &early), 0);
  ck_assert_int_eq (clone_flush (d->clone, &second), -1);
  ck_assert_int_eq (clone_flush (d->clone, &second), 0);
}
END_TEST

/* A flush finds a local destination full: the client learns why, then each
 * client is told of the loss once.  What was lost is read from the source, can
 * be copied again when there is room, and the clone becomes complete (L13).
 */
START_TEST (full_at_a_flush)
{
  struct clone_client first, second;

  new_disk (64 * K, 4 * K);
  clone_client_init (d->clone, &first);
  clone_client_init (d->clone, &second);
  must_write (1, 4 * K, 0);
  ck_assert_int_eq (clone_flush (d->clone, &first), 0);
  ck_assert_int_eq (write_bytes (2, 4 * K, 8 * K, 0), 0);
  mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, _i ? EDQUOT : ENOSPC);
  ck_assert_int_eq (clone_flush (d->clone, &first), -1);
  ck_assert_int_eq (errno, ENOSPC);
  ck_assert (!is_valid (2));
  ck_assert (is_valid (0));
  check_all ();
  ck_assert_int_eq (clone_mode (d->clone), MODE_RW);

  ck_assert_int_eq (clone_flush (d->clone, &first), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_flush (d->clone, &first), 0);
  must_write (3, 4 * K, 8 * K);
  ck_assert_int_eq (clone_flush (d->clone, &second), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (clone_flush (d->clone, &second), 0);
  ck_assert_int_eq (clone_cache (d->clone, d->size, 0), 0);
  ck_assert_int_eq (clone_flush (d->clone, &first), 0);
  ck_assert (commit_is_complete (d->clone->commit));
  ck_assert_mem_eq (mock_durable (d->dest), model, d->size);
}
END_TEST

/* What a lost server would have to say about its extents is data, unless it is
 * known, and nobody waits for that.
 */
START_TEST (extents_of_lost_servers)
{
  CLEANUP_FREE uint8_t *say = malloc (64 * K), *want = malloc (64 * K);

  new_servers (64 * K, 16 * K);
  mock_fill (d->source, NULL, 16 * K, 16 * K);
  memset (model + 16 * K, 0, 16 * K);
  ck_assert_int_eq (clone_zero (d->clone, 16 * K, 32 * K, BACKEND_MAY_TRIM), 0);
  write_model (0, 16 * K, 32 * K);
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  memset (want, 0, 64 * K);
  memset (want + 16 * K, EXTENT_HOLE | EXTENT_ZERO, 32 * K);
  get_extents (0, 64 * K, 0, say);
  ck_assert_mem_eq (say, want, 64 * K);

  lose (d->source);
  get_extents (0, 64 * K, 0, say);
  ck_assert_mem_eq (say, want, 64 * K);
  kept_forget (&d->clone->kept);
  memset (want + 16 * K, 0, 16 * K);
  get_extents (0, 64 * K, 0, say);
  ck_assert_mem_eq (say, want, 64 * K);
  mock_server_back (d->source);
  memset (want + 16 * K, EXTENT_HOLE | EXTENT_ZERO, 16 * K);
  get_extents (0, 64 * K, 0, say);
  ck_assert_mem_eq (say, want, 64 * K);
  lose (d->source);
  kept_forget (&d->clone->kept);
  lose (d->dest);
  memset (want, 0, 64 * K);
  get_extents (0, 64 * K, 0, say);
  ck_assert_mem_eq (say, want, 64 * K);
  mock_server_back (d->source);
  mock_server_back (d->dest);
  check_all ();
}
END_TEST

/* A write to a part of a region that is too large for memory, around which the
 * source's bytes are copied to the destination piece by piece.  The destination
 * is lost when some of them are there, or all: they are copied again.
 */
START_TEST (lost_amid_large_edges)
{
  struct mock_gate *gate;
  struct op op;

  new_servers (4 * CLONE_COPY_MAX, 4 * CLONE_COPY_MAX);
  gate = mock_gate (d->source, MOCK_PREAD,
                    _i ? 2 * M : 4 * M - 1000, 1, 1);
  start (&op, OP_WRITE, 1, 1000, 1500 * K);
  mock_gate_wait (gate);
  ck_assert_uint_gt (mock_bytes (d->dest, MOCK_PWRITE), M);
  lose (d->dest);
  mock_server_back (d->dest);
  mock_gate_open (gate);
  end (&op);
  write_model (1, 1000, 1500 * K);
  check_all ();
  ck_assert_int_eq (clone_flush (d->clone, NULL), 0);
  mock_disk_crash (d, 0, 0, 1);
  ck_assert_int_eq (mock_disk_open (d), 0);
  check_all ();
}
END_TEST

static void
read_all (void *opaque)
{
  check_all ();
}

/* A read needs both: while it reads the source the destination loses the region
 * that it would have read there.  That is read from the source, too.
 */
START_TEST (lost_amid_a_read)
{
  struct mock_gate *gate;
  struct mock_thread *thread;

  new_servers (64 * K, 16 * K);
  clone_set_copy_on_read (d->clone, _i);
  ck_assert_int_eq (write_bytes (1, 16 * K, 16 * K, 0), 0);
  gate = mock_gate_after (d->source, MOCK_PREAD, MOCK_ANYWHERE, 1);
  thread = mock_thread (read_all, NULL);
  mock_gate_wait (gate);
  lose (d->dest);
  mock_server_back (d->dest);
  mock_gate_open (gate);
  mock_join (thread);
  check_all ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("clone");
  TCase *alone = tcase_create ("one thread");
  TCase *tc = tcase_create ("clone");
  TCase *seen = tcase_create ("counters");

  tcase_set_tags (alone, "one-thread");
  tcase_set_timeout (alone, 240);
  tcase_add_checked_fixture (alone, NULL, teardown);
  tcase_add_loop_test (alone, random_against_model, 0, SHAPES * 4);
  suite_add_tcase (suite, alone);

  tcase_set_timeout (seen, 240);
  tcase_add_checked_fixture (seen, NULL, teardown);
  tcase_add_test (seen, requests_are_counted);
  tcase_add_test (seen, shared_flushes_are_counted);
  tcase_add_loop_test (seen, times_are_measured, 0, 2);
  tcase_add_test (seen, latest_errors);
  suite_add_tcase (suite, seen);

  tcase_set_timeout (tc, 240);
  tcase_add_checked_fixture (tc, NULL, teardown);
  tcase_add_test (tc, whole_regions_read_nothing);
  tcase_add_test (tc, partial_write_reads_around);
  tcase_add_test (tc, large_region_in_pieces);
  tcase_add_test (tc, read_by_runs);
  tcase_add_loop_test (tc, trim_rules, 0, 2);
  tcase_add_loop_test (tc, trim_of_a_strange_device, 0, 2);
  tcase_add_test (tc, partial_zero);
  tcase_add_test (tc, fast_zero);
  tcase_add_loop_test (tc, holes_stay, 0, 3);
  tcase_add_loop_test (tc, long_zero_in_steps, 0, 2);
  tcase_add_test (tc, fua);
  tcase_add_test (tc, fua_that_takes_errors);
  tcase_add_test (tc, extents);
  tcase_add_test (tc, extents_against_hydration);
  tcase_add_loop_test (tc, partial_write_against_overwrite, 0, 2);
  tcase_add_loop_test (tc, partial_write_against_trim, 0, 2);
  tcase_add_test (tc, partial_writes_of_one_region);
  tcase_add_loop_test (tc, one_edge_became_valid, 0, 2);
  tcase_add_loop_test (tc, cache_against_write, 0, 4);
  tcase_add_loop_test (tc, copy_on_read, 0, 2);
  tcase_add_test (tc, no_copy_on_read);
  tcase_add_loop_test (tc, copy_on_read_against_write, 0, 8);
  tcase_add_loop_test (tc, copy_on_read_that_fails, 0, 2);
  tcase_add_loop_test (tc, copy_in_flight, 0, 4);
  tcase_add_test (tc, valid_regions_do_not_wait);
  tcase_add_test (tc, read_against_write);
  tcase_add_test (tc, reads_that_are_timed);
  tcase_add_test (tc, source_is_drained);
  tcase_add_test (tc, not_complete_before_durable);
  tcase_add_test (tc, source_fails);
  tcase_add_test (tc, source_fails_in_a_gap);
  tcase_add_loop_test (tc, destination_is_full, 0, 5);
  tcase_add_test (tc, read_only_mode);
  tcase_add_loop_test (tc, metadata_fails, 0, 3);
  tcase_add_loop_test (tc, write_fails_in_the_middle, 0, 2);
  tcase_add_loop_test (tc, gone_client_does_not_write, 0, 2);
  tcase_add_loop_test (tc, source_timeout, 0, 2);
  tcase_add_loop_test (tc, requests_wait, 0, 3);
  tcase_add_test (tc, losses_are_told_once);
  tcase_add_loop_test (tc, full_at_a_flush, 0, 2);
  tcase_add_test (tc, extents_of_lost_servers);
  tcase_add_loop_test (tc, lost_amid_large_edges, 0, 2);
  tcase_add_loop_test (tc, lost_amid_a_read, 0, 2);
  tcase_add_loop_test (tc, stress, 0, 4);
  tcase_add_loop_test (tc, power_cuts, 0, 20);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
