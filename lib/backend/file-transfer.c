/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading, writing, write-behind, flushing and sharing, on the calling thread.
 */

#include <config.h>

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/fs.h>

#include "backend/file-internal.h"
#include "base/rounding.h"

/* The maximum number of adjacent segments in one pwritev. */
#define MAX_IOV 64

int
file_failed (void)
{
  switch (errno) {
  case EIO:
  case ENOSPC:
  case ENOMEM:
  case EPERM:
  case EOPNOTSUPP:
    break;
  case EDQUOT:
  case EFBIG:
    errno = ENOSPC;
    break;
  case EROFS:
  case EACCES:
  case EBADF:
  case ETXTBSY:
    errno = EPERM;
    break;
  default:
    errno = EIO;
  }
  return -1;
}

int
file_read_all (int fd, char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pread (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0)                 /* the file has become shorter */
      errno = EIO;
    if (r <= 0)
      return file_failed ();
    buf += r;
    count -= r;
    offset += r;
  }
  return 0;
}

int
file_write_all (int fd, const char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pwrite (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0)
      errno = EIO;
    if (r <= 0)
      return file_failed ();
    buf += r;
    count -= r;
    offset += r;
  }
  return 0;
}

/* Write n segments, each of which begins where the one before it ends. */
static int
write_adjacent (int fd, const struct segment *seg, size_t n)
{
  struct iovec iov[MAX_IOV];
  size_t done;
  ssize_t r;

  if (n == 1)
    return file_write_all (fd, seg->buf, seg->count, seg->offset);

  for (size_t i = 0; i < n; ++i)
    iov[i] = (struct iovec){ seg[i].buf, seg[i].count };
  do
    r = pwritev (fd, iov, n, seg->offset);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    return file_failed ();

  /* After a short write, write the rest segment by segment. */
  done = r;
  for (size_t i = 0; i < n; ++i) {
    size_t skip = MIN (done, seg[i].count);

    done -= skip;
    if (file_write_all (fd, (const char *)seg[i].buf + skip,
                        seg[i].count - skip, seg[i].offset + skip) == -1)
      return -1;
  }
  return 0;
}

int
file_pread (struct backend *b, const struct segment *seg, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    if (file_read_all (to_file (b)->fd, seg[i].buf, seg[i].count,
                       seg[i].offset) == -1)
      return -1;
  return 0;
}

int
file_pwrite (struct backend *b, const struct segment *seg, size_t n,
             unsigned flags)
{
  struct file *f = to_file (b);
  int fd = flags & BACKEND_FUA ? f->fua_fd : f->fd;
  size_t run;

  for (size_t i = 0; i < n; i += run) {
    run = 1;
    while (i + run < n && run < MAX_IOV &&
           seg[i + run - 1].offset + seg[i + run - 1].count ==
           seg[i + run].offset)
      run++;
    if (write_adjacent (fd, &seg[i], run) == -1)
      return -1;
    if (flags & BACKEND_WRITE_BEHIND)
      for (size_t j = i; j < i + run; ++j)
        write_behind_add (&f->write_behind, seg[j].count, seg[j].offset);
  }
  return 0;
}

int
file_sync (int fd)
{
  int r;

  do
    r = fdatasync (fd);
  while (r == -1 && errno == EINTR);
  return r == -1 ? file_failed () : 0;
}

/* A nameless file does not survive a crash, so there is nothing to flush.
 * backend_file_publish makes all of it durable.
 */
int
file_flush (struct backend *b)
{
  struct file *f = to_file (b);
  int error;

  if (!f->named)
    return 0;
  if (file_sync (f->fd) == -1)
    return -1;
  /* The kernel may have reported an error only to write-behind. */
  error = write_behind_error (&f->write_behind);
  if (error == 0)
    return 0;
  errno = error;
  return file_failed ();
}

/* XFS and btrfs can share whole blocks within one file system. */
int
file_share (struct backend *b, struct backend *from, uint64_t count,
            uint64_t offset)
{
  struct file_clone_range range = {
    .src_fd = to_file (from)->fd, .src_offset = offset, .src_length = count,
    .dest_offset = offset,
  };

  const int r = ioctl (to_file (b)->fd, FICLONERANGE, &range);

  file_forget_data (to_file (b));
  return r;
}

void
file_write_behind (struct backend *b)
{
  write_behind_run (&to_file (b)->write_behind);
}
