/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The test's side of the test points (lib/base/test-point.h): who passes one is
 * counted, and may be held there until the test lets it go.
 *
 * All functions may be called from any thread.
 */

#ifndef SCENARIOS_POINTS_H
#define SCENARIOS_POINTS_H

#include "base/test-point.h"

/* Forget all counts, and let everybody go. */
extern void points_reset (void);

/* How often has the point been reached? */
extern unsigned points_count (enum test_point point);

/* Hold the next n who come to the point. */
extern void points_hold (enum test_point point, unsigned n);

/* Wait until n are held there.  Ends the test when they do not come. */
extern void points_wait (enum test_point point, unsigned n);

/* How many are held there now? */
extern unsigned points_held (enum test_point point);

/* Let all go who are held at the point, and hold the next one who comes. */
extern void points_step (enum test_point point);

/* Let all go who are held at the point, and hold nobody there any more. */
extern void points_let_go (enum test_point point);

#endif /* SCENARIOS_POINTS_H */
