/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that files are read and written as backend.h says, with and without
 * optional features of the file system; that holes are found; that write-behind
 * keeps the page cache free, and that reading once does; that unsuitable files are
 * refused; and that a file
 * has one owner, also across fork and beside QEMU (I11).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/magic.h>

#include <check.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "backend/lock-holder.h"
#include "backend/write-behind.h"
#include "mock-backend.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define M (K * K)

/* The test's directory, and two names in it. */
static char dir[4096 - 16], path[4096], other[4096];

static void
setup (void)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/test-backend-file-XXXXXX",
            tmp ? tmp : "/tmp");
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (path, sizeof path, "%s/file", dir);
  snprintf (other, sizeof other, "%s/other", dir);
}

static void
teardown (void)
{
  unlink (path);
  unlink (other);
  ck_assert_int_eq (rmdir (dir), 0);
}

static struct backend *
open_path (const char *name, bool readonly, bool lock)
{
  const struct backend_params params = {
    .role = readonly ? "source" : "destination", .name = name,
    .readonly = readonly, .lock = lock,
  };

  return backend_open (&params, &mock_messages);
}

static struct backend *
create (uint64_t size)
{
  const struct backend_params params = {
    .role = "destination", .name = path, .lock = true
  };
  struct backend *b = backend_create (&params, size, &mock_messages);

  ck_assert_msg (b != NULL, "%s", mock_last_error ());
  return b;
}

/* Check the file's content, without the backend. */
static void
check_content (const uint8_t *model, size_t size)
{
  uint8_t *buf = malloc (size);
  int fd = open (path, O_RDONLY);

  ck_assert_int_eq (pread (fd, buf, size, 0), size);
  for (size_t i = 0; i < size; ++i)
    if (buf[i] != model[i])
      ck_abort_msg ("byte %zu is %02x, should be %02x", i, buf[i], model[i]);
  close (fd);
  free (buf);
}

static uint64_t
allocated (void)
{
  struct stat st;

  ck_assert_int_eq (stat (path, &st), 0);
  return st.st_blocks * UINT64_C (512);
}

/* ---- data ---- */

#define SIZE (300 * K + 77)

static const unsigned all_flags[] = {
  0, BACKEND_FUA, BACKEND_MAY_TRIM, BACKEND_FUA | BACKEND_MAY_TRIM
};

/* Random reads, writes (also of several segments, some of them adjacent),
 * zeroes and trims of any alignment give the same content as a model, with and
 * without FUA.
 */
START_TEST (random_against_model)
{
  static uint8_t model[SIZE], buf[SIZE];
  struct backend *b = create (SIZE);
  uint64_t seed = 1, wrong = 0;

  memset (model, 0, sizeof model);
  for (unsigned i = 0; i < 1500; ++i) {
    uint64_t offset = mock_random (&seed) % SIZE;
    uint64_t count = 1 + mock_random (&seed) % (SIZE - offset);
    unsigned flags = all_flags[mock_random (&seed) % 4];

    if (i % 3)
      count = count % (9 * K) + (count < 9 * K ? 0 : 1);
    if (count == 0)
      count = 1;
    switch (mock_random (&seed) % 5) {
    case 0:
      for (uint64_t j = 0; j < count; ++j)
        buf[j] = mock_random (&seed);
      ck_assert_int_eq (backend_pwrite (b, buf, count, offset,
                                        flags & BACKEND_FUA), 0);
      memcpy (model + offset, buf, count);
      break;
    case 1: {
      /* Cut into pieces, some of which are left out. */
      struct segment seg[100];
      uint64_t pos = 0;
      size_t n = 0;

      for (uint64_t j = 0; j < count; ++j)
        buf[j] = mock_random (&seed);
      while (pos < count && n < 100) {
        uint64_t piece = 1 + mock_random (&seed) % (count / 40 + 1);

        if (piece > count - pos)
          piece = count - pos;
        if (mock_random (&seed) % 4) {
          seg[n++] = (struct segment){ buf + pos, piece, offset + pos };
          memcpy (model + offset + pos, buf + pos, piece);
        }
        pos += piece;
      }
      ck_assert_int_eq (backend_pwritev (b, seg, n, flags & BACKEND_FUA), 0);
      break;
    }
    case 2:
      ck_assert_int_eq (backend_zero (b, count, offset, flags), 0);
      memset (model + offset, 0, count);
      break;
    case 3:
      /* On a file, trimmed bytes are zero or unchanged. */
      ck_assert_int_eq (backend_trim (b, count, offset,
                                      flags & BACKEND_FUA), 0);
      ck_assert_int_eq (backend_pread (b, buf, count, offset), 0);
      for (uint64_t j = 0; j < count; ++j)
        wrong += buf[j] != 0 && buf[j] != model[offset + j];
      ck_assert_uint_eq (wrong, 0);
      memcpy (model + offset, buf, count);
      break;
    default: {
      uint64_t half = count / 2;
      const struct segment seg[2] = {
        { buf, count - half, offset }, { buf + count, half, offset },
      };

      if (count > sizeof buf / 2)
        break;
      ck_assert_int_eq (backend_preadv (b, seg, half ? 2 : 1), 0);
      ck_assert_mem_eq (buf, model + offset, count - half);
      if (half)
        ck_assert_mem_eq (buf + count, model + offset, half);
    }
    }
  }
  ck_assert_int_eq (backend_flush (b), 0);
  check_content (model, SIZE);
  backend_close (b);
}
END_TEST

/* A zeroed range keeps its space or becomes a hole, as requested, and a trimmed
 * range becomes a hole, if the file system supports this.
 */
