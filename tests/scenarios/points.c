/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "mock-backend.h"
#include "points.h"

#define POINT_NAME(point, name) name,
static const char *const names[] = { TEST_POINTS (POINT_NAME) };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct {
  unsigned count;    /* threads that reached it, ever */
  unsigned to_hold;  /* how many of the next threads are to be held */
  unsigned held;     /* threads that are held now */
  unsigned let_go;   /* calls of let_go */
} points[NR_TEST_POINTS];

void
test_point (enum test_point point)
{
  const int err = errno;
  LOCK_FOR_SCOPE (&lock);

  points[point].count++;
  if (points[point].to_hold > 0) {
    const unsigned let_go = points[point].let_go;

    points[point].to_hold--;
    points[point].held++;
    pthread_cond_broadcast (&changed);
    while (points[point].let_go == let_go)
      pthread_cond_wait (&changed, &lock);
    points[point].held--;
  }
  errno = err;
}

void
points_reset (void)
{
  for (unsigned i = 0; i < NR_TEST_POINTS; ++i)
    points_let_go (i);
  LOCK_FOR_SCOPE (&lock);
  for (unsigned i = 0; i < NR_TEST_POINTS; ++i)
    points[i].count = 0;
}

unsigned
points_count (enum test_point point)
{
  LOCK_FOR_SCOPE (&lock);

  return points[point].count;
}

void
points_hold (enum test_point point, unsigned n)
{
  LOCK_FOR_SCOPE (&lock);

  points[point].to_hold += n;
}

unsigned
points_held (enum test_point point)
{
  LOCK_FOR_SCOPE (&lock);

  return points[point].held;
}

void
points_wait (enum test_point point, unsigned n)
{
  struct timespec until;
  LOCK_FOR_SCOPE (&lock);

  clock_gettime (CLOCK_REALTIME, &until);
  until.tv_sec += mock_patience ();
  while (points[point].held < n)
    if (pthread_cond_timedwait (&changed, &lock, &until) == ETIMEDOUT) {
      fprintf (stderr, "only %u of %u threads came to the test point %s\n",
               points[point].held, n, names[point]);
      abort ();
    }
}

static void
let_go (enum test_point point, unsigned to_hold)
{
  LOCK_FOR_SCOPE (&lock);

  points[point].to_hold = to_hold;
  points[point].let_go++;
  pthread_cond_broadcast (&changed);
}

void
points_step (enum test_point point)
{
  let_go (point, 1);
}

void
points_let_go (enum test_point point)
{
  let_go (point, 0);
}
