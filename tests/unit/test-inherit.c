/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the changes of a local clone, flushed or not, survive the death
 * of its process (lib/store/inherit.h): the next process takes over the valid
 * bits as dirty ones, and makes them durable in the usual order.  It does not
 * take them over, and says why, if something else may have happened since.
 *
 * Each life of the clone but the last is a process of its own, which kills
 * itself.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <check.h>
#include <uuid/uuid.h>

#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "clone/setup.h"
#include "mock-backend.h"
#include "run-suite.h"
#include "store/inherit.h"

#define K UINT64_C (1024)
#define REGION (64 * K)
#define REGIONS 40
#define SIZE (REGIONS * REGION - 1000)

/* The object, as inherit.c lays it out. */
struct object {
  char magic[8];
  struct {
    char boot[37];
    uint8_t uuid[METADATA_UUID_SIZE];
    uint64_t device, disk, inode, size, region_size, regions;
  } circumstances;
  _Atomic uint64_t generation, next_generation;
  atomic_bool spoilt;
  char rest[4096 - 129];
  uint8_t bits[];
};
_Static_assert (offsetof (struct object, bits) == 4096, "a page");

/* ---- messages ---- */

static char messages[8192];

__attribute__ ((format (printf, 1, 0))) static void
keep_message (const char *fmt, va_list args)
{
  const size_t len = strlen (messages);
  char fixed[512];
  const char *m = strstr (fmt, "%m");

  if (m) {
    snprintf (fixed, sizeof fixed, "%.*s%s%s", (int)(m - fmt), fmt,
              strerror (errno), m + 2);
    fmt = fixed;
  }
  vsnprintf (messages + len, sizeof messages - len, fmt, args);
  strncat (messages, "\n", sizeof messages - strlen (messages) - 1);
}

static void
drop_message (const char *fmt, va_list args)
{
}

static bool
no_debug (enum log_topic topic)
{
  return false;
}

static const struct log test_log = {
  .error = keep_message, .info = keep_message, .debug = drop_message,
  .wants = no_debug
};

static void
check_message (const char *what)
{
  ck_assert_msg (strstr (messages, what) != NULL,
                 "there should be a message \"%s\" in:\n%s", what, messages);
}

static void
check_no_message (void)
{
  ck_assert_str_eq (messages, "");
}

/* ---- files ---- */

static char dir[4000], source[4096], dest[4096], meta[4096];
static char object_name[64];
static uint8_t *source_bytes;

static void
write_file (const char *path, const void *buf, size_t size)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (write (fd, buf, size), size);
  close (fd);
}

static void
setup_files (void)
{
  const char *tmp = getenv ("TMPDIR");
  uint64_t seed = 1;

  snprintf (dir, sizeof dir, "%s/test-inherit-XXXXXX", tmp ? tmp : "/tmp");
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (source, sizeof source, "%s/source", dir);
  snprintf (dest, sizeof dest, "%s/dest", dir);
  snprintf (meta, sizeof meta, "%s/dest.clone", dir);
  source_bytes = malloc (SIZE);
  for (size_t i = 0; i < SIZE; ++i)
    source_bytes[i] = mock_random (&seed);
  write_file (source, source_bytes, SIZE);
  messages[0] = '\0';
}

static void
teardown_files (void)
{
  static const char *const names[] = {
    "source", "dest", "dest.clone", "copy", "copy.clone"
  };
  char path[4200];

  if (*object_name)
    shm_unlink (object_name);
  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
    snprintf (path, sizeof path, "%s/%s", dir, names[i]);
    unlink (path);
  }
  ck_assert_int_eq (rmdir (dir), 0);
  free (source_bytes);
}

/* ---- the object ---- */

/* The object is named after the metadata's UUID. */
static void
find_object_name (void)
{
  uint8_t uuid[METADATA_UUID_SIZE];
  char text[37];
  int fd = open (meta, O_RDONLY);

  ck_assert_int_eq (pread (fd, uuid, sizeof uuid, 16), sizeof uuid);
  close (fd);
  uuid_unparse_lower (uuid, text);
  snprintf (object_name, sizeof object_name, "/nbdkit-clone-%s", text);
}

static bool
object_exists (void)
{
  int fd;

  find_object_name ();
  fd = shm_open (object_name, O_RDONLY, 0);
  if (fd >= 0)
    close (fd);
  return fd >= 0;
}

