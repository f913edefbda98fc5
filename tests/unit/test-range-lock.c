/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that owners of overlapping ranges exclude each other and are served in
 * order of arrival, that other owners never wait, and that each request that
 * has to wait is granted exactly once.
 */

#include <config.h>

#include <stdlib.h>

#include <check.h>

#include "base/range-lock.h"
#include "mock-backend.h"
#include "run-suite.h"

static struct range_lock o;

/* An owner that uses range_lock_request, and counts its grants. */
struct asker {
  struct owner owner;
  unsigned grants;
  unsigned order;  /* its last grant was number order of all */
};

static unsigned all_grants;

static void
granted (struct owner *owner)
{
  struct asker *a = owner->opaque;

  a->grants++;
  a->order = ++all_grants;
}

static bool
ask (struct asker *a, uint64_t start, uint64_t end)
{
  *a = (struct asker){ .owner.opaque = a };
  return range_lock_request (&o, &a->owner, start, end, granted);
}

static void
setup (void)
{
  range_lock_init (&o);
  all_grants = 0;
}

static void
teardown (void)
{
  range_lock_destroy (&o);
}

/* Disjoint ranges, also neighbours, are all owned at the same time: a range
 * does not include its end.
 */
START_TEST (disjoint_ranges_do_not_wait)
{
  struct asker a, b, c;

  ck_assert (ask (&a, 4096, 8192));
  ck_assert (ask (&b, 8192, 8193));
  ck_assert (ask (&c, 0, 4096));
  range_lock_release (&o, &a.owner);
  range_lock_release (&o, &b.owner);
  range_lock_release (&o, &c.owner);
  ck_assert_uint_eq (all_grants, 0);
}
END_TEST

/* One common byte is a conflict, at both ends and inside. */
START_TEST (one_byte_overlaps)
{
  static const struct { uint64_t start, end; } ranges[] = {
    { 0, 4097 }, { 8191, 9000 }, { 5000, 5001 }, { 0, UINT64_MAX },
    { 4096, 8192 },
  };
  struct asker a, b;

  for (unsigned i = 0; i < sizeof ranges / sizeof ranges[0]; ++i) {
    ck_assert (ask (&a, 4096, 8192));
    ck_assert (!ask (&b, ranges[i].start, ranges[i].end));
    ck_assert_uint_eq (b.grants, 0);
    range_lock_release (&o, &a.owner);
    ck_assert_uint_eq (b.grants, 1);
    range_lock_release (&o, &b.owner);
    ck_assert_uint_eq (b.grants, 1);
  }
}
END_TEST

/* Overlapping ranges are granted one after the other, in order of arrival. */
START_TEST (grants_are_in_order)
{
  struct asker a[8];

  ck_assert (ask (&a[0], 0, 100));
  for (unsigned i = 1; i < 8; ++i)
    ck_assert (!ask (&a[i], 0, 100));
  for (unsigned i = 0; i < 8; ++i) {
    ck_assert_uint_eq (all_grants, i);
    if (i > 0)
      ck_assert_uint_eq (a[i].order, i);
    range_lock_release (&o, &a[i].owner);
  }
  ck_assert_uint_eq (all_grants, 7);
}
END_TEST

/* Small ranges that come later do not overtake a wide range that waits,
 * although they would be free now.  So it cannot starve.  Ranges that do not
 * overlap it do not wait.
 */
START_TEST (wide_range_does_not_starve)
{
  struct asker left, right, wide, late, aside;

  ck_assert (ask (&left, 0, 10));
  ck_assert (ask (&right, 90, 100));
  ck_assert (!ask (&wide, 0, 100));
  ck_assert (!ask (&late, 40, 50));
  ck_assert (ask (&aside, 100, 110));

  range_lock_release (&o, &left.owner);
  ck_assert_uint_eq (wide.grants, 0);
  ck_assert_uint_eq (late.grants, 0);
  range_lock_release (&o, &right.owner);
  ck_assert_uint_eq (wide.grants, 1);
  ck_assert_uint_eq (late.grants, 0);
  range_lock_release (&o, &wide.owner);
  ck_assert_uint_eq (late.grants, 1);
  range_lock_release (&o, &late.owner);
  range_lock_release (&o, &aside.owner);
}
END_TEST

/* One release grants all ranges that waited only for it. */
START_TEST (release_grants_several)
{
  struct asker wide, a, b, c;

  ck_assert (ask (&wide, 0, 100));
  ck_assert (!ask (&a, 0, 10));
  ck_assert (!ask (&b, 10, 20));
  ck_assert (!ask (&c, 15, 30));
  range_lock_release (&o, &wide.owner);
  ck_assert_uint_eq (a.order, 1);
  ck_assert_uint_eq (b.order, 2);
  ck_assert_uint_eq (c.grants, 0);
  range_lock_release (&o, &b.owner);
  ck_assert_uint_eq (c.order, 3);
  range_lock_release (&o, &a.owner);
  range_lock_release (&o, &c.owner);
}
END_TEST

