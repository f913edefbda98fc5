/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How much to zero at once.
 *
 * A zero usually takes no time, whatever its length.  But a device that has no
 * command for it writes all the zeroes.  While that lasts the range is owned,
 * and clients wait for it.  So those who own what they zero do it step by step,
 * and own each step alone.  A step is what takes ZERO_STEP_SECONDS, or less, as
 * far as the zeroes before it tell.
 *
 * Threads: any number of threads may call these functions at once.
 */

#ifndef CLONE_ZERO_STEP_H
#define CLONE_ZERO_STEP_H

#include <stdint.h>

#define ZERO_STEP_SECONDS 0.1

/* Bytes. */
#define ZERO_STEP_MIN (UINT64_C (1) << 20)
#define ZERO_STEP_FIRST (UINT64_C (32) << 20)
#define ZERO_STEP_MAX (UINT64_C (1) << 30)

struct zero_step {
  _Atomic uint64_t bytes; /* 0: ZERO_STEP_FIRST */
};

extern uint64_t zero_step_get (const struct zero_step *step);

/* A zero of count bytes took so many seconds. */
extern void zero_step_learn (struct zero_step *step, uint64_t count,
                             double seconds);

#endif /* CLONE_ZERO_STEP_H */