static int
open_object_file (size_t *size)
{
  struct stat st;
  int fd;

  find_object_name ();
  fd = shm_open (object_name, O_RDWR, 0);
  ck_assert_msg (fd >= 0, "there is no %s", object_name);
  ck_assert_int_eq (fstat (fd, &st), 0);
  ck_assert_int_eq (st.st_mode & 07777, 0600);
  *size = st.st_size;
  return fd;
}

static struct object *
map_object (size_t *size)
{
  int fd = open_object_file (size);
  struct object *o = mmap (NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                           0);

  ck_assert_ptr_ne (o, MAP_FAILED);
  close (fd);
  ck_assert_mem_eq (o->magic, "NBDCLSHM", 8);
  ck_assert_int_eq (o->circumstances.regions, REGIONS);
  return o;
}

/* ---- backends that are watched ---- */

static const struct backend_ops *dest_ops, *meta_ops;
static struct backend_ops watched_dest, watched_meta;
static char calls[64];         /* D: destination flushed, w and f: metadata */
static int dest_flush_error;   /* the next flushes fail with it */
static int meta_write_error;   /* the next write fails with it */
static int calls_to_live = -1; /* metadata calls until the process dies */

static void
note (char call)
{
  const size_t len = strlen (calls);

  if (len < sizeof calls - 1)
    calls[len] = call;
}

static void
die (void)
{
  kill (getpid (), SIGKILL);
  for (;;)
    pause ();
}

static int
flush_dest (struct backend *b)
{
  if (dest_flush_error) {
    errno = dest_flush_error;
    return -1;
  }
  note ('D');
  return dest_ops->flush (b);
}

/* Called before and after each call: two moments to die. */
static void
live (void)
{
  if (calls_to_live >= 0 && calls_to_live-- == 0)
    die ();
}

static int
write_meta (struct backend *b, const struct segment *seg, size_t n,
            unsigned flags)
{
  int r;

  if (meta_write_error) {
    errno = meta_write_error;
    meta_write_error = 0;
    return -1;
  }
  note ('w');
  live ();
  r = meta_ops->pwrite (b, seg, n, flags);
  live ();
  return r;
}

static int
flush_meta (struct backend *b)
{
  int r;

  note ('f');
  live ();
  r = meta_ops->flush (b);
  live ();
  return r;
}

static void
watch_meta (struct clone *c)
{
  meta_ops = c->metadata->backend->ops;
  watched_meta = *meta_ops;
  watched_meta.pwrite = write_meta;
  watched_meta.flush = flush_meta;
  c->metadata->backend->ops = &watched_meta;
}

/* Called after the clone was started: before, it must see that the backend is a
 * file.
 */
static void
watch_dest (struct clone *c)
{
  dest_ops = c->dest->ops;
  watched_dest = *dest_ops;
  watched_dest.flush = flush_dest;
  c->dest->ops = &watched_dest;
}

/* ---- a clone ---- */

static const struct clone_service service = { .commit_interval = 0 };

static struct clone *
set_up (const char *destination)
{
  const struct setup s = {
    .source = source, .destination = destination, .region_size = REGION,
    .options = { .discard_passdown = true, .source_check = true },
  };
  struct clone *c = setup_clone (&s, &test_log);

  ck_assert_msg (c != NULL, "%s", messages);
  return c;
}

static struct clone *
open_clone (void)
{
  struct clone *c = set_up (dest);

  watch_meta (c);
  ck_assert_int_eq (clone_start (c, &service), 0);
  watch_dest (c);
  return c;
}

static void
close_clone (struct clone *c)
{
  clone_interrupt (c);
  clone_stop (c);
  ck_assert_int_eq (clone_close (c), 0);
}

static void
write_region (struct clone *c, unsigned region, uint8_t byte)
{
  static uint8_t buf[REGION];

  memset (buf, byte, sizeof buf);
  ck_assert_int_eq (clone_pwrite (c, buf, sizeof buf, region * REGION, 0), 0);
}

