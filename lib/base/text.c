/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdio.h>

#include "base/rounding.h"
#include "base/text.h"

/* A number with one decimal if it is short and the decimal is not 0. */
static void
print_number (struct text *t, double n, const char *unit)
{
  const uint64_t tenths = n * 10 + 0.5;

  if (n >= 100 || tenths % 10 == 0)
    snprintf (t->s, sizeof t->s, "%.0f %s", n, unit);
  else
    snprintf (t->s, sizeof t->s, "%.1f %s", n, unit);
}

static void
print_size (struct text *t, double size, const char *const units[6])
{
  unsigned unit = 0;

  /* 1023.5 would be rounded to 1024. */
  for (; size >= 1023.5 && unit < 5; size /= 1024)
    unit++;
  print_number (t, size, units[unit]);
}

struct text
text_size (uint64_t bytes)
{
  static const char *const units[] = {
    "bytes", "KiB", "MiB", "GiB", "TiB", "PiB"
  };
  struct text t;

  print_size (&t, bytes, units);
  return t;
}

struct text
text_rate (double rate)
{
  static const char *const units[] = {
    "bytes/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s", "PiB/s"
  };
  struct text t;

  print_size (&t, MAX (rate, 0.0), units);
  return t;
}

/* Two units, the second one a whole number. */
static struct text
print_two (uint64_t n, unsigned per, const char *first, const char *second)
{
  struct text t;

  snprintf (t.s, sizeof t.s, "%llu %s %llu %s",
            (unsigned long long)(n / per), first,
            (unsigned long long)(n % per), second);
  return t;
}

struct text
text_time (double seconds)
{
  const uint64_t s = MIN (MAX (seconds, 0.0), 1e15);
  struct text t;

  if (s >= 48 * 3600)
    return print_two (s / 3600, 24, "d", "h");
  if (s >= 3600)
    return print_two (s / 60, 60, "h", "min");
  if (s >= 120)
    return print_two (s, 60, "min", "s");
  if (s >= 10)
    print_number (&t, s, "s");
  else if (seconds >= 0.9995)
    print_number (&t, seconds, "s");
  else
    snprintf (t.s, sizeof t.s, "%.0f ms", MAX (seconds, 0.0) * 1000);
  return t;
}

unsigned
text_percent (uint64_t part, uint64_t whole)
{
  if (part >= whole)
    return 100;
  return MIN ((unsigned)(100.0 * part / whole), 99u);
}
