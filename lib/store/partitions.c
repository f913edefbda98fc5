/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "store/partitions.h"

#define MBR_SECTOR 512

/* A search for partitions. */
struct search {
  struct backend *disk;
  const uint64_t *known;
  size_t nr_known;
  uint64_t min_size;
  struct partitions *found;
};

static uint64_t
get_le (const uint8_t *p, unsigned bytes)
{
  uint64_t v = 0;

  while (bytes > 0)
    v = v << 8 | p[--bytes];
  return v;
}

static bool
partitions_contain (const uint64_t *offsets, size_t n, uint64_t offset)
{
  for (size_t i = 0; i < n; ++i)
    if (offsets[i] == offset)
      return true;
  return false;
}

/* Add a partition that begins with this sector. */
static void
add_partition (const struct search *s, uint64_t sector, unsigned sector_size)
{
  struct partitions *found = s->found;
  uint64_t start;

  if (found->n == PARTITIONS_MAX ||
      sector > (s->disk->size - s->min_size) / sector_size)
    return;
  start = sector * sector_size;
  if (!partitions_contain (s->known, s->nr_known, start) &&
      !partitions_contain (found->start, found->n, start))
    found->start[found->n++] = start;
}

/* ---- GPT ---- */

/* Is there a GPT for sectors of this size?  Then add its partitions.  Only
 * entries within PARTITIONS_TABLE_SIZE count; these are all entries of a table
 * of the usual form.
 */
static bool
find_gpt (const struct search *s, const uint8_t *table, unsigned sector_size)
{
  static const uint8_t unused[16];
  const uint8_t *header = table + sector_size;
  const uint64_t first = get_le (header + 72, 8);
  const uint64_t entries = get_le (header + 80, 4);
  const uint64_t entry_size = get_le (header + 84, 4);
  uint64_t at;

  if (memcmp (header, "EFI PART", 8) != 0)
    return false;
  if (first > PARTITIONS_TABLE_SIZE / sector_size || entry_size < 128)
    return true;
  at = first * sector_size;
  for (uint64_t i = 0;
       i < entries && at + entry_size <= PARTITIONS_TABLE_SIZE;
       ++i, at += entry_size)
    if (memcmp (table + at, unused, sizeof unused) != 0)
      add_partition (s, get_le (table + at + 32, 8), sector_size);
  return true;
}

/* ---- MBR ---- */

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

/* Add the logical partitions of an extended one.  They are a chain of sectors.
 * Each has a partition, relative to that sector, and a link to the next,
 * relative to the extended partition.
 */
static int
follow_chain (const struct search *s, uint64_t extended)
{
  uint64_t link = extended;

  for (size_t i = 0; i < PARTITIONS_MAX; ++i) {
    uint8_t sector[MBR_SECTOR];
    const uint8_t *partition = mbr_entry (sector, 0);
    const uint8_t *next = mbr_entry (sector, 1);

    if (link > (s->disk->size - MBR_SECTOR) / MBR_SECTOR)
      return 0;
    if (backend_pread (s->disk, sector, sizeof sector,
                       link * MBR_SECTOR) == -1)
      return -1;
    if (!partitions_has_table (sector))
      return 0;
    if (partition[4] != 0)
      add_partition (s, link + mbr_start (partition), MBR_SECTOR);
    if (!is_extended (next))
      return 0;
    link = extended + mbr_start (next);
  }
  return 0;
}

static int
find_mbr (const struct search *s, const uint8_t *table)
{
  const uint8_t *extended = NULL;

  for (unsigned i = 0; i < 4; ++i) {
    const uint8_t *entry = mbr_entry (table, i);

    if (is_extended (entry)) {
      if (extended == NULL)
        extended = entry;
    }
    else if (entry[4] != 0)
      add_partition (s, mbr_start (entry), MBR_SECTOR);
  }
  return extended ? follow_chain (s, mbr_start (extended)) : 0;
}

/* ---- both ---- */

/* A disk with a GPT has the signature of an MBR, too. */
bool
partitions_has_table (const uint8_t *table)
{
  return table[510] == 0x55 && table[511] == 0xaa;
}

int
partitions_find (struct backend *disk, const uint8_t *table,
                 const uint64_t *known, size_t nr_known, uint64_t min_size,
                 struct partitions *parts)
{
  const struct search s = { disk, known, nr_known, min_size, parts };

  parts->n = 0;
  if (find_gpt (&s, table, 512) || find_gpt (&s, table, 4096))
    return 0;
  return find_mbr (&s, table);
}