/* The region must read as this byte, or as the source if byte is -1. */
static void
check_region (struct clone *c, unsigned region, int byte)
{
  static uint8_t buf[REGION], expected[REGION];
  const size_t count = MIN (REGION, SIZE - region * REGION);

  ck_assert_int_eq (clone_pread (c, buf, count, region * REGION), 0);
  if (byte == -1)
    memcpy (expected, source_bytes + region * REGION, count);
  else
    memset (expected, byte, count);
  ck_assert_msg (memcmp (buf, expected, count) == 0,
                 "region %u begins with %02x %02x", region, buf[0], buf[1]);
}

static void
check_counts (struct clone *c, uint64_t valid, uint64_t durable)
{
  ck_assert_int_eq (region_map_count_valid (c->map), valid);
  ck_assert_int_eq (region_map_count_durable (c->map), durable);
}

/* Run a life of the clone in a process of its own, which must end by SIGKILL,
 * or with this exit status.
 */
#define KILLED -1

static void
live_and_die (void (*life) (void), int end)
{
  int status;
  pid_t pid = fork ();

  ck_assert_int_ge (pid, 0);
  if (pid == 0) {
    life ();
    if (end == KILLED)
      die ();
    _exit (end);
  }
  ck_assert_int_eq (waitpid (pid, &status, 0), pid);
  if (end == KILLED)
    ck_assert_msg (WIFSIGNALED (status) && WTERMSIG (status) == SIGKILL,
                   "the life ended with status %x", status);
  else
    ck_assert_msg (WIFEXITED (status) && WEXITSTATUS (status) == end,
                   "the life ended with status %x", status);
}

/* Writes of whole regions, of parts, zeroes and a trim; one of them durable. */
static void
some_life (void)
{
  struct clone *c = open_clone ();

  write_region (c, 1, 0x11);
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  write_region (c, 3, 0x33);
  ck_assert_int_eq (clone_pwrite (c, "part", 4, 5 * REGION + 1000, 0), 0);
  ck_assert_int_eq (clone_zero (c, REGION, 7 * REGION, 0), 0);
  ck_assert_int_eq (clone_trim (c, SIZE - 39 * REGION, 39 * REGION, 0), 0);
  /* In a region that is valid: there is no bit to lose. */
  write_region (c, 1, 0x12);
}
#define SOME_VALID 5
#define SOME_DURABLE 1

static void
check_some_life (struct clone *c)
{
  char part[4];

  check_region (c, 0, -1);
  check_region (c, 1, 0x12);
  check_region (c, 2, -1);
  check_region (c, 3, 0x33);
  ck_assert_int_eq (clone_pread (c, part, 4, 5 * REGION + 1000), 0);
  ck_assert_mem_eq (part, "part", 4);
  ck_assert_int_eq (clone_pread (c, part, 4, 5 * REGION), 0);
  ck_assert_mem_eq (part, source_bytes + 5 * REGION, 4);
  check_region (c, 7, 0);
  check_region (c, 39, 0);
}

/* Only durable regions are valid, and the clone works. */
static void
check_refused (const char *why)
{
  struct clone *c = open_clone ();

  check_message ("are not taken over");
  check_message (why);
  check_counts (c, SOME_DURABLE, SOME_DURABLE);
  check_region (c, 1, 0x12);
  check_region (c, 3, -1);
  check_region (c, 5, -1);
  check_region (c, 7, -1);
  check_region (c, 39, -1);
  close_clone (c);
  ck_assert (!object_exists ());
}

/* ---- bits are taken over ---- */

START_TEST (taken_over)
{
  struct clone *c;

  live_and_die (some_life, KILLED);
  ck_assert (object_exists ());
  c = open_clone ();
  check_message ("4 regions that were valid and not durable are taken over");
  check_counts (c, SOME_VALID, SOME_DURABLE);
  check_some_life (c);

  /* They are committed as all dirty regions, the destination flushed first. */
  memset (calls, 0, sizeof calls);
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  ck_assert_str_eq (calls, "Dwf");
  check_counts (c, SOME_VALID, SOME_VALID);
  close_clone (c);
  ck_assert (!object_exists ());

  messages[0] = '\0';
  c = open_clone ();
  check_no_message ();
  check_counts (c, SOME_VALID, SOME_VALID);
  check_some_life (c);
  close_clone (c);
}
END_TEST

static void
another_life (void)
{
  struct clone *c = open_clone ();

  check_some_life (c);
  write_region (c, 9, 0x99);
}

