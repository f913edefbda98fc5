/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Numbers that a seed determines. */

#ifndef CONSISTENCY_RANDOM_H
#define CONSISTENCY_RANDOM_H

#include <stdint.h>

/* The next number.  The states of two sequences may differ in a single bit. */
static inline uint64_t
random_next (uint64_t *state)
{
  /* splitmix64, public domain, by Sebastiano Vigna */
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* From 0 to n - 1; n is not 0. */
static inline uint64_t
random_below (uint64_t *state, uint64_t n)
{
  return random_next (state) % n;
}

/* A number from 1 to n.  All orders of magnitude are equally likely. */
static inline uint64_t
random_magnitude (uint64_t *state, uint64_t n)
{
  const unsigned bits = 64 - __builtin_clzll (n);
  const uint64_t v =
    1 + random_below (state, UINT64_C (1) << random_below (state, bits + 1));

  return v < n ? v : n;
}

#endif /* CONSISTENCY_RANDOM_H */
