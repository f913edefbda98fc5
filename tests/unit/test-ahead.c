/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the source's extents are asked for ahead of the walk: with
 * several questions at once where there is little data, and with one where
 * there is much.  Answers may come in any order, be short, or come too late,
 * and the walk learns all of them, and nothing wrong.  A question is asked
 * again after its server was lost, and its range counts as data if only its
 * answer is missing.  Memory depends on the number of holes of 64 KiB or more,
 * and work on the length of the answers, however many extents the source has.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "base/rounding.h"
#include "hydration/ahead.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)
#define G (K * M)

static struct ahead ahead;
static struct extents list;

static void
end (void)
{
  ahead_destroy (&ahead);
  extents_free (&list);
}

/* Answer at most count bytes of the question.  In the source of these tests
 * each stretch begins with `data' bytes of data, and the rest is zeroes.
 */
static void
answer (struct ahead_question *q, uint64_t count, uint64_t stretch,
        uint64_t data)
{
  const uint64_t stop = q->offset + MIN (count, q->count);

  extents_clear (&list);
  for (uint64_t pos = q->offset; pos < stop; ) {
    const uint64_t begin = round_down (pos, stretch);
    const bool zero = pos - begin >= data;
    const uint64_t to = MIN (begin + (zero ? stretch : data), stop);

    ck_assert_int_eq (extents_add (&list, pos, to - pos,
                                   zero ? EXTENT_ZERO : 0), 0);
    pos = to;
  }
  ck_assert_int_eq (ahead_answer (&ahead, q, &list), 0);
}

static struct ahead_question *
must_ask (uint64_t pos, uint64_t offset, uint64_t count)
{
  struct ahead_question *q = ahead_ask (&ahead, pos);

  ck_assert_ptr_nonnull (q);
  ck_assert_uint_eq (q->offset, offset);
  ck_assert_uint_eq (q->count, count);
  return q;
}

/* A disk of n questions, all of them under way.  The first has had a short
 * answer, a MiB of data, and asks for the rest.
 */
static void
ask_all (struct ahead_question **q, unsigned n)
{
  ahead_init (&ahead, n * 3 * G);
  answer (must_ask (0, 0, 3 * G), M, G, M);
  q[0] = must_ask (0, M, 3 * G - M);
  for (unsigned i = 1; i < n; ++i)
    q[i] = must_ask (0, i * 3 * G, 3 * G);
}

/* Two questions at first.  How many there are later depends on the answers: one
 * if these are full of data.
 */
START_TEST (one_where_there_are_data)
{
  struct ahead_question *q, *second;

  ahead_init (&ahead, 100 * G);
  q = must_ask (0, 0, 3 * G);
  second = must_ask (0, 3 * G, 3 * G);
  ck_assert_ptr_null (ahead_ask (&ahead, 0));
  answer (q, 3 * G, G, G);
  answer (second, 3 * G, G, G);
  ck_assert_uint_eq (ahead_end (&ahead, 0), 6 * G);

  /* Until less than a GiB is left nothing is asked, and then one question. */
  ck_assert_ptr_null (ahead_ask (&ahead, 5 * G));
  q = must_ask (5 * G + 4 * K, 6 * G, 3 * G);
  ck_assert_ptr_null (ahead_ask (&ahead, 6 * G));
  answer (q, 512 * M, G, G);
  q = must_ask (6 * G, 6 * G + 512 * M, 3 * G - 512 * M);
  ck_assert_ptr_null (ahead_ask (&ahead, 6 * G));
  end ();
}
END_TEST

/* Where there is little data, all questions are under way, and their answers
 * join the known list in the order of the disk.
 */
START_TEST (many_where_there_are_holes)
{
  struct ahead_question *q[AHEAD_QUESTIONS];

  ahead_init (&ahead, 64 * 1024 * G);
  answer (must_ask (0, 0, 3 * G), 3 * G, G, M);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    q[i] = must_ask (0, (i + 1) * 3 * G, 3 * G);
  ck_assert_ptr_null (ahead_ask (&ahead, 0));

  for (unsigned i = AHEAD_QUESTIONS - 1; i > 0; --i) {
    answer (q[i], 3 * G, G, M);
    ck_assert_uint_eq (ahead_end (&ahead, 0), 3 * G);
    ck_assert_ptr_null (ahead_ask (&ahead, 0));
  }
  answer (q[0], 3 * G, G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 0), (AHEAD_QUESTIONS + 1) * 3 * G);
  ck_assert_uint_eq (ahead_zeroes_end (&ahead, 5 * G + M), 6 * G);
  ck_assert_uint_eq (ahead_zeroes_end (&ahead, 6 * G), 6 * G);
  end ();
}
END_TEST