/* Lives that end before any of them commits. */
START_TEST (life_after_life)
{
  struct clone *c;

  live_and_die (some_life, KILLED);
  for (int i = 0; i < 3; ++i)
    live_and_die (another_life, KILLED);
  c = open_clone ();
  check_message ("5 regions that were valid and not durable are taken over");
  check_some_life (c);
  check_region (c, 9, 0x99);
  close_clone (c);
}
END_TEST

/* The process dies while it gives the metadata a new generation, before or
 * after any of the writes and flushes of the two superblocks.
 */
static void
short_life (void)
{
  struct clone *c = set_up (dest);

  watch_meta (c);
  clone_start (c, &service);
}

START_TEST (crash_while_opening)
{
  struct clone *c;

  live_and_die (some_life, KILLED);
  for (calls_to_live = 0; calls_to_live < 8; ++calls_to_live)
    live_and_die (short_life, KILLED);
  calls_to_live = -1;
  c = open_clone ();
  check_message ("4 regions that were valid and not durable are taken over");
  check_some_life (c);
  close_clone (c);
}
END_TEST

/* The metadata has either of the two generations in the object. */
START_TEST (either_generation)
{
  struct clone *c;
  struct object *o;
  size_t size;

  for (int side = 0; side < 2; ++side) {
    live_and_die (some_life, KILLED);
    o = map_object (&size);
    ck_assert_int_eq (o->generation, o->next_generation);
    if (side == 0)
      o->generation = o->generation - 1; /* the metadata has the next */
    else
      o->next_generation = o->generation + 5; /* it has the first */
    munmap (o, size);
    messages[0] = '\0';
    c = open_clone ();
    check_message ("are taken over");
    check_some_life (c);
    close_clone (c);
    unlink (dest);
    unlink (meta);
  }
}
END_TEST

/* If the metadata cannot be written, the last process's bits are taken over all
 * the same.  A message says that those of this process would not be.
 */
START_TEST (no_generation)
{
  struct clone *c;

  live_and_die (some_life, KILLED);
  meta_write_error = EIO;
  c = open_clone ();
  check_message ("cannot begin a new generation: Input/output error");
  check_message ("like a power cut");
  check_message ("4 regions that were valid and not durable are taken over");
  ck_assert (!object_exists ());
  check_some_life (c);
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  check_counts (c, SOME_VALID, SOME_VALID);
  close_clone (c);
}
END_TEST

/* ---- the object is removed ---- */

static void
clean_life (void)
{
  struct clone *c = open_clone ();

  write_region (c, 3, 0x33);
  ck_assert (object_exists ());
  close_clone (c);
}

static void
halted_life (void)
{
  struct clone *c = open_clone ();

  write_region (c, 3, 0x33);
  ck_assert_int_eq (clone_halt (c), 0);
}

/* A life that ends in order leaves no object, and all its regions are durable.
 */
START_TEST (clean_end)
{
  static void (*const lives[]) (void) = { clean_life, halted_life };
  struct clone *c;

  live_and_die (lives[_i], 0);
  ck_assert (!object_exists ());
  c = open_clone ();
  check_no_message ();
  check_counts (c, 1, 1);
  close_clone (c);
}
END_TEST

/* A halt that cannot commit leaves the bits to the next process. */
static void
halted_without_metadata (void)
{
  struct clone *c = open_clone ();

  write_region (c, 3, 0x33);
  meta_write_error = EIO;
  ck_assert_int_eq (clone_halt (c), -1);
}

START_TEST (halt_fails)
{
  struct clone *c;

  live_and_die (halted_without_metadata, 0);
  ck_assert (object_exists ());
  c = open_clone ();
  check_message ("1 regions that were valid and not durable are taken over");
  check_region (c, 3, 0x33);
  close_clone (c);
}
END_TEST

static void
complete_life (void)
{
  struct clone *c = open_clone ();
  static uint8_t all[SIZE];

  ck_assert_int_eq (clone_pwrite (c, all, SIZE, 0, 0), 0);
  ck_assert (object_exists ());
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  ck_assert (!object_exists ());
}

