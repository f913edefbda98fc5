/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "base/thread.h"

#ifdef CLONE_CHECKS
THREAD_LOCAL bool thread_is_loop;
#endif
