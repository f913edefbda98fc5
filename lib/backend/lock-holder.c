/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A line of /proc/PID/fdinfo/FD is
 *
 *   lock:  1: OFDLCK  ADVISORY  READ -1 fd:01:123456 100 101
 *
 * with the file's device and inode, and the locked range.  fcntl itself reports
 * no process for these locks (F_OFD_SETLK), because they belong to an open file
 * description.
 */

#include <config.h>

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/lock-holder.h"
#include "base/cleanup.h"

static void
cleanup_closedir (DIR **dir)
{
  if (*dir)
    closedir (*dir);
}
#define CLEANUP_CLOSEDIR __attribute__ ((cleanup (cleanup_closedir)))

static void
cleanup_fclose (FILE **f)
{
  if (*f)
    fclose (*f);
}
#define CLEANUP_FCLOSE __attribute__ ((cleanup (cleanup_fclose)))

static FILE *
open_in (int dir, const char *name)
{
  int fd = openat (dir, name, O_RDONLY | O_CLOEXEC);
  FILE *f = fd >= 0 ? fdopen (fd, "r") : NULL;

  if (f == NULL && fd >= 0)
    close (fd);
  return f;
}

/* Does this line describe a lock on this byte of the file? */
static bool
is_lock (const char *line, const struct stat *st, uint64_t byte)
{
  unsigned major_number, minor_number;
  uint64_t inode, first, last;
  char end[24];

  if (sscanf (line, "lock: %*d: %*s %*s %*s %*d %x:%x:%" SCNu64 " %" SCNu64
              " %23s", &major_number, &minor_number, &inode, &first,
              end) != 5)
    return false;
  last = strcmp (end, "EOF") == 0 ? UINT64_MAX : strtoull (end, NULL, 10);
  return major_number == major (st->st_dev) &&
    minor_number == minor (st->st_dev) && inode == st->st_ino &&
    first <= byte && byte <= last;
}

/* Has this file of a directory fdinfo such a line? */
static bool
has_lock (int dir, const char *name, const struct stat *st, uint64_t byte)
{
  CLEANUP_FCLOSE FILE *f = open_in (dir, name);
  char line[256];

  while (f && fgets (line, sizeof line, f))
    if (is_lock (line, st, byte))
      return true;
  return false;
}

/* Has any file of the process's fdinfo such a line? */
static bool
process_has_lock (int proc, const char *pid, const struct stat *st,
                  uint64_t byte)
{
  CLEANUP_CLOSEDIR DIR *dir = NULL;
  char path[64];
  const struct dirent *d;
  int fd;

  snprintf (path, sizeof path, "%s/fdinfo", pid);
  fd = openat (proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    return false;
  dir = fdopendir (fd);
  if (dir == NULL) {
    close (fd);
    return false;
  }
  while ((d = readdir (dir)) != NULL)
    if (d->d_name[0] != '.' && has_lock (dirfd (dir), d->d_name, st, byte))
      return true;
  return false;
}

static char *
describe_process (int proc, const char *pid)
{
  char path[64], name[64] = "", *text;
  CLEANUP_FCLOSE FILE *f = NULL;

  snprintf (path, sizeof path, "%s/comm", pid);
  f = open_in (proc, path);
  if (f && fgets (name, sizeof name, f))
    name[strcspn (name, "\n")] = '\0';
  if (asprintf (&text, "%s (process %s)", name[0] ? name : "a program",
                pid) == -1)
    return NULL;
  return text;
}

char *
lock_holder (int fd, off_t byte)
{
  CLEANUP_CLOSEDIR DIR *proc = opendir ("/proc");
  const struct dirent *d;
  struct stat st;

  if (proc == NULL || fstat (fd, &st) == -1)
    return NULL;
  while ((d = readdir (proc)) != NULL)
    if (d->d_name[0] >= '1' && d->d_name[0] <= '9' &&
        strlen (d->d_name) < 20 &&
        process_has_lock (dirfd (proc), d->d_name, &st, byte))
      return describe_process (dirfd (proc), d->d_name);
  return NULL;
}
