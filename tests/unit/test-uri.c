/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that uri_absolute makes all names of files in a URI's query absolute,
 * as libnbd parses them, and changes nothing else.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include <check.h>

#include "backend/uri.h"
#include "run-suite.h"

static void
assert_absolute (const char *uri, const char *cwd, const char *expect)
{
  char *absolute = uri_absolute (uri, cwd);

  ck_assert_ptr_nonnull (absolute);
  ck_assert_str_eq (absolute, expect);
  free (absolute);
}

START_TEST (test_relative)
{
  static const char *const cases[][2] = {
    { "nbd+unix:///?socket=src.sock", "nbd+unix:///?socket=/d/src.sock" },
    { "nbd+unix:///?socket=../s", "nbd+unix:///?socket=/d/../s" },
    { "nbd+unix:///name?socket=s", "nbd+unix:///name?socket=/d/s" },
    { "nbds://alice@host:1/?tls-psk-file=keys.psk",
      "nbds://alice@host:1/?tls-psk-file=/d/keys.psk" },
    { "nbds://host?tls-certificates=pki",
      "nbds://host?tls-certificates=/d/pki" },
    /* Several names, one of them absolute. */
    { "nbds+unix://a@/?socket=s&tls-psk-file=/k&tls-certificates=c",
      "nbds+unix://a@/?socket=/d/s&tls-psk-file=/k&tls-certificates=/d/c" },
    { "nbd+unix:///?socket=s;tls-psk-file=k",
      "nbd+unix:///?socket=/d/s;tls-psk-file=/d/k" },
    { "nbd+unix:///?&&x=y&socket=s&", "nbd+unix:///?&&x=y&socket=/d/s&" },
    { "nbd+unix:///?socket=s&socket=t",
      "nbd+unix:///?socket=/d/s&socket=/d/t" },
    /* Encoded in an unusual way. */
    { "nbd+unix:///?soc%6bet=%73", "nbd+unix:///?soc%6bet=/d/%73" },
    { "nbd+unix:///?socket=%", "nbd+unix:///?socket=/d/%" },
    { "nbd+unix:///?socket=%2", "nbd+unix:///?socket=/d/%2" },
    { "nbd+unix:///?socket=%zz", "nbd+unix:///?socket=/d/%zz" },
    /* A value extends to the next separator, whatever it contains. */
    { "nbd+unix:///?socket=a=b?c", "nbd+unix:///?socket=/d/a=b?c" },
    { "nbd+unix:///?socket=a;tls-psk-file=k&x=y",
      "nbd+unix:///?socket=/d/a;tls-psk-file=k&x=y" },
    /* The fragment ends the query. */
    { "nbd+unix:///?socket=s#f?socket=t",
      "nbd+unix:///?socket=/d/s#f?socket=t" },
  };

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    assert_absolute (cases[i][0], "/d", cases[i][1]);
}
END_TEST

START_TEST (test_same)
{
  static const char *const cases[] = {
    "", "disk", "./a?socket=s", "/tmp/x://?socket=s", "1nbd://?socket=s",
    "nbd+unix:/?socket=s",
    "nbd://host", "nbd://host/export", "nbd://host/socket=s",
    "nbd://host?", "nbd://host/#?socket=s",
    "nbd+unix:///?socket=/s", "nbd+unix:///?socket=%2fs",
    "nbd+unix:///?socket=%2Fs%zz", "nbd+unix:///?socket=",
    "nbd+unix:///?socket", "nbd+unix:///?=s", "nbd+unix:///?socket=%00s",
    "nbd+unix:///?socket=&=s",
    "nbd+unix:///?socket2=s", "nbd+unix:///?socke=s", "nbd+unix:///?Socket=s",
    "nbd+unix:///?socket%00=s", "nbd+unix:///?xsocket=s",
    "nbds://host/?tls-hostname=h&tls-verify-peer=false",
  };

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    assert_absolute (cases[i], "/d", cases[i]);
}
END_TEST

/* The added prefix decodes to the directory, whatever its name is. */
START_TEST (test_directory)
{
  static const char *const cases[][2] = {
    { "/", "/" }, { "/a/", "/a/" }, { "/a/b", "/a/b/" },
    { "/-._~09AZaz", "/-._~09AZaz/" },
    { "/a b&c;d=e?f#g%h+i", "/a%20b%26c%3Bd%3De%3Ff%23g%25h%2Bi/" },
    { "/\xc3\xa4\xff\x01", "/%C3%A4%FF%01/" },
  };
  char expect[100];

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    snprintf (expect, sizeof expect, "nbd+unix:///?socket=%ss&x", cases[i][1]);
    assert_absolute ("nbd+unix:///?socket=s&x", cases[i][0], expect);
  }
}
END_TEST

static Suite *
uri_suite (void)
{
  Suite *s = suite_create ("uri");
  TCase *tc = tcase_create ("absolute");

  tcase_add_test (tc, test_relative);
  tcase_add_test (tc, test_same);
  tcase_add_test (tc, test_directory);
  suite_add_tcase (s, tc);
  return s;
}

int
main (void)
{
  return run_suite (uri_suite ());
}
