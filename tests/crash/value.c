/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "value.h"

#define WORDS (SECTOR / sizeof (uint64_t))
#define MAGIC UINT64_C (0x434c4f4e)

static uint64_t
word (value_t value, uint64_t sector, unsigned i)
{
  if (i == 0)
    return MAGIC << 32 | value;
  return (value + UINT64_C (1)) * UINT64_C (0x9e3779b97f4a7c15) +
    sector * UINT64_C (0xbf58476d1ce4e5b9) + i;
}

void
value_fill (uint8_t buf[SECTOR], value_t value, uint64_t sector)
{
  uint64_t words[WORDS] = { 0 };

  if (value != VALUE_ZERO)
    for (unsigned i = 0; i < WORDS; ++i)
      words[i] = word (value, sector, i);
  memcpy (buf, words, sizeof words);
}

value_t
value_of (const uint8_t buf[SECTOR], uint64_t sector)
{
  uint64_t words[WORDS];
  value_t value;

  memcpy (words, buf, sizeof words);
  value = words[0];
  if (words[0] != 0 && (words[0] >> 32 != MAGIC || value == VALUE_ZERO))
    return VALUE_GARBAGE;
  for (unsigned i = 1; i < WORDS; ++i)
    if (words[i] != (words[0] ? word (value, sector, i) : 0))
      return VALUE_GARBAGE;
  return value;
}

void
values_fill (uint8_t *buf, value_t value, uint64_t first, uint64_t n)
{
  for (uint64_t i = 0; i < n; ++i)
    value_fill (buf + i * SECTOR, value, first + i);
}

void
values_of (const uint8_t *buf, value_t *values, uint64_t first, uint64_t n)
{
  for (uint64_t i = 0; i < n; ++i)
    values[i] = value_of (buf + i * SECTOR, first + i);
}

const char *
value_name (value_t value)
{
  static char name[4][32];
  static unsigned next;
  char *buf = name[next++ % 4];

  switch (value) {
  case VALUE_ZERO: return "zeroes";
  case VALUE_SOURCE: return "the source's bytes";
  case VALUE_GARBAGE: return "garbage";
  }
  snprintf (buf, sizeof name[0], "write %" PRIu32, value);
  return buf;
}
