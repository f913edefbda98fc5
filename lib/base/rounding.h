/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Arithmetic on offsets and sizes.  Alignments are powers of two. */

#ifndef CLONE_ROUNDING_H
#define CLONE_ROUNDING_H

#include <stdbool.h>
#include <stdint.h>

#define MIN(a, b)                               \
  ({                                            \
    __typeof__ (a) min_a_ = (a);                \
    __typeof__ (b) min_b_ = (b);                \
    min_a_ < min_b_ ? min_a_ : min_b_;          \
  })
#define MAX(a, b)                               \
  ({                                            \
    __typeof__ (a) max_a_ = (a);                \
    __typeof__ (b) max_b_ = (b);                \
    max_a_ > max_b_ ? max_a_ : max_b_;          \
  })

static inline bool
is_power_of_2 (uint64_t v)
{
  return v && (v & (v - 1)) == 0;
}

static inline uint64_t
round_down (uint64_t v, uint64_t align)
{
  return v & ~(align - 1);
}

/* v + align - 1 must not overflow. */
static inline uint64_t
round_up (uint64_t v, uint64_t align)
{
  return round_down (v + align - 1, align);
}

static inline uint64_t
div_round_up (uint64_t v, uint64_t by)
{
  return v / by + (v % by != 0);
}

#endif /* CLONE_ROUNDING_H */
