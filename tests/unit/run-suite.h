/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The end of main of every unit test, and how a test knows the tool that it
 * runs under.
 */

#ifndef UNIT_RUN_SUITE_H
#define UNIT_RUN_SUITE_H

#include <stdbool.h>
#include <stdlib.h>

#include <check.h>

/* Does the test run under a tool (see tests/under)?  Tools make everything
 * slow: a test then tries a part of what it tries without one.
 */
static inline bool
is_under_tool (void)
{
  const char *tool = getenv ("CLONE_TOOL");

  return tool && *tool;
}

/* Is it the long run, `tests/run --all'?  In any other run a test prints what
 * it leaves out, on a line of standard output that begins with "left to --all:
 * ".
 */
static inline bool
is_all (void)
{
  const char *all = getenv ("CLONE_ALL");

  return all && *all;
}

/* Run the suite, free it, and return the exit status. */
static inline int
run_suite (Suite *suite)
{
  SRunner *runner = srunner_create (suite);
  int failed;

  srunner_run_all (runner, CK_ENV);
  failed = srunner_ntests_failed (runner);
  srunner_free (runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif /* UNIT_RUN_SUITE_H */
