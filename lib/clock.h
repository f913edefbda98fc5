/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A clock that never goes back, whoever sets the time of day. */

#ifndef CLONE_CLOCK_H
#define CLONE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Seconds, and milliseconds, since some moment. */
static inline double
monotonic_seconds (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

static inline int64_t
monotonic_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

#endif /* CLONE_CLOCK_H */
