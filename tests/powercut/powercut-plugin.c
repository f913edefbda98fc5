/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The devices of the power-cut laboratory: an nbdkit plugin, for tests only.
 *
 *   nbdkit nbdkit-powercut-plugin.so dest=FILE meta=FILE
 *          [log=FILE] [delay=MICROSECONDS] [faults=DIRECTORY]
 *
 * It serves two exports, "dest" and "meta", from two files.  The requests to
 * both are written to one log, in one order: a record for the start of each
 * write, zero, trim and flush, with the data, and one for its end.  From this
 * log powercut.py makes the images that a power cut at any point could have
 * left.
 *
 * A change is applied when its start is logged, under one lock, so that the
 * order of the starts is the order of the changes.  Between start and end goes
 * a random delay, at most that long, for others to come in between.  A flush
 * covers what has ended before it starts.
 *
 * Faults are files in DIRECTORY, looked for at each request, with REQUEST one
 * of dest.write, dest.zero, dest.trim, dest.flush, dest.read, and the same
 * with meta:
 *
 *   REQUEST       holds "ERROR [START END]": requests fail with EIO or ENOSPC,
 *                 all of them or those that touch the bytes START to END - 1
 *   REQUEST.once  the same for one request, which removes the file
 *   REQUEST.hold  requests wait while this file exists; if it contains a number
 *                 N, the first N requests do not wait
 *   REQUEST.held  is made by a request that begins to wait
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum operation { OP_WRITE, OP_ZERO, OP_TRIM, OP_FLUSH, OP_READ };
static const char *const operation_name[] = {
  "write", "zero", "trim", "flush", "read"
};

/* In the log, in the machine's byte order.  The start of a write is followed by
 * its data.
 */
struct record {
  uint32_t is_end;
  uint32_t device;    /* 0 dest, 1 meta */
  uint32_t operation;
  uint32_t value;     /* start: 1 with FUA; end: 0 or an errno */
  uint64_t id;        /* the same for start and end */
  uint64_t time;      /* CLOCK_MONOTONIC, nanoseconds */
  uint64_t offset;
  uint64_t count;
};

struct device {
  const char *name;
  char *path;
  int fd;
  int64_t size;
};

static struct device devices[2] = {
  { .name = "dest", .fd = -1 }, { .name = "meta", .fd = -1 },
};
static char *log_path, *faults;
static unsigned delay;
static int log_fd = -1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t last_id;

static int
powercut_config (const char *key, const char *value)
{
  char **path = NULL;

  if (strcmp (key, "delay") == 0)
    return nbdkit_parse_unsigned (key, value, &delay);
  for (unsigned i = 0; i < 2; ++i)
    if (strcmp (key, devices[i].name) == 0)
      path = &devices[i].path;
  if (strcmp (key, "log") == 0)
    path = &log_path;
  if (strcmp (key, "faults") == 0)
    path = &faults;
  if (path == NULL) {
    nbdkit_error ("unknown parameter: %s", key);
    return -1;
  }
  *path = nbdkit_absolute_path (value);
  return *path ? 0 : -1;
}

static int
powercut_get_ready (void)
{
  struct stat st;

  for (unsigned i = 0; i < 2; ++i) {
    struct device *d = &devices[i];

    if (d->path == NULL) {
      nbdkit_error ("%s=... is required", d->name);
      return -1;
    }
    d->fd = open (d->path, O_RDWR | O_CLOEXEC);
    if (d->fd == -1 || fstat (d->fd, &st) == -1) {
      nbdkit_error ("%s: %m", d->path);
      return -1;
    }
    d->size = st.st_size;
  }
  if (log_path) {
    log_fd = open (log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND |
                   O_CLOEXEC, 0666);
    if (log_fd == -1) {
      nbdkit_error ("%s: %m", log_path);
      return -1;
    }
  }
  return 0;
}

static void
powercut_unload (void)
{
  for (unsigned i = 0; i < 2; ++i) {
    if (devices[i].fd >= 0)
      close (devices[i].fd);
    free (devices[i].path);
  }
  if (log_fd >= 0)
    close (log_fd);
  free (log_path);
  free (faults);
}

static void *
powercut_open (int readonly)
{
  const char *name = nbdkit_export_name ();

  for (unsigned i = 0; name && i < 2; ++i)
    if (strcmp (name, devices[i].name) == 0)
      return &devices[i];
  nbdkit_error ("no export of this name");
  errno = ENOENT;
  return NULL;
}

static int64_t
powercut_get_size (void *handle)
{
  return ((struct device *)handle)->size;
}

static int
yes (void *handle)
{
  return 1;
}

static int
powercut_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

/* ---- faults ---- */

/* The name of a fault's file. */
static const char *
fault_path (const struct device *d, enum operation op, const char *suffix,
            char path[1024])
{
  snprintf (path, 1024, "%s/%s.%s%s", faults, d->name, operation_name[op],
            suffix);
  return path;
}

/* The error that the file asks for, or 0. */
static int
read_fault (const char *path, uint64_t offset, uint64_t count)
{
  uint64_t start = 0, end = UINT64_MAX;
  char word[16];
  FILE *f = fopen (path, "re");
  int n;

  if (f == NULL)
    return 0;
  n = fscanf (f, "%15s %" SCNu64 " %" SCNu64, word, &start, &end);
  fclose (f);
  if (n < 1 || offset >= end || (start > 0 && offset + count <= start))
    return 0;
  return strcmp (word, "ENOSPC") == 0 ? ENOSPC : EIO;
}

/* Must the request wait, because the file is there?  Called by one at a time.
 */
