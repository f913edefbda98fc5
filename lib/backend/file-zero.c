/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Zero and trim, by fallocate where the file system or device supports it. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>

#include "backend/file-internal.h"
#include "base/rounding.h"

/* Written when nothing faster works. */
static char zeroes[256 << 10];

/* Does this failure count?  All others only mean that there is another way: a
 * file may be busy (swap, reflinks), a driver may refuse what its device
 * announces, and a hole in the middle of an extent may need metadata space on a
 * full file system, where zeroes can still be written in place.
 */
static bool
fallocate_has_failed (int mode, int error)
{
  switch (error) {
  case EIO:
  case EPERM:
  case EACCES:
  case EROFS:
  case EBADF:
  case ETXTBSY:
    return true;
  case ENOSPC:
  case EDQUOT:
    return mode == 0;           /* allocating only */
  default:
    return false;
  }
}

/* 1: done.  0: not possible, try another way.  -1: error. */
static int
try_fallocate (struct file *f, int mode, _Atomic bool *unsupported,
               uint64_t count, uint64_t offset)
{
  int r;

  if (*unsupported)
    return 0;
  do
    r = fallocate (f->fd, mode | FALLOC_FL_KEEP_SIZE, offset, count);
  while (r == -1 && errno == EINTR);
  if (r == 0) {
    if (mode != 0)
      file_forget_data (f);
    return 1;
  }

  /* Do not try it again.  ENODEV: block devices before Linux 4.9. */
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV ||
      errno == ENOTTY)
    *unsupported = true;
  return fallocate_has_failed (mode, errno) ? file_failed () : 0;
}

static int
try_punch (struct file *f, uint64_t count, uint64_t offset)
{
  return try_fallocate (f, FALLOC_FL_PUNCH_HOLE, &f->no_punch, count, offset);
}

/* For file systems without ZERO_RANGE, such as tmpfs.  If there is no space,
 * the first allocation fails before any data is changed.
 */
static int
try_punch_and_allocate (struct file *f, uint64_t count, uint64_t offset)
{
  int r;

  if (f->no_punch)
    return 0;
  r = try_fallocate (f, 0, &f->no_allocate, count, offset);
  if (r == 1)
    r = try_punch (f, count, offset);
  if (r == 1)
    r = try_fallocate (f, 0, &f->no_allocate, count, offset);
  return r;
}

static int
write_zeroes (struct file *f, uint64_t count, uint64_t offset)
{
  while (count > 0) {
    size_t n = MIN (count, (uint64_t)sizeof zeroes);

    if (file_write_all (f->fd, zeroes, n, offset) == -1)
      return -1;
    count -= n;
    offset += n;
  }
  return 0;
}

/* The range is aligned to the block size. */
static int
zero_aligned (struct file *f, uint64_t count, uint64_t offset, unsigned flags)
{
  int r = 0;

  if (flags & BACKEND_MAY_TRIM)
    r = try_punch (f, count, offset);
  /* On a block device ZERO_RANGE does what BLKZEROOUT does: the kernel writes
   * zeroes if the device has no faster way.  PUNCH_HOLE fails then.
   */
  if (r == 0 && !(f->is_block && (flags & BACKEND_FAST)))
    r = try_fallocate (f, FALLOC_FL_ZERO_RANGE, &f->no_zero_range,
                       count, offset);
  if (r == 0 && !f->is_block)
    r = try_punch_and_allocate (f, count, offset);
  if (r != 0)
    return r == 1 ? 0 : -1;

  if (flags & BACKEND_FAST) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return write_zeroes (f, count, offset);
}

int
file_zero (struct backend *b, uint64_t count, uint64_t offset, unsigned flags)
{
  struct file *f = to_file (b);
  uint64_t end = offset + count;
  uint64_t start = MIN (round_up (offset, f->block_size), end);
  uint64_t stop = MAX (round_down (end, f->block_size), start);

  /* Zero the aligned part first: only it can be refused, and then nothing has
   * been changed.  The edges are shorter than a block, and fast to write.
   */
  if (start < stop && zero_aligned (f, stop - start, start, flags) == -1)
    return -1;
  if (write_zeroes (f, start - offset, offset) == -1 ||
      write_zeroes (f, end - stop, stop) == -1)
    return -1;
  return flags & BACKEND_FUA ? file_sync (f->fua_fd) : 0;
}

/* Use PUNCH_HOLE on block devices, too: there it zeroes the range or fails.
 * After BLKDISCARD the range could read as anything.
 */
int
file_trim (struct backend *b, uint64_t count, uint64_t offset, unsigned flags)
{
  struct file *f = to_file (b);
  uint64_t start = round_up (offset, f->block_size);
  uint64_t stop = round_down (offset + count, f->block_size);
  int r;

  if (start >= stop)
    return 0;
  r = try_punch (f, stop - start, start);
  if (r == 1 && (flags & BACKEND_FUA))
    return file_sync (f->fua_fd);
  return r == -1 ? -1 : 0;
}
