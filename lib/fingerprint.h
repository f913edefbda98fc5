/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The fingerprint of a source: what tells one disk from another without
 * reading all of it.
 *
 * It is the CRC32C of each of FINGERPRINT_SAMPLES samples, at offsets that
 * follow from the disk's size alone.  The first samples lie where disks keep
 * what identifies them (partition tables, superblocks of the first partition,
 * the backup partition table at the end), the others are spread evenly.  A
 * disk of at most FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_SIZE bytes is
 * covered completely.
 *
 * It protects against mistakes, not against an attacker, and two disks that
 * differ between the samples look the same.
 */

#ifndef CLONE_FINGERPRINT_H
#define CLONE_FINGERPRINT_H

#include <stdint.h>

#include "backend.h"

#define FINGERPRINT_SAMPLES 32
#define FINGERPRINT_SAMPLE_SIZE 4096

struct fingerprint {
  uint32_t crc[FINGERPRINT_SAMPLES];
};

/* Where sample i lies on a disk of size bytes, and how long it is (0 only on
 * disks with fewer bytes than samples).
 */
extern void fingerprint_sample (uint64_t size, unsigned i, uint64_t *offset,
                                uint32_t *count);

/* Read the samples, all in one round trip.  -1 with errno as backend_pread. */
extern int fingerprint_take (struct backend *source, struct fingerprint *fp);

/* The first sample that differs, or -1 where all are equal. */
extern int fingerprint_compare (const struct fingerprint *a,
                                const struct fingerprint *b);

/* Has the source this fingerprint?  0 yes; 1 no, and *why is a text, to be
 * freed, that says what differs; -1 with errno set: not known now.
 */
extern int fingerprint_check (struct backend *source,
                              const struct fingerprint *stored, char **why);

#endif /* CLONE_FINGERPRINT_H */