/* It looks ahead for a GiB of data, or AHEAD_EXTENTS extents, and no more. */
START_TEST (far_enough)
{
  struct ahead_question *q;

  ahead_init (&ahead, 1024 * 1024 * G);
  while ((q = ahead_ask (&ahead, 0)) != NULL)
    answer (q, 2 * G, 2 * G, 16 * M);
  ck_assert_uint_ge (ahead.data, G);
  ck_assert_uint_le (ahead.data, G + AHEAD_QUESTIONS * 16 * M);
  ahead_pass (&ahead, 2 * G);
  ck_assert_ptr_nonnull (ahead_ask (&ahead, 2 * G));
  end ();

  ahead_init (&ahead, 1024 * 1024 * G);
  while ((q = ahead_ask (&ahead, 0)) != NULL)
    answer (q, 4 * M, 128 * K, 4 * K);
  ck_assert_uint_eq (ahead.known.len, AHEAD_EXTENTS);
  end ();
}
END_TEST

/* After short answers, the question for which the walk waits is asked first,
 * however much is known from the others.
 */
START_TEST (short_answers)
{
  struct ahead_question *q[3];

  ask_all (q, 3);
  ck_assert_ptr_null (ahead_ask (&ahead, 0));

  answer (q[1], 3 * G, G, G);
  answer (q[2], G, G, M);
  ck_assert_ptr_null (ahead_ask (&ahead, 0));
  answer (q[0], G, 3 * G, 3 * G);
  /* One GiB and more is known: enough.  Then less is. */
  ck_assert_ptr_null (ahead_ask (&ahead, M));
  ck_assert_ptr_eq (must_ask (2 * M, G + M, 2 * G - M), q[0]);
  ck_assert_ptr_null (ahead_ask (&ahead, 2 * M));
  answer (q[0], 2 * G, 3 * G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 0), 7 * G);
  ck_assert_ptr_null (ahead_ask (&ahead, 5 * G));
  ck_assert_ptr_eq (must_ask (6 * G, 7 * G, 2 * G), q[2]);
  answer (q[2], 2 * G, 2 * G, M);
  ck_assert_ptr_null (ahead_ask (&ahead, 6 * G));
  ck_assert_uint_eq (ahead_end (&ahead, 6 * G), 9 * G);
  end ();
}
END_TEST

/* The walk begins anew while questions are under way: their answers do not
 * count, but that of a new question about the same range does.
 */
START_TEST (too_late)
{
  struct ahead_question *q[3], *again;

  ask_all (q, 3);
  answer (q[1], 3 * G, G, M);
  ahead_restart (&ahead);
  ck_assert_uint_eq (ahead_end (&ahead, 0), 0);
  again = must_ask (0, 0, 3 * G);
  ck_assert_ptr_ne (again, q[0]);
  ck_assert_ptr_ne (again, q[2]);
  answer (q[2], 3 * G, G, 0);
  answer (q[0], 3 * G, G, 0);
  ck_assert_uint_eq (ahead_end (&ahead, 0), 0);
  answer (again, 3 * G, G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 0), 3 * G);
  ck_assert_uint_eq (ahead_zeroes_end (&ahead, M), G);
  end ();
}
END_TEST

/* The walk jumps over regions that became valid, past questions under way and
 * answers that have not joined.
 */
START_TEST (walk_jumps)
{
  struct ahead_question *q[4];

  ask_all (q, 4);
  answer (q[1], G, G, M);
  answer (q[3], 3 * G, G, M);

  /* Into the second, which has been answered up to 4 GiB. */
  ck_assert_ptr_eq (must_ask (5 * G, 5 * G, G), q[1]);
  ck_assert_uint_eq (ahead_end (&ahead, 5 * G), 5 * G);
  answer (q[0], 3 * G, G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 5 * G), 5 * G);
  answer (q[1], G, G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 5 * G), 6 * G);

  /* Past all questions: the rest of the disk is known. */
  ck_assert_ptr_null (ahead_ask (&ahead, 11 * G));
  ck_assert_uint_eq (ahead_end (&ahead, 11 * G), 12 * G);
  answer (q[2], 3 * G, G, M);
  ck_assert_uint_eq (ahead_end (&ahead, 11 * G), 12 * G);
  end ();
}
END_TEST