START_TEST (completion)
{
  struct clone *c;
  int fd;

  live_and_die (complete_life, KILLED);
  ck_assert (!object_exists ());
  /* The object of a process that crashed in between is removed. */
  fd = shm_open (object_name, O_RDWR | O_CREAT | O_EXCL, 0600);
  ck_assert_int_ge (fd, 0);
  close (fd);
  c = open_clone ();
  check_no_message ();
  ck_assert (!object_exists ());
  check_region (c, 3, 0);
  close_clone (c);
}
END_TEST

/* ---- bits are not taken over ---- */

static void
nothing_there (struct object *o, int fd)
{
  memset (o->magic, 0, sizeof o->magic);
}

static void
another_boot (struct object *o, int fd)
{
  o->circumstances.boot[0] ^= 1;
}

static void
another_device (struct object *o, int fd)
{
  o->circumstances.device++;
}

static void
another_disk (struct object *o, int fd)
{
  o->circumstances.disk++;
}

static void
another_inode (struct object *o, int fd)
{
  o->circumstances.inode++;
}

static void
another_disk_size (struct object *o, int fd)
{
  o->circumstances.size++;
}

static void
another_uuid (struct object *o, int fd)
{
  o->circumstances.uuid[0] ^= 1;
}

static void
other_regions (struct object *o, int fd)
{
  o->circumstances.regions--;
}

static void
another_region_size (struct object *o, int fd)
{
  o->circumstances.region_size *= 2;
}

static void
another_generation (struct object *o, int fd)
{
  o->generation = o->generation - 1;
  o->next_generation = o->next_generation + 1;
}

static void
is_spoilt (struct object *o, int fd)
{
  o->spoilt = true;
}

static void
stray_bit (struct object *o, int fd)
{
  o->bits[REGIONS / 8] |= 1;
}

static void
for_everybody (struct object *o, int fd)
{
  ck_assert_int_eq (fchmod (fd, 0644), 0);
}

static void
larger (struct object *o, int fd)
{
  struct stat st;

  ck_assert_int_eq (fstat (fd, &st), 0);
  ck_assert_int_eq (ftruncate (fd, st.st_size + 4096), 0);
}

static void
empty (struct object *o, int fd)
{
  ck_assert_int_eq (ftruncate (fd, 0), 0);
}

static void
another_owner (struct object *o, int fd)
{
  ck_assert_int_eq (fchown (fd, 65534, 65534), 0);
}

static const struct {
  void (*change) (struct object *o, int fd);
  const char *why;
} changes[] = {
  { nothing_there, "the last process ended before it served the clone" },
  { another_boot, "the machine was rebooted since" },
  { another_device, "belong to another destination" },
  { another_disk, "belong to another destination" },
  { another_inode, "belong to another destination" },
  { another_disk_size, "belong to another destination" },
  { another_uuid, "belong to another destination" },
  { other_regions, "belong to another destination" },
  { another_region_size, "belong to another destination" },
  { another_generation, "another process has served the clone since" },
  { is_spoilt, "a flush of the destination had failed" },
  { stray_bit, "they are damaged" },
  { for_everybody, "has another owner or mode" },
  { larger, "has another size" },
  { empty, "has another size" },
  { another_owner, "has another owner or mode" }, /* the last: root only */
};
#define CHANGES (sizeof changes / sizeof changes[0])

START_TEST (refused)
{
  struct object *o;
  size_t size;
  int fd;

  if (_i == CHANGES - 1 && geteuid () != 0)
    return;
  live_and_die (some_life, KILLED);
  o = map_object (&size);
  fd = open_object_file (&size);
  changes[_i].change (o, fd);
  close (fd);
  munmap (o, size);
  check_refused (changes[_i].why);
}
END_TEST

/* After a refusal, the next crash loses nothing. */
START_TEST (refused_once)
{
  struct object *o;
  struct clone *c;
  size_t size;

  live_and_die (some_life, KILLED);
  o = map_object (&size);
  another_boot (o, -1);
  munmap (o, size);
  live_and_die (some_life, KILLED);
  c = open_clone ();
  check_message ("4 regions that were valid and not durable are taken over");
  check_some_life (c);
  close_clone (c);
}
END_TEST

/* Another process has served the clone, with another /dev/shm. */
static void
life_elsewhere (void)
{
  struct clone *c = open_clone ();

  write_region (c, 20, 0x20);
}

