/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the control interface and the progress lines show and control: a running
 * clone and its hydration.
 */

#ifndef CLONE_INSTANCE_H
#define CLONE_INSTANCE_H

#include "clone/clone.h"
#include "hydration/hydrate.h"

/* The instance owns nothing.  The caller of control_new and progress_new fills
 * it in before it starts them, and does not change it until they have stopped.
 */
struct instance {
  struct clone *clone;
  struct hydrate *hydrate;

  /* End the process, as POST /stop asks.  Called on the control interface's
   * thread, perhaps more than once.  Returns at once.
   */
  void (*stop) (void);
};

#endif /* CLONE_INSTANCE_H */
