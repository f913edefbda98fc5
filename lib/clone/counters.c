/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <sched.h>
#include <stddef.h>
#include <time.h>

#include "clone/counters.h"

#define US UINT64_C (1000)
#define MS (1000 * US)

const uint64_t counters_bound[COUNTERS_BOUNDS] = {
  10 * US, 25 * US, 50 * US, 100 * US, 250 * US, 500 * US,
  1 * MS, 2500 * US, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS,
  500 * MS, 1000 * MS, 2500 * MS, 5000 * MS, 10000 * MS,
};

static inline void
counters_add (uint64_t *counter, uint64_t n)
{
  __atomic_fetch_add (counter, n, __ATOMIC_RELAXED);
}

/* Any copy is right, even if the thread moves to another processor now. */
static inline struct counts *
counters_here (struct counters *c)
{
  return &c->stripe[(unsigned)sched_getcpu () % COUNTERS_STRIPES].counts;
}

uint64_t
counters_begin (const struct counters *c)
{
  struct timespec ts;

  if (!c->timed)
    return 0;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000 * MS + ts.tv_nsec;
}

void
counters_end (struct counters *c, enum counted_request request,
              enum counted_sides sides, bool hydrated, uint64_t begin)
{
  const uint64_t took = counters_begin (c) - begin;
  struct counts *counts = counters_here (c);
  struct counted_times *times =
    &counts->times[request == COUNTED_WRITE][hydrated];
  unsigned i = 0;

  counters_add (&counts->requests[request][sides], 1);
  if (!c->timed)
    return;
  while (i < COUNTERS_BOUNDS && took > counters_bound[i])
    i++;
  counters_add (&times->bucket[i], 1);
  counters_add (&times->nanoseconds, took);
}

void
counters_count (struct counters *c, enum counted_request request,
                enum counted_sides sides)
{
  counters_add (&counters_here (c)->requests[request][sides], 1);
}

void
counters_source_read (struct counters *c, enum counted_reader reader,
                      uint64_t bytes)
{
  counters_add (&counters_here (c)->source_bytes[reader], bytes);
}

void
counters_sum (const struct counters *c, struct counts *sum)
{
  uint64_t *to = (uint64_t *)sum;

  *sum = (struct counts){ 0 };
  for (unsigned s = 0; s < COUNTERS_STRIPES; ++s) {
    const uint64_t *from = (const uint64_t *)&c->stripe[s].counts;

    for (size_t i = 0; i < sizeof *sum / sizeof *to; ++i)
      to[i] += __atomic_load_n (&from[i], __ATOMIC_RELAXED);
  }
}