START_TEST (served_elsewhere)
{
  struct object *o;
  size_t size;
  void *copy;
  int fd;

  live_and_die (some_life, KILLED);
  o = map_object (&size);
  copy = malloc (size);
  memcpy (copy, o, size);
  munmap (o, size);
  shm_unlink (object_name);
  live_and_die (life_elsewhere, KILLED);

  fd = open_object_file (&size);
  ck_assert_int_eq (pwrite (fd, copy, size, 0), size);
  close (fd);
  free (copy);
  check_refused ("another process has served the clone since");
}
END_TEST

/* The destination was replaced by a copy.  That is another file, which may lack
 * some of the data.
 */
START_TEST (another_file)
{
  char aside[4200], command[9000];

  live_and_die (some_life, KILLED);
  snprintf (aside, sizeof aside, "%s/copy", dir);
  ck_assert_int_eq (rename (dest, aside), 0);
  snprintf (command, sizeof command, "cp '%s' '%s'", aside, dest);
  ck_assert_int_eq (system (command), 0);
  check_refused ("belong to another destination");
}
END_TEST

/* ---- a destination that fails ---- */

static void
failed_flush (void)
{
  struct clone *c = open_clone ();

  write_region (c, 1, 0x12);
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  write_region (c, 3, 0x33);
  dest_flush_error = EIO;
  ck_assert_int_eq (clone_flush (c, NULL), -1);
  check_region (c, 3, 0x33);
}

START_TEST (flush_has_failed)
{
  live_and_die (failed_flush, KILLED);
  check_refused ("a flush of the destination had failed");
}
END_TEST

/* A flush fails for want of space.  The map is set back, and bits that are set
 * afterwards are taken over as always.
 */
static void
full_flush (void)
{
  struct clone *c = open_clone ();

  write_region (c, 3, 0x33);
  dest_flush_error = ENOSPC;
  ck_assert_int_eq (clone_flush (c, NULL), -1);
  dest_flush_error = 0;
  check_region (c, 3, -1);
  write_region (c, 4, 0x44);
}

START_TEST (destination_was_full)
{
  struct clone *c;

  live_and_die (full_flush, KILLED);
  c = open_clone ();
  check_message ("1 regions that were valid and not durable are taken over");
  check_region (c, 3, -1);
  check_region (c, 4, 0x44);
  close_clone (c);
}
END_TEST

/* ---- without shared memory ---- */

static void
life_without_room (void)
{
  struct rlimit before, limit;
  struct clone *c = set_up (dest);

  /* No room for the object, which has two pages; room for the superblocks. */
  ck_assert_int_eq (getrlimit (RLIMIT_FSIZE, &before), 0);
  limit = before;
  limit.rlim_cur = 8192 - 1;
  signal (SIGXFSZ, SIG_IGN);
  ck_assert_int_eq (setrlimit (RLIMIT_FSIZE, &limit), 0);
  messages[0] = '\0';
  ck_assert_int_eq (clone_start (c, &service), 0);
  ck_assert_int_eq (setrlimit (RLIMIT_FSIZE, &before), 0);
  check_message ("no shared memory of 8192 bytes: File too large");
  check_message ("like a power cut");
  ck_assert_ptr_eq (strchr (messages, '\n') + 1, strchr (messages, '\0'));
  ck_assert (!object_exists ());
  write_region (c, 3, 0x33);
  ck_assert_int_eq (clone_flush (c, NULL), 0);
  write_region (c, 4, 0x44);
  check_region (c, 4, 0x44);
}

START_TEST (no_room)
{
  struct clone *c;

  live_and_die (clean_life, 0);
  live_and_die (life_without_room, KILLED);
  c = open_clone ();
  check_no_message ();
  check_counts (c, 1, 1);
  check_region (c, 3, 0x33);
  check_region (c, 4, -1);
  close_clone (c);
}
END_TEST

/* ---- a copy of the clone, served at the same time ---- */

static int told[2], done[2];

/* Lives until it is told to die. */
static void
original_life (void)
{
  char c;

  some_life ();
  ck_assert_int_eq (write (done[1], "x", 1), 1);
  ck_assert_int_eq (read (told[0], &c, 1), 1);
}

