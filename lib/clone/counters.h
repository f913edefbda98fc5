/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the clone has done since the start, in numbers: clients' requests, how
 * long their reads and writes took, and bytes that were read from the source.
 *
 * Counting must cost a request next to nothing.  So there are several copies of
 * all counters, each on cache lines of its own.  A thread uses the copy of the
 * processor that it runs on, and a look adds all copies up.  A look is not a
 * snapshot: of two things that happen during the look, it may see only the
 * second one.
 *
 * Any thread may call any of these functions.  They wait for nothing, and
 * preserve errno.
 */

#ifndef CLONE_COUNTERS_H
#define CLONE_COUNTERS_H

#include <stdbool.h>
#include <stdint.h>

#define COUNTERS_STRIPES 16

enum counted_request {
  COUNTED_READ, COUNTED_WRITE, COUNTED_ZERO, COUNTED_TRIM,
  COUNTED_FLUSH, COUNTED_CACHE, COUNTED_EXTENTS,
  COUNTED_REQUESTS
};

/* Which sides a request has used: the last try, if a server was lost. */
enum counted_sides {
  COUNTED_SOURCE,      /* a read of invalid regions */
  COUNTED_DESTINATION, /* everything that needs no byte from the source */
  COUNTED_BOTH,        /* a read of regions of both kinds; a change that had to
                        * read the bytes around it from the source */
  COUNTED_ALL,         /* flush, cache, extents: not told apart */
  COUNTED_SIDES
};

/* Who has read from the source. */
enum counted_reader { COUNTED_CLIENTS, COUNTED_HYDRATION, COUNTED_READERS };

/* A histogram of times.  Bucket i counts times that are at most
 * counters_bound[i] nanoseconds and longer than the bound before it; the last
 * bucket counts longer times.
 */
#define COUNTERS_BOUNDS 19
extern const uint64_t counters_bound[COUNTERS_BOUNDS];

struct counted_times {
  uint64_t bucket[COUNTERS_BOUNDS + 1];
  uint64_t nanoseconds; /* the sum of all times */
};

/* All members are uint64_t: counters.c adds them up as an array. */
struct counts {
  uint64_t requests[COUNTED_REQUESTS][COUNTED_SIDES];
  uint64_t source_bytes[COUNTED_READERS];
  /* For COUNTED_READ and COUNTED_WRITE: [1] is for requests whose regions were
   * all valid, [0] for others.
   */
  struct counted_times times[2][2];
};

struct counters {
  bool timed; /* measure times: two looks at the clock a request */
  struct { _Alignas (64) struct counts counts; } stripe[COUNTERS_STRIPES];
};

/* A request begins: the result is for counters_end. */
extern uint64_t counters_begin (const struct counters *c);

/* It has ended, well or not.  hydrated: all its regions were valid. */
extern void counters_end (struct counters *c, enum counted_request request,
                          enum counted_sides sides, bool hydrated,
                          uint64_t begin);

/* A request whose time does not matter. */
extern void counters_count (struct counters *c, enum counted_request request,
                            enum counted_sides sides);

/* Bytes have been read from the source. */
extern void counters_source_read (struct counters *c,
                                  enum counted_reader reader, uint64_t bytes);

/* Add up. */
extern void counters_sum (const struct counters *c, struct counts *sum);

#endif /* CLONE_COUNTERS_H */
