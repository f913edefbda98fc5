/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The gate (lib/clone/gate.h): no thread is inside while it is closed,
 * gate_close waits for threads that are inside, and no thread waits for ever.
 * The outage (lib/clone/outage.h), in which threads wait for servers: no event
 * is missed.
 */

#include <config.h>

#include <check.h>
#include <sched.h>
#include <stdatomic.h>

#include "clone/gate.h"
#include "clone/outage.h"
#include "mock-backend.h"
#include "run-suite.h"

static struct gate g;
static atomic_bool flag, may_open;

static bool
is_true (void *opaque)
{
  return *(atomic_bool *)opaque;
}

static void
close_and_open (void *opaque)
{
  gate_close (&g);
  flag = true;
  mock_wait_until (is_true, &may_open);
  gate_open (&g);
}

static void
enter_and_set (void *opaque)
{
  struct gate_pass pass;

  gate_enter (&g, &pass);
  flag = true;
  gate_leave (&g, &pass);
}

static void
setup (void)
{
  gate_init (&g);
  flag = may_open = false;
}

static void
teardown (void)
{
  gate_destroy (&g);
}

static bool
is_closed (void *opaque)
{
  return g.closed;
}

/* gate_close waits for all threads that are inside, not only for some.  Once
 * the gate is closed, other threads stay outside.
 */
START_TEST (closing_waits)
{
  struct gate_pass first, second, late;
  struct mock_thread *closer;

  gate_enter (&g, &first);
  ck_assert (gate_try_enter (&g, &second));
  closer = mock_thread (close_and_open, NULL);
  mock_wait_until (is_closed, NULL);
  ck_assert (!gate_try_enter (&g, &late));
  gate_leave (&g, &second);
  mock_settle ();
  ck_assert (!flag);
  gate_leave (&g, &first);
  mock_wait_until (is_true, &flag);
  ck_assert (!gate_try_enter (&g, &late));
  may_open = true;
  mock_join (closer);
  ck_assert (gate_try_enter (&g, &late));
  gate_leave (&g, &late);
}
END_TEST

/* Whoever comes while it is closed waits until it is open; each closing counts.
 */
START_TEST (entering_waits)
{
  struct mock_thread *thread;

  ck_assert_uint_eq (gate_closings (&g), 0);
  gate_close (&g);
  ck_assert_uint_eq (gate_closings (&g), 1);
  thread = mock_thread (enter_and_set, NULL);
  mock_settle ();
  ck_assert (!flag);
  gate_open (&g);
  mock_join (thread);
  ck_assert (flag);
  ck_assert_uint_eq (gate_closings (&g), 1);
}
END_TEST

/* A second thread that closes the gate waits until the first has opened it. */
START_TEST (one_closes)
{
  struct mock_thread *thread;

  gate_close (&g);
  may_open = true;
  thread = mock_thread (close_and_open, NULL);
  mock_settle ();
  ck_assert (!flag);
  gate_open (&g);
  mock_join (thread);
  ck_assert (flag);
  ck_assert_uint_eq (gate_closings (&g), 2);
}
END_TEST

/* A gate that was removed stops no thread, and gate_close does not wait for
 * threads that entered after that.  Threads that were counted before leave as
 * usual.
 */
START_TEST (removed)
{
  struct gate_pass before, after;

  gate_enter (&g, &before);
  gate_remove (&g);
  gate_enter (&g, &after);
  gate_leave (&g, &before);
  gate_close (&g);              /* does not wait for `after' */
  ck_assert (gate_try_enter (&g, &before));
  gate_leave (&g, &before);
  gate_open (&g);
  gate_leave (&g, &after);
}
END_TEST

#define VISITORS 4
#define VISITS 20000
#define CLOSINGS 200

static unsigned number;         /* no atomic: the gate protects it */
static atomic_uint ended;

/* Each time inside they see the same number twice. */
static void
visitor (void *opaque)
{
  const unsigned visits = is_under_tool () ? VISITS / 10 : VISITS;

  for (unsigned i = 0; i < visits; ++i) {
    struct gate_pass pass;
    unsigned seen;

    if (i % 2 || !gate_try_enter (&g, &pass))
      gate_enter (&g, &pass);
    seen = number;
    if (i % 64 == 0)
      sched_yield ();
    if (seen != number)
      abort ();
    gate_leave (&g, &pass);
  }
  ended++;
}

/* Many go in and out while two others close it and change what is inside:
 * nobody sees that happen, which ThreadSanitizer, too, would notice.
 */
static void
closer (void *opaque)
{
  for (unsigned i = 0; i < CLOSINGS || ended < VISITORS; ++i) {
    gate_close (&g);
    number++;
    sched_yield ();
    number++;
    gate_open (&g);
    sched_yield ();
  }
}

START_TEST (stress)
{
  struct mock_thread *thread[VISITORS + 2];

  number = 0;
  ended = 0;
  for (unsigned i = 0; i < VISITORS + 2; ++i)
    thread[i] = mock_thread (i < VISITORS ? visitor : closer, NULL);
  for (unsigned i = 0; i < VISITORS + 2; ++i)
    mock_join (thread[i]);
  ck_assert_uint_eq (number, 2 * gate_closings (&g));
}
END_TEST

/* ---- outage.h ---- */

static struct outage o;
static uint64_t noted;

static void
wait_for_event (void *opaque)
{
  outage_wait (&o, noted, 3600 * 1000);
  flag = true;
}

/* An event between the look at the number and the wait is not missed.  A later
 * event wakes the threads that wait, and so does the end.  After the end no
 * thread waits.
 */
START_TEST (events)
{
  struct mock_thread *thread;

  flag = false;
  outage_init (&o);
  noted = outage_events (&o);
  outage_happened (&o);
  ck_assert_uint_ne (outage_events (&o), noted);
  wait_for_event (NULL);

  flag = false;
  noted = outage_events (&o);
  outage_wait (&o, noted, 1);   /* nothing comes */
  thread = mock_thread (wait_for_event, NULL);
  mock_settle ();
  ck_assert (!flag);
  outage_happened (&o);
  mock_join (thread);

  flag = false;
  noted = outage_events (&o);
  thread = mock_thread (wait_for_event, NULL);
  mock_settle ();
  ck_assert (!flag && !outage_waiting_has_ended (&o));
  outage_end_waiting (&o);
  mock_join (thread);
  ck_assert (outage_waiting_has_ended (&o));
  wait_for_event (NULL);
  outage_destroy (&o);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("gate");
  TCase *tc = tcase_create ("gate");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, closing_waits);
  tcase_add_test (tc, entering_waits);
  tcase_add_test (tc, one_closes);
  tcase_add_test (tc, removed);
  tcase_add_test (tc, stress);
  tcase_add_test (tc, events);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