START_TEST (a_copy)
{
  char copy[4200], command[18000], x;
  struct clone *c;
  pid_t pid;
  int status;

  live_and_die (clean_life, 0);
  snprintf (copy, sizeof copy, "%s/copy", dir);
  snprintf (command, sizeof command, "cp '%s' '%s' && cp '%s' '%s.clone'",
            dest, copy, meta, copy);
  ck_assert_int_eq (system (command), 0);

  ck_assert_int_eq (pipe (told), 0);
  ck_assert_int_eq (pipe (done), 0);
  pid = fork ();
  if (pid == 0) {
    original_life ();
    die ();
  }
  ck_assert_int_eq (read (done[0], &x, 1), 1);

  c = set_up (copy);
  messages[0] = '\0';
  ck_assert_int_eq (clone_start (c, &service), 0);
  check_message ("another process serves a clone with this UUID");
  check_message ("like a power cut");
  write_region (c, 30, 0x30);
  close_clone (c);
  ck_assert (object_exists ());

  ck_assert_int_eq (write (told[1], "x", 1), 1);
  ck_assert_int_eq (waitpid (pid, &status, 0), pid);
  messages[0] = '\0';
  c = open_clone ();
  /* Region 3 was durable before. */
  check_message ("3 regions that were valid and not durable are taken over");
  check_some_life (c);
  check_region (c, 30, -1);
  close_clone (c);
}
END_TEST

/* ---- the largest map ---- */

#define LARGE (UINT64_C (1) << 43)

static struct clone *
open_large (void)
{
  const struct setup s = {
    .source = source, .destination = dest, .region_size = 4096,
    .options = { .source_check = true },
  };
  struct clone *c = setup_clone (&s, &test_log);

  ck_assert_msg (c != NULL, "%s", messages);
  ck_assert_int_eq (region_map_regions (c->map), UINT64_C (1) << 31);
  ck_assert_int_eq (clone_start (c, &service), 0);
  return c;
}

static void
large_life (void)
{
  struct clone *c = open_large ();

  ck_assert_int_eq (clone_pwrite (c, "first", 5, 0, 0), 0);
  ck_assert_int_eq (clone_pwrite (c, "last", 4, LARGE - 4, 0), 0);
  ck_assert_int_eq (clone_pwrite (c, "middle", 6, LARGE / 2, 0), 0);
}

START_TEST (largest)
{
  struct clone *c;
  struct stat st;
  char buf[6];
  int fd;

  ck_assert_int_eq (truncate (source, LARGE), 0);
  live_and_die (large_life, KILLED);
  find_object_name ();
  fd = shm_open (object_name, O_RDONLY, 0);
  ck_assert_int_eq (fstat (fd, &st), 0);
  close (fd);
  ck_assert_int_ge (st.st_size, 256 << 20);
  c = open_large ();
  check_message ("3 regions that were valid and not durable are taken over");
  ck_assert_int_eq (clone_pread (c, buf, 5, 0), 0);
  ck_assert_mem_eq (buf, "first", 5);
  ck_assert_int_eq (clone_pread (c, buf, 6, LARGE / 2), 0);
  ck_assert_mem_eq (buf, "middle", 6);
  ck_assert_int_eq (clone_pread (c, buf, 4, LARGE - 4), 0);
  ck_assert_mem_eq (buf, "last", 4);
  close_clone (c);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("inherit");
  TCase *tc = tcase_create ("inherit");

  tcase_set_timeout (tc, 300);
  tcase_add_checked_fixture (tc, setup_files, teardown_files);
  tcase_add_test (tc, taken_over);
  tcase_add_test (tc, life_after_life);
  tcase_add_test (tc, crash_while_opening);
  tcase_add_test (tc, either_generation);
  tcase_add_test (tc, no_generation);
  tcase_add_loop_test (tc, clean_end, 0, 2);
  tcase_add_test (tc, halt_fails);
  tcase_add_test (tc, completion);
  tcase_add_loop_test (tc, refused, 0, CHANGES);
  tcase_add_test (tc, refused_once);
  tcase_add_test (tc, served_elsewhere);
  tcase_add_test (tc, another_file);
  tcase_add_test (tc, flush_has_failed);
  tcase_add_test (tc, destination_was_full);
  tcase_add_test (tc, no_room);
  tcase_add_test (tc, a_copy);
  if (getenv ("CLONE_ALL") && !is_under_tool ())
    tcase_add_test (tc, largest);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
