/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The library's messages, as nbdkit prints and logs them; and the debug flags.
 */

#ifndef CLONE_NBDKIT_LOG_H
#define CLONE_NBDKIT_LOG_H

#include "base/log.h"

extern const struct log nbdkit_log;

/* To be called when the plugin is loaded, before nbdkit can have forked. */
extern void nbdkit_log_load (void);

#endif /* CLONE_NBDKIT_LOG_H */
