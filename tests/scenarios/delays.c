/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The test points of a plugin.  A thread that reaches one sleeps there for a
 * random time, of at most CLONE_TEST_DELAY microseconds.  When the plugin is
 * unloaded, the number of times that each point was reached is appended to the
 * file CLONE_TEST_COUNTS.  With CLONE_TEST_KILL=POINT:N the process kills
 * itself when this point is reached for the Nth time.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/test-point.h"

static atomic_uint counts[NR_TEST_POINTS];
static unsigned max_delay; /* microseconds */
static unsigned fatal[NR_TEST_POINTS]; /* this pass kills, 0: none does */

#define POINT_NAME(point, name) name,
static const char *const names[] = { TEST_POINTS (POINT_NAME) };

__attribute__ ((constructor)) static void
get_environment (void)
{
  const char *delay = getenv ("CLONE_TEST_DELAY");
  const char *last = getenv ("CLONE_TEST_KILL");
  const char *n = last ? strchr (last, ':') : NULL;

  max_delay = delay ? strtoul (delay, NULL, 10) : 0;
  for (unsigned i = 0; n && i < NR_TEST_POINTS; ++i)
    if (strlen (names[i]) == (size_t)(n - last) &&
        strncmp (names[i], last, n - last) == 0)
      fatal[i] = strtoul (n + 1, NULL, 10);
}

void
test_point (enum test_point point)
{
  static atomic_uint dice = 1;
  const int err = errno;
  /* A linear congruential generator: the high bits are good enough. */
  const unsigned random = atomic_fetch_add (&dice, 2654435761u) >> 8;

  if (++counts[point] == fatal[point])
    kill (getpid (), SIGKILL);
  if (max_delay)
    usleep (random % max_delay);
  errno = err;
}

__attribute__ ((destructor)) static void
write_counts (void)
{
  const char *path = getenv ("CLONE_TEST_COUNTS");
  FILE *f = path ? fopen (path, "a") : NULL;

  if (f == NULL)
    return;
  for (unsigned i = 0; i < NR_TEST_POINTS; ++i)
    fprintf (f, "%s %u\n", names[i], counts[i]);
  fclose (f);
}
