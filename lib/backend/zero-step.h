/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How much to zero at once.
 *
 * A zero usually takes no time, whatever its length.  But a device that has no
 * command for it writes all the zeroes.  While that lasts the range is owned,
 * and clients wait for it.  So an owner zeroes a long range in steps, and owns
 * one step at a time.  Judging by earlier zeroes, a step takes at most about
 * ZERO_STEP_SECONDS.
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
