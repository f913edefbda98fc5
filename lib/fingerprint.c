/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cleanup.h"
#include "crc32c.h"
#include "fingerprint.h"
#include "rounding.h"

/* Offsets of the first samples: MBR and primary GPT, then the places of the
 * superblocks of a partition that begins at 1 MiB (ext4, XFS and NTFS at its
 * start, btrfs 64 KiB into it).
 */
static const uint64_t head[] = {
  0, 4096, 8192, 12288, 1048576, 1048576 + 65536
};
#define NR_HEAD (sizeof head / sizeof head[0])

void
fingerprint_sample (uint64_t size, unsigned i, uint64_t *offset,
                    uint32_t *count)
{
  const uint64_t all = FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_SIZE;

  if (size <= all) {
    *offset = size * i / FINGERPRINT_SAMPLES;
    *count = size * (i + 1) / FINGERPRINT_SAMPLES - *offset;
    return;
  }

  *count = FINGERPRINT_SAMPLE_SIZE;
  if (i < NR_HEAD && head[i] <= size - *count)
    *offset = head[i];
  else if (i == FINGERPRINT_SAMPLES - 1)
    *offset = size - *count; /* the backup GPT header */
  else
    *offset = round_down (size / FINGERPRINT_SAMPLES * i, *count);
}

int
fingerprint_take (struct backend *source, struct fingerprint *fp)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct segment seg[FINGERPRINT_SAMPLES];
  size_t n = 0;

  buf = malloc (FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_SIZE);
  if (buf == NULL)
    return -1;

  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i) {
    uint64_t offset;
    uint32_t count;

    fingerprint_sample (source->size, i, &offset, &count);
    if (count > 0)
      seg[n++] = (struct segment){
        .buf = buf + i * FINGERPRINT_SAMPLE_SIZE,
        .count = count, .offset = offset
      };
  }
  if (backend_preadv (source, seg, n) == -1)
    return -1;

  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i) {
    uint64_t offset;
    uint32_t count;

    fingerprint_sample (source->size, i, &offset, &count);
    fp->crc[i] = crc32c (0, buf + i * FINGERPRINT_SAMPLE_SIZE, count);
  }
  return 0;
}

int
fingerprint_compare (const struct fingerprint *a, const struct fingerprint *b)
{
  for (int i = 0; i < FINGERPRINT_SAMPLES; ++i)
    if (a->crc[i] != b->crc[i])
      return i;
  return -1;
}

int
fingerprint_check (struct backend *source, const struct fingerprint *stored,
                   char **why)
{
  struct fingerprint fp;
  uint64_t offset;
  uint32_t count;
  int i;

  if (fingerprint_take (source, &fp) == -1)
    return -1;
  i = fingerprint_compare (&fp, stored);
  if (i == -1)
    return 0;
  fingerprint_sample (source->size, i, &offset, &count);
  if (asprintf (why, "differs from what it was in bytes %" PRIu64 "..%" PRIu64,
                offset, offset + count - 1) == -1)
    return -1;
  return 1;
}
