/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that a fingerprint detects changes in each sample, the beginnings of
 * partitions included; that unreadable samples do not prevent a comparison of
 * the others, while a lost peer ends it at once; and that a partition table
 * does no harm, whatever it says.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "mock-backend.h"
#include "run-suite.h"
#include "store/fingerprint.h"

#define SIZE (UINT64_C (64) << 20)
#define SAMPLE 4096

static struct mock_log *history;
static struct mock *disk;
static struct fingerprint fp;
static char *why;

static void
setup (void)
{
  history = mock_log_new (false);
  disk = mock_new (history, "source", SIZE, true);
  mock_fill_random (disk, SIZE, 0, 1);
  /* No partition table by chance. */
  mock_fill (disk, "\0\0", 2, 510);
}

static void
teardown (void)
{
  free (why);
  why = NULL;
  mock_free (disk);
  mock_log_free (history);
}

/* The offset of sample i of a disk without partitions. */
static uint64_t
place (unsigned i)
{
  static const uint64_t head[] = {
    0, 4096, 8192, 12288, 1048576, 1114112
  };

  return i < 6 ? head[i] : i == 31 ? SIZE - SAMPLE : SIZE / 32 * i;
}

static void
take (void)
{
  ck_assert_int_eq (fingerprint_take (mock_backend (disk), &fp), 0);
}

static int
check (void)
{
  free (why);
  why = NULL;
  return fingerprint_check (mock_backend (disk), &fp, &why);
}

static void
change (uint64_t offset)
{
  uint8_t byte = mock_content (disk)[offset] ^ 1;

  mock_fill (disk, &byte, 1, offset);
}

/* A change of this byte is detected, and the text names the sample. */
static void
must_notice (uint64_t offset, uint64_t sample)
{
  char expected[100];

  snprintf (expected, sizeof expected,
            "differs from what it was in bytes %" PRIu64 "..%" PRIu64, sample,
            sample + SAMPLE - 1);
  change (offset);
  ck_assert_int_eq (check (), 1);
  ck_assert_str_eq (why, expected);
  change (offset);
  ck_assert_int_eq (check (), 0);
}

static void
unreadable (uint64_t offset, int error)
{
  mock_fail (disk, MOCK_PREAD, offset, SAMPLE, 1, 0, error);
}

/* ---- disks without partitions ---- */

/* Changes in each of the 32 samples are detected, in its first byte and in its
 * last, and one call reads all samples.
 */
START_TEST (samples)
{
  take ();
  ck_assert_uint_eq (mock_count (disk, MOCK_PREAD), 1);
  ck_assert_int_eq (check (), 0);
  for (unsigned i = 0; i < 32; ++i) {
    must_notice (place (i), place (i));
    must_notice (place (i) + SAMPLE - 1, place (i));
  }
  change (place (7) + SAMPLE);
  ck_assert_int_eq (check (), 0);
}
END_TEST

/* A disk of at most 128 KiB is covered completely, even if it is so small that
 * some samples are empty.
 */
START_TEST (small)
{
  static const uint64_t sizes[] = { 1, 31, 33, 4097, 131071, 131072 };

  for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    struct mock *large = disk;
    const uint64_t step = sizes[i] < 5000 ? 1 : 997;

    disk = mock_new (history, "small", sizes[i], true);
    mock_fill_random (disk, sizes[i], 0, 2);
    take ();
    for (uint64_t at = 0; at < sizes[i]; at += step) {
      change (at);
      ck_assert_int_eq (check (), 1);
      change (at);
    }
    ck_assert_int_eq (check (), 0);
    mock_free (disk);
    disk = large;
  }
}
END_TEST

/* An unreadable sample is left out: the source is recognised, and a change in
 * another sample is still detected.
 */
START_TEST (one_unreadable)
{
  take ();
  unreadable (place (_i), EIO);
  ck_assert_int_eq (check (), 0);
  must_notice (place ((_i + 5) % 32), place ((_i + 5) % 32));
  change (place (_i));
  ck_assert_int_eq (check (), 0);
}
END_TEST

/* If more than half of the samples are unreadable, the result is unknown;
 * unless one of the others differs.
 */
