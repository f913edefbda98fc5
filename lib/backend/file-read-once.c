/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Read data that nobody reads again soon, and leave the page cache as it is:
 * pages that are cached stay, and none are added.
 *
 * This is done with O_DIRECT, on a file description of its own, once_fd.
 * Reads through the page cache cannot do it: a read that meets a page which was
 * once read ahead, by anybody, makes the kernel read on ahead, also with
 * POSIX_FADV_RANDOM and RWF_DONTCACHE.  Nobody can tell these pages from those
 * that were cached before, so they stay.
 *
 * A file system that does not know O_DIRECT is in memory, or has a cache of its
 * own, which is not ours to manage.  There a plain read has to do.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/file-internal.h"
#include "base/cleanup.h"
#include "base/rounding.h"

/* The most bytes that are read into a buffer of our own. */
#define ONCE_BOUNCE (UINT64_C (1) << 20)

static bool
once_is_aligned (const void *buf, size_t count, uint64_t offset)
{
  return (((uintptr_t)buf | count | offset) & (BACKEND_ALIGN - 1)) == 0;
}

/* As pread, for any buf, count and offset. */
static ssize_t
once_read (struct file *f, void *buf, size_t count, uint64_t offset)
{
  const uint64_t start = round_down (offset, BACKEND_ALIGN);
  const size_t skip = offset - start;
  CLEANUP_FREE void *bounce = NULL;
  size_t n = round_down (count, BACKEND_ALIGN);
  ssize_t r;

  if (n > 0 && once_is_aligned (buf, n, offset))
    return pread (f->once_fd, buf, n, offset);

  n = MIN (round_up (skip + count, BACKEND_ALIGN), ONCE_BOUNCE);
  bounce = aligned_alloc (BACKEND_ALIGN, n);
  if (bounce == NULL)
    return -1;
  r = pread (f->once_fd, bounce, n, start);
  if (r == -1)
    return -1;
  if ((size_t)r <= skip)
    return 0;
  count = MIN (count, r - skip);
  memcpy (buf, (char *)bounce + skip, count);
  return count;
}

int
file_pread_once (struct backend *b, void *buf, size_t count, uint64_t offset)
{
  struct file *f = to_file (b);
  char *p = buf;

  while (count > 0) {
    ssize_t r;

    if (f->once_fd == -1 || f->no_direct)
      return file_read_all (f->fd, p, count, offset);
    r = once_read (f, p, count, offset);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && (errno == EINVAL || errno == EOPNOTSUPP)) {
      f->no_direct = true;      /* or it wants a larger alignment */
      continue;
    }
    if (r == 0)                 /* the file has become shorter */
      errno = EIO;
    if (r <= 0)
      return file_failed ();
    p += r;
    count -= r;
    offset += r;
  }
  return 0;
}
