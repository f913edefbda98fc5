/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for regular files and block devices.
 *
 * Everything happens on the calling thread, through the page cache.
 *
 * Why a writable file is open twice.  Linux reports a failed write-back once
 * for each open file description, to whichever fsync, fdatasync or O_DSYNC
 * write on it comes next.  A commit relies on that report: its flush must fail
 * when data were lost that any bit of its snapshot speaks of (I8).  If a FUA
 * write went through the same description it could consume the report, tell one
 * client of an error that is another's, and let the commit's flush succeed.
 * So FUA has a description of its own, opened O_DSYNC, and `fd' sees nothing
 * but plain writes and the flushes.
 *
 * Write-behind (write-behind.h) has a third one, read-only, since to wait with
 * sync_file_range is also told of errors, and takes them away from the
 * description on which it is called.  None of the three can take anything from
 * another.  It can be done without, where it cannot be opened.  To close one
 * gives up no lock: see below.
 *
 * Locks.  F_OFD_SETLK, because such locks belong to the open file description:
 * they stay when the process forks and the parent ends.
 *
 *   byte 0          exclusive: one process owns this (I11); shared by those
 *                   who only read
 *   bytes 201, 203  shared: QEMU's image locking, "nobody else may write" and
 *                   "nobody else may resize".  QEMU then opens the image
 *                   read-only, and refuses to write to it
 *   bytes 101, 103  not taken, but tested: who holds one writes through QEMU's
 *                   locking
 *
 * The source is read without any lock, so that many can do so.  But it must not
 * change, and is refused while byte 101 is held.
 *
 * Block devices are also opened O_EXCL, which refuses what is mounted.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/fs.h>

#include "backend/backend.h"
#include "backend/lock-holder.h"
#include "backend/write-behind.h"
#include "base/cleanup.h"
#include "base/rounding.h"

/* Adjacent segments that one pwritev takes. */
#define MAX_IOV 64

/* The most extents that one call reports. */
#define MAX_EXTENTS 1024

/* Zeroes to write where the file system knows no better way. */
static char zeroes[256 << 10];

struct file {
  struct backend b;
  int fd;
  int fua_fd;            /* O_DSYNC, see above; -1 if read-only */
  struct write_behind write_behind; /* with a descriptor of its own */
  bool named;            /* false: see backend_file_publish */
  dev_t dev;             /* who this is: a file's device and inode, */
  ino_t ino;
  bool is_block;         /* or a block device's number in dev */
  uint32_t block_size;   /* what fallocate wants aligned; 1 for a file */

  /* What the file system or device turned out not to do. */
  _Atomic bool no_punch;
  _Atomic bool no_zero_range;
  _Atomic bool no_allocate;
};

static struct file *
to_file (struct backend *b)
{
  return (struct file *)b;
}

/* errno becomes one of those that backend.h allows.  Returns -1. */
static int
failed (void)
{
  switch (errno) {
  case EIO:
  case ENOSPC:
  case ENOMEM:
  case EPERM:
  case ESHUTDOWN:
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

/* ---- read and write ---- */

static int
read_all (int fd, char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pread (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0)                 /* somebody has made the file shorter */
      errno = EIO;
    if (r <= 0)
      return failed ();
    buf += r;
    count -= r;
    offset += r;
  }
  return 0;
}

static int
write_all (int fd, const char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pwrite (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == 0)
      errno = EIO;
    if (r <= 0)
      return failed ();
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
    return write_all (fd, seg->buf, seg->count, seg->offset);

  for (size_t i = 0; i < n; ++i)
    iov[i] = (struct iovec){ seg[i].buf, seg[i].count };
  do
    r = pwritev (fd, iov, n, seg->offset);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    return failed ();

  /* What a short write left over goes out piece by piece. */
  done = r;
  for (size_t i = 0; i < n; ++i) {
    size_t skip = MIN (done, seg[i].count);

    done -= skip;
    if (write_all (fd, (const char *)seg[i].buf + skip, seg[i].count - skip,
                   seg[i].offset + skip) == -1)
      return -1;
  }
  return 0;
}

static int
file_pread (struct backend *b, const struct segment *seg, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    if (read_all (to_file (b)->fd, seg[i].buf, seg[i].count,
                  seg[i].offset) == -1)
      return -1;
  return 0;
}

static int
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

static int
sync_fd (int fd)
{
  int r;

  do
    r = fdatasync (fd);
  while (r == -1 && errno == EINTR);
  return r == -1 ? failed () : 0;
}

/* A crash takes away a file that has no name, so nothing of it needs to be
 * durable before give_name makes all of it so.
 */
static int
file_flush (struct backend *b)
{
  struct file *f = to_file (b);
  int error;

  if (!f->named)
    return 0;
  if (sync_fd (f->fd) == -1)
    return -1;
  /* Perhaps nobody but write-behind was told of an error. */
  error = write_behind_error (&f->write_behind);
  if (error == 0)
    return 0;
  errno = error;
  return failed ();
}

/* XFS and btrfs can, within one file system, and whole blocks. */
static int
file_share (struct backend *b, struct backend *from, uint64_t count,
            uint64_t offset)
{
  struct file_clone_range range = {
    .src_fd = to_file (from)->fd, .src_offset = offset, .src_length = count,
    .dest_offset = offset,
  };

  return ioctl (to_file (b)->fd, FICLONERANGE, &range);
}

static void
file_write_behind (struct backend *b)
{
  write_behind_run (&to_file (b)->write_behind);
}

/* ---- zero and trim ---- */

/* 1 where it was done, 0 where this is not supported, which is remembered, and
 * nothing was done, -1 on error.
 */
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
  if (r == 0)
    return 1;

  /* ENODEV: block devices before Linux 4.9. */
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV) {
    *unsupported = true;
    return 0;
  }
  return failed ();
}

static int
try_punch (struct file *f, uint64_t count, uint64_t offset)
{
  return try_fallocate (f, FALLOC_FL_PUNCH_HOLE, &f->no_punch, count, offset);
}

/* Where there is no ZERO_RANGE, as on tmpfs.  The first allocation is there to
 * fail, if it must, while nothing is done.
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

    if (write_all (f->fd, zeroes, n, offset) == -1)
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
  /* On a block device ZERO_RANGE is what BLKZEROOUT is: the kernel writes
   * zeroes where the device has no faster way.  PUNCH_HOLE fails instead.
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

static int
file_zero (struct backend *b, uint64_t count, uint64_t offset, unsigned flags)
{
  struct file *f = to_file (b);
  uint64_t end = offset + count;
  uint64_t start = MIN (round_up (offset, f->block_size), end);
  uint64_t stop = MAX (round_down (end, f->block_size), start);

  /* What may fail with nothing done goes first; edges of less than a block
   * are never slow to write.
   */
  if (start < stop && zero_aligned (f, stop - start, start, flags) == -1)
    return -1;
  if (write_zeroes (f, start - offset, offset) == -1 ||
      write_zeroes (f, end - stop, stop) == -1)
    return -1;
  return flags & BACKEND_FUA ? sync_fd (f->fua_fd) : 0;
}

/* PUNCH_HOLE also on block devices, where it makes zeroes or fails: after a
 * BLKDISCARD any bytes might come back.
 */
static int
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
    return sync_fd (f->fua_fd);
  return r == -1 ? -1 : 0;
}

/* ---- extents ---- */

/* There are no data from offset up to the file's end, so the rest is a hole,
 * unless somebody has made the file shorter.
 */
static int
add_last_hole (struct file *f, uint64_t offset, uint64_t end,
               struct extents *list)
{
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return failed ();
  if ((uint64_t)st.st_size < end) {
    errno = EIO;
    return -1;
  }
  return extents_add (list, offset, end - offset, EXTENT_HOLE | EXTENT_ZERO);
}

static int
file_extents (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags, struct extents *list)
{
  const size_t max = flags & BACKEND_REQ_ONE ? 1 : MAX_EXTENTS;
  struct file *f = to_file (b);
  const uint64_t end = offset + count;

  if (!b->knows_extents)
    return extents_add (list, offset, count, 0);

  /* A write may come between the two calls, and make either answer old.  What
   * was a hole when it was asked for is a hole to this request.
   */
  while (offset < end && list->len < max) {
    off_t data, hole;

    data = lseek (f->fd, offset, SEEK_DATA);
    if (data == -1 && errno == ENXIO)
      return add_last_hole (f, offset, end, list);
    if (data == -1)
      return failed ();
    if ((uint64_t)data > offset) {
      uint64_t stop = MIN ((uint64_t)data, end);

      if (extents_add (list, offset, stop - offset,
                       EXTENT_HOLE | EXTENT_ZERO) == -1)
        return failed ();
      offset = stop;
      continue;
    }

    hole = lseek (f->fd, offset, SEEK_HOLE);
    if (hole == -1 || (uint64_t)hole <= offset) {
      /* Trimmed at this moment, or the file became shorter. */
      if (hole == -1 && errno != ENXIO)
        return failed ();
      return extents_add (list, offset, end - offset, 0);
    }
    hole = MIN ((uint64_t)hole, end);
    if (extents_add (list, offset, hole - offset, 0) == -1)
      return failed ();
    offset = hole;
  }
  return 0;
}

/* ---- locks ---- */

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

/* Own the file.  -1, logged, with errno EBUSY where somebody else does. */
static int
take_lock (struct file *f, const char *role)
{
  bool conflict = false;
  int r;

  if (f->b.readonly)
    r = lock_byte (f->fd, F_OFD_SETLK, F_RDLCK, 0, &conflict);
  else {
    r = lock_byte (f->fd, F_OFD_SETLK, F_WRLCK, 0, &conflict);
    /* As QEMU does: first say what one wants, then look at the others. */
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

/* Whoever reads without a lock wants at least that QEMU does not write.  -1,
 * logged, with errno EBUSY where it does.
 */
static int
check_writer (struct file *f, const char *role)
{
  CLEANUP_FREE char *holder = NULL;
  bool conflict = false;

  lock_byte (f->fd, F_OFD_GETLK, F_WRLCK, 101, &conflict);
  if (!conflict)        /* also where the file system has no locks */
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

/* ---- open, create, close ---- */

static void
file_close (struct backend *b)
{
  struct file *f = to_file (b);

  write_behind_destroy (&f->write_behind);
  if (f->fua_fd >= 0)
    close (f->fua_fd);
  if (f->fd >= 0)
    close (f->fd);
  free (f->b.name);
  free (f);
}

static const struct backend_ops file_ops = {
  .close = file_close,
  .pread = file_pread,
  .pwrite = file_pwrite,
  .zero = file_zero,
  .trim = file_trim,
  .flush = file_flush,
  .share = file_share,
  .write_behind = file_write_behind,
  .extents = file_extents,
};

/* Log a failure to open.  An errno of ENOENT is for backend.h's own use. */
static void
cannot (const char *verb, const struct backend_params *params,
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

static struct file *
new_file (const struct backend_params *params, const struct log *log)
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
  f->fd = f->fua_fd = -1;
  write_behind_init (&f->write_behind, -1); /* open_others sets it */
  return f;
}

/* NULL where it is of a kind that we take. */
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

/* Fill in who the file is, and how large.  The reason, or NULL with errno set
 * where that says it all.
 */
static int
identify (struct file *f, const char **reason)
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
  f->b.can_fast_zero = !f->b.readonly;
  if (!f->is_block) {
    f->dev = st.st_dev;
    f->ino = st.st_ino;
    f->b.size = st.st_size;
    /* On an empty file, ENXIO says that the call is known. */
    f->b.knows_extents =
      lseek (f->fd, 0, SEEK_HOLE) != -1 || errno == ENXIO;
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

static bool
is_same_file (const struct file *f, const struct stat *st)
{
  if (S_ISBLK (st->st_mode))
    return f->is_block && f->dev == st->st_rdev;
  return !f->is_block && f->dev == st->st_dev && f->ino == st->st_ino;
}

/* Open the same file once more.  Returns a new descriptor, or -1. */
static int
open_again (struct file *f, int flags)
{
  char path[sizeof "/proc/self/fd/" + 3 * sizeof (int)];
  CLEANUP_CLOSE int fd = -1;
  struct stat st;
  int r;

  snprintf (path, sizeof path, "/proc/self/fd/%d", f->fd);
  fd = open (path, flags | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1)                 /* /proc is not there, perhaps */
    fd = open (f->b.name, flags | O_CLOEXEC | O_NONBLOCK);
  if (fd == -1 || fstat (fd, &st) == -1)
    return -1;
  if (!is_same_file (f, &st)) {
    errno = ESTALE;
    return -1;
  }
  if (fcntl (fd, F_SETFL, flags & O_DSYNC) == -1)
    return -1;
  r = fd;
  fd = -1;
  return r;
}

/* The other descriptors of a writable file. */
static int
open_others (struct file *f)
{
  f->fua_fd = open_again (f, O_RDWR | O_DSYNC);
  if (f->fua_fd == -1)
    return -1;
  f->write_behind.fd = open_again (f, O_RDONLY);
  return 0;
}

struct backend *
backend_file_open (const struct backend_params *params, const struct log *log)
{
  const char *reason;
  struct file *f;
  struct stat st;
  int flags;

  /* Before opening, because to open a device can do something to it. */
  if (stat (params->name, &st) == -1) {
    if (errno != ENOENT)
      cannot ("open", params, log, NULL);
    return NULL;
  }
  reason = refuse_type (st.st_mode);
  if (reason) {
    errno = EINVAL;
    cannot ("open", params, log, reason);
    return NULL;
  }

  f = new_file (params, log);
  if (f == NULL)
    return NULL;

  /* O_NONBLOCK, should it have become a FIFO since. */
  flags = (params->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
  if (S_ISBLK (st.st_mode) && params->lock && !params->readonly)
    flags |= O_EXCL;
  f->fd = open (params->name, flags);
  if (f->fd == -1) {
    if (errno == EBUSY)
      log_error (log, "%s %s is in use by another process, or mounted; stop "
                 "that first", params->role, params->name);
    else if (errno != ENOENT)
      cannot ("open", params, log, NULL);
    goto error;
  }
  if (identify (f, &reason) == -1 ||
      fcntl (f->fd, F_SETFL, 0) == -1 ||
      (!params->readonly && open_others (f) == -1)) {
    cannot ("open", params, log, reason);
    goto error;
  }
  if (params->lock ? take_lock (f, params->role) == -1
      : params->readonly && check_writer (f, params->role) == -1)
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
  /* EINVAL: a file system that has no use for this. */
  return fsync (fd) == -1 && errno != EINVAL ? -1 : 0;
}

/* A new file of this size, without a name where the file system can do that, so
 * that a crash in the middle leaves nothing behind.
 */
static int
create_sparse (struct file *f, uint64_t size)
{
  CLEANUP_FREE char *copy = strdup (f->b.name);

  if (copy == NULL)
    return -1;
  f->fd = open (dirname (copy), O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
  if (f->fd == -1 && (errno == EOPNOTSUPP || errno == EISDIR)) {
    f->fd = open (f->b.name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    f->named = f->fd >= 0;
  }
  if (f->fd == -1)
    return -1;
  return ftruncate (f->fd, size);
}

/* Give it its name, unless something else has that by now. */
static int
give_name (struct file *f)
{
  char path[sizeof "/proc/self/fd/" + 3 * sizeof (int)];

  if (fsync (f->fd) == -1)
    return -1;
  snprintf (path, sizeof path, "/proc/self/fd/%d", f->fd);
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

struct backend *
backend_file_create (const struct backend_params *params, uint64_t size,
                     const struct log *log)
{
  const char *reason = NULL;
  struct file *f;
  struct stat st;
  int err;

  f = new_file (params, log);
  if (f == NULL)
    return NULL;
  f->b.readonly = false;

  /* Early, because it may be long until the name is given. */
  if (lstat (params->name, &st) == 0) {
    errno = EEXIST;
    cannot ("create", params, log, NULL);
    goto error;
  }
  if (size > INT64_MAX) {
    errno = EFBIG;
    cannot ("create", params, log, NULL);
    goto error;
  }
  if (create_sparse (f, size) == -1) {
    cannot ("create", params, log, NULL);
    goto error;
  }
  if (take_lock (f, params->role) == -1) {
    /* Whoever was quicker owns the name now. */
    f->named &= errno != EBUSY;
    goto error;
  }
  if (identify (f, &reason) == -1 || open_others (f) == -1 ||
      (!params->nameless && give_name (f) == -1)) {
    cannot ("create", params, log, reason);
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

bool
backend_file_same (const char *a, const char *b)
{
  struct stat x, y;

  if (stat (a, &x) == -1 || stat (b, &y) == -1)
    return false;
  if (S_ISBLK (x.st_mode) && S_ISBLK (y.st_mode))
    return x.st_rdev == y.st_rdev;
  return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

void
backend_file_identity (struct backend *b, struct backend_identity *id)
{
  struct statx stx;

  memset (id, 0, sizeof *id);
  if (b->ops != &file_ops || to_file (b)->is_block ||
      statx (to_file (b)->fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME,
             &stx) == -1)
    return;
  id->inode = stx.stx_ino;
  if (stx.stx_mask & STATX_BTIME) {
    id->birth_sec = stx.stx_btime.tv_sec;
    id->birth_nsec = stx.stx_btime.tv_nsec;
  }
}

/* The number that the kernel has given to the disk with this device number, or
 * that it is a partition of; 0 where there is none.
 */
static uint64_t
disk_number (dev_t dev)
{
  static const char *const files[] = { "diskseq", "../diskseq" };
  uint64_t number = 0;

  for (size_t i = 0; i < 2 && number == 0; ++i) {
    char path[64], text[32];
    ssize_t n;

    snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%s", major (dev),
              minor (dev), files[i]);
    CLEANUP_CLOSE int fd = open (path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? read (fd, text, sizeof text - 1) : 0;
    if (n > 0) {
      text[n] = '\0';
      number = strtoull (text, NULL, 10);
    }
  }
  return number;
}

int
backend_file_place (struct backend *b, struct backend_place *place)
{
  struct stat st;

  memset (place, 0, sizeof *place);
  if (b->ops != &file_ops || fstat (to_file (b)->fd, &st) == -1)
    return -1;
  if (to_file (b)->is_block) {
    place->device = st.st_rdev;
    place->size = b->size;
  }
  else {
    place->device = st.st_dev;
    place->inode = st.st_ino;
  }
  place->disk = disk_number (place->device);
  return 0;
}

void
backend_file_unlink (struct backend *b)
{
  struct stat st;

  /* Not, if the name is another file's by now. */
  if (lstat (b->name, &st) == 0 && is_same_file (to_file (b), &st))
    unlink (b->name);
}