START_TEST (space)
{
  struct backend *b = create (8 * M);
  void *data = malloc (8 * M);

  memset (data, 1, 8 * M);
  ck_assert_uint_lt (allocated (), M);
  ck_assert_int_eq (backend_pwrite (b, data, 8 * M, 0, 0), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_uint_ge (allocated (), 8 * M);
  ck_assert_int_eq (backend_zero (b, 3 * M, 0, 0), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_uint_ge (allocated (), 8 * M);

  ck_assert_int_eq (backend_zero (b, 2 * M, 0, BACKEND_MAY_TRIM), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_uint_le (allocated (), 6 * M + 64 * K);
  ck_assert_int_eq (backend_trim (b, 2 * M, 4 * M, 0), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_uint_le (allocated (), 4 * M + 64 * K);

  /* A hole gets space again. */
  ck_assert_int_eq (backend_zero (b, 2 * M, 0, 0), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_uint_ge (allocated (), 6 * M - 64 * K);
  backend_close (b);
  free (data);
}
END_TEST

/* A fast zero is done, or is refused and changes nothing. */
START_TEST (fast_zero)
{
  struct backend *b = create (M);
  uint8_t byte = 1, after;
  int r;

  ck_assert (b->can_fast_zero);
  for (unsigned i = 0; i < 4; ++i) {
    ck_assert_int_eq (backend_pwrite (b, &byte, 1, 100, 0), 0);
    r = backend_zero (b, 4096, 50, all_flags[i] | BACKEND_FAST);
    if (r == -1)
      ck_assert_int_eq (errno, EOPNOTSUPP);
    ck_assert_int_eq (backend_pread (b, &after, 1, 100), 0);
    ck_assert_int_eq (after, r == -1);
  }
  backend_close (b);
}
END_TEST

static void
check_extents (struct backend *b, uint64_t offset, uint64_t count,
               const struct extent *want, size_t n)
{
  struct extents list = EXTENTS_INIT;

  ck_assert_int_eq (backend_extents (b, count, offset, 0, &list), 0);
  ck_assert_uint_eq (list.len, n);
  for (size_t i = 0; i < n; ++i) {
    ck_assert_uint_eq (list.extent[i].offset, want[i].offset);
    ck_assert_uint_eq (list.extent[i].length, want[i].length);
    ck_assert_uint_eq (list.extent[i].flags, want[i].flags);
  }
  extents_free (&list);
}

#define HOLE (EXTENT_HOLE | EXTENT_ZERO)

/* Data and holes, cut to the request, also at the file's start and end. */
START_TEST (extents)
{
  struct backend *b = create (10 * M + 5);
  struct extents list = EXTENTS_INIT;
  char data[64 * 1024];

  memset (data, 1, sizeof data);
  ck_assert (b->knows_extents);
  check_extents (b, 0, 10 * M + 5, (struct extent[]){
      { 0, 10 * M + 5, HOLE } }, 1);
  ck_assert_int_eq (backend_pwrite (b, data, sizeof data, 2 * M, 0), 0);
  ck_assert_int_eq (backend_pwrite (b, data, sizeof data, 4 * M, 0), 0);
  check_extents (b, 0, 10 * M + 5, (struct extent[]){
      { 0, 2 * M, HOLE }, { 2 * M, 64 * K, 0 },
      { 2 * M + 64 * K, 2 * M - 64 * K, HOLE }, { 4 * M, 64 * K, 0 },
      { 4 * M + 64 * K, 6 * M + 5 - 64 * K, HOLE } }, 5);
  check_extents (b, 2 * M - 1, 3, (struct extent[]){
      { 2 * M - 1, 1, HOLE }, { 2 * M, 2, 0 } }, 2);
  check_extents (b, 2 * M + 1, 1, (struct extent[]){ { 2 * M + 1, 1, 0 } }, 1);
  check_extents (b, 10 * M, 5, (struct extent[]){ { 10 * M, 5, HOLE } }, 1);

  ck_assert_int_eq (backend_extents (b, 5 * M, M, BACKEND_REQ_ONE, &list), 0);
  ck_assert_uint_eq (list.len, 1);
  ck_assert_uint_eq (list.extent[0].length, M);
  extents_free (&list);
  backend_close (b);
}
END_TEST

/* A file of very many extents: each answer is bounded and covers something, and
 * all answers together cover the file.
 */
START_TEST (many_extents)
{
  const uint64_t size = 3000 * 8 * K;
  struct backend *b = create (size);
  uint64_t pos = 0, data = 0;

  for (uint64_t i = 0; i < 3000; ++i)
    ck_assert_int_eq (backend_pwrite (b, "data", 4, i * 8 * K, 0), 0);
  while (pos < size) {
    struct extents list = EXTENTS_INIT;

    ck_assert_int_eq (backend_extents (b, size - pos, pos, 0, &list), 0);
    ck_assert_uint_ge (list.len, 1);
    ck_assert_uint_le (list.len, 1024);
    ck_assert_uint_eq (list.extent[0].offset, pos);
    ck_assert_uint_le (extents_end (&list), size);
    for (size_t i = 0; i < list.len; ++i)
      data += list.extent[i].flags == 0 ? list.extent[i].length : 0;
    pos = extents_end (&list);
    extents_free (&list);
  }
  ck_assert_uint_ge (data, 3000 * 4);
  backend_close (b);
}
END_TEST

/* A source that became shorter: the missing part is an error, not zeroes. */
START_TEST (shortened)
{
  struct backend *b;
  struct extents list = EXTENTS_INIT;
  char buf[16];

  backend_close (create (M));
  b = open_path (path, true, false);
  ck_assert_int_eq (truncate (path, M / 2), 0);
  ck_assert_int_eq (backend_pread (b, buf, 16, M / 2 - 8), -1);
  ck_assert_int_eq (errno, EIO);
  ck_assert_int_eq (backend_extents (b, M / 2, M / 2, 0, &list), -1);
  ck_assert_int_eq (errno, EIO);
  extents_clear (&list);
  ck_assert_int_eq (backend_extents (b, M, 0, 0, &list), -1);
  extents_free (&list);
  backend_close (b);
}
END_TEST

/* The kernel's errnos become those that backend.h allows. */
START_TEST (errors)
{
  struct backend *b = create (8 * K);
  const struct rlimit limit = { 4 * K, RLIM_INFINITY };
  struct rlimit old;
  char buf[4096] = { 1 };

  signal (SIGXFSZ, SIG_IGN);
  getrlimit (RLIMIT_FSIZE, &old);
  setrlimit (RLIMIT_FSIZE, &limit);
  ck_assert_int_eq (backend_pwrite (b, buf, 4 * K, 4 * K, 0), -1);
  int err = errno;
  setrlimit (RLIMIT_FSIZE, &old);
  ck_assert_int_eq (err, ENOSPC); /* EFBIG */
  backend_close (b);

  /* A read-only backend is never written to. */
  b = open_path (path, true, false);
  ck_assert (b->readonly);
  ck_assert (!b->can_fast_zero);
  ck_assert_int_eq (backend_pwrite (b, buf, 1, 0, 0), -1);
  ck_assert_int_eq (errno, EPERM);
  ck_assert_int_eq (b->ops->pwrite (b, &(struct segment){ buf, 1, 0 }, 1, 0),
                    -1);
  ck_assert_int_eq (errno, EPERM);
  ck_assert_int_eq (b->ops->zero (b, 1, 0, 0), -1);
  ck_assert_int_eq (errno, EPERM);
  backend_close (b);
}
END_TEST

/* ---- write-behind ---- */

/* Replaces libc's function.  The next call with all of these flags fails once,
 * with sync_errno.  0: no call fails.
 */
static _Atomic unsigned sync_fails_with_flags;
static _Atomic int sync_errno;
static _Atomic unsigned sync_starts; /* calls that only start a write-back */

int
sync_file_range (int fd, off64_t offset, off64_t count, unsigned flags)
{
  unsigned which = sync_fails_with_flags;

  if (flags == SYNC_FILE_RANGE_WRITE)
    sync_starts++;
  if (which != 0 && (flags & which) == which) {
    sync_fails_with_flags = 0;
    errno = sync_errno;
    return -1;
  }
  return syscall (SYS_sync_file_range, fd, offset, count, flags);
}

/* How many bytes of a range of the file are in the page cache? */
static uint64_t
cached (uint64_t offset, uint64_t count)
{
  const long page = sysconf (_SC_PAGESIZE);
  const size_t pages = count / page;
  unsigned char *vec = malloc (pages);
  int fd = open (path, O_RDONLY);
  void *map = mmap (NULL, count, PROT_READ, MAP_SHARED, fd, offset);
  uint64_t n = 0;

  ck_assert_ptr_ne (map, MAP_FAILED);
  ck_assert_int_eq (mincore (map, count, vec), 0);
  for (size_t i = 0; i < pages; ++i)
    n += (vec[i] & 1) * page;
  munmap (map, count);
  close (fd);
  free (vec);
  return n;
}

/* A tmpfs has no device: its pages stay in memory. */
static bool
is_on_tmpfs (void)
{
  struct statfs fs;

  ck_assert_int_eq (statfs (dir, &fs), 0);
  return fs.f_type == TMPFS_MAGIC;
}

#define BIG (64 * M)
#define PIECE (256 * K)

/* Two threads write, each every other piece. */
struct half {
  struct backend *b;
  const uint8_t *data;
  unsigned nr, flags;
};

static void *
write_half (void *arg)
{
  const struct half *half = arg;

  for (uint64_t pos = half->nr * PIECE; pos < BIG; pos += 2 * PIECE) {
    if (backend_pwrite (half->b, half->data + pos, PIECE, pos,
                        half->flags) == -1)
      return (void *)half;
    backend_write_behind (half->b);
  }
  return NULL;
}

static void
write_big (struct backend *b, const uint8_t *data, unsigned flags)
{
  struct half half[2];
  pthread_t thread[2];
  void *failed;

  for (unsigned i = 0; i < 2; ++i) {
    half[i] = (struct half){ b, data, i, flags };
    ck_assert_int_eq (pthread_create (&thread[i], NULL, write_half, &half[i]),
                      0);
  }
  for (unsigned i = 0; i < 2; ++i) {
    pthread_join (thread[i], &failed);
    ck_assert_ptr_null (failed);
  }
}

static uint8_t *
random_data (size_t size)
{
  uint64_t *data = malloc (size), seed = 5;

  for (size_t i = 0; i < size / sizeof *data; ++i)
    data[i] = mock_random (&seed);
  return (uint8_t *)data;
}

/* Data written with BACKEND_WRITE_BEHIND leave the page cache, except the last
 * ones, whose write-back is in progress; data written without it stay.  The
 * file's content is right in both cases.
 */
START_TEST (write_behind)
{
  struct backend *b = create (BIG);
  uint8_t *data = random_data (BIG);

  write_big (b, data, 0);
  ck_assert_uint_gt (cached (0, BIG), BIG / 4 * 3);
  check_content (data, BIG);
  data[0] ^= 1;
  write_big (b, data, BACKEND_WRITE_BEHIND);
  /* Pages that the kernel works on stay. */
  if (!is_on_tmpfs ())
    ck_assert_uint_le (cached (0, BIG), WRITE_BEHIND_BYTES + 8 * M);
  check_content (data, BIG);
  ck_assert_int_eq (backend_flush (b), 0);
  backend_close (b);
  free (data);
}
END_TEST

/* More ranges than the queue can hold, of all sizes: no data is lost, and
 * nothing is written back before backend_write_behind.
 */
START_TEST (behind_too_much)
{
  const uint64_t size = 160 * M, piece = 128 * K;
  struct backend *b = create (size);
  uint8_t *data = random_data (size);

  /* With gaps, so that no two can be merged. */
  for (uint64_t pos = 0; pos < size; pos += 2 * piece)
    ck_assert_int_eq (backend_pwrite (b, data + pos, piece, pos,
                                      BACKEND_WRITE_BEHIND), 0);
  ck_assert_uint_gt (cached (0, size), size / 8 * 3);
  backend_write_behind (b);
  if (!is_on_tmpfs ())
    ck_assert_uint_lt (cached (0, size), size / 8 * 3);
  for (uint64_t pos = piece; pos < size; pos += 2 * piece)
    ck_assert_int_eq (backend_pwrite (b, data + pos, piece, pos, 0), 0);
  for (uint64_t pos = 0; pos < M; pos += 1000)
    ck_assert_int_eq (backend_pwrite (b, data + pos, 1000, pos,
                                      BACKEND_WRITE_BEHIND), 0);
  backend_write_behind (b);
  check_content (data, size);
  backend_close (b);
  free (data);
}
END_TEST

/* Small pieces, of two writers, one of which goes backwards, are written back
 * in large ones, and not before there is enough for one.
 */
START_TEST (behind_gathers)
{
  const uint64_t size = 16 * M, piece = 64 * K;
  struct backend *b = create (size);
  uint8_t *data = random_data (size);
  uint64_t written = 0;

  sync_starts = 0;
  for (uint64_t pos = 0; pos < size / 2; pos += piece) {
    const uint64_t places[] = { pos, size - piece - pos };

    for (unsigned i = 0; i < 2; ++i) {
      ck_assert_int_eq (backend_pwrite (b, data + places[i], piece, places[i],
                                        BACKEND_WRITE_BEHIND), 0);
      backend_write_behind (b);
      written += piece;
      if (written < WRITE_BEHIND_GATHER)
        ck_assert_uint_eq (sync_starts, 0);
    }
  }
  ck_assert_uint_eq (sync_starts, 2 * size / WRITE_BEHIND_GATHER);
  check_content (data, size);
  backend_close (b);
  free (data);
}
END_TEST

/* When write-behind gets an error, the data stay in memory, because they may be
 * nowhere else, and no flush succeeds, although fdatasync does.
 */
START_TEST (behind_fails)
{
  const unsigned flags[] = {
    SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER
  };
  struct backend *b = create (BIG);
  uint8_t *data = random_data (BIG);

  sync_errno = _i % 2 ? ENOSPC : EIO;
  sync_fails_with_flags = flags[_i / 2];
  write_big (b, data, BACKEND_WRITE_BEHIND);
  ck_assert_uint_eq (sync_fails_with_flags, 0);
  ck_assert_uint_gt (cached (0, BIG), BIG / 4 * 3);
  for (unsigned i = 0; i < 2; ++i) {
    ck_assert_int_eq (backend_flush (b), -1);
    ck_assert_int_eq (errno, sync_errno);
  }
  check_content (data, BIG);
  backend_close (b);
  free (data);
}
END_TEST

/* Where the file system does not support write-behind, nothing fails. */
START_TEST (behind_unsupported)
{
  struct backend *b = create (10 * M);
  uint8_t *data = random_data (10 * M);

  sync_errno = ESPIPE;
  sync_fails_with_flags = SYNC_FILE_RANGE_WRITE;
  ck_assert_int_eq (backend_pwrite (b, data, 10 * M, 0,
                                    BACKEND_WRITE_BEHIND), 0);
  backend_write_behind (b);
  ck_assert_uint_eq (sync_fails_with_flags, 0);
  ck_assert_int_eq (backend_flush (b), 0);
  check_content (data, 10 * M);
  backend_close (b);
  free (data);
}
END_TEST

/* Write-behind has an open file description of its own: Linux reports each
 * failed write-back once on each description, and flushes need their report
 * (I8).  Closing it releases no lock.
 */
START_TEST (behind_stands_alone)
{
  struct backend *b = create (10 * M);
  struct stat ours, st;
  unsigned plain = 0, dsync = 0, readonly = 0;

  ck_assert_int_eq (stat (path, &ours), 0);
  for (int fd = 3; fd < 100; ++fd) {
    if (fstat (fd, &st) == -1 || st.st_ino != ours.st_ino ||
        st.st_dev != ours.st_dev)
      continue;
    int flags = fcntl (fd, F_GETFL);
    if ((flags & O_ACCMODE) == O_RDONLY) {
      readonly++;
      /* Writes work without them. */
      ck_assert_int_eq (close (fd), 0);
    }
    else if (flags & O_DSYNC)
      dsync++;
    else
      plain++;
  }
  ck_assert_uint_eq (plain, 1);
  ck_assert_uint_eq (dsync, 1);
  ck_assert_uint_eq (readonly, 2); /* one of them for pread_once */

  uint8_t *data = random_data (10 * M);
  ck_assert_int_eq (backend_pwrite (b, data, 10 * M, 0,
                                    BACKEND_WRITE_BEHIND), 0);
  backend_write_behind (b);
  ck_assert_int_eq (backend_flush (b), 0);
  check_content (data, 10 * M);
  ck_assert_ptr_null (open_path (path, false, true));
  ck_assert_int_eq (errno, EBUSY);
  backend_close (b);
  free (data);
}
END_TEST

/* ---- reads that leave nothing in the page cache ---- */

/* Replaces libc's function.  It can fail for O_DIRECT, as where that is not
 * supported.
 */
static _Atomic bool direct_fails;
static _Atomic unsigned direct_calls;

ssize_t
pread (int fd, void *buf, size_t count, off_t offset)
{
  if (fcntl (fd, F_GETFL) & O_DIRECT) {
    direct_calls++;
    if (direct_fails) {
      errno = EINVAL;
      return -1;
    }
  }
  return syscall (SYS_pread64, fd, buf, count, offset);
}

#define ONCE_SIZE (8 * M + 5 * K + 77)

/* Which pages of the file are in the page cache?  One byte for each, in a
 * static buffer.
 */
static const unsigned char *
residency (void)
{
  static unsigned char vec[ONCE_SIZE / 4096 + 1];
  int fd = open (path, O_RDONLY);
  void *map = mmap (NULL, ONCE_SIZE, PROT_READ, MAP_SHARED, fd, 0);

  memset (vec, 0, sizeof vec);
  ck_assert_ptr_ne (map, MAP_FAILED);
  ck_assert_int_eq (mincore (map, ONCE_SIZE, vec), 0);
  for (size_t i = 0; i < sizeof vec; ++i)
    vec[i] &= 1;
  munmap (map, ONCE_SIZE);
  close (fd);
  return vec;
}

/* No page is new in the page cache, and few have left it: the kernel may drop a
 * page at any time.
 */
static void
check_residency (const unsigned char *before)
{
  const unsigned char *after = residency ();
  unsigned cached = 0, lost = 0;

  for (size_t i = 0; i < ONCE_SIZE / 4096 + 1; ++i) {
    ck_assert_msg (before[i] || !after[i], "page %zu is new", i);
    cached += before[i];
    lost += before[i] && !after[i];
  }
  ck_assert_uint_gt (cached, 0);
  ck_assert_uint_le (lost, cached / 2);
}

/* backend_pread_once returns the file's bytes, of any alignment, and leaves the
 * page cache as it was, also where others have read ahead.  Where that is not
 * supported it reads all the same.
 */
START_TEST (read_once)
{
  static const struct { uint64_t offset, count; } warm[] = {
    { 0, 4 * K }, { M, 64 * K }, { 5 * M + 8 * K, 4 * K }, { ONCE_SIZE - 1, 1 },
  };
  static const size_t pieces[] = { M, 512 * K, 99 * K + 7, 4 * M + 1 };
  const bool direct = _i == 0 && !is_on_tmpfs ();
  uint8_t *data = random_data (ONCE_SIZE + 8);
  uint8_t *buf = aligned_alloc (4096, 9 * M);
  static unsigned char before[ONCE_SIZE / 4096 + 1];
  struct backend *b = create (ONCE_SIZE);
  int fd;

  ck_assert_int_eq (backend_pwrite (b, data, ONCE_SIZE, 0, 0), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  backend_close (b);
  for (unsigned i = 0; i < sizeof pieces / sizeof pieces[0]; ++i) {
    fd = open (path, O_RDONLY);
    posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED);
    for (unsigned j = 0; j < sizeof warm / sizeof warm[0]; ++j)
      ck_assert_int_eq (pread (fd, buf, warm[j].count, warm[j].offset),
                        warm[j].count);
    close (fd);
    memcpy (before, residency (), sizeof before);
    if (!is_on_tmpfs ())
      ck_assert_ptr_nonnull (memchr (before, 0, sizeof before));

    b = open_path (path, true, false);
    ck_assert_ptr_nonnull (b);
    direct_fails = _i > 0;
    direct_calls = 0;
    memset (buf, 0, ONCE_SIZE);
    for (uint64_t pos = 0; pos < ONCE_SIZE; pos += pieces[i]) {
      size_t n = pieces[i] < ONCE_SIZE - pos ? pieces[i] : ONCE_SIZE - pos;

      ck_assert_int_eq (backend_pread_once (b, buf + pos, n, pos), 0);
    }
    ck_assert_int_eq (memcmp (buf, data, ONCE_SIZE), 0);
    /* What is not supported is tried only once. */
    if (direct_fails)
      ck_assert_uint_le (direct_calls, 1);
    direct_fails = false;
    if (direct)
      check_residency (before);
    ck_assert_int_eq (backend_pread_once (b, buf, 8 * K, ONCE_SIZE - 4 * K),
                      -1);
    ck_assert_int_eq (errno, EIO);
    backend_close (b);
  }
  free (buf);
  free (data);
}
END_TEST

/* ---- opening ---- */

/* Opening fails, with this text in the message. */
static void
check_refused (const char *name, bool readonly, const char *message)
{
  const unsigned before = mock_errors ();

  ck_assert_ptr_null (open_path (name, readonly, !readonly));
  ck_assert_int_ne (errno, ENOENT);
  ck_assert_uint_eq (mock_errors (), before + 1);
  ck_assert_msg (strstr (mock_last_error (), message) &&
                 strstr (mock_last_error (), name), "%s",
                 mock_last_error ());
}

/* Files of other types are refused at once, also a FIFO whose other end is not
 * open.
 */
START_TEST (wrong_types)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int sock = socket (AF_UNIX, SOCK_STREAM, 0);

  check_refused (dir, true, "cannot open source");
  check_refused (dir, false, "directory");
  check_refused ("/dev/null", false, "character device");
  ck_assert_int_eq (mkfifo (path, 0600), 0);
  check_refused (path, true, "FIFO");
  check_refused (path, false, "FIFO");
  unlink (path);
  ck_assert_uint_lt (strlen (path), sizeof addr.sun_path);
  memcpy (addr.sun_path, path, strlen (path));
  ck_assert_int_eq (bind (sock, (struct sockaddr *)&addr, sizeof addr), 0);
  check_refused (path, true, "nbd+unix");
  close (sock);
}
END_TEST

/* A missing file is ENOENT, without a message. */
START_TEST (missing)
{
  const unsigned before = mock_errors ();

  ck_assert_ptr_null (open_path (path, true, false));
  ck_assert_int_eq (errno, ENOENT);
  ck_assert_int_eq (symlink ("nowhere", path), 0);
  ck_assert_ptr_null (open_path (path, false, true));
  ck_assert_int_eq (errno, ENOENT);
  ck_assert_uint_eq (mock_errors (), before);
  ck_assert_int_ne (access (other, F_OK), 0);
}
END_TEST

/* A file without permission to read. */
START_TEST (unreadable)
{
  backend_close (create (100));
  ck_assert_int_eq (chmod (path, 0), 0);
  if (geteuid () == 0) {
    ck_assert_int_eq (chmod (dir, 0755), 0);
    ck_assert_int_eq (seteuid (65534), 0);
  }
  check_refused (path, true, "Permission denied");
  if (getuid () == 0)
    ck_assert_int_eq (seteuid (0), 0);
}
END_TEST

/* Creating makes a sparse file of this size, ready to use, and never takes one
 * that exists.  The new file can be removed.
 */
START_TEST (creation)
{
  const struct backend_params params = { .role = "destination", .name = path };
  struct backend *b = create (5 * M + 3);
  struct stat st;

  ck_assert_uint_eq (b->size, 5 * M + 3);
  ck_assert (b->is_file && !b->readonly);
  ck_assert_uint_eq (b->minimum_block, 1);
  ck_assert_str_eq (b->name, path);
  ck_assert_int_eq (stat (path, &st), 0);
  ck_assert_int_eq (st.st_size, 5 * M + 3);
  ck_assert_uint_lt (allocated (), 64 * K);
  ck_assert_int_eq (backend_is_zero (b, b->size, 0, NULL, NULL), 1);

  ck_assert_ptr_null (backend_create (&params, 1, &mock_messages));
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "cannot create"));
  ck_assert_int_eq (stat (path, &st), 0);
  ck_assert_int_eq (st.st_size, 5 * M + 3);

  backend_file_unlink (b);
  ck_assert_int_ne (access (path, F_OK), 0);
  backend_close (b);
}
END_TEST

/* A failed creation leaves no file behind. */
START_TEST (failed_creation)
{
  const struct backend_params params = { .role = "destination", .name = path };
  char deep[5000];
  struct backend_params nowhere = params;

  ck_assert_ptr_null (backend_create (&params, UINT64_MAX, &mock_messages));
  ck_assert_int_ne (access (path, F_OK), 0);

  snprintf (deep, sizeof deep, "%s/no/such/directory", dir);
  nowhere.name = deep;
  ck_assert_ptr_null (backend_create (&nowhere, 1, &mock_messages));
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "No such file"));
}
END_TEST

