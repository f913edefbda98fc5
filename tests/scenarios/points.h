/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The test's side of the test points (lib/base/test-point.h): threads that
 * reach one are counted, and may be held there until the test lets them go.
 *
 * All functions may be called from any thread.
 */

#ifndef SCENARIOS_POINTS_H
#define SCENARIOS_POINTS_H

#include "base/test-point.h"

/* Forget all counts, and let all threads go. */
extern void points_reset (void);

/* How many times was the point reached? */
extern unsigned points_count (enum test_point point);

/* Hold the next n threads that reach the point. */
extern void points_hold (enum test_point point, unsigned n);

/* Wait until n threads are held there.  Aborts the test if they do not come. */
extern void points_wait (enum test_point point, unsigned n);

/* How many threads are held there now? */
extern unsigned points_held (enum test_point point);

/* Let all threads go that are held at the point, and hold the next one. */
extern void points_step (enum test_point point);

/* Let all threads go that are held at the point, and hold no others. */
extern void points_let_go (enum test_point point);

#endif /* SCENARIOS_POINTS_H */
