/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* All samples are read in one request.  If it fails they are read one by one,
 * to find those that are unreadable.  The first samples cover the partition
 * table, so that a GPT costs no request of its own.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/rounding.h"
#include "store/fingerprint.h"
#include "store/partitions.h"

#define SAMPLE_SIZE ((uint64_t)FINGERPRINT_SAMPLE_SIZE)

/* Offsets of the first samples: MBR and primary GPT, then the places of the
 * superblocks of a partition that begins at 1 MiB (ext4, XFS and NTFS at its
 * start, btrfs 64 KiB into it).
 */
static const uint64_t head[] = {
  0, 4096, 8192, 12288, 1048576, 1048576 + 65536
};
#define NR_HEAD (sizeof head / sizeof head[0])
#define LAST (FINGERPRINT_SAMPLES - 1)
#define NR_SPREAD (LAST - NR_HEAD)
_Static_assert (NR_SPREAD == PARTITIONS_MAX, "a sample for each partition");

/* The first head samples are the place of the partition table. */
#define NR_TABLE (PARTITIONS_TABLE_SIZE / FINGERPRINT_SAMPLE_SIZE)

struct sample {
  uint64_t offset;
  uint32_t count;  /* 0 on disks with fewer bytes than samples */
  bool readable;
  uint32_t crc;    /* if it is readable */
};

/* ---- samples ---- */

/* Place sample i on a disk of this size, without regard to partitions. */
static void
place_sample (uint64_t size, unsigned i, struct sample *sample)
{
  const uint64_t all = FINGERPRINT_SAMPLES * SAMPLE_SIZE;

  if (size <= all) {
    sample->offset = size * i / FINGERPRINT_SAMPLES;
    sample->count = size * (i + 1) / FINGERPRINT_SAMPLES - sample->offset;
    return;
  }

  sample->count = SAMPLE_SIZE;
  if (i < NR_HEAD && head[i] <= size - SAMPLE_SIZE)
    sample->offset = head[i];
  else if (i == LAST)
    sample->offset = size - SAMPLE_SIZE; /* the backup GPT header */
  else
    sample->offset = round_down (size / FINGERPRINT_SAMPLES * i, SAMPLE_SIZE);
}

static bool
is_fatal (int err)
{
  return err == ENOTCONN || err == ENOMEM;
}

/* Does sample i overlap an earlier one?  They may on disks of some sizes, and
 * if partitions do.  The segments of one call must not.
 */
static bool
sample_overlaps (const struct sample *sample, size_t i)
{
  const struct sample *a = &sample[i];

  for (const struct sample *b = sample; b < a; ++b)
    if (a->offset < b->offset + b->count && b->offset < a->offset + a->count)
      return true;
  return false;
}

/* Read n samples, sample i to buf + i * SAMPLE_SIZE, and note which of them are
 * readable.  -1 with errno if the peer is lost or there is no memory.
 */
static int
read_samples (struct backend *source, struct sample *sample, size_t n,
              uint8_t *buf)
{
  struct segment seg[FINGERPRINT_SAMPLES] = { 0 };
  size_t nr_seg = 0;
  bool together;

  for (size_t i = 0; i < n; ++i)
    if (sample[i].count > 0 && !sample_overlaps (sample, i))
      seg[nr_seg++] = (struct segment){
        .buf = buf + i * SAMPLE_SIZE, .count = sample[i].count,
        .offset = sample[i].offset
      };
  together = backend_preadv (source, seg, nr_seg) == 0;
  if (!together && is_fatal (errno))
    return -1;

  for (size_t i = 0; i < n; ++i) {
    uint8_t *p = buf + i * SAMPLE_SIZE;

    sample[i].readable = (together && !sample_overlaps (sample, i)) ||
      backend_pread (source, p, sample[i].count, sample[i].offset) == 0;
    if (sample[i].readable)
      sample[i].crc = crc32c (0, p, sample[i].count);
    else if (is_fatal (errno))
      return -1;
  }
  return 0;
}

/* ---- taking and comparing ---- */

/* The readable samples of a source. */
struct taken {
  struct sample sample[FINGERPRINT_SAMPLES]; /* as without a partition table */
  struct partitions parts;
  bool parts_unknown;             /* a part of the table is unreadable */
  struct sample start[NR_SPREAD]; /* the beginnings of the partitions */
};

