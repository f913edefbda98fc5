/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the consistency tester distinguishes legal histories of a sector
 * from illegal ones: with hand-made histories, and with many small random ones,
 * for which its result is compared with a search through all possible orders.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "consistency/random.h"
#include "consistency/register.h"
#include "run-suite.h"

#define RUN 7
#define PLACE 42
#define HALF (SECTOR / 2)

static const value_t a = MAX_CONNECTIONS + 1, b = MAX_CONNECTIONS + 2,
  c = MAX_CONNECTIONS + 3;

static uint8_t data[SECTOR], zeroes[SECTOR];
static const uint8_t *initial;
static struct reg reg;

static struct place
place (void)
{
  return (struct place){ RUN, PLACE, initial };
}

static void
setup (void)
{
  memset (data, 0x5a, sizeof data);
  initial = data;
  reg = (struct reg){ 0 };
}

static void
teardown (void)
{
  reg_free (&reg);
}

static struct access
read_of (value_t value, uint64_t start, uint64_t end)
{
  return (struct access){ .type = ACCESS_READ, .value = value, .start = start,
                          .end = end };
}

static struct access
write_of (value_t value, uint64_t start, uint64_t end)
{
  return (struct access){ .type = ACCESS_WRITE, .value = value,
                          .start = start, .end = end };
}

static struct access
zero_at (uint64_t start, uint64_t end)
{
  return (struct access){ .type = ACCESS_ZERO, .start = start, .end = end };
}

static struct access
trim_at (uint64_t start, uint64_t end)
{
  return (struct access){ .type = ACCESS_TRIM, .start = start, .end = end };
}

static int
compare_starts (const void *p, const void *q)
{
  const struct access *x = p, *y = q;

  return (x->start > y->start) - (x->start < y->start);
}

/* Another round, in any order.  The verdict's values are not kept. */
static struct reg_verdict
check (struct access *access, size_t n)
{
  const struct place p = place ();
  struct reg_verdict v;

  if (reg.n == 0)
    reg_init (&reg, &p);
  qsort (access, n, sizeof *access, compare_starts);
  reg_check (&reg, &p, access, n, &v);
  free (v.allowed);
  return v;
}

#define LEGAL(...)                                                       \
  do {                                                                   \
    struct access history_[] = { __VA_ARGS__ };                          \
    ck_assert (check (history_,                                          \
                      sizeof history_ / sizeof history_[0]).legal);      \
  } while (0)

/* ... because of the read that starts then. */
#define ILLEGAL(when, ...)                                               \
  do {                                                                   \
    struct access history_[] = { __VA_ARGS__ };                          \
    struct reg_verdict v_ =                                              \
      check (history_, sizeof history_ / sizeof history_[0]);            \
    ck_assert (!v_.legal);                                               \
    ck_assert_uint_eq (history_[v_.read].start, when);                   \
  } while (0)

/* ---- by hand ---- */

START_TEST (in_sequence)
{
  LEGAL (read_of (VALUE_INITIAL, 1, 2), write_of (a, 3, 4), read_of (a, 5, 6),
         write_of (b, 7, 8), read_of (b, 9, 10), zero_at (11, 12),
         read_of (VALUE_ZERO, 13, 14));
}
END_TEST

START_TEST (concurrent_write_may_be_seen)
{
  LEGAL (write_of (a, 1, 10), read_of (VALUE_INITIAL, 2, 3), read_of (a, 4, 5),
         read_of (a, 11, 12));
}
END_TEST

/* Two writes at once may leave either, and the first look decides. */
START_TEST (concurrent_writes)
{
  LEGAL (write_of (a, 1, 10), write_of (b, 2, 9));
  LEGAL (read_of (a, 20, 21), read_of (a, 22, 23));
  ILLEGAL (30, read_of (b, 30, 31));
}
END_TEST

START_TEST (stale_read)
{
  ILLEGAL (5, write_of (a, 1, 2), write_of (b, 3, 4), read_of (a, 5, 6));
}
END_TEST

START_TEST (stale_read_of_an_older_round)
{
  LEGAL (write_of (a, 1, 2), read_of (a, 3, 4));
  LEGAL (write_of (b, 11, 12));
  ILLEGAL (21, read_of (a, 21, 22));
}
END_TEST

/* The copy of the source has come after the write. */
START_TEST (lost_write)
{
  ILLEGAL (5, write_of (a, 1, 2), read_of (a, 3, 4),
           read_of (VALUE_INITIAL, 5, 6));
}
END_TEST

