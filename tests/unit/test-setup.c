/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that a check whether a large destination is empty says in the log what
 * it does, after one second and then every five seconds, and that it leaves the
 * page cache as it is.  The clock is the test's own.
 */

#include <config.h>

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include <check.h>

#include "clone/clone.h"
#include "clone/setup.h"
#include "run-suite.h"

#define M (1 << 20)
#define SIZE (16 * M)

static char dir[4096 - 16], source[4096], dest[4096], meta[4096];

/* All errors and news, a line each. */
static char said[16384];

__attribute__ ((format (printf, 1, 0))) static void
say (const char *fmt, va_list args)
{
  size_t n = strlen (said);

  n += vsnprintf (said + n, sizeof said - n, fmt, args);
  ck_assert_uint_lt (n + 1, sizeof said);
  strcpy (said + n, "\n");
}

__attribute__ ((format (printf, 1, 0))) static void
say_nothing (const char *fmt, va_list args)
{
}

static bool
wants_nothing (enum log_topic topic)
{
  return false;
}

static const struct log test_log = {
  .error = say, .info = say, .debug = say_nothing, .wants = wants_nothing
};

/* Each look at the clock takes this long. */
static double now, step;

static double
test_clock (void)
{
  now += step;
  return now;
}

/* A file of zeroes that take space, with one other byte at the end if last. */
static void
make_file (const char *name, char last)
{
  char *zeroes = calloc (1, SIZE);
  int fd = open (name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  zeroes[SIZE - 1] = last;
  ck_assert_int_eq (write (fd, zeroes, SIZE), SIZE);
  ck_assert_int_eq (fsync (fd), 0);
  posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED);
  close (fd);
  free (zeroes);
}

static size_t
cached_pages (const char *name)
{
  static unsigned char vec[SIZE / 4096];
  int fd = open (name, O_RDONLY);
  void *map = mmap (NULL, SIZE, PROT_NONE, MAP_SHARED, fd, 0);
  size_t n = 0;

  memset (vec, 0, sizeof vec);
  ck_assert_ptr_ne (map, MAP_FAILED);
  ck_assert_int_eq (mincore (map, SIZE, vec), 0);
  munmap (map, SIZE);
  close (fd);
  for (size_t i = 0; i < sizeof vec; ++i)
    n += vec[i] & 1;
  return n;
}

static void
set_up (void)
{
  const char *tmp = getenv ("TMPDIR");

  snprintf (dir, sizeof dir, "%s/test-setup-XXXXXX", tmp ? tmp : "/tmp");
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (source, sizeof source, "%s/source", dir);
  snprintf (dest, sizeof dest, "%s/dest", dir);
  snprintf (meta, sizeof meta, "%s/meta", dir);
  make_file (source, 1);
  make_file (dest, 0);
  now = 1000;
  said[0] = '\0';
}

static void
tear_down (void)
{
  unlink (source);
  unlink (dest);
  unlink (meta);
  ck_assert_int_eq (rmdir (dir), 0);
}

static struct clone *
open_clone (enum setup_create create)
{
  const struct setup s = {
    .source = source, .destination = dest, .metadata = meta,
    .create = create, .clock = test_clock,
    .options = { .discard_passdown = true, .source_check = true },
  };

  return setup_clone (&s, &test_log);
}

static void
check_said (unsigned percent[], size_t n)
{
  char expected[sizeof said] = "";
  size_t len = 0;

  for (size_t i = 0; i < n; ++i)
    len += snprintf (expected + len, sizeof expected - len,
                     "checking that destination %s is empty: %u %% of 16 MiB; "
                     "create=always skips this check\n", dest, percent[i]);
  ck_assert_str_eq (said, expected);
}

/* Each MiB takes half a second: messages after 1 and 6 seconds.  (The end of
 * the extent is one more look at the clock.)
 */
START_TEST (slow)
{
  struct clone *c;

  step = 0.5;
  c = open_clone (CREATE_AUTO);
  ck_assert_ptr_nonnull (c);
  check_said ((unsigned[]){ 12, 75 }, 2);
  clone_close (c);
}
END_TEST

/* Each MiB takes ten seconds: a message for each. */
START_TEST (very_slow)
{
  struct clone *c;
  unsigned percent[17];

  for (unsigned i = 0; i < 16; ++i)
    percent[i] = 100 * (i + 1) / 16;
  percent[16] = 100;
  step = 10;
  c = open_clone (CREATE_AUTO);
  ck_assert_ptr_nonnull (c);
  check_said (percent, 17);
  clone_close (c);
}
END_TEST

/* Nothing is said if it is quick, or if there is no check. */
START_TEST (quick)
{
  struct clone *c;

  step = 0.01;
  c = open_clone (CREATE_AUTO);
  ck_assert_ptr_nonnull (c);
  check_said (NULL, 0);
  clone_close (c);
  unlink (meta);

  step = 10;
  c = open_clone (CREATE_ALWAYS);
  ck_assert_ptr_nonnull (c);
  check_said (NULL, 0);
  clone_close (c);
}
END_TEST

/* The last byte is found, and the check has filled no page cache. */
START_TEST (data)
{
  struct statfs fs;

  make_file (dest, 1);
  step = 0.5;
  ck_assert_ptr_null (open_clone (CREATE_AUTO));
  ck_assert_ptr_nonnull (strstr (said, "holds data"));
  ck_assert_ptr_nonnull (strstr (said, ": 75 %"));
  ck_assert_int_ne (access (meta, F_OK), 0);
  ck_assert_int_eq (statfs (dir, &fs), 0);
  if (fs.f_type != TMPFS_MAGIC)
    ck_assert_uint_le (cached_pages (dest), 32);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("setup");
  TCase *tc = tcase_create ("setup");

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, set_up, tear_down);
  tcase_add_test (tc, slow);
  tcase_add_test (tc, very_slow);
  tcase_add_test (tc, quick);
  tcase_add_test (tc, data);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
