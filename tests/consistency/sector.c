/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <string.h>

#include "base/iszero.h"
#include "sector.h"

#define WORDS (SECTOR / sizeof (uint64_t))
#define MAGIC UINT64_C (0x636f6e7369737431)

enum { WORD_MAGIC, WORD_RUN, WORD_SECTOR, WORD_NUMBER, WORD_CONNECTION,
       WORD_REST };

/* Never zero, so that a word of zeroes is not taken for a write's. */
static uint64_t
mixture (uint64_t run, uint64_t sector, value_t value, unsigned i)
{
  uint64_t z = run + value * UINT64_C (0x9e3779b97f4a7c15) +
    sector * UINT64_C (0xc2b2ae3d27d4eb4f) + i;

  z = (z ^ z >> 32) * UINT64_C (0xd6e8feb86659fd93);
  return (z ^ z >> 29) | 1;
}

static void
fill_words (uint64_t words[WORDS], uint64_t run, uint64_t sector,
            value_t value)
{
  words[WORD_MAGIC] = MAGIC;
  words[WORD_RUN] = run;
  words[WORD_SECTOR] = sector;
  words[WORD_NUMBER] = value / MAX_CONNECTIONS;
  words[WORD_CONNECTION] = value % MAX_CONNECTIONS;
  for (unsigned i = WORD_REST; i < WORDS; ++i)
    words[i] = mixture (run, sector, value, i);
}

void
sector_fill (uint8_t buf[SECTOR], uint64_t run, uint64_t sector, value_t value)
{
  uint64_t words[WORDS] = { 0 };

  if (value != VALUE_ZERO)
    fill_words (words, run, sector, value);
  memcpy (buf, words, SECTOR);
}

/* The value that the first words claim, true or not; VALUE_NONE if they claim
 * nothing.
 */
static value_t
claimed_value (const uint64_t words[WORDS])
{
  if (words[WORD_MAGIC] != MAGIC || words[WORD_NUMBER] == 0 ||
      words[WORD_NUMBER] >= UINT64_MAX / MAX_CONNECTIONS ||
      words[WORD_CONNECTION] >= MAX_CONNECTIONS)
    return VALUE_NONE;
  return value_of_write (words[WORD_CONNECTION], words[WORD_NUMBER]);
}

/* Is all of it what a write of the run and to the sector that it claims would
 * have left?
 */
static bool
is_whole (const uint64_t words[WORDS], value_t claimed)
{
  uint64_t expected[WORDS];

  fill_words (expected, words[WORD_RUN], words[WORD_SECTOR], claimed);
  return memcmp (words, expected, SECTOR) == 0;
}

value_t
sector_value (const uint8_t buf[SECTOR], uint64_t run, uint64_t sector,
              const uint8_t *initial)
{
  uint64_t words[WORDS];
  value_t claimed;

  if (is_zero (buf, SECTOR))
    return VALUE_ZERO;
  memcpy (words, buf, SECTOR);
  claimed = claimed_value (words);
  if (claimed != VALUE_NONE && words[WORD_RUN] == run &&
      words[WORD_SECTOR] == sector && is_whole (words, claimed))
    return claimed;
  return memcmp (buf, initial, SECTOR) == 0 ? VALUE_INITIAL : VALUE_OTHER;
}

bool
sector_is_mixture (const uint8_t buf[SECTOR], uint64_t run, uint64_t sector,
                   const uint8_t *initial, const value_t *values, size_t n)
{
  bool explained[SECTOR] = { false };
  size_t nr_explained = 0;
  uint8_t of[SECTOR];

  for (size_t i = 0; i < n; ++i) {
    if (values[i] == VALUE_INITIAL)
      memcpy (of, initial, SECTOR);
    else
      sector_fill (of, run, sector, values[i]);
    for (unsigned byte = 0; byte < SECTOR; ++byte)
      if (!explained[byte] && of[byte] == buf[byte]) {
        explained[byte] = true;
        nr_explained++;
      }
  }
  return nr_explained == SECTOR;
}

void
value_print (FILE *fp, value_t value)
{
  switch (value) {
  case VALUE_ZERO: fprintf (fp, "zeroes"); break;
  case VALUE_INITIAL: fprintf (fp, "the initial content"); break;
  case VALUE_OTHER: fprintf (fp, "other content"); break;
  case VALUE_NONE: fprintf (fp, "nothing"); break;
  default:
    fprintf (fp, "write %" PRIu64 ".%" PRIu64, value % MAX_CONNECTIONS,
             value / MAX_CONNECTIONS);
  }
}

void
sector_print_other (FILE *fp, const uint8_t buf[SECTOR], uint64_t run,
                    uint64_t sector)
{
  uint64_t words[WORDS];
  value_t claimed;

  memcpy (words, buf, SECTOR);
  claimed = claimed_value (words);
  if (claimed == VALUE_NONE) {
    fprintf (fp, "content of unknown origin, which begins");
    for (unsigned i = 0; i < 16; ++i)
      fprintf (fp, " %02x", buf[i]);
    return;
  }
  if (!is_whole (words, claimed))
    fprintf (fp, "a torn sector which begins like ");
  value_print (fp, claimed);
  if (words[WORD_SECTOR] != sector)
    fprintf (fp, " to sector %" PRIu64, words[WORD_SECTOR]);
  if (words[WORD_RUN] != run)
    fprintf (fp, " of another run");
}

void
sector_dump (FILE *fp, const uint8_t buf[SECTOR])
{
  for (unsigned i = 0; i < SECTOR; ++i)
    fprintf (fp, "%s%02x%s", i % 32 == 0 ? "  " : "", buf[i],
             i % 32 == 31 ? "\n" : i % 8 == 7 ? " " : "");
}