START_TEST (lost_write_in_a_later_round)
{
  LEGAL (write_of (a, 1, 2));
  ILLEGAL (11, read_of (VALUE_INITIAL, 11, 12));
}
END_TEST

START_TEST (new_then_old)
{
  ILLEGAL (4, write_of (a, 1, 10), read_of (a, 2, 3),
           read_of (VALUE_INITIAL, 4, 5));
}
END_TEST

/* Of two concurrent writes, each is seen before the other. */
START_TEST (back_and_forth)
{
  ILLEGAL (6, write_of (a, 1, 10), write_of (b, 1, 10), read_of (a, 2, 3),
           read_of (b, 4, 5), read_of (a, 6, 7));
}
END_TEST

START_TEST (read_before_its_write)
{
  ILLEGAL (1, read_of (a, 1, 2), write_of (a, 3, 4));
}
END_TEST

START_TEST (never_written)
{
  ILLEGAL (1, read_of (c, 1, 2), write_of (a, 3, 4));
}
END_TEST

START_TEST (lost_zero)
{
  ILLEGAL (3, zero_at (1, 2), read_of (VALUE_INITIAL, 3, 4));
}
END_TEST

START_TEST (lost_zero_in_a_later_round)
{
  LEGAL (write_of (a, 1, 2), zero_at (3, 4));
  ILLEGAL (11, read_of (a, 11, 12));
}
END_TEST

START_TEST (zeroes_from_nowhere)
{
  ILLEGAL (3, write_of (a, 1, 2), read_of (VALUE_ZERO, 3, 4));
}
END_TEST

/* The zeroes were there, but have been overwritten. */
START_TEST (zeroes_again)
{
  ILLEGAL (7, zero_at (1, 2), read_of (VALUE_ZERO, 3, 4), write_of (a, 5, 6),
           read_of (VALUE_ZERO, 7, 8));
}
END_TEST

START_TEST (zeroes_at_first)
{
  initial = zeroes;
  LEGAL (read_of (VALUE_ZERO, 1, 2), write_of (a, 3, 4));
  ILLEGAL (11, read_of (VALUE_ZERO, 11, 12));
}
END_TEST

/* A write between two zero requests: the zeroes may be those of either. */
START_TEST (zeroes_of_two)
{
  LEGAL (zero_at (1, 2), read_of (VALUE_ZERO, 3, 4), write_of (a, 5, 6),
         zero_at (5, 6), read_of (VALUE_ZERO, 7, 8));
  ILLEGAL (11, read_of (a, 11, 12));
}
END_TEST

START_TEST (trim_does_it_or_not)
{
  LEGAL (write_of (a, 1, 2), trim_at (3, 4), read_of (a, 5, 6));
  LEGAL (trim_at (11, 12));
  LEGAL (read_of (VALUE_ZERO, 21, 22));
  ILLEGAL (31, read_of (a, 31, 32));
}
END_TEST

/* Once the old content was read after it, a trim has done nothing. */
START_TEST (trim_does_it_late)
{
  ILLEGAL (7, write_of (a, 1, 2), trim_at (3, 4), read_of (a, 5, 6),
           read_of (VALUE_ZERO, 7, 8));
}
END_TEST

START_TEST (trim_brings_back_the_past)
{
  ILLEGAL (5, write_of (a, 1, 2), trim_at (3, 4),
           read_of (VALUE_INITIAL, 5, 6));
}
END_TEST

/* ---- torn sectors ---- */

/* Half of one content, half of another. */
static struct access
torn_read (uint8_t buf[SECTOR], const uint8_t *first, value_t second,
           uint64_t start, uint64_t end)
{
  struct access r = read_of (VALUE_OTHER, start, end);

  sector_fill (buf, RUN, PLACE, second);
  memcpy (buf, first, HALF);
  ck_assert (sector_value (buf, RUN, PLACE, initial) == VALUE_OTHER);
  r.bytes = buf;
  return r;
}

START_TEST (torn_while_written)
{
  uint8_t buf[SECTOR];

  LEGAL (write_of (a, 1, 10), torn_read (buf, initial, a, 2, 3));
}
END_TEST

/* As a copy looks that was interrupted: x86's string moves stop at any byte. */
START_TEST (torn_inside_a_word)
{
  uint8_t buf[SECTOR];
  struct access during = torn_read (buf, initial, a, 2, 3);
  struct access after = torn_read (buf, initial, a, 5, 6);

  memcpy (buf + HALF, initial + HALF, 5);
  LEGAL (write_of (a, 1, 10), during);
  ILLEGAL (5, write_of (a, 1, 4), after);
}
END_TEST