/* At random: answers in any order, many of them short, and a walk that
 * sometimes jumps, or begins anew.  The known extents are those of the source,
 * and the walk always comes to the end of the disk.
 */
START_TEST (any_order)
{
  const uint64_t size = 100 * G + 4 * K, stretch = 4 * M << _i % 10;
  struct ahead_question *asked[AHEAD_QUESTIONS], *q;
  unsigned n = 0, steps = 0, restarts = 0;
  uint64_t pos = 0, known, to;

  srandom (_i);
  ahead_init (&ahead, size);
  while (pos < size) {
    ck_assert_uint_lt (steps++, 1000000);
    while (random () % 4 && (q = ahead_ask (&ahead, pos)) != NULL) {
      ck_assert_uint_lt (n, AHEAD_QUESTIONS);
      ck_assert_uint_ge (q->offset + q->count, pos);
      asked[n++] = q;
    }
    if (n > 0 && random () % 4) {
      unsigned i = random () % n;

      q = asked[i];
      asked[i] = asked[--n];
      answer (q, random () % 3 ? q->count : (1 + random () % M) * 4 * K,
              stretch, M);
    }

    ahead_pass (&ahead, pos);
    known = ahead_end (&ahead, pos);
    to = ahead_zeroes_end (&ahead, pos);
    if (known > pos)
      ck_assert_uint_eq (to, pos % stretch < M ? pos :
                         MIN (round_down (pos, stretch) + stretch, known));
    else
      ck_assert_uint_eq (to, pos);
    if (random () % 2)
      pos = to > pos ? to : MIN (pos + 4 * K * (random () % 256), known);
    if (random () % 500 == 0)
      pos = MIN (pos + random () % M * 32 * K, size);
    if (random () % 5000 == 0 && restarts++ < 3) {
      ahead_restart (&ahead);
      pos = 0;
    }
  }
  while (n > 0)
    answer (asked[--n], G, stretch, M);
  ck_assert_ptr_null (ahead_ask (&ahead, size));
  end ();
}
END_TEST

/* The server is lost while many questions are under way: all are asked again,
 * one at a time.  Only question _i is never answered: its range counts as data,
 * except for the part that was answered before, and no other range does.
 */
START_TEST (unanswered)
{
  const uint64_t size = AHEAD_QUESTIONS * 3 * G, start = _i * 3 * G;
  struct ahead_question *q[AHEAD_QUESTIONS], *again;
  unsigned lost = 1;
  uint64_t pos = 0;

  ask_all (q, AHEAD_QUESTIONS);
  answer (q[_i], G, 3 * G, 0);
  ck_assert_ptr_eq (must_ask (0, start + G, 2 * G), q[_i]);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    ahead_unanswered (&ahead, q[i]);

  while (pos < size) {
    again = ahead_ask (&ahead, pos);
    if (again == NULL) {
      ck_assert_uint_gt (ahead_end (&ahead, pos), pos);
      pos = ahead_end (&ahead, pos);
      continue;
    }
    ck_assert_ptr_null (ahead_ask (&ahead, pos));
    if (again != q[_i]) {
      answer (again, 3 * G, 3 * G, 0);
      continue;
    }
    ahead_unanswered (&ahead, again);
    if (++lost == AHEAD_MAX_UNANSWERED) {
      ck_assert_uint_eq (ahead_end (&ahead, pos), start + 3 * G);
      ck_assert_uint_eq (ahead_zeroes_end (&ahead, start), start + G);
      ck_assert_uint_eq (ahead.data, 2 * G + M);
    }
  }
  ck_assert_uint_eq (lost, AHEAD_MAX_UNANSWERED);
  ck_assert_uint_le (ahead.data, 2 * G + M);
  end ();

  /* While a lost question is under way, no other is asked. */
  ask_all (q, 2);
  answer (q[1], G, 3 * G, 0);
  ahead_unanswered (&ahead, q[0]);
  ck_assert_ptr_eq (ahead_ask (&ahead, 0), q[0]);
  ck_assert_ptr_null (ahead_ask (&ahead, 0));
  answer (q[0], M, 3 * G, 0);
  ck_assert_ptr_nonnull (ahead_ask (&ahead, 0));
  ck_assert_ptr_nonnull (ahead_ask (&ahead, 0));
  end ();

  /* With answers in between, a question is never given up. */
  ask_all (q, 2);
  ahead_unanswered (&ahead, q[1]);
  for (unsigned i = 0; i < 2 * AHEAD_MAX_UNANSWERED; ++i) {
    ahead_unanswered (&ahead, q[0]);
    ck_assert_uint_eq (ahead_end (&ahead, 0), (i + 1) * M);
    ck_assert_ptr_eq (must_ask (0, (i + 1) * M, 3 * G - (i + 1) * M), q[0]);
    answer (q[0], M, 3 * G, 0);
    ck_assert_ptr_eq (ahead_ask (&ahead, 0), q[0]);
    ck_assert_ptr_null (ahead_ask (&ahead, 0));
  }
  end ();
}
END_TEST

