/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which values a sector may have, by what clients were told (I7).  The rules
 * are in lab.c.
 */

#ifndef CRASH_ORACLE_H
#define CRASH_ORACLE_H

#include <stdbool.h>
#include <stdint.h>

#include "history.h"

struct oracle;

extern struct oracle *oracle_new (const struct history *h);
extern void oracle_free (struct oracle *o);

/* From now on answer for a cut just after this tick. */
extern void oracle_set_cut (struct oracle *o, uint64_t cut);
extern bool oracle_allows (const struct oracle *o, uint64_t sector,
                           value_t value);

/* Print the values that are allowed. */
extern void oracle_print (const struct oracle *o, uint64_t sector);

/* Was each read right while it ran?  The first that was not, and the sector, or
 * NULL.
 */
extern const struct event *oracle_check_reads (struct oracle *o,
                                               uint64_t *sector);

#endif /* CRASH_ORACLE_H */
