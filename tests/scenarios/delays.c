/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The test points of a plugin: whoever comes to one sleeps there, for as long
 * as chance says and CLONE_TEST_DELAY microseconds at most.  How often each was
 * reached is appended to the file CLONE_TEST_COUNTS when the plugin is
 * unloaded.
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "test-point.h"

static atomic_uint counts[NR_TEST_POINTS];
static unsigned max_delay; /* microseconds */

__attribute__ ((constructor)) static void
get_delay (void)
{
  const char *delay = getenv ("CLONE_TEST_DELAY");

  max_delay = delay ? strtoul (delay, NULL, 10) : 0;
}

void
test_point (enum test_point point)
{
  static atomic_uint dice = 1;
  const int err = errno;
  /* A linear congruential generator: the high bits are good enough. */
  const unsigned random = atomic_fetch_add (&dice, 2654435761u) >> 8;

  counts[point]++;
  if (max_delay)
    usleep (random % max_delay);
  errno = err;
}

__attribute__ ((destructor)) static void
write_counts (void)
{
#define POINT_NAME(point, name) name,
  static const char *const names[] = { TEST_POINTS (POINT_NAME) };
  const char *path = getenv ("CLONE_TEST_COUNTS");
  FILE *f = path ? fopen (path, "a") : NULL;

  if (f == NULL)
    return;
  for (unsigned i = 0; i < NR_TEST_POINTS; ++i)
    fprintf (f, "%s %u\n", names[i], counts[i]);
  fclose (f);
}
