/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* CRC32C (Castagnoli), as in RFC 3720: initial value and final XOR of all
 * ones.  Pass 0 to begin, or the result of what came before to go on.  The
 * work is done by ISA-L, which chooses the processor's fastest way.
 */

#ifndef CLONE_CRC32C_H
#define CLONE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#include <isa-l/crc.h>

static inline uint32_t
crc32c (uint32_t crc, const void *buf, size_t len)
{
  /* ISA-L takes an int and a pointer to non-const bytes that it only reads.
   * Our buffers are sectors and samples, far below INT_MAX.
   */
  return ~crc32_iscsi ((unsigned char *)buf, (int)len, ~crc);
}

#endif /* CLONE_CRC32C_H */
