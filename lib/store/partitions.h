/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where the partitions of a disk begin, for its fingerprint: MBR with logical
 * partitions, and GPT.  nbdclone-metadata(5) says exactly which partitions
 * count.
 *
 * The table comes from the disk, and may say anything.  Whatever it says, at
 * most PARTITIONS_MAX sectors of a chain of logical partitions are read, and
 * each start is within the disk.
 */

#ifndef CLONE_PARTITIONS_H
#define CLONE_PARTITIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"

#define PARTITIONS_MAX 25

/* Tables lie in the first PARTITIONS_TABLE_SIZE bytes of the disk. */
#define PARTITIONS_TABLE_SIZE 16384

struct partitions {
  uint64_t start[PARTITIONS_MAX]; /* bytes, in the table's order */
  size_t n;
};

/* Can these first bytes of a disk hold a partition table?  Only the first 512
 * are looked at.
 */
extern bool partitions_has_table (const uint8_t *table);

/* Find the partitions.  table is the first PARTITIONS_TABLE_SIZE bytes of the
 * disk, for which partitions_has_table is true.  Partitions that begin at one
 * of the nr_known offsets, or in the disk's last min_size bytes, are left out,
 * and each start is found once.  -1 with errno as backend_pread; the partitions
 * that were found before are in parts.
 */
extern int partitions_find (struct backend *disk, const uint8_t *table,
                            const uint64_t *known, size_t nr_known,
                            uint64_t min_size, struct partitions *parts);

#endif /* CLONE_PARTITIONS_H */