/* Without /proc, as in a chroot, a file that was to get its name later gets it
 * at once, and is locked, flushed and published as any other.
 */
START_TEST (without_proc)
{
  const struct backend_params params = {
    .role = "metadata", .name = "/file", .lock = true, .nameless = true
  };
  const unsigned said = mock_errors ();
  const int root = open ("/", O_RDONLY | O_DIRECTORY);
  struct backend *b;
  char byte = 1;

  ck_assert_int_ge (root, 0);
  /* Users who are not root may do this in a namespace of their own, unless the
   * system forbids that; then nothing is tested.
   */
  if (chroot (dir) == -1 &&
      (unshare (CLONE_NEWUSER) == -1 || chroot (dir) == -1))
    return;
  ck_assert_int_eq (access ("/proc", F_OK), -1);

  b = backend_create (&params, M, &mock_messages);
  ck_assert_msg (b != NULL, "%s", mock_last_error ());
  ck_assert_int_eq (backend_pwrite (b, &byte, 1, 7, BACKEND_FUA), 0);
  ck_assert_int_eq (backend_flush (b), 0);
  ck_assert_int_eq (backend_file_publish (b), 0);
  ck_assert_uint_eq (mock_errors (), said);
  ck_assert_ptr_null (open_path ("/file", false, true));
  ck_assert_int_eq (errno, EBUSY);
  backend_close (b);

  b = open_path ("/file", true, false);
  ck_assert_ptr_nonnull (b);
  ck_assert_uint_eq (b->size, M);
  byte = 0;
  ck_assert_int_eq (backend_pread (b, &byte, 1, 7), 0);
  ck_assert_int_eq (byte, 1);
  backend_close (b);

  /* Out of the chroot again, for teardown. */
  ck_assert_int_eq (fchdir (root), 0);
  ck_assert_int_eq (chroot ("."), 0);
  close (root);
}
END_TEST

