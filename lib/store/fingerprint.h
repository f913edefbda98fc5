/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The fingerprint of a source: what tells one disk from another without
 * reading all of it.
 *
 * It is the CRC32C of each of FINGERPRINT_SAMPLES samples.  A disk of at most
 * FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_SIZE bytes is covered completely.
 * On a larger one the samples lie where disks keep what identifies them:
 *
 *   0 to 5    the partition table, and the superblocks of a partition that
 *             begins at 1 MiB
 *   6 to 30   the first 4096 bytes of each partition, in the table's order.
 *             The samples that are left over, all 25 without a table, are
 *             spread evenly
 *   31        the last 4096 bytes: the backup of a GPT
 *
 * nbdclone-metadata(5) has the offsets, and says exactly which partitions
 * count.  The fingerprints in metadata of version 1 know nothing of partitions:
 * all samples are those of a disk without a table.  fingerprint_check accepts
 * them, too.
 *
 * A CRC of 0 stands for a sample that could not be read when the fingerprint
 * was taken.  (Of the samples that can be read one in 2^32 has this CRC.  It is
 * not compared either.)
 *
 * It protects against mistakes, not against an attacker, and two disks that
 * differ between the samples look the same.
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

/* Read the samples and fill in fp.  Samples that cannot be read are left out,
 * up to half of them.  -1 with errno as backend_pread where more cannot be
 * read, and at once with ENOTCONN where the peer is lost.
 */
extern int fingerprint_take (struct backend *source, struct fingerprint *fp);

/* Is this the source whose fingerprint is stored?  Its size has been compared
 * by the caller.
 *
 * 0: it is.  All samples that can be read agree with the stored ones, and these
 * are at least half of those that were stored.
 * 1: it is not.  *why says where, for example "differs from what it was in
 * bytes 4096..8191": a text to be freed.
 * -1 with errno: not known now.  Too little can be read (EIO), the peer is lost
 * (ENOTCONN, at once), or there is no memory (ENOMEM).
 */
extern int fingerprint_check (struct backend *source,
                              const struct fingerprint *stored, char **why);

#endif /* CLONE_FINGERPRINT_H */
