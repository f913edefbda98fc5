/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for regular files and block devices: opening and closing.
 *
 *   file-transfer.c  read, write, flush, share
 *   file-read-once.c reading without filling the page cache
 *   file-zero.c      zero and trim
 *   file-extents.c   data and holes
 *   file-lock.c      one process owns the file
 *   file-create.c    new files and their names
 *   file-identity.c  which file it is
 *   file-same.c      two names of the same data
 *   write-behind.c   dropping written data from the page cache
 *
 * All I/O is done on the calling thread.  It goes through the page cache,
 * except for reads of data that nobody reads again soon.
 *
 * A writable file is open four times.  Linux reports a failed write-back once
 * for each open file description, to the next fsync, fdatasync or O_DSYNC
 * write on it.  A commit relies on that report: its flush must fail when data
 * were lost that any bit of its snapshot covers (I8).  A FUA write on the same
 * description could consume the report: one client would get the error that
 * belongs to another, and the commit's flush would succeed.  So:
 *
 *   fd               plain writes and flushes only
 *   fua_fd           opened O_DSYNC, for FUA
 *   write_behind.fd  read-only, because waiting with sync_file_range also
 *                    consumes reports.  Where it cannot be opened there is no
 *                    write-behind
 *   once_fd          read-only, opened O_DIRECT (file-read-once.c).  Where it
 *                    cannot be opened, fd is used
 *
 * A file that is read-only has fd and once_fd.
 *
 * Closing one of them releases no lock (file-lock.c).
 *
 * Block devices are also opened O_EXCL, which refuses mounted ones.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "backend/file-internal.h"
#include "backend/file.h"
#include "base/cleanup.h"
#include "base/rounding.h"

static const struct backend_ops file_ops = {
  .close = file_close,
  .pread = file_pread,
  .pread_once = file_pread_once,
  .pwrite = file_pwrite,
  .zero = file_zero,
  .trim = file_trim,
  .flush = file_flush,
  .share = file_share,
  .write_behind = file_write_behind,
  .extents = file_extents,
};

bool
is_file_backend (const struct backend *b)
{
  return b->ops == &file_ops;
}

struct file *
file_new (const struct backend_params *params, const struct log *log)
{
  struct file *f = calloc (1, sizeof *f);

  if (f == NULL || (f->b.name = strdup (params->name)) == NULL) {
    log_error (log, "%s %s: %m", params->role, params->name);
    free (f);
    return NULL;
  }
  f->b.ops = &file_ops;
  f->b.log = log;
  f->b.readonly = params->readonly;
  /* The page cache takes any request. */
  f->b.minimum_block = 1;
  f->block_size = 1;
  f->fd = f->fua_fd = f->once_fd = -1;
  pthread_mutex_init (&f->data_lock, NULL);
  write_behind_init (&f->write_behind, -1); /* file_open_others sets it */
  return f;
}

void
file_close (struct backend *b)
{
  struct file *f = to_file (b);

  write_behind_destroy (&f->write_behind);
  if (f->once_fd >= 0)
    close (f->once_fd);
  if (f->fua_fd >= 0)
    close (f->fua_fd);
  if (f->fd >= 0)
    close (f->fd);
  pthread_mutex_destroy (&f->data_lock);
  free (f->b.name);
  free (f);
}

void
file_log_failure (const char *verb, const struct backend_params *params,
                  const struct log *log, const char *reason)
{
  if (reason)
    log_error (log, "cannot %s %s %s: %s", verb, params->role, params->name,
               reason);
  else
    log_error (log, "cannot %s %s %s: %m", verb, params->role, params->name);
  if (errno == ENOENT)
    errno = EIO;
}

/* Why a file of this type is refused; NULL if it is not. */
static const char *
refuse_type (mode_t mode)
{
  if (S_ISREG (mode) || S_ISBLK (mode))
    return NULL;
  if (S_ISDIR (mode))
    return "it is a directory, not a regular file or a block device";
  if (S_ISCHR (mode))
    return "it is a character device, not a regular file or a block device";
  if (S_ISFIFO (mode))
    return "it is a FIFO, not a regular file or a block device";
  if (S_ISSOCK (mode))
    return "it is a socket, not a regular file or a block device; "
      "for an NBD server use nbd+unix:///?socket=PATH";
  return "it is neither a regular file nor a block device";
}