static bool
must_wait (const char *path)
{
  unsigned before = 0;
  FILE *f = fopen (path, "r+e");
  bool wait;

  if (f == NULL)
    return false;
  wait = fscanf (f, "%u", &before) != 1 || before == 0;
  if (!wait) {
    rewind (f);
    fprintf (f, "%u\n", before - 1);
  }
  fclose (f);
  return wait;
}

/* Wait as long as the request is held.  Then 0, or the errno to fail with. */
static int
find_fault (const struct device *d, enum operation op, uint64_t offset,
            uint64_t count)
{
  static pthread_mutex_t hold_lock = PTHREAD_MUTEX_INITIALIZER;
  char path[1024], held[1024];
  bool wait;
  int error;

  if (faults == NULL)
    return 0;
  fault_path (d, op, ".hold", path);
  pthread_mutex_lock (&hold_lock);
  wait = must_wait (path);
  pthread_mutex_unlock (&hold_lock);
  if (wait) {
    close (open (fault_path (d, op, ".held", held), O_CREAT | O_CLOEXEC,
                 0666));
    while (access (path, F_OK) == 0)
      usleep (1000);
  }

  error = read_fault (fault_path (d, op, ".once", path), offset, count);
  if (error && unlink (path) == 0)
    return error;
  return read_fault (fault_path (d, op, "", path), offset, count);
}

/* ---- the log ---- */

/* Called with the lock. */
static void
append (struct record *r, const void *data)
{
  struct timespec ts;
  struct iovec iov[2] = {
    { r, sizeof *r }, { (void *)data, data ? r->count : 0 }
  };

  if (log_fd == -1)
    return;
  clock_gettime (CLOCK_MONOTONIC, &ts);
  r->time = ts.tv_sec * UINT64_C (1000000000) + ts.tv_nsec;
  if (writev (log_fd, iov, 2) !=
      (ssize_t)(iov[0].iov_len + iov[1].iov_len)) {
    nbdkit_error ("%s: cannot write: %m", log_path);
    abort ();                   /* a recording with gaps proves nothing */
  }
}

/* ---- requests ---- */

static int
write_all (const struct device *d, const char *buf, uint64_t count,
           uint64_t offset)
{
  while (count > 0) {
    ssize_t n = pwrite (d->fd, buf, count, offset);

    if (n <= 0)
      return -1;
    buf += n;
    count -= n;
    offset += n;
  }
  return 0;
}

static int
write_zeroes (const struct device *d, uint64_t count, uint64_t offset)
{
  static const char zeroes[65536];

  if (fallocate (d->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                 count) == 0)
    return 0;
  while (count > 0) {
    uint64_t n = count < sizeof zeroes ? count : sizeof zeroes;

    if (write_all (d, zeroes, n, offset) == -1)
      return -1;
    count -= n;
    offset += n;
  }
  return 0;
}

static int
run (struct device *d, enum operation op, const void *data, uint32_t count,
     uint64_t offset, uint32_t flags)
{
  static __thread unsigned seed;
  const int fault = find_fault (d, op, offset, count);
  struct record r = {
    .device = d - devices, .operation = op,
    .value = (flags & NBDKIT_FLAG_FUA) != 0, .offset = offset, .count = count,
  };
  int error = fault;

  /* A change that fails does nothing.  A flush is of interest all the same. */
  if (fault && op != OP_FLUSH)
    goto out;

  pthread_mutex_lock (&lock);
  r.id = ++last_id;
  append (&r, data);
  if ((op == OP_WRITE && write_all (d, data, count, offset) == -1) ||
      ((op == OP_ZERO || op == OP_TRIM) &&
       write_zeroes (d, count, offset) == -1))
    abort ();
  pthread_mutex_unlock (&lock);

  if (seed == 0)
    seed = r.id;
  if (delay)
    usleep (rand_r (&seed) % delay);

  pthread_mutex_lock (&lock);
  r.is_end = 1;
  r.value = error;
  append (&r, NULL);
  pthread_mutex_unlock (&lock);

 out:
  if (error) {
    nbdkit_debug ("%s: %s fails", d->name, operation_name[op]);
    nbdkit_set_error (error);
    return -1;
  }
  return 0;
}

static int
powercut_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  struct device *d = handle;
  const int error = find_fault (d, OP_READ, offset, count);

  if (error || pread (d->fd, buf, count, offset) != (ssize_t)count) {
    nbdkit_set_error (error ? error : EIO);
    return -1;
  }
  return 0;
}

static int
powercut_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  return run (handle, OP_WRITE, buf, count, offset, flags);
}

static int
powercut_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return run (handle, OP_ZERO, NULL, count, offset, flags);
}

static int
powercut_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return run (handle, OP_TRIM, NULL, count, offset, flags);
}

static int
powercut_flush (void *handle, uint32_t flags)
{
  return run (handle, OP_FLUSH, NULL, 0, 0, 0);
}

static struct nbdkit_plugin plugin = {
  .name = "powercut",
  .unload = powercut_unload,
  .config = powercut_config,
  .get_ready = powercut_get_ready,
  .open = powercut_open,
  .get_size = powercut_get_size,
  .can_write = yes,
  .can_flush = yes,
  .can_trim = yes,
  .can_zero = yes,
  .can_fast_zero = yes,
  .can_multi_conn = yes,
  .can_fua = powercut_can_fua,
  .pread = powercut_pread,
  .pwrite = powercut_pwrite,
  .zero = powercut_zero,
  .trim = powercut_trim,
  .flush = powercut_flush,
};

/* The macro defines this function, and clang wants it declared. */
extern struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
