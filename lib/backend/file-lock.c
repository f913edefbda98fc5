/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Locks on files.  They are F_OFD_SETLK locks, which belong to the open file
 * description: they stay when the process forks and the parent exits, as
 * nbdkit's does when it becomes a daemon.
 *
 *   byte 0          exclusive: one process owns the file (I11); shared by
 *                   processes that only read
 *   bytes 201, 203  shared: QEMU's image locking, "no other process may write"
 *                   and "no other process may resize".  QEMU then refuses to
 *                   open the image for writing
 *   bytes 101, 103  never taken, only tested: a process that holds one writes
 *                   or resizes, by QEMU's image locking
 *
 * The source is read without a lock, so that many processes can read it.  But
 * it must not change, so it is refused while byte 101 is held.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/file-internal.h"
#include "backend/lock-holder.h"
#include "base/cleanup.h"

/* *conflict becomes true if the lock of another process is in the way. */
static int
lock_byte (int fd, int cmd, short type, off_t byte, bool *conflict)
{
  struct flock lock = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1
  };
  int r = fcntl (fd, cmd, &lock);

  if (r == -1 && (errno == EAGAIN || errno == EACCES))
    *conflict = true;
  if (r == 0 && cmd == F_OFD_GETLK && lock.l_type != F_UNLCK) {
    *conflict = true;
    errno = EAGAIN;
    r = -1;
  }
  return r;
}

int
file_lock (struct file *f, const char *role)
{
  bool conflict = false;
  int r;

  if (f->b.readonly)
    r = lock_byte (f->fd, F_OFD_SETLK, F_RDLCK, 0, &conflict);
  else {
    r = lock_byte (f->fd, F_OFD_SETLK, F_WRLCK, 0, &conflict);
    /* As QEMU does: first take our locks, then test those of others. */
    if (r == 0)
      r = lock_byte (f->fd, F_OFD_SETLK, F_RDLCK, 201, &conflict);
    if (r == 0)
      r = lock_byte (f->fd, F_OFD_SETLK, F_RDLCK, 203, &conflict);
    if (r == 0)
      r = lock_byte (f->fd, F_OFD_GETLK, F_WRLCK, 101, &conflict);
    if (r == 0)
      r = lock_byte (f->fd, F_OFD_GETLK, F_WRLCK, 103, &conflict);
  }
  if (r == 0)
    return 0;

  if (conflict) {
    log_error (f->b.log, "%s %s is in use by another process; stop that first",
               role, f->b.name);
    errno = EBUSY;
  }
  else
    log_error (f->b.log, "cannot lock %s %s: %m", role, f->b.name);
  return -1;
}

int
file_check_writer (struct file *f, const char *role)
{
  CLEANUP_FREE char *holder = NULL;
  bool conflict = false;

  lock_byte (f->fd, F_OFD_GETLK, F_WRLCK, 101, &conflict);
  if (!conflict)        /* or the file system has no locks */
    return 0;
  holder = lock_holder (f->fd, 101);
  log_error (f->b.log, "%s %s: %s has it open for writing, by QEMU's image "
             "lock, and its changes would corrupt the clone; shut the virtual "
             "machine down, or let that process export the disk by NBD and "
             "give its URI as the %s", role, f->b.name,
             holder ?: "a QEMU process", role);
  errno = EBUSY;
  return -1;
}
