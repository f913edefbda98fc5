/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the commands of nbdclone(1) have in common.
 *
 * A command gets its own name as argv[0], then options and operands, and
 * returns the exit status.  Its output goes to stdout, its messages to
 * tool_log.
 */

#ifndef CLONE_NBDCLONE_H
#define CLONE_NBDCLONE_H

#include <getopt.h>

#include "base/log.h"

/* Exit statuses of the commands for metadata. */
#define EXIT_CLEAN 0      /* nothing to do */
#define EXIT_DAMAGED 1    /* repair can make a valid store of it */
#define EXIT_UNREPAIRABLE 2
#define EXIT_TROUBLE 3    /* usage or I/O error: the store may be clean */

/* Exit statuses of the commands for running clones. */
#define EXIT_DONE 0
#define EXIT_REFUSED 1     /* the clone refuses the request, or has failed */
#define EXIT_USAGE 2
#define EXIT_TIMEOUT 3     /* the time of --timeout is over */
#define EXIT_UNREACHABLE 4 /* no connection, no answer, no access, no clone */

/* Prints each message as a line on stderr that begins with "nbdclone: ". */
extern const struct log tool_log;

/* getopt_long for a command.  If an argument is wrong, log that and return '?'.
 */
extern int next_option (int argc, char *argv[], const struct option *options);

/* Are there n operands from argv[optind] on?  If not, log the usage. */
extern bool has_operands (int argc, char *argv[], int n, const char *usage);

/* End the program, for the commands for running clones. */
extern void out_of_memory (void) __attribute__ ((noreturn));

extern int check_main (int argc, char *argv[]);
extern int dump_main (int argc, char *argv[]);
extern int repair_main (int argc, char *argv[]);
extern int status_main (int argc, char *argv[]);
extern int watch_main (int argc, char *argv[]);
extern int wait_main (int argc, char *argv[]);
extern int map_main (int argc, char *argv[]);
extern int pause_main (int argc, char *argv[]);
extern int resume_main (int argc, char *argv[]);
extern int stop_main (int argc, char *argv[]);
extern int set_main (int argc, char *argv[]);

#endif /* CLONE_NBDCLONE_H */
