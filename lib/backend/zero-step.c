/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdatomic.h>

#include "backend/zero-step.h"
#include "base/rounding.h"

uint64_t
zero_step_get (const struct zero_step *step)
{
  const uint64_t bytes = atomic_load_explicit (&step->bytes,
                                               memory_order_relaxed);

  return bytes ? bytes : ZERO_STEP_FIRST;
}

/* Threads that learn at the same time may overwrite each other's step.  The
 * next zero corrects that.
 */
void
zero_step_learn (struct zero_step *step, uint64_t count, double seconds)
{
  uint64_t bytes = zero_step_get (step);

  if (seconds > ZERO_STEP_SECONDS)
    bytes = MIN (bytes, (uint64_t)(count * (ZERO_STEP_SECONDS / seconds)));
  else if (seconds < ZERO_STEP_SECONDS / 2 && count >= bytes)
    bytes *= 2;
  else
    return;
  bytes = MIN (MAX (bytes, ZERO_STEP_MIN), ZERO_STEP_MAX);
  atomic_store_explicit (&step->bytes, bytes, memory_order_relaxed);
}