START_TEST (torn_while_not_written)
{
  uint8_t buf[SECTOR];

  ILLEGAL (5, write_of (a, 1, 4), torn_read (buf, initial, a, 5, 6));
}
END_TEST

/* Each of the values might have been read, but no write was under way. */
START_TEST (torn_between_two_that_ended)
{
  uint8_t buf[SECTOR], first[SECTOR];

  sector_fill (first, RUN, PLACE, a);
  ILLEGAL (5, write_of (a, 1, 4), write_of (b, 1, 4),
           torn_read (buf, first, b, 5, 6));
}
END_TEST

START_TEST (torn_with_a_stale_half)
{
  uint8_t buf[SECTOR];

  ILLEGAL (5, write_of (a, 1, 2), write_of (b, 3, 10),
           torn_read (buf, initial, b, 5, 6));
}
END_TEST

START_TEST (garbage)
{
  uint8_t buf[SECTOR];
  struct access r = torn_read (buf, zeroes, a, 2, 3);

  memset (buf, 0xdb, HALF);
  ILLEGAL (2, write_of (a, 1, 10), r);
}
END_TEST

/* ---- the content of sectors ---- */

START_TEST (content)
{
  uint8_t buf[SECTOR];

  sector_fill (buf, RUN, PLACE, b);
  ck_assert (sector_value (buf, RUN, PLACE, initial) == b);
  ck_assert (sector_value (buf, RUN, PLACE + 1, initial) == VALUE_OTHER);
  ck_assert (sector_value (buf, RUN + 1, PLACE, initial) == VALUE_OTHER);
  ck_assert (sector_value (initial, RUN, PLACE, initial) == VALUE_INITIAL);
  ck_assert (sector_value (zeroes, RUN, PLACE, initial) == VALUE_ZERO);
  ck_assert (sector_value (zeroes, RUN, PLACE, zeroes) == VALUE_ZERO);
}
END_TEST

START_TEST (each_byte_counts)
{
  uint8_t buf[SECTOR];

  for (unsigned i = 0; i < SECTOR; ++i) {
    sector_fill (buf, RUN, PLACE, b);
    buf[i] ^= 1;
    ck_assert (sector_value (buf, RUN, PLACE, initial) == VALUE_OTHER);
    memset (buf, 0, SECTOR);
    buf[i] = 1;
    ck_assert (sector_value (buf, RUN, PLACE, initial) == VALUE_OTHER);
  }
}
END_TEST

/* ---- small random histories, and all their orders ---- */

#define MAX_ACCESSES 8

struct search {
  struct access access[MAX_ACCESSES];
  size_t n;
  unsigned done; /* a bit for each */
};

static bool has_order (struct search *s, value_t value);

static bool
may_be_next (const struct search *s, size_t next)
{
  for (size_t i = 0; i < s->n; ++i)
    if (!(s->done & 1 << i) && s->access[i].end < s->access[next].start)
      return false;
  return true;
}

static bool
has_order_after (struct search *s, size_t next, value_t value)
{
  bool r;

  s->done |= 1 << next;
  r = has_order (s, value);
  s->done &= ~(1 << next);
  return r;
}

/* Can the requests that are left be done in some order, on a sector with this
 * value?
 */
static bool
has_order (struct search *s, value_t value)
{
  if (s->done == (1u << s->n) - 1)
    return true;
  for (size_t i = 0; i < s->n; ++i) {
    const struct access *x = &s->access[i];

    if (s->done & 1 << i || !may_be_next (s, i) ||
        (x->type == ACCESS_READ && x->value != value))
      continue;
    if (has_order_after (s, i, x->type == ACCESS_WRITE ? x->value
                         : x->type == ACCESS_ZERO ? VALUE_ZERO : value))
      return true;
    if (x->type == ACCESS_TRIM && has_order_after (s, i, VALUE_ZERO))
      return true;
  }
  return false;
}

/* A round of up to half of the accesses, between two times. */
static void
add_round (struct search *s, uint64_t *random, bool unique, uint64_t from)
{
  const size_t n = s->n + 1 + random_below (random, MAX_ACCESSES / 2);

  for (; s->n < n; s->n++) {
    const uint64_t start = from + random_below (random, 12);
    struct access *x = &s->access[s->n];

    *x = write_of (a + s->n, start, start + random_below (random, 6));
    switch (random_below (random, unique ? 5 : 8)) {
    case 0: case 1: break;
    case 5: x->type = ACCESS_ZERO; break;
    case 6: x->type = ACCESS_TRIM; break;
    default: x->type = ACCESS_READ;
    }
  }
}