/* The source's extents, in tests with extents of any length. */
static struct extents source;

static void
has (uint64_t length, bool zero)
{
  ck_assert_int_eq (extents_add (&source, extents_end (&source), length,
                                 zero ? EXTENT_ZERO | EXTENT_HOLE : 0), 0);
}

/* Answer at most count bytes, in at most max extents. */
static void
tell (struct ahead_question *q, uint64_t count, size_t max)
{
  const uint64_t stop = q->offset + MIN (count, q->count);
  uint64_t pos = q->offset;

  extents_clear (&list);
  for (size_t i = extents_find (&source, pos); pos < stop && max > 0; ++i) {
    const struct extent *e = &source.extent[i];
    const uint64_t to = MIN (e->offset + e->length, stop);

    ck_assert_int_eq (extents_add (&list, pos, to - pos, e->flags), 0);
    pos = to;
    max--;
  }
  ck_assert_int_eq (ahead_answer (&ahead, q, &list), 0);
}

/* The known extent i must be this one. */
static void
must_know (size_t i, uint64_t start, uint64_t end, bool zero)
{
  ck_assert_uint_lt (i, ahead.known.len);
  ck_assert_uint_eq (ahead.known.extent[i].offset, start);
  ck_assert_uint_eq (ahead.known.extent[i].length, end - start);
  ck_assert_uint_eq (ahead.known.extent[i].flags, zero ? EXTENT_ZERO : 0);
}

/* A hole shorter than 64 KiB becomes data when its end is known, and not
 * before.  A hole of 64 KiB stays a hole, also where it lies across two
 * answers, or two questions.  The first hole and the last may be short.
 */
START_TEST (short_holes)
{
  struct ahead_question *q[2];

  ahead_init (&ahead, 6 * G);
  source = EXTENTS_INIT;
  has (4 * K, true);
  has (4 * K, false);           /* to 8 K */
  has (64 * K - 1, true);
  has (1, false);               /* to 72 K */
  has (64 * K, true);
  has (1, false);
  has (3 * G - 136 * K - 1 - 40 * K, false);
  has (64 * K, true);           /* from 3 G - 40 K */
  has (4 * K, false);
  has (63 * K, true);
  has (6 * G - 4 * K - extents_end (&source), false);
  has (4 * K, true);

  q[0] = must_ask (0, 0, 3 * G);
  q[1] = must_ask (0, 3 * G, 3 * G);
  tell (q[0], 10 * K, 9);
  must_know (1, 4 * K, 8 * K, false);
  must_know (2, 8 * K, 10 * K, true);
  ck_assert_uint_eq (ahead.data, 4 * K);
  tell (must_ask (0, 10 * K, 3 * G - 10 * K), 80 * K, 9);
  must_know (0, 0, 4 * K, true);
  must_know (1, 4 * K, 72 * K, false);
  must_know (2, 72 * K, 90 * K, true);
  ck_assert_uint_eq (ahead.data, 68 * K);
  tell (q[1], 3 * G, 9);
  ck_assert_uint_eq (q[1]->got.len, 3);
  ck_assert_uint_eq (q[1]->data, 3 * G - 28 * K);
  tell (must_ask (0, 90 * K, 3 * G - 90 * K), 3 * G, 9);
  must_know (2, 72 * K, 136 * K, true);
  must_know (3, 136 * K, 3 * G - 40 * K, false);
  must_know (4, 3 * G - 40 * K, 3 * G + 24 * K, true);
  must_know (5, 3 * G + 24 * K, 6 * G - 4 * K, false);
  must_know (6, 6 * G - 4 * K, 6 * G, true);
  ck_assert_uint_eq (ahead.known.len, 7);
  ck_assert_uint_eq (ahead.data, 6 * G - 4 * K - 64 * K - 64 * K - 4 * K);
  extents_free (&source);
  end ();
}
END_TEST