/* A name that belongs to another file by now is not removed. */
START_TEST (unlink_only_ours)
{
  struct backend *b = create (10);

  ck_assert_int_eq (rename (path, other), 0);
  close (open (path, O_CREAT | O_WRONLY, 0600));
  backend_file_unlink (b);
  ck_assert_int_eq (access (path, F_OK), 0);
  backend_close (b);
}
END_TEST

/* Two names of one file are the same, two files are not.  A missing file is the
 * same only as its own name.
 */
START_TEST (same)
{
  char dotted[4200];

  backend_close (create (10));
  ck_assert (backend_same (path, path));
  ck_assert (!backend_same (path, other));
  ck_assert (backend_same (other, other));
  ck_assert_int_eq (link (path, other), 0);
  ck_assert (backend_same (path, other));
  ck_assert_int_eq (unlink (other), 0);
  ck_assert_int_eq (symlink (path, other), 0);
  ck_assert (backend_same (path, other));
  snprintf (dotted, sizeof dotted, "%s/./file", dir);
  ck_assert (backend_same (path, dotted));
  ck_assert_int_eq (unlink (other), 0);
  close (open (other, O_CREAT | O_WRONLY, 0600));
  ck_assert (!backend_same (path, other));
  ck_assert (!backend_same (path, "nbd://localhost"));
}
END_TEST