static void
release_when_granted (struct owner *owner)
{
  unsigned *n = owner->opaque;

  ++*n;
  range_lock_release (&o, owner);
}

/* The granted function is called without a lock.  It may release the range, and
 * so grant the next one, and free the owner.
 */
START_TEST (grant_may_release)
{
  struct asker first;
  struct owner *chain[100];
  unsigned n = 0;

  ck_assert (ask (&first, 0, 100));
  for (unsigned i = 0; i < 100; ++i) {
    chain[i] = calloc (1, sizeof *chain[i]);
    chain[i]->opaque = &n;
    ck_assert (!range_lock_request (&o, chain[i], i, 100,
                                   release_when_granted));
  }
  range_lock_release (&o, &first.owner);
  ck_assert_uint_eq (n, 100);
  ck_assert (TAILQ_EMPTY (&o.owners));
  for (unsigned i = 0; i < 100; ++i)
    free (chain[i]);
}
END_TEST

static _Atomic bool acquired;

static void
acquire_and_release (void *opaque)
{
  struct owner owner;

  range_lock_acquire (&o, &owner, 0, 100);
  acquired = true;
  range_lock_release (&o, &owner);
}

/* range_lock_acquire waits until the range is free, in one queue with the users
 * of range_lock_request.
 */
START_TEST (acquire_waits)
{
  struct asker a, b;
  struct mock_thread *thread;

  acquired = false;
  ck_assert (ask (&a, 50, 60));
  thread = mock_thread (acquire_and_release, NULL);
  /* Wait until it is in the queue. */
  for (;;) {
    pthread_mutex_lock (&o.lock);
    bool waits = TAILQ_NEXT (&a.owner, link) != NULL;
    pthread_mutex_unlock (&o.lock);
    if (waits)
      break;
  }
  ck_assert (!ask (&b, 0, 10));
  mock_settle ();
  ck_assert (!acquired);
  range_lock_release (&o, &a.owner);
  mock_join (thread);
  ck_assert (acquired);
  ck_assert_uint_eq (b.grants, 1);
  range_lock_release (&o, &b.owner);
}
END_TEST

#define CELLS 16
#define ROUNDS 3000

/* Not atomic: only ownership protects them. */
static uint64_t cell[CELLS];
static uint64_t expected[CELLS];
static pthread_mutex_t expected_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned holders[CELLS];
static _Atomic uint64_t async_grants, async_asked;

static void
use_cells (uint64_t first, uint64_t end)
{
  for (uint64_t i = first; i < end; ++i) {
    if (holders[i]++ != 0)
      abort ();
    cell[i]++;
  }
  for (uint64_t i = first; i < end; ++i)
    holders[i]--;
}

static void
use_and_free (struct owner *owner)
{
  use_cells (owner->start, owner->end);
  async_grants++;
  range_lock_release (&o, owner);
  free (owner);
}

static void
stress_thread (void *opaque)
{
  uint64_t seed = (uintptr_t)opaque;

  for (unsigned i = 0; i < ROUNDS; ++i) {
    uint64_t first = mock_random (&seed) % CELLS;
    uint64_t end = first + 1 + mock_random (&seed) % (CELLS - first);

    pthread_mutex_lock (&expected_lock);
    for (uint64_t j = first; j < end; ++j)
      expected[j]++;
    pthread_mutex_unlock (&expected_lock);

    if (i % 2) {
      struct owner owner;

      range_lock_acquire (&o, &owner, first, end);
      use_cells (first, end);
      range_lock_release (&o, &owner);
    }
    else {
      struct owner *owner = calloc (1, sizeof *owner);

      async_asked++;
      if (range_lock_request (&o, owner, first, end, use_and_free))
        use_and_free (owner);
    }
  }
}

/* Many threads, with both functions: no cell ever has two owners, its counter,
 * which only ownership protects, is right in the end, and all requests are
 * granted.
 */
START_TEST (stress)
{
  struct mock_thread *thread[8];

  for (uintptr_t i = 0; i < 8; ++i)
    thread[i] = mock_thread (stress_thread, (void *)(i + 1));
  for (unsigned i = 0; i < 8; ++i)
    mock_join (thread[i]);
  for (unsigned i = 0; i < CELLS; ++i)
    ck_assert_uint_eq (cell[i], expected[i]);
  ck_assert_uint_eq (async_grants, async_asked);
  ck_assert (TAILQ_EMPTY (&o.owners));
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("ownership");
  TCase *tc = tcase_create ("ownership");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, disjoint_ranges_do_not_wait);
  tcase_add_test (tc, one_byte_overlaps);
  tcase_add_test (tc, grants_are_in_order);
  tcase_add_test (tc, wide_range_does_not_starve);
  tcase_add_test (tc, release_grants_several);
  tcase_add_test (tc, grant_may_release);
  tcase_add_test (tc, acquire_waits);
  tcase_add_test (tc, stress);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
