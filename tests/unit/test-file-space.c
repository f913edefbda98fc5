/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that a file keeps the space that it has, and gets none that nobody
 * asked for: BACKEND_IF_DATA on holes, allocated space and data, where the file
 * system can punch holes and where it cannot.  That a trim is advice.  That a
 * zero is done in another way if a faster one is refused.  And that questions
 * about extents do not look at a run of data again and again.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <check.h>

#include "backend/backend.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define SIZE (4 * M)

static char dir[4096 - 16], path[4096];
static struct backend *b;
static uint8_t buf[SIZE];

/* ---- libc's functions, replaced ---- */

/* The errno of fallocate with these flags, and with any other; 0: success. */
static int punch_errno, zero_range_errno, allocate_errno;

int
fallocate (int fd, int mode, off64_t offset, off64_t count)
{
  int error = mode & FALLOC_FL_PUNCH_HOLE ? punch_errno
    : mode & FALLOC_FL_ZERO_RANGE ? zero_range_errno : allocate_errno;

  if (error == 0)
    return syscall (SYS_fallocate, fd, mode, offset, count);
  errno = error;
  return -1;
}

static unsigned seeks_of_holes, writes;

off64_t
lseek64 (int fd, off64_t offset, int whence)
{
  seeks_of_holes += whence == SEEK_HOLE;
  return syscall (SYS_lseek, fd, offset, whence);
}

off_t
lseek (int fd, off_t offset, int whence)
{
  return lseek64 (fd, offset, whence);
}

ssize_t
pwrite64 (int fd, const void *data, size_t count, off64_t offset)
{
  writes++;
  return syscall (SYS_pwrite64, fd, data, count, offset);
}

ssize_t
pwrite (int fd, const void *data, size_t count, off_t offset)
{
  return pwrite64 (fd, data, count, offset);
}

/* ---- helpers ---- */

static void
setup (void)
{
  const char *tmp = getenv ("TMPDIR");
  const struct backend_params params = {
    .role = "destination", .name = path, .lock = true
  };

  snprintf (dir, sizeof dir, "%s/test-file-space-XXXXXX", tmp ? tmp : "/tmp");
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (path, sizeof path, "%s/file", dir);
  punch_errno = zero_range_errno = allocate_errno = 0;
  b = backend_create (&params, SIZE, &mock_messages);
  ck_assert_msg (b != NULL, "%s", mock_last_error ());
}

static void
teardown (void)
{
  backend_close (b);
  unlink (path);
  ck_assert_int_eq (rmdir (dir), 0);
}

static void
cannot_fallocate (void)
{
  punch_errno = zero_range_errno = allocate_errno = EOPNOTSUPP;
}

static void
write_data (uint64_t count, uint64_t offset)
{
  memset (buf, 'x', count);
  ck_assert_int_eq (backend_pwrite (b, buf, count, offset, 0), 0);
}

static uint64_t
allocated (void)
{
  struct stat st;

  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_int_eq (stat (path, &st), 0);
  return st.st_blocks * UINT64_C (512);
}

/* All of the file is zero but [start, end), which holds what write_data wrote.
 */
static void
check_data (uint64_t start, uint64_t end)
{
  ck_assert_int_eq (backend_pread (b, buf, SIZE, 0), 0);
  for (uint64_t i = 0; i < SIZE; ++i)
    if (buf[i] != (start <= i && i < end ? 'x' : 0))
      ck_abort_msg ("byte %lu is %02x", (unsigned long)i, buf[i]);
}

/* The test's loop variable. */
static const unsigned if_data[] = {
  BACKEND_IF_DATA, BACKEND_IF_DATA | BACKEND_MAY_TRIM
};
#define IF_DATA_FLAGS 2

/* ---- tests ---- */

/* A hole stays a hole, and nothing is written to it. */
START_TEST (hole_stays)
{
  for (unsigned able = 0; able < 2; ++able) {
    writes = 0;
    ck_assert_int_eq (backend_zero (b, SIZE, 0, if_data[_i]), 0);
    ck_assert_uint_eq (writes, 0);
    ck_assert_uint_le (allocated (), 64 * K);
    cannot_fallocate ();
  }
}
END_TEST

/* Space that was allocated and never written stays, too. */
START_TEST (allocated_stays)
{
  if (syscall (SYS_fallocate, open (path, O_RDWR), 0, 0, SIZE) == -1)
    return;                     /* the file system cannot */
  for (unsigned able = 0; able < 2; ++able) {
    writes = 0;
    ck_assert_int_eq (backend_zero (b, SIZE, 0, if_data[_i]), 0);
    ck_assert_uint_eq (writes, 0);
    ck_assert_uint_ge (allocated (), SIZE);
    cannot_fallocate ();
  }
  check_data (0, 0);
}
END_TEST

/* Data becomes zeroes: a hole only with BACKEND_MAY_TRIM. */
START_TEST (data_is_zeroed)
{
  write_data (2 * M, M);
  ck_assert_int_eq (backend_zero (b, SIZE - 2 * M + 100, 2 * M - 100,
                                  if_data[_i]), 0);
  check_data (M, 2 * M - 100);
  if (if_data[_i] & BACKEND_MAY_TRIM)
    ck_assert_uint_le (allocated (), M + 64 * K);
  else {
    ck_assert_uint_ge (allocated (), 2 * M);
    ck_assert_uint_le (allocated (), 2 * M + 64 * K);
  }
}
END_TEST

/* Without fallocate zeroes are written, but only over what is not zero; also
 * where nothing is known about extents.
 */
