/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include "thread.h"

#ifdef CLONE_CHECKS
_Thread_local bool thread_is_loop;
#endif
