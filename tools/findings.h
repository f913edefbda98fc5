/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What is wrong with a store, as lines on stdout.
 *
 * Each begins with the store's name, and says which part it is of, at which
 * offset, and which regions and bytes of the disk that concerns.  Neighbours
 * with the same fault make one line.
 */

#ifndef CLONE_FINDINGS_H
#define CLONE_FINDINGS_H

#include <stdbool.h>

#include "store.h"

/* Examine the store and print all findings; no more than 100 lines about bitmap
 * sectors, and how many more there are, unless all is true.  -1 on a read
 * error, which is logged.
 */
extern int findings_print (struct store *store, bool all);

/* Print what is unusual and does no harm.  -1 as before. */
extern int findings_print_notes (const struct store *store);

#endif /* CLONE_FINDINGS_H */