/* Most reads return something that has been written, or was there. */
static void
choose_reads (struct search *s, uint64_t *random, bool unique)
{
  for (size_t i = 0; i < s->n; ++i) {
    const struct access *from = &s->access[random_below (random, s->n)];

    if (s->access[i].type != ACCESS_READ)
      continue;
    if (from->type == ACCESS_WRITE)
      s->access[i].value = from->value;
    else if (from->type == ACCESS_READ || unique)
      s->access[i].value = initial == data ? VALUE_INITIAL : VALUE_ZERO;
    else
      s->access[i].value = VALUE_ZERO;
  }
}

/* As the tester sees it. */
static bool
is_accepted (const struct search *s, size_t first_round)
{
  struct access access[MAX_ACCESSES];
  bool legal;

  memcpy (access, s->access, sizeof access);
  legal = check (access, first_round).legal &&
    check (access + first_round, s->n - first_round).legal;
  teardown ();
  reg = (struct reg){ 0 };
  return legal;
}

static void
compare_with_search (bool unique, unsigned *legal, unsigned *illegal,
                     unsigned *missed)
{
  uint64_t random = 1;

  *legal = *illegal = *missed = 0;
  for (unsigned i = 0; i < 200000; ++i) {
    struct search s = { .n = 0 };
    size_t first_round;

    initial = unique || random_below (&random, 2) ? data : zeroes;
    add_round (&s, &random, unique, 10);
    first_round = s.n;
    add_round (&s, &random, unique, 40);
    choose_reads (&s, &random, unique);

    if (has_order (&s, initial == data ? VALUE_INITIAL : VALUE_ZERO)) {
      ck_assert (is_accepted (&s, first_round));
      ++*legal;
    }
    else {
      *missed += is_accepted (&s, first_round);
      ++*illegal;
    }
  }
}

START_TEST (without_zeroes_it_is_exact)
{
  unsigned legal, illegal, missed;

  compare_with_search (true, &legal, &illegal, &missed);
  ck_assert_uint_ge (legal, 10000);
  ck_assert_uint_ge (illegal, 10000);
  ck_assert_uint_eq (missed, 0);
}
END_TEST

/* No legal history is called illegal, and less than one in a hundred of the
 * others is missed.
 */
START_TEST (with_zeroes_it_is_sound)
{
  unsigned legal, illegal, missed;

  compare_with_search (false, &legal, &illegal, &missed);
  ck_assert_uint_ge (legal, 10000);
  ck_assert_uint_ge (illegal, 10000);
  ck_assert_uint_lt (missed, illegal / 100);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("consistency");
  TCase *tc = tcase_create ("consistency");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, in_sequence);
  tcase_add_test (tc, concurrent_write_may_be_seen);
  tcase_add_test (tc, concurrent_writes);
  tcase_add_test (tc, stale_read);
  tcase_add_test (tc, stale_read_of_an_older_round);
  tcase_add_test (tc, lost_write);
  tcase_add_test (tc, lost_write_in_a_later_round);
  tcase_add_test (tc, new_then_old);
  tcase_add_test (tc, back_and_forth);
  tcase_add_test (tc, read_before_its_write);
  tcase_add_test (tc, never_written);
  tcase_add_test (tc, lost_zero);
  tcase_add_test (tc, lost_zero_in_a_later_round);
  tcase_add_test (tc, zeroes_from_nowhere);
  tcase_add_test (tc, zeroes_again);
  tcase_add_test (tc, zeroes_at_first);
  tcase_add_test (tc, zeroes_of_two);
  tcase_add_test (tc, trim_does_it_or_not);
  tcase_add_test (tc, trim_does_it_late);
  tcase_add_test (tc, trim_brings_back_the_past);
  tcase_add_test (tc, torn_while_written);
  tcase_add_test (tc, torn_inside_a_word);
  tcase_add_test (tc, torn_while_not_written);
  tcase_add_test (tc, torn_between_two_that_ended);
  tcase_add_test (tc, torn_with_a_stale_half);
  tcase_add_test (tc, garbage);
  tcase_add_test (tc, content);
  tcase_add_test (tc, each_byte_counts);
  tcase_add_test (tc, without_zeroes_it_is_exact);
  tcase_add_test (tc, with_zeroes_it_is_sound);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
