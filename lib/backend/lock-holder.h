/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which process holds a lock on a file, for messages. */

#ifndef CLONE_LOCK_HOLDER_H
#define CLONE_LOCK_HOLDER_H

#include <sys/types.h>

/* Describe a process that has a lock of any kind on this byte of the file, for
 * example "qemu-system-x86 (process 1234)".  The caller frees the text.  NULL
 * if it is not known: /proc/PID/fdinfo tells, and can be read only for the
 * user's own processes, or by root.
 */
extern char *lock_holder (int fd, off_t byte);

#endif /* CLONE_LOCK_HOLDER_H */
