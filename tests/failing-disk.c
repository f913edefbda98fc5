/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A local file that stalls and fails on demand: a library to be preloaded, for
 * tests only.
 *
 *   FAILING_DISK        the file's path
 *   FAILING_DISK_RULES  a directory.  As long as it has a file `hold', writes
 *                       to the disk wait; the first one makes a file `held'.
 *                       If it has a file `fdatasync', which holds an errno, the
 *                       next fdatasync fails with that, and removes the file.
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* A rule's path, in buf, if it concerns this descriptor, else NULL. */
static const char *
rule (int fd, const char *name, char buf[1024])
{
  const char *disk = getenv ("FAILING_DISK");
  const char *rules = getenv ("FAILING_DISK_RULES");
  struct stat a, b;

  if (disk == NULL || rules == NULL || stat (disk, &a) == -1 ||
      fstat (fd, &b) == -1 || a.st_dev != b.st_dev || a.st_ino != b.st_ino)
    return NULL;
  snprintf (buf, 1024, "%s/%s", rules, name);
  return buf;
}

static void
wait_until_let_go (int fd)
{
  const int error = errno;
  char buf[1024], held[1024];
  const char *hold = rule (fd, "hold", buf);

  if (hold && access (hold, F_OK) == 0) {
    close (open (rule (fd, "held", held), O_CREAT | O_CLOEXEC, 0666));
    while (access (hold, F_OK) == 0)
      usleep (1000);
  }
  errno = error;
}

ssize_t
pwrite (int fd, const void *data, size_t count, off_t offset)
{
  ssize_t (*next) (int, const void *, size_t, off_t) =
    dlsym (RTLD_NEXT, "pwrite");

  wait_until_let_go (fd);
  return next (fd, data, count, offset);
}

ssize_t
pwritev (int fd, const struct iovec *iov, int n, off_t offset)
{
  ssize_t (*next) (int, const struct iovec *, int, off_t) =
    dlsym (RTLD_NEXT, "pwritev");

  wait_until_let_go (fd);
  return next (fd, iov, n, offset);
}

int
fdatasync (int fd)
{
  int (*next) (int) = dlsym (RTLD_NEXT, "fdatasync");
  char buf[1024];
  const char *path = rule (fd, "fdatasync", buf);
  FILE *f = path ? fopen (path, "re") : NULL;
  int error = 0;

  if (f) {
    if (fscanf (f, "%d", &error) != 1)
      error = EIO;
    fclose (f);
    unlink (path);
    errno = error;
    return -1;
  }
  return next (fd);
}
