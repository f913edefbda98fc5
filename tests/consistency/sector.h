/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The content of a sector of 512 bytes, which shows which request wrote it.
 *
 * A write fills each of its sectors with words of 64 bits: a magic number, the
 * run of the tester, the sector's number, the write's number, its connection,
 * and 59 more, each a hash of these and of its place.  So a sector that was
 * read shows which write it comes from.  A sector that is torn, lies in the
 * wrong place, or comes from another run, is recognised.
 *
 * A value stands for the content of a sector.
 */

#ifndef CONSISTENCY_SECTOR_H
#define CONSISTENCY_SECTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define SECTOR 512

typedef uint64_t value_t;

#define VALUE_ZERO 0               /* zeroes, whichever request wrote them */
#define VALUE_INITIAL 1            /* the initial content, if not zeroes */
#define VALUE_OTHER UINT64_MAX     /* none of these */
#define VALUE_NONE (UINT64_MAX - 1) /* not known */

#define MAX_CONNECTIONS 1024

/* The value of a connection's write; numbers begin at 1, and are not used
 * twice.
 */
static inline value_t
value_of_write (unsigned connection, uint64_t number)
{
  return number * MAX_CONNECTIONS + connection;
}

static inline bool
value_is_write (value_t v)
{
  return v >= MAX_CONNECTIONS && v < VALUE_NONE;
}

/* The content of a sector, for a value that is a write or VALUE_ZERO. */
extern void sector_fill (uint8_t buf[SECTOR], uint64_t run, uint64_t sector,
                         value_t value);

/* The value of a content.  initial is the sector's first content. */
extern value_t sector_value (const uint8_t buf[SECTOR], uint64_t run,
                             uint64_t sector, const uint8_t *initial);

/* Is each byte of buf that of one of these values, which may be
 * VALUE_INITIAL, too?
 */
extern bool sector_is_mixture (const uint8_t buf[SECTOR], uint64_t run,
                               uint64_t sector, const uint8_t *initial,
                               const value_t *values, size_t n);

/* Print a value as "write 3.17", the seventeenth write of connection 3. */
extern void value_print (FILE *fp, value_t value);

/* Print what can be said of a content whose value is VALUE_OTHER; and all of
 * it, which wants lines of its own.
 */
extern void sector_print_other (FILE *fp, const uint8_t buf[SECTOR],
                                uint64_t run, uint64_t sector);
extern void sector_dump (FILE *fp, const uint8_t buf[SECTOR]);

#endif /* CONSISTENCY_SECTOR_H */
