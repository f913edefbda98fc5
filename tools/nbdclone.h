/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the commands of nbdclone(1) have in common.
 *
 * A command gets its own name as argv[0], then options and operands, and
 * returns the exit status.  What it was asked for goes to stdout, anything else
 * to stderr, by tool_log.
 */

#ifndef CLONE_NBDCLONE_H
#define CLONE_NBDCLONE_H

#include <getopt.h>

#include "base/log.h"

/* Exit statuses: of a store, what is to be done about it. */
#define EXIT_CLEAN 0
#define EXIT_DAMAGED 1 /* repair can make a valid store of it */
#define EXIT_LOST 2    /* not repairable */
#define EXIT_TROUBLE 3 /* usage or I/O error: it says nothing of the store */

/* Errors and news, each a line on stderr that begins with "nbdclone: ". */
extern const struct log tool_log;

/* getopt_long for a command.  What is wrong with the arguments is logged, and
 * the result is '?'.
 */
extern int next_option (int argc, char *argv[], const struct option *options);

/* Are there n operands from argv[optind] on?  If not, log what is expected. */
extern bool has_operands (int argc, char *argv[], int n, const char *usage);

extern int check_main (int argc, char *argv[]);
extern int dump_main (int argc, char *argv[]);
extern int repair_main (int argc, char *argv[]);

#endif /* CLONE_NBDCLONE_H */