/* Descriptors are close-on-exec. */
START_TEST (close_on_exec)
{
  struct backend *b = create (10);
  struct stat ours, st;
  unsigned checked = 0;

  ck_assert_int_eq (stat (path, &ours), 0);
  for (int fd = 3; fd < 100; ++fd) {
    if (fstat (fd, &st) == -1 || st.st_ino != ours.st_ino ||
        st.st_dev != ours.st_dev)
      continue;
    ck_assert_int_eq (fcntl (fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    ck_assert_int_eq (fcntl (fd, F_GETFL) & O_NONBLOCK, 0);
    checked++;
  }
  ck_assert_uint_eq (checked, 4); /* also for FUA, write-behind, pread_once */
  backend_close (b);
}
END_TEST

/* ---- locks ---- */

/* One owner: a second one is refused, in this process and in another, until the
 * first has closed the file.  Opening without a lock works all the time.
 */
START_TEST (one_owner)
{
  struct backend *b = create (10), *c;

  check_refused (path, false, "in use by another process; stop that first");
  c = open_path (path, true, false);
  ck_assert_ptr_nonnull (c);
  backend_close (c);
  check_refused (path, false, "in use");
  backend_close (b);

  b = open_path (path, false, true);
  ck_assert_ptr_nonnull (b);
  check_refused (path, false, "in use");
  backend_close (b);
}
END_TEST

/* Readers with a lock keep out an owner, but not each other. */
START_TEST (readers_lock)
{
  struct backend *a, *b;

  backend_close (create (10));
  a = open_path (path, true, true);
  b = open_path (path, true, true);
  ck_assert_ptr_nonnull (a);
  ck_assert_ptr_nonnull (b);
  check_refused (path, false, "in use");
  backend_close (a);
  backend_close (b);
  a = open_path (path, false, true);
  ck_assert_ptr_nonnull (a);
  ck_assert_ptr_null (open_path (path, true, true));
  backend_close (a);
}
END_TEST

/* As when nbdkit becomes a daemon: the process that took the lock exits, and
 * its child keeps the lock.
 */
START_TEST (lock_survives_fork)
{
  /* Only the end of the processes closes it.  volatile, because a compiler need
   * not keep a variable that is never read.
   */
  static struct backend *volatile held;
  int ready[2], end[2];
  char c;
  pid_t parent;

  backend_close (create (10));
  ck_assert_int_eq (pipe (ready), 0);
  ck_assert_int_eq (pipe (end), 0);
  parent = fork ();
  if (parent == 0) {
    held = open_path (path, false, true);
    if (held == NULL)
      _exit (1);
    if (fork () > 0)
      _exit (0);
    /* The daemon. */
    close (end[1]);
    if (write (ready[1], "", 1) == 1 && read (end[0], &c, 1) == 0)
      _exit (0);
    _exit (1);
  }
  ck_assert_int_eq (waitpid (parent, NULL, 0), parent);
  ck_assert_int_eq (read (ready[0], &c, 1), 1);
  check_refused (path, false, "in use");

  /* The daemon ends, and with it the lock. */
  close (ready[1]);
  close (end[0]);
  close (end[1]);
  while (read (ready[0], &c, 1) > 0)
    ;
  struct backend *b = open_path (path, false, true);
  ck_assert_ptr_nonnull (b);
  backend_close (b);
  close (ready[0]);
}
END_TEST

/* Lock this byte on another description, as QEMU does. */
static int
qemu_lock (off_t byte, short type, int cmd, struct flock *lock)
{
  int fd = open (path, O_RDWR);

  *lock = (struct flock){
    .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1
  };
  ck_assert_int_eq (fcntl (fd, cmd, lock), 0);
  return fd;
}

/* We refuse a file that a program writes to or resizes by QEMU's locks, and
 * accept one that a program only reads.  Our locks keep out writers that use
 * QEMU's locks, and let readers in.
 */
START_TEST (qemu_locks)
{
  /* QEMU's permissions in use that keep us out, and some that do not. */
  static const struct { off_t byte; bool refused; } t[] = {
    { 101, true }, { 103, true }, { 100, false }, { 102, false },
    { 201, false }, { 203, false },
  };
  struct flock lock;
  struct backend *b;
  int fd;

  backend_close (create (10));
  for (unsigned i = 0; i < 6; ++i) {
    fd = qemu_lock (t[i].byte, F_RDLCK, F_OFD_SETLK, &lock);
    if (t[i].refused)
      check_refused (path, false, "in use by another process");
    else {
      b = open_path (path, false, true);
      ck_assert_ptr_nonnull (b);
      backend_close (b);
    }
    close (fd);
  }

  b = open_path (path, false, true);
  ck_assert_ptr_nonnull (b);
  for (off_t byte = 100; byte < 205; ++byte) {
    fd = qemu_lock (byte, F_WRLCK, F_OFD_GETLK, &lock);
    ck_assert_int_eq (lock.l_type, byte == 201 || byte == 203
                      ? F_RDLCK : F_UNLCK);
    close (fd);
  }
  backend_close (b);
}
END_TEST

/* QEMU itself, if it is installed, can read the image that we own, and cannot
 * write to it.
 */
START_TEST (qemu_itself)
{
  char command[9000];
  struct backend *b;

  backend_close (create (M));
  if (system ("qemu-io --version >/dev/null 2>&1") != 0)
    return;
  b = open_path (path, false, true);
  snprintf (command, sizeof command,
            "qemu-io -f raw -r -c 'read 0 512' '%s' >/dev/null 2>&1", path);
  ck_assert_int_eq (system (command), 0);
  snprintf (command, sizeof command,
            "qemu-io -f raw -c 'write -P 1 0 512' '%s' >/dev/null 2>&1", path);
  ck_assert_int_ne (system (command), 0);
  ck_assert_int_eq (backend_is_zero (b, M, 0, NULL, NULL), 1);
  backend_close (b);
  ck_assert_int_eq (system (command), 0);
}
END_TEST

/* A reader without a lock is refused while a process holds QEMU's permission to
 * write, alone or among others, and the message names that process.  Locks on
 * other bytes do not matter.
 */
START_TEST (writer_by_qemus_lock)
{
  static const struct { off_t start, len; bool writes; } t[] = {
    { 101, 1, true }, { 100, 4, true }, { 0, 0, true },
    { 100, 1, false }, { 102, 2, false }, { 201, 1, false }, { 0, 1, false },
  };
  char who[100];

  snprintf (who, sizeof who, "(process %d) has it open for writing",
            (int)getpid ());
  backend_close (create (M));
  for (unsigned i = 0; i < sizeof t / sizeof t[0]; ++i) {
    struct flock lock = {
      .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = t[i].start,
      .l_len = t[i].len
    };
    int fd = open (path, O_RDWR);
    struct backend *b;
    char *holder;

    ck_assert_int_eq (fcntl (fd, F_OFD_SETLK, &lock), 0);
    b = open_path (path, true, false);
    ck_assert_int_eq (b == NULL, t[i].writes);
    if (b == NULL) {
      ck_assert_int_eq (errno, EBUSY);
      ck_assert_ptr_nonnull (strstr (mock_last_error (), path));
      ck_assert_ptr_nonnull (strstr (mock_last_error (), who));
    }
    backend_close (b);

    holder = lock_holder (fd, 101);
    ck_assert_int_eq (holder != NULL, t[i].writes);
    free (holder);
    close (fd);
  }
}
END_TEST

/* A file keeps its identity when it is renamed.  A file that was deleted and
 * created again has another one.  Other backends have none.
 */
START_TEST (identity)
{
  struct backend_identity first, again, none = { 0 };
  struct mock_log *history = mock_log_new (false);
  struct mock *mock = mock_new (history, "mock", M, false);
  struct backend *b = create (M);
  struct stat st;
  int fd;

  backend_file_identity (b, &first);
  ck_assert_int_eq (stat (path, &st), 0);
  ck_assert_uint_eq (first.inode, st.st_ino);
  backend_close (b);

  ck_assert_int_eq (rename (path, other), 0);
  b = open_path (other, true, false);
  backend_file_identity (b, &again);
  ck_assert_uint_eq (first.inode, again.inode);
  ck_assert_int_eq (first.birth_sec, again.birth_sec);
  ck_assert_uint_eq (first.birth_nsec, again.birth_nsec);
  backend_close (b);

  /* While the old file is open, the new one has another inode. */
  fd = open (other, O_RDONLY);
  ck_assert_int_eq (unlink (other), 0);
  b = create (M);
  backend_file_identity (b, &again);
  ck_assert_uint_ne (first.inode, again.inode);
  backend_close (b);
  close (fd);

  backend_file_identity (mock_backend (mock), &again);
  ck_assert_mem_eq (&again, &none, sizeof none);
  mock_free (mock);
  mock_log_free (history);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("backend-file");
  TCase *tc = tcase_create ("backend-file");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, random_against_model);
  tcase_add_test (tc, space);
  tcase_add_test (tc, fast_zero);
  tcase_add_test (tc, extents);
  tcase_add_test (tc, many_extents);
  tcase_add_test (tc, shortened);
  tcase_add_test (tc, errors);
  tcase_add_test (tc, write_behind);
  tcase_add_test (tc, behind_too_much);
  tcase_add_test (tc, behind_gathers);
  tcase_add_loop_test (tc, behind_fails, 0, 4);
  tcase_add_test (tc, behind_unsupported);
  tcase_add_test (tc, behind_stands_alone);
  tcase_add_loop_test (tc, read_once, 0, 2);
  tcase_add_test (tc, wrong_types);
  tcase_add_test (tc, missing);
  tcase_add_test (tc, unreadable);
  tcase_add_test (tc, creation);
  tcase_add_test (tc, failed_creation);
  tcase_add_test (tc, without_proc);
  tcase_add_test (tc, unlink_only_ours);
  tcase_add_test (tc, same);
  tcase_add_test (tc, close_on_exec);
  tcase_add_test (tc, one_owner);
  tcase_add_test (tc, readers_lock);
  tcase_add_test (tc, lock_survives_fork);
  tcase_add_test (tc, qemu_locks);
  tcase_add_test (tc, qemu_itself);
  tcase_add_test (tc, writer_by_qemus_lock);
  tcase_add_test (tc, identity);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