/* At random, with extents from one byte to 128 KiB where questions meet: data
 * is known as data, and a hole of 64 KiB or more as a hole.  There are never
 * more than two extents for each 64 KiB.
 */
START_TEST (holes_of_any_length)
{
  struct ahead_question *asked[AHEAD_QUESTIONS], *q;
  unsigned n = 0;

  srandom (_i);
  ahead_init (&ahead, 12 * G);
  source = EXTENTS_INIT;
  for (unsigned i = 0; i < 4; ++i) {
    const uint64_t meet = (i + 1) * 3 * G;

    has (meet - M - extents_end (&source), true);
    while (extents_end (&source) < MIN (meet + M, 12 * G)) {
      const uint64_t left = 12 * G - extents_end (&source);
      const uint64_t length = 1 + random () % (1 << random () % 18);

      has (MIN (left, length), random () % 2);
    }
  }

  while (ahead_end (&ahead, 0) < 12 * G) {
    while (random () % 4 && (q = ahead_ask (&ahead, 0)) != NULL)
      asked[n++] = q;
    if (n > 0 && random () % 4) {
      const unsigned i = random () % n;

      q = asked[i];
      asked[i] = asked[--n];
      tell (q, q->count, 1 + random () % 8);
      ck_assert_uint_le (q->got.len, 2 * div_round_up (q->offset - q->start,
                                                       64 * K) + 2);
    }
    ck_assert_uint_le (ahead.known.len, 2 * div_round_up (ahead_end (&ahead, 0),
                                                          64 * K) + 2);
  }
  while (n > 0)
    tell (asked[--n], G, 1);

  for (size_t i = 0; i < source.len; ++i) {
    const struct extent *e = &source.extent[i];
    const uint64_t to = e->offset + e->length;
    const struct extent *k =
      &ahead.known.extent[extents_find (&ahead.known, e->offset)];

    if (!e->flags || e->length >= 64 * K) {
      ck_assert_uint_le (k->offset, e->offset);
      ck_assert_uint_ge (k->offset + k->length, to);
      ck_assert_int_eq (!k->flags, !e->flags);
    }
    if (k->flags && k->offset > 0 && to < 12 * G)
      ck_assert_uint_ge (k->length, 64 * K);
  }
  extents_free (&source);
  end ();
}
END_TEST

/* The work for an answer depends on its length, and a look-up takes a few
 * steps, however many answers have come before.
 * _i: holes of one byte, which become data; holes of 64 KiB, which stay.
 */
START_TEST (work)
{
  const uint64_t hole = _i ? 64 * K : 1;
  const unsigned answers = 4000, each = _i ? 4 : 100;
  struct ahead_question *q;
  uint64_t pos = 0;

  ahead_init (&ahead, 3 * G);
  source = EXTENTS_INIT;
  while (source.len < answers * each) {
    has (1, false);
    has (hole, true);
  }
  for (unsigned i = 0; i < answers; ++i) {
    q = ahead_ask (&ahead, 0);
    ck_assert_ptr_nonnull (q);
    tell (q, 3 * G, each);
    for (unsigned j = 0; j < 4; ++j)
      ahead_zeroes_end (&ahead, pos);
    pos = ahead_end (&ahead, 0) - 1;
  }
  /* Each extent once in its answer, and once when that joins. */
  ck_assert_uint_le (ahead.looked_at, answers * (2 * each + 4 + 2));
  ck_assert_uint_le (ahead.known.len, _i ? answers * each : 4);
  ck_assert_uint_ge (ahead.known.len, _i ? answers * each : 1);
  /* Passing looks at each extent once. */
  ahead.looked_at = 0;
  for (uint64_t at = 0; at < pos; at += pos / 1000 + 1)
    ahead_pass (&ahead, at);
  ck_assert_uint_le (ahead.looked_at, answers * each);
  extents_free (&source);
  end ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("ahead");
  TCase *tc = tcase_create ("ahead");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, one_where_there_are_data);
  tcase_add_test (tc, many_where_there_are_holes);
  tcase_add_test (tc, far_enough);
  tcase_add_test (tc, short_answers);
  tcase_add_test (tc, too_late);
  tcase_add_test (tc, walk_jumps);
  tcase_add_loop_test (tc, any_order, 0, 40);
  tcase_add_loop_test (tc, unanswered, 1, AHEAD_QUESTIONS);
  tcase_add_test (tc, short_holes);
  tcase_add_loop_test (tc, holes_of_any_length, 0, 40);
  tcase_add_loop_test (tc, work, 0, 2);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