START_TEST (half_unreadable)
{
  take ();
  for (unsigned i = 0; i < 16; ++i)
    unreadable (place (2 * i + 1), EIO);
  ck_assert_int_eq (check (), 0);
  must_notice (place (8), place (8));
  unreadable (place (0), EIO);
  ck_assert_int_eq (check (), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_ptr_null (why);
  change (place (2));
  ck_assert_int_eq (check (), 1);
}
END_TEST

/* A sample that is unreadable when the fingerprint is taken is stored as 0, and
 * not compared later.  If it is more than half, no fingerprint is taken.
 */
START_TEST (taken_in_part)
{
  struct fingerprint whole;

  take ();
  whole = fp;
  for (unsigned i = 0; i < 16; ++i)
    unreadable (place (2 * i + 1), EIO);
  take ();
  for (unsigned i = 0; i < 32; ++i)
    ck_assert_uint_eq (fp.crc[i], i % 2 ? 0 : whole.crc[i]);
  mock_heal (disk);
  ck_assert_int_eq (check (), 0);
  change (place (5));
  ck_assert_int_eq (check (), 0);
  must_notice (place (8), place (8));

  for (unsigned i = 0; i < 17; ++i)
    unreadable (place (i), EIO);
  ck_assert_int_eq (fingerprint_take (mock_backend (disk), &fp), -1);
  ck_assert_int_eq (errno, EIO);
}
END_TEST

/* A lost peer ends it at once, whether the samples are read together or one by
 * one.
 */
START_TEST (lost)
{
  take ();
  mock_log_clear (history);
  unreadable (place (20), ENOTCONN);
  ck_assert_int_eq (check (), -1);
  ck_assert_int_eq (errno, ENOTCONN);
  ck_assert_uint_eq (mock_count (disk, MOCK_PREAD), 1);
  ck_assert_int_eq (fingerprint_take (mock_backend (disk), &fp), -1);
  ck_assert_int_eq (errno, ENOTCONN);

  mock_heal (disk);
  mock_log_clear (history);
  unreadable (place (3), EIO);
  /* The first read of this sample is in the call for all samples. */
  mock_fail (disk, MOCK_PREAD, place (10), SAMPLE, 2, 0, ENOTCONN);
  ck_assert_int_eq (check (), -1);
  ck_assert_int_eq (errno, ENOTCONN);
  ck_assert_uint_eq (mock_count (disk, MOCK_PREAD), 1 + 11);
}
END_TEST

/* ---- partitions ---- */

static void
put (uint64_t offset, unsigned n, uint64_t v)
{
  uint8_t p[8];

  for (unsigned i = 0; i < n; ++i, v >>= 8)
    p[i] = v;
  mock_fill (disk, p, n, offset);
}

/* Write an entry of an MBR, or of a link, in a sector of 512 bytes. */
static void
mbr_entry (uint64_t sector, unsigned i, unsigned type, uint64_t start)
{
  put (sector * 512 + 446 + 16 * i + 4, 1, type);
  put (sector * 512 + 446 + 16 * i + 8, 4, start);
}

static void
mbr_table (uint64_t sector)
{
  mock_fill (disk, NULL, 64, sector * 512 + 446);
  put (sector * 512 + 510, 2, 0xaa55);
}

/* Offset n < 40 for a partition, which is not that of a sample. */
static uint64_t
odd_place (unsigned n)
{
  return 1500 * 1024 + n * 1537 * 1024;
}

static void
make_mbr (void)
{
  mbr_table (0);
  mbr_entry (0, 0, 0x83, 2048); /* 1 MiB: a sample already */
  mbr_entry (0, 1, 0x07, odd_place (0) / 512);
  mbr_entry (0, 3, 0x83, odd_place (1) / 512);
}

/* One primary partition and n logical ones. */
static void
make_logical (unsigned n)
{
  const uint64_t extended = odd_place (1) / 512;

  mbr_table (0);
  mbr_entry (0, 0, 0x83, odd_place (0) / 512);
  mbr_entry (0, 1, 0x05, extended);
  for (unsigned i = 0; i < n; ++i) {
    const uint64_t link = odd_place (i + 1) / 512;

    mbr_table (link);
    mbr_entry (link, 0, 0x83, 16);
    if (i < n - 1)
      mbr_entry (link, 1, 0x05, odd_place (i + 2) / 512 - extended);
  }
}

static void
make_gpt (uint64_t sector_size, unsigned n)
{
  mbr_table (0);
  mbr_entry (0, 0, 0xee, 1);
  mock_fill (disk, "EFI PART", 8, sector_size);
  put (sector_size + 72, 8, 2);
  put (sector_size + 80, 4, 128);
  put (sector_size + 84, 4, 128);
  mock_fill (disk, NULL, 16384 - 2 * sector_size, 2 * sector_size);
  for (unsigned i = 0; i < n; ++i) {
    /* Every other entry is unused. */
    const uint64_t entry = 2 * sector_size + 128 * (2 * i + 1);

    put (entry, 8, 0x1234);
    put (entry + 32, 8, odd_place (i) / sector_size);
  }
}

/* Changes at the beginnings of the partitions are detected.  The spread samples
 * that they replace are not compared; the others are.
 */
static void
must_notice_partitions (unsigned n, const uint64_t *start)
{
  take ();
  ck_assert_int_eq (check (), 0);
  for (unsigned i = 0; i < n; ++i) {
    must_notice (start[i], start[i]);
    must_notice (start[i] + 1024 + 0x38, start[i]);
    change (place (6 + i));
    ck_assert_int_eq (check (), 0);
  }
  if (6 + n < 31)
    must_notice (place (6 + n), place (6 + n));
  must_notice (place (30), n == 25 ? start[24] : place (30));
}

START_TEST (primary)
{
  const uint64_t start[] = { odd_place (0), odd_place (1) };

  make_mbr ();
  must_notice_partitions (2, start);
}
END_TEST

START_TEST (logical)
{
  const uint64_t start[] = {
    odd_place (0), odd_place (1) + 8192, odd_place (2) + 8192,
    odd_place (3) + 8192
  };

  make_logical (3);
  must_notice_partitions (4, start);
}
END_TEST

START_TEST (gpt)
{
  const uint64_t sector_size = _i;
  uint64_t start[5];

  for (unsigned i = 0; i < 5; ++i)
    start[i] = odd_place (i) / sector_size * sector_size;
  make_gpt (sector_size, 5);
  must_notice_partitions (5, start);
}
END_TEST

/* At most 25 partitions count, and at most 25 links are followed. */
START_TEST (many)
{
  if (_i == 0)
    make_gpt (512, 40);
  else
    make_logical (40);
  take ();
  mock_log_clear (history);
  ck_assert_int_eq (check (), 0);
  /* One call for all samples, one for each link, one for all partitions. */
  ck_assert_uint_eq (mock_count (disk, MOCK_PREAD), _i == 0 ? 2 : 1 + 25 + 1);
  change (place (30));
  ck_assert_int_eq (check (), 0);
  if (_i == 0)
    must_notice (odd_place (24), odd_place (24));
  change (odd_place (25) + 8192);
  ck_assert_int_eq (check (), 0);
}
END_TEST

/* A fingerprint of version 1, without samples of partitions, is accepted, and
 * detects changes in its own samples.
 */
START_TEST (old_fingerprint)
{
  unsigned i;

  /* It equals that of the disk without a table, except for the first sample. */
  take ();
  make_mbr ();
  {
    const struct fingerprint old = fp;

    take ();
    fp = (struct fingerprint){ .crc[0] = fp.crc[0] };
    for (i = 1; i < 32; ++i)
      fp.crc[i] = old.crc[i];
  }
  ck_assert_int_eq (check (), 0);
  for (i = 0; i < 32; ++i) {
    change (place (i) + (i == 0 ? 100 : 0));
    ck_assert_int_eq (check (), 1);
    change (place (i) + (i == 0 ? 100 : 0));
  }
  change (odd_place (0));
  ck_assert_int_eq (check (), 0);
  unreadable (place (12), EIO);
  ck_assert_int_eq (check (), 0);
}
END_TEST

/* The table or a link of the chain is unreadable.  Samples that may belong to
 * partitions are left out; the others are compared.
 */
START_TEST (unreadable_table)
{
  const uint64_t sector = _i == 0 ? 0 : _i == 1 ? 4096 : odd_place (2);

  if (_i == 1)
    make_gpt (512, 3);
  else
    make_logical (3);
  take ();
  unreadable (sector, EIO);
  ck_assert_int_eq (check (), 0);
  must_notice (place (2), place (2));
  must_notice (place (31), place (31));
  /* The stored sample may be that of a partition. */
  change (place (20));
  ck_assert_int_eq (check (), 0);
  for (unsigned i = 6; i < 31; ++i)
    change (place (i) + 1);
  ck_assert_int_eq (check (), -1);
  ck_assert_int_eq (errno, EIO);
}
END_TEST

/* A fingerprint that was taken with an unreadable table has no samples of
 * partitions.  The disk is recognised when the table is readable again.
 */
START_TEST (taken_without_table)
{
  make_logical (3);
  unreadable (odd_place (1), EIO);
  take ();
  mock_heal (disk);
  ck_assert_int_eq (check (), 0);
  must_notice (place (2), place (2));
}
END_TEST

/* The peer is lost while the chain or the partitions are read. */
START_TEST (lost_in_table)
{
  make_logical (3);
  take ();
  mock_log_clear (history);
  unreadable (_i == 0 ? odd_place (2) : odd_place (3) + 8192, ENOTCONN);
  ck_assert_int_eq (check (), -1);
  ck_assert_int_eq (errno, ENOTCONN);
  ck_assert_uint_eq (mock_count (disk, MOCK_PREAD), _i == 0 ? 3 : 5);
}
END_TEST

/* Tables of random bytes and extreme numbers, with a right signature.  All
 * reads are within the disk (else the mock aborts), their number is bounded,
 * and the disk is recognised.
 */
START_TEST (hostile)
{
  static const uint64_t extreme[] = {
    0, 1, 2, 127, 128, 4096, 16384, SIZE / 512 - 8, SIZE / 512 - 7,
    SIZE / 512 - 1, SIZE / 512, UINT32_MAX, INT64_MAX, UINT64_MAX / 512,
    UINT64_MAX / 512 + 1, UINT64_MAX - 1, UINT64_MAX
  };
  const unsigned n = sizeof extreme / sizeof extreme[0];
  uint64_t seed = 3;

  for (unsigned round = 0; round < 400; ++round) {
    const uint64_t sector_size = round % 2 ? 512 : 4096;

    mock_fill_random (disk, 16384, 0, round + 7);
    put (510, 2, 0xaa55);
    if (round % 4 < 2) {
      mock_fill (disk, "EFI PART", 8, sector_size);
      put (sector_size + 72, 8, extreme[mock_random (&seed) % n]);
      put (sector_size + 80, 4, extreme[mock_random (&seed) % n]);
      put (sector_size + 84, 4, extreme[mock_random (&seed) % n]);
      for (unsigned i = 0; i < 20; ++i)
        put (2 * sector_size + 128 * i + 32, 8,
             extreme[mock_random (&seed) % n]);
    }
    else {
      /* A chain that goes anywhere, and in circles. */
      for (unsigned i = 0; i < 4; ++i)
        mbr_entry (0, i, mock_random (&seed) % 2 ? 5 : 0x83,
                   extreme[mock_random (&seed) % n]);
      for (uint64_t sector = 1; sector < 100; ++sector) {
        put (sector * 512 + 510, 2, 0xaa55);
        mbr_entry (sector, 0, 0x83, extreme[mock_random (&seed) % n]);
        mbr_entry (sector, 1, 5, mock_random (&seed) % 100);
      }
    }
    mock_log_clear (history);
    take ();
    /* All samples; each link; the partitions, one by one if they overlap. */
    ck_assert_uint_le (mock_count (disk, MOCK_PREAD), 1 + 25 + 25);
    ck_assert_int_eq (check (), 0);
  }
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("fingerprint");
  TCase *tc = tcase_create ("fingerprint");

  tcase_set_timeout (tc, 240);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, samples);
  tcase_add_test (tc, small);
  tcase_add_loop_test (tc, one_unreadable, 0, 32);
  tcase_add_test (tc, half_unreadable);
  tcase_add_test (tc, taken_in_part);
  tcase_add_test (tc, lost);
  tcase_add_test (tc, primary);
  tcase_add_test (tc, logical);
  tcase_add_loop_test (tc, gpt, 512, 513);
  tcase_add_loop_test (tc, gpt, 4096, 4097);
  tcase_add_loop_test (tc, many, 0, 2);
  tcase_add_test (tc, old_fingerprint);
  tcase_add_loop_test (tc, unreadable_table, 0, 3);
  tcase_add_test (tc, taken_without_table);
  tcase_add_loop_test (tc, lost_in_table, 0, 2);
  tcase_add_test (tc, hostile);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
