/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The content of a sector of 512 bytes, which shows where it comes from.
 *
 * The sectors of the source, and of each write of a client, are filled with a
 * pattern of a number, the value, and of the sector's place.  So a sector that
 * is read says which write it comes from; one that is torn inside, or that lies
 * in the wrong place, or that was in the destination before the clone, is
 * garbage.
 */

#ifndef CRASH_VALUE_H
#define CRASH_VALUE_H

#include <stdint.h>

#define SECTOR 512

typedef uint32_t value_t;

#define VALUE_ZERO 0
#define VALUE_SOURCE 1
#define VALUE_FIRST_WRITE 2 /* each write has the next */
#define VALUE_GARBAGE UINT32_MAX

extern void value_fill (uint8_t buf[SECTOR], value_t value, uint64_t sector);
extern value_t value_of (const uint8_t buf[SECTOR], uint64_t sector);

/* n sectors that begin at `first'. */
extern void values_fill (uint8_t *buf, value_t value, uint64_t first,
                         uint64_t n);
extern void values_of (const uint8_t *buf, value_t *values, uint64_t first,
                       uint64_t n);

/* For messages; valid until the fourth call from now. */
extern const char *value_name (value_t value);

#endif /* CRASH_VALUE_H */
