/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The fingerprint of a source: it tells one disk from another without reading
 * all of it.
 *
 * A fingerprint is the CRC32C of each of FINGERPRINT_SAMPLES samples.  They
 * cover a disk of at most FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_SIZE bytes
 * completely.  On a larger disk they lie where disks keep what identifies them:
 *
 *   0 to 5    the partition table, and the superblocks of a partition that
 *             begins at 1 MiB
 *   6 to 30   the first 4096 bytes of each partition, in the table's order; the
 *             remaining samples, all 25 without a table, are spread evenly
 *   31        the last 4096 bytes: the backup of a GPT
 *
 * nbdclone-metadata(5) has the offsets, and says exactly which partitions
 * count. Fingerprints in metadata of version 1 take no account of partitions:
 * all their samples are those of a disk without a table.  fingerprint_check
 * accepts these, too.
 *
 * A CRC of 0 stands for a sample that was unreadable when the fingerprint was
 * taken.  (One in 2^32 readable samples has this CRC, and is not compared
 * either.)
 *
 * A fingerprint protects against mistakes, not against an attacker.  Two disks
 * that differ only between the samples have the same fingerprint.
 */

#ifndef CLONE_FINGERPRINT_H
#define CLONE_FINGERPRINT_H

#include <stdint.h>

#include "backend/backend.h"

#define FINGERPRINT_SAMPLES 32
#define FINGERPRINT_SAMPLE_SIZE 4096

struct fingerprint {
  uint32_t crc[FINGERPRINT_SAMPLES];
};

/* Read the samples and fill in fp.  At least half of them must be readable.  -1
 * with errno as backend_pread if fewer are, and at once with ENOTCONN if the
 * peer is lost.
 */
extern int fingerprint_take (struct backend *source, struct fingerprint *fp);

/* Is this the source of the stored fingerprint?  The caller has compared its
 * size.
 *
 * 0: yes.  All readable samples agree with the stored ones, and they are at
 * least half of the stored ones.
 * 1: no.  *why says where it differs, for example "differs from what it was in
 * bytes 4096..8191".  The caller frees it.
 * -1 with errno: unknown.  Too few samples are readable (EIO), the peer is lost
 * (ENOTCONN, at once), or there is no memory (ENOMEM).
 */
extern int fingerprint_check (struct backend *source,
                              const struct fingerprint *stored, char **why);

#endif /* CLONE_FINGERPRINT_H */