START_TEST (written_where_not_zero)
{
  cannot_fallocate ();
  b->knows_extents = _i < IF_DATA_FLAGS;
  write_data (64 * K, M);
  memset (buf, 0, M);
  ck_assert_int_eq (backend_pwrite (b, buf, M, 2 * M, 0), 0);
  writes = 0;
  ck_assert_int_eq (backend_zero (b, SIZE, 0, if_data[_i % IF_DATA_FLAGS]), 0);
  ck_assert_uint_eq (writes, 1);
  check_data (0, 0);
  ck_assert_uint_le (allocated (), M + 128 * K);
}
END_TEST

/* Where nothing is known about extents, a zero that keeps space would allocate
 * all holes.
 */
START_TEST (unknown_hole_stays)
{
  b->knows_extents = false;
  write_data (64 * K, M);
  ck_assert_int_eq (backend_zero (b, SIZE, 0, if_data[_i]), 0);
  check_data (0, 0);
  ck_assert_uint_le (allocated (), 128 * K);
}
END_TEST

/* A refusal, and an error. */
static const struct {
  int error;
  bool counts;
} failures[] = {
  { EINVAL, false }, { EBUSY, false }, { ENOTTY, false }, { ENOSPC, false },
  { EOPNOTSUPP, false }, { EDQUOT, false }, { EPERM, true }, { EIO, true },
};
#define FAILURES 8

START_TEST (trim_is_advice)
{
  const bool counts = failures[_i].counts;

  write_data (SIZE, 0);
  punch_errno = failures[_i].error;
  ck_assert_int_eq (backend_trim (b, M, M, 0), counts ? -1 : 0);
  if (counts)
    ck_assert_int_eq (errno, failures[_i].error);
  check_data (0, SIZE);
}
END_TEST

/* The flags of a zero whose punch, or whose zero range, is refused. */
static void
zero_after_refusal (int *refused, unsigned flags, int i)
{
  const bool counts = failures[i].counts;

  write_data (2 * M, 0);
  *refused = failures[i].error;
  ck_assert_int_eq (backend_zero (b, M, M, flags), counts ? -1 : 0);
  if (counts)
    ck_assert_int_eq (errno, failures[i].error);
  check_data (0, counts ? 2 * M : M);
}

START_TEST (zero_without_punch)
{
  zero_after_refusal (&punch_errno, BACKEND_MAY_TRIM, _i);
}
END_TEST

START_TEST (zero_if_data_without_punch)
{
  zero_after_refusal (&punch_errno, BACKEND_MAY_TRIM | BACKEND_IF_DATA, _i);
}
END_TEST

START_TEST (zero_without_zero_range)
{
  zero_after_refusal (&zero_range_errno, 0, _i);
}
END_TEST

/* Nothing is written to a full file system in parts: if the space cannot be
 * allocated, the zero fails, and has changed nothing.
 */
START_TEST (no_space_to_allocate)
{
  write_data (M, 0);
  zero_range_errno = EOPNOTSUPP;
  allocate_errno = ENOSPC;
  ck_assert_int_eq (backend_zero (b, SIZE, 0, 0), -1);
  ck_assert_int_eq (errno, ENOSPC);
  check_data (0, M);
}
END_TEST

static unsigned
flags_at (uint64_t offset)
{
  struct extents list = EXTENTS_INIT;
  unsigned flags;

  ck_assert_int_eq (backend_extents (b, 64 * K, offset, BACKEND_REQ_ONE,
                                     &list), 0);
  ck_assert_uint_eq (list.len, 1);
  ck_assert_uint_eq (list.extent[0].offset, offset);
  flags = list.extent[0].flags;
  extents_free (&list);
  return flags;
}

/* Many questions about one run of data look for its end once. */
START_TEST (data_is_remembered)
{
  write_data (SIZE, 0);
  seeks_of_holes = 0;
  for (uint64_t pos = 0; pos < SIZE; pos += 64 * K)
    ck_assert_uint_eq (flags_at (pos), 0);
  ck_assert_uint_eq (seeks_of_holes, 1);

  /* Until a part of it becomes a hole, in whatever way. */
  switch (_i) {
  case 0:
    ck_assert_int_eq (backend_trim (b, M, M, 0), 0);
    break;
  case 1:
    ck_assert_int_eq (backend_zero (b, M, M, BACKEND_MAY_TRIM), 0);
    break;
  case 2:
    ck_assert_int_eq (backend_zero (b, M, M, if_data[1]), 0);
    break;
  }
  ck_assert_uint_eq (flags_at (0), 0);
  ck_assert_uint_eq (flags_at (M), EXTENT_HOLE | EXTENT_ZERO);
  ck_assert_uint_eq (flags_at (2 * M), 0);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("file-space");
  TCase *tc = tcase_create ("file-space");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_loop_test (tc, hole_stays, 0, IF_DATA_FLAGS);
  tcase_add_loop_test (tc, allocated_stays, 0, IF_DATA_FLAGS);
  tcase_add_loop_test (tc, data_is_zeroed, 0, IF_DATA_FLAGS);
  tcase_add_loop_test (tc, written_where_not_zero, 0, 2 * IF_DATA_FLAGS);
  tcase_add_loop_test (tc, unknown_hole_stays, 0, IF_DATA_FLAGS);
  tcase_add_loop_test (tc, trim_is_advice, 0, FAILURES);
  tcase_add_loop_test (tc, zero_without_punch, 0, FAILURES);
  tcase_add_loop_test (tc, zero_if_data_without_punch, 0, FAILURES);
  tcase_add_loop_test (tc, zero_without_zero_range, 0, FAILURES);
  tcase_add_test (tc, no_space_to_allocate);
  tcase_add_loop_test (tc, data_is_remembered, 0, 3);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
