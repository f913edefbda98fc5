/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Prints what is wrong with a store, as lines on stdout.
 *
 * Each line has the store's name, the damaged part and its offset, and the
 * affected regions and bytes of the disk.  Adjacent sectors with the same fault
 * share a line.
 */

#ifndef CLONE_FINDINGS_H
#define CLONE_FINDINGS_H

#include <stdbool.h>

#include "store.h"

/* Examine the store and print all findings.  Unless `all' is true, print at
 * most 100 lines about bitmap sectors, and the number of those left out.  -1 on
 * a read error, which is logged.
 */
extern int findings_print (struct store *store, bool all);

/* Print notes on what is unusual and harmless.  -1 as before. */
extern int findings_print_notes (const struct store *store);

#endif /* CLONE_FINDINGS_H */
