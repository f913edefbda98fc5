/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Who holds a lock on a file, for messages. */

#ifndef CLONE_LOCK_HOLDER_H
#define CLONE_LOCK_HOLDER_H

#include <sys/types.h>

/* A process that has a lock of any kind on this byte of the file.  Linux tells
 * in /proc/PID/fdinfo, of those processes that we may look at: the user's own,
 * or all for root.  A text to be freed, for example "qemu-system-x86 (process
 * 1234)", or NULL where it is not known.
 */
extern char *lock_holder (int fd, off_t byte);

#endif /* CLONE_LOCK_HOLDER_H */