/* Find the source's partitions.  table has the first samples.  -1 as
 * read_samples.
 */
static int
take_partitions (struct backend *source, struct taken *t, const uint8_t *table)
{
  t->parts.n = 0;
  t->parts_unknown = false;
  if (source->size <= FINGERPRINT_SAMPLES * SAMPLE_SIZE)
    return 0;
  if (t->sample[0].readable && !partitions_has_table (table))
    return 0;
  for (unsigned i = 0; i < NR_TABLE; ++i)
    t->parts_unknown |= !t->sample[i].readable;
  if (!t->parts_unknown &&
      partitions_find (source, table, head, NR_HEAD, SAMPLE_SIZE,
                       &t->parts) == -1) {
    if (is_fatal (errno))
      return -1;
    t->parts_unknown = true;
  }
  /* With half of the table, samples would lie elsewhere than with all of it. */
  if (t->parts_unknown)
    t->parts.n = 0;
  return 0;
}

static int
take_samples (struct backend *source, struct taken *t)
{
  CLEANUP_FREE uint8_t *buf = malloc (FINGERPRINT_SAMPLES * SAMPLE_SIZE);

  if (buf == NULL)
    return -1;
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    place_sample (source->size, i, &t->sample[i]);
  if (read_samples (source, t->sample, FINGERPRINT_SAMPLES, buf) == -1 ||
      take_partitions (source, t, buf) == -1)
    return -1;

  for (size_t i = 0; i < t->parts.n; ++i)
    t->start[i] = (struct sample){
      .offset = t->parts.start[i], .count = SAMPLE_SIZE
    };
  return read_samples (source, t->start, t->parts.n, buf);
}

/* Sample i, with regard to partitions or without. */
static const struct sample *
choose_sample (const struct taken *t, unsigned i, bool with_partitions)
{
  if (with_partitions && i >= NR_HEAD && i - NR_HEAD < t->parts.n)
    return &t->start[i - NR_HEAD];
  return &t->sample[i];
}

int
fingerprint_take (struct backend *source, struct fingerprint *fp)
{
  unsigned exist = 0, readable = 0;
  struct taken t;

  if (take_samples (source, &t) == -1)
    return -1;
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i) {
    const struct sample *s = choose_sample (&t, i, true);

    fp->crc[i] = s->readable ? s->crc : 0;
    exist += s->count > 0;
    readable += s->count > 0 && s->readable;
  }
  if (2 * readable >= exist)
    return 0;
  errno = EIO;
  return -1;
}

/* As fingerprint_check.  *differs is the number of the sample that differs. */
static int
compare_samples (const struct taken *t, const struct fingerprint *stored,
                 bool with_partitions, unsigned *differs)
{
  unsigned known = 0, agree = 0;

  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i) {
    const struct sample *s = choose_sample (t, i, with_partitions);

    if (stored->crc[i] == 0)
      continue;
    known++;
    if (!s->readable)
      continue;
    if (s->crc == stored->crc[i])
      agree++;
    /* With an unreadable table, the stored sample may be of another place. */
    else if (!t->parts_unknown || i < NR_HEAD || i == LAST) {
      *differs = i;
      return 1;
    }
  }
  if (2 * agree >= known)
    return 0;
  errno = EIO;
  return -1;
}

int
fingerprint_check (struct backend *source, const struct fingerprint *stored,
                   char **why)
{
  const struct sample *differs;
  unsigned i = 0, i_without = 0;
  bool with_partitions = true;
  struct taken t;
  int r, without;

  if (take_samples (source, &t) == -1)
    return -1;
  r = compare_samples (&t, stored, true, &i);
  if (r != 0 && t.parts.n > 0) {
    without = compare_samples (&t, stored, false, &i_without);
    /* The source differs only if it does so in both cases. */
    if (without != 1)
      r = without;
    /* The stored fingerprint is probably of the kind that agrees longer. */
    with_partitions = i >= i_without;
  }
  differs = choose_sample (&t, MAX (i, i_without), with_partitions);
  if (r == 1 &&
      asprintf (why, "differs from what it was in bytes %" PRIu64 "..%" PRIu64,
                differs->offset,
                differs->offset + differs->count - 1) == -1) {
    errno = ENOMEM;
    return -1;
  }
  return r;
}
