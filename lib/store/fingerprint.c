/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The samples are read in one request.  When that fails they are read one by
 * one, to find those that cannot be read.  The partition table is looked for in
 * the samples that cover its place, so that a GPT costs no request of its own.
 *
 * What a partition table says comes from the source, and may be anything.  It
 * decides where at most NR_SPREAD samples are read, within the disk; no more
 * than NR_SPREAD links of a chain of logical partitions are followed.
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

/* The first of the head samples hold the table's place. */
#define TABLE_SIZE (4 * FINGERPRINT_SAMPLE_SIZE)

struct sample {
  uint64_t offset;
  uint32_t count;  /* 0 on disks with fewer bytes than samples */
  bool readable;
  uint32_t crc;    /* where it is */
};

/* The starts of partitions that are sampled. */
struct partitions {
  uint64_t start[NR_SPREAD];
  size_t n;
  bool unknown;    /* the table, or a part of it, cannot be read */
};

/* ---- samples ---- */

/* Where sample i of a disk lies, partitions left aside. */
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

/* Samples may overlap on disks of some sizes, and where partitions do.  What
 * one call reads must not.
 */
static bool
overlaps (const struct sample *sample, size_t i)
{
  const struct sample *a = &sample[i];

  for (const struct sample *b = sample; b < a; ++b)
    if (a->offset < b->offset + b->count && b->offset < a->offset + a->count)
      return true;
  return false;
}

/* Read n samples, sample i to buf + i * SAMPLE_SIZE.  -1 where the peer is
 * lost; otherwise each of them says whether it is readable.
 */
static int
read_samples (struct backend *source, struct sample *sample, size_t n,
              uint8_t *buf)
{
  struct segment seg[FINGERPRINT_SAMPLES] = { 0 };
  size_t nr_seg = 0;
  bool together;

  for (size_t i = 0; i < n; ++i)
    if (sample[i].count > 0 && !overlaps (sample, i))
      seg[nr_seg++] = (struct segment){
        .buf = buf + i * SAMPLE_SIZE, .count = sample[i].count,
        .offset = sample[i].offset
      };
  together = backend_preadv (source, seg, nr_seg) == 0;
  if (!together && is_fatal (errno))
    return -1;

  for (size_t i = 0; i < n; ++i) {
    uint8_t *p = buf + i * SAMPLE_SIZE;

    sample[i].readable = (together && !overlaps (sample, i)) ||
      backend_pread (source, p, sample[i].count, sample[i].offset) == 0;
    if (sample[i].readable)
      sample[i].crc = crc32c (0, p, sample[i].count);
    else if (is_fatal (errno))
      return -1;
  }
  return 0;
}

/* ---- partition tables ---- */

static uint64_t
get_le (const uint8_t *p, unsigned bytes)
{
  uint64_t v = 0;

  while (bytes > 0)
    v = v << 8 | p[--bytes];
  return v;
}

/* A partition that begins with this sector, if that is a new place. */
static void
add_partition (struct partitions *parts, uint64_t size, uint64_t sector,
               unsigned sector_size)
{
  uint64_t start;

  if (parts->n == NR_SPREAD || sector > (size - SAMPLE_SIZE) / sector_size)
    return;
  start = sector * sector_size;
  for (size_t i = 0; i < NR_HEAD; ++i)
    if (start == head[i])
      return;
  for (size_t i = 0; i < parts->n; ++i)
    if (start == parts->start[i])
      return;
  parts->start[parts->n++] = start;
}

/* Is there a GPT for sectors of this size?  Only entries within the first
 * TABLE_SIZE bytes count, which are all of them in tables of the usual form.
 */
static bool
find_gpt (const uint8_t *table, uint64_t size, unsigned sector_size,
          struct partitions *parts)
{
  static const uint8_t unused[16];
  const uint8_t *header = table + sector_size;
  const uint64_t first = get_le (header + 72, 8);
  const uint64_t entries = get_le (header + 80, 4);
  const uint64_t entry_size = get_le (header + 84, 4);
  uint64_t at;

  if (memcmp (header, "EFI PART", 8) != 0)
    return false;
  if (first > TABLE_SIZE / sector_size || entry_size < 128)
    return true;
  at = first * sector_size;
  for (uint64_t i = 0; i < entries && at + entry_size <= TABLE_SIZE;
       ++i, at += entry_size)
    if (memcmp (table + at, unused, sizeof unused) != 0)
      add_partition (parts, size, get_le (table + at + 32, 8), sector_size);
  return true;
}

#define MBR_SECTOR 512

static bool
has_mbr_signature (const uint8_t *sector)
{
  return sector[510] == 0x55 && sector[511] == 0xaa;
}

