/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Creating files and naming them. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/file-internal.h"
#include "backend/file.h"
#include "base/cleanup.h"

/* Make the name of a new file durable. */
static int
sync_directory (const char *path)
{
  CLEANUP_FREE char *copy = strdup (path);
  CLEANUP_CLOSE int fd = -1;

  if (copy == NULL)
    return -1;
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    return -1;
  /* EINVAL: this file system needs no fsync of directories. */
  return fsync (fd) == -1 && errno != EINVAL ? -1 : 0;
}

/* Create a file of this size.  It has no name where that is possible, so that a
 * crash before it gets its name leaves nothing in the directory.
 *
 * It needs its name at once where the file system has no O_TMPFILE, and where
 * /proc is not mounted: then linkat could name it only with AT_EMPTY_PATH,
 * which is a privilege.
 *
 * Only its owner may read it: the source's data may be secret, and nbdkit sets
 * a umask of its own, 022, whatever the user's is.
 */
static int
create_sparse (struct file *f, uint64_t size)
{
  CLEANUP_FREE char *copy = strdup (f->b.name);
  char path[FILE_PROC_NAME_SIZE];

  if (copy == NULL)
    return -1;
  f->fd = open (dirname (copy), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
  file_proc_name (f, path);
  if (f->fd >= 0 && access (path, F_OK) == -1) {
    close (f->fd);
    f->fd = -1;
    errno = EOPNOTSUPP;
  }
  if (f->fd == -1 && (errno == EOPNOTSUPP || errno == EISDIR)) {
    f->fd = open (f->b.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    f->named = f->fd >= 0;
  }
  if (f->fd == -1)
    return -1;
  return ftruncate (f->fd, size);
}

/* Make the file durable and give it its name, unless that exists by now. */
static int
give_name (struct file *f)
{
  char path[FILE_PROC_NAME_SIZE];

  if (fsync (f->fd) == -1)
    return -1;
  file_proc_name (f, path);
  if (!f->named && linkat (AT_FDCWD, path, AT_FDCWD, f->b.name,
                           AT_SYMLINK_FOLLOW) == -1)
    return -1;
  f->named = true;
  return sync_directory (f->b.name);
}

int
backend_file_publish (struct backend *b)
{
  if (give_name (to_file (b)) == 0)
    return 0;
  log_error (b->log, "cannot create %s: %m", b->name);
  return -1;
}

/* Log that the name exists.  A symbolic link whose target is missing cannot be
 * opened, so the user may not expect that it is there.
 */
static void
log_exists (const struct backend_params *params, const struct stat *st,
            const struct log *log)
{
  char target[4096];
  ssize_t n = S_ISLNK (st->st_mode)
    ? readlink (params->name, target, sizeof target - 1) : -1;

  errno = EEXIST;
  if (n == -1) {
    file_log_failure ("create", params, log, NULL);
    return;
  }
  target[n] = '\0';
  log_error (log, "cannot create %s %s: it is a symbolic link to %s, which "
             "does not exist; name that file instead, or remove the link",
             params->role, params->name, target);
}

struct backend *
backend_file_create (const struct backend_params *params, uint64_t size,
                     const struct log *log)
{
  const char *reason = NULL;
  struct file *f;
  struct stat st;
  int err;

  f = file_new (params, log);
  if (f == NULL)
    return NULL;
  f->b.readonly = false;

  /* Now, because it may be long until the file gets its name. */
  if (lstat (params->name, &st) == 0) {
    log_exists (params, &st, log);
    goto error;
  }
  if (size > INT64_MAX) {
    errno = EFBIG;
    file_log_failure ("create", params, log, NULL);
    goto error;
  }
  if (create_sparse (f, size) == -1) {
    file_log_failure ("create", params, log, NULL);
    goto error;
  }
  if (file_lock (f, params->role) == -1) {
    /* Another process was quicker: the file is its own now. */
    f->named &= errno != EBUSY;
    goto error;
  }
  if (file_identify (f, &reason) == -1 || file_open_others (f) == -1 ||
      (!params->nameless && give_name (f) == -1)) {
    file_log_failure ("create", params, log, reason);
    goto error;
  }
  return &f->b;

 error:
  err = errno;
  if (f->named)
    unlink (params->name);
  file_close (&f->b);
  errno = err;
  return NULL;
}

void
backend_file_unlink (struct backend *b)
{
  struct stat st;

  /* Not if the name belongs to another file by now. */
  if (lstat (b->name, &st) == 0 && file_is_same (to_file (b), &st))
    unlink (b->name);
}
