/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* CRC32C (Castagnoli), as in RFC 3720: initial value and final XOR are all
 * ones.  Pass 0 for the first piece of data, and for each further piece the
 * result so far.  ISA-L computes it, with the processor's fastest
 * instructions.
 */

#ifndef CLONE_CRC32C_H
#define CLONE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

#include <isa-l/crc.h>

static inline uint32_t
crc32c (uint32_t crc, const void *buf, size_t len)
{
  /* ISA-L's buffer is not const, but is only read.  Its length is an int: our
   * buffers are sectors and samples, far shorter than INT_MAX.
   */
  return ~crc32_iscsi ((unsigned char *)buf, (int)len, ~crc);
}

#endif /* CLONE_CRC32C_H */