static const uint8_t *
mbr_entry (const uint8_t *sector, unsigned i)
{
  return sector + 446 + 16 * i;
}

static uint64_t
mbr_start (const uint8_t *entry)
{
  return get_le (entry + 8, 4);
}

static bool
is_extended (const uint8_t *entry)
{
  return entry[4] == 0x05 || entry[4] == 0x0f || entry[4] == 0x85;
}

/* The logical partitions of an extended one: a chain of sectors, of which each
 * has a partition, relative to itself, and a link, relative to the extended
 * partition.
 */
static int
follow_chain (struct backend *source, uint64_t extended,
              struct partitions *parts)
{
  uint64_t link = extended;

  for (size_t i = 0; i < NR_SPREAD; ++i) {
    uint8_t sector[MBR_SECTOR];
    const uint8_t *partition = mbr_entry (sector, 0);
    const uint8_t *next = mbr_entry (sector, 1);

    if (link > (source->size - MBR_SECTOR) / MBR_SECTOR)
      return 0;
    if (backend_pread (source, sector, sizeof sector,
                       link * MBR_SECTOR) == -1) {
      parts->unknown = true;
      return is_fatal (errno) ? -1 : 0;
    }
    if (!has_mbr_signature (sector))
      return 0;
    if (partition[4] != 0)
      add_partition (parts, source->size, link + mbr_start (partition),
                     MBR_SECTOR);
    if (!is_extended (next))
      return 0;
    link = extended + mbr_start (next);
  }
  return 0;
}

static int
find_mbr (struct backend *source, const uint8_t *table,
          struct partitions *parts)
{
  const uint8_t *extended = NULL;

  for (unsigned i = 0; i < 4; ++i) {
    const uint8_t *entry = mbr_entry (table, i);

    if (is_extended (entry)) {
      if (extended == NULL)
        extended = entry;
    }
    else if (entry[4] != 0)
      add_partition (parts, source->size, mbr_start (entry), MBR_SECTOR);
  }
  return extended ? follow_chain (source, mbr_start (extended), parts) : 0;
}

/* Which partitions are there?  table holds the first samples.  Both kinds of
 * table have the signature of an MBR, so that without it nothing else is
 * needed.  -1 where the peer is lost.
 */
static int
find_partitions (struct backend *source, const struct sample *sample,
                 const uint8_t *table, struct partitions *parts)
{
  memset (parts, 0, sizeof *parts);
  if (source->size <= FINGERPRINT_SAMPLES * SAMPLE_SIZE)
    return 0;
  if (sample[0].readable && !has_mbr_signature (table))
    return 0;
  for (unsigned i = 0; i < TABLE_SIZE / SAMPLE_SIZE; ++i)
    parts->unknown |= !sample[i].readable;
  if (parts->unknown || find_gpt (table, source->size, 512, parts) ||
      find_gpt (table, source->size, 4096, parts))
    return 0;
  return find_mbr (source, table, parts);
}

/* ---- taking and comparing ---- */

/* A source, as far as it can be read. */
struct taken {
  struct sample sample[FINGERPRINT_SAMPLES]; /* as if there was no table */
  struct partitions parts;
  struct sample start[NR_SPREAD];            /* of the partitions */
};

static int
take (struct backend *source, struct taken *t)
{
  CLEANUP_FREE uint8_t *buf = malloc (FINGERPRINT_SAMPLES * SAMPLE_SIZE);

  if (buf == NULL)
    return -1;
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    place_sample (source->size, i, &t->sample[i]);
  if (read_samples (source, t->sample, FINGERPRINT_SAMPLES, buf) == -1 ||
      find_partitions (source, t->sample, buf, &t->parts) == -1)
    return -1;

  /* Half a table would place the samples otherwise than the whole one. */
  if (t->parts.unknown)
    t->parts.n = 0;
  for (size_t i = 0; i < t->parts.n; ++i)
    t->start[i] = (struct sample){
      .offset = t->parts.start[i], .count = SAMPLE_SIZE
    };
  return read_samples (source, t->start, t->parts.n, buf);
}

/* Sample i, with the partitions' starts or without. */
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

  if (take (source, &t) == -1)
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

/* As fingerprint_check, but what differs is a sample's number. */
static int
compare (const struct taken *t, const struct fingerprint *stored,
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
    /* Perhaps it was another place, which the table does not tell now. */
    else if (!t->parts.unknown || i < NR_HEAD || i == LAST) {
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

  if (take (source, &t) == -1)
    return -1;
  r = compare (&t, stored, true, &i);
  if (r != 0 && t.parts.n > 0) {
    without = compare (&t, stored, false, &i_without);
    /* To differ it must differ from both. */
    if (without != 1)
      r = without;
    /* The stored one is probably of the kind that agrees longer. */
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
