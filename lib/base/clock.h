/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The monotonic clock, which setting the time of day does not change, and
 * condition variables that use it.
 */

#ifndef CLONE_CLOCK_H
#define CLONE_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* Seconds since an arbitrary moment. */
static inline double
monotonic_seconds (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Milliseconds by this clock; 0 if it does not exist. */
static inline int64_t
clock_ms (clockid_t clock)
{
  struct timespec ts = { 0 };

  clock_gettime (clock, &ts);
  return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Milliseconds since an arbitrary moment. */
static inline int64_t
monotonic_ms (void)
{
  return clock_ms (CLOCK_MONOTONIC);
}

/* The time `seconds' from now, for pthread_cond_timedwait. */
static inline struct timespec
monotonic_after (double seconds)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += (time_t)seconds;
  ts.tv_nsec += (long)((seconds - (time_t)seconds) * 1e9);
  if (ts.tv_nsec >= 1000000000) {
    ts.tv_sec++;
    ts.tv_nsec -= 1000000000;
  }
  return ts;
}

static inline void
cond_init_monotonic (pthread_cond_t *cond)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (cond, &attr);
  pthread_condattr_destroy (&attr);
}

#endif /* CLONE_CLOCK_H */