int
file_identify (struct file *f, const char **reason)
{
  unsigned block_size;
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return -1;
  *reason = refuse_type (st.st_mode);
  if (*reason) {
    errno = EINVAL;
    return -1;
  }

  f->is_block = S_ISBLK (st.st_mode);
  f->b.is_file = !f->is_block;
  f->b.can_zero = f->b.can_fast_zero = !f->b.readonly;
  /* On an empty file, ENXIO says that the call is known.  Most kernels do not
   * know it for block devices.
   */
  f->b.knows_extents = lseek (f->fd, 0, SEEK_HOLE) != -1 || errno == ENXIO;
  if (!f->is_block) {
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->b.size = st.st_size;
    return 0;
  }

  f->dev = st.st_rdev;
  if (ioctl (f->fd, BLKGETSIZE64, &f->b.size) == -1) {
    off_t end = lseek (f->fd, 0, SEEK_END);

    if (end == -1)
      return -1;
    f->b.size = end;
  }
  if (ioctl (f->fd, BLKSSZGET, &block_size) == -1 ||
      !is_power_of_2 (block_size))
    block_size = 4096;
  f->block_size = block_size;
  return 0;
}

void
file_proc_name (const struct file *f, char name[FILE_PROC_NAME_SIZE])
{
  snprintf (name, FILE_PROC_NAME_SIZE, "/proc/self/fd/%d", f->fd);
}

/* Open the same file once more.  Returns a new descriptor, or -1. */
static int
open_again (struct file *f, int flags)
{
  char path[FILE_PROC_NAME_SIZE];
  CLEANUP_CLOSE int fd = -1;
  struct stat st;
  int r;

  file_proc_name (f, path);
  fd = open (path, flags | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1) /* perhaps there is no /proc */
    fd = open (f->b.name, flags | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1 || fstat (fd, &st) == -1)
    return -1;
  if (!file_is_same (f, &st)) {
    errno = ESTALE;
    return -1;
  }
  if (fcntl (fd, F_SETFL, flags & (O_DSYNC | O_DIRECT)) == -1)
    return -1;
  r = fd;
  fd = -1;
  return r;
}

int
file_open_others (struct file *f)
{
  f->once_fd = open_again (f, O_RDONLY | O_DIRECT);
  if (f->b.readonly)
    return 0;
  f->fua_fd = open_again (f, O_RDWR | O_DSYNC);
  if (f->fua_fd == -1)
    return -1;
  f->write_behind.fd = open_again (f, O_RDONLY);
  return 0;
}

/* Linux lets a read-only block device be opened for writing.  Only the writes
 * fail.
 */
static bool
is_read_only_device (const struct file *f)
{
  int read_only;

  return f->is_block && ioctl (f->fd, BLKROGET, &read_only) == 0 && read_only;
}

static void
log_read_only_device (const struct backend_params *params,
                      const struct log *log)
{
  log_error (log, "%s %s is a read-only device; make it writable with "
             "\"blockdev --setrw %s\", or choose another", params->role,
             params->name, params->name);
  errno = EROFS;
}

struct backend *
backend_file_open (const struct backend_params *params, const struct log *log)
{
  const char *reason;
  struct file *f;
  struct stat st;
  int flags;

  /* Before opening, because opening a device can have side effects. */
  if (stat (params->name, &st) == -1) {
    if (errno != ENOENT)
      file_log_failure ("open", params, log, NULL);
    return NULL;
  }
  reason = refuse_type (st.st_mode);
  if (reason) {
    errno = EINVAL;
    file_log_failure ("open", params, log, reason);
    return NULL;
  }

  f = file_new (params, log);
  if (f == NULL)
    return NULL;

  /* O_NONBLOCK in case it has become a FIFO since. */
  flags = (params->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
  if (S_ISBLK (st.st_mode) && params->lock && !params->readonly)
    flags |= O_EXCL;
  f->fd = open (params->name, flags);
  if (f->fd == -1) {
    if (errno == EBUSY)
      log_error (log, "%s %s is in use by another process, or mounted; stop "
                 "that first", params->role, params->name);
    else if (errno == EROFS && S_ISBLK (st.st_mode))
      log_read_only_device (params, log);
    else if (errno != ENOENT)
      file_log_failure ("open", params, log, NULL);
    goto error;
  }
  if (file_identify (f, &reason) == -1 ||
      fcntl (f->fd, F_SETFL, 0) == -1 ||
      file_open_others (f) == -1) {
    file_log_failure ("open", params, log, reason);
    goto error;
  }
  if (!params->readonly && is_read_only_device (f)) {
    log_read_only_device (params, log);
    goto error;
  }
  if (params->lock ? file_lock (f, params->role) == -1
      : params->readonly && file_check_writer (f, params->role) == -1)
    goto error;
  f->named = true;
  return &f->b;

 error:
  {
    int err = errno;

    file_close (&f->b);
    errno = err;
  }
  return NULL;
}
