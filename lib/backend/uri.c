/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/uri.h"

/* Decode one character at p, where p < end, into *c.  Return how many bytes of
 * the URI it takes: 3 for a percent code, else 1.  A percent sign that does not
 * begin a code stands for itself.
 */
static size_t
uri_decode (const char *p, const char *end, char *c)
{
  if (*p == '%' && end - p >= 3 && isxdigit ((unsigned char)p[1]) &&
      isxdigit ((unsigned char)p[2])) {
    const char hex[] = { p[1], p[2], '\0' };

    *c = (char)strtoul (hex, NULL, 16);
    return 3;
  }
  *c = *p;
  return 1;
}

static bool
decodes_to (const char *p, const char *end, const char *text)
{
  char c;

  for (; p < end; text++) {
    p += uri_decode (p, end, &c);
    if (c == '\0' || c != *text)
      return false;
  }
  return *text == '\0';
}

static bool
names_a_file (const char *key, const char *end)
{
  return decodes_to (key, end, "socket") ||
         decodes_to (key, end, "tls-psk-file") ||
         decodes_to (key, end, "tls-certificates");
}

/* Find the relative file name in a parameter, KEY=VALUE.  NULL if there is
 * none.  A value that is empty, or that begins with an encoded NUL, is not
 * changed: libnbd judges it.
 */
static const char *
relative_name (const char *parameter, const char *end)
{
  const char *value = memchr (parameter, '=', end - parameter);
  char first;

  if (value == NULL || value + 1 == end || !names_a_file (parameter, value))
    return NULL;
  value++;
  uri_decode (value, end, &first);
  return first == '/' || first == '\0' ? NULL : value;
}

/* Separate parameters as libnbd does: by ampersands up to the last ampersand
 * of the query, and by semicolons after it.
 */
static const char *
parameter_end (const char *parameter, const char *end)
{
  const char *sep = memchr (parameter, '&', end - parameter);

  if (sep == NULL)
    sep = memchr (parameter, ';', end - parameter);
  return sep ? sep : end;
}

/* Print the directory's name, percent-encoded, with a slash at its end. */
static void
put_directory (const char *dir, FILE *fp)
{
  static const char plain[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
  const size_t length = strlen (dir);

  for (size_t i = 0; i < length; i++)
    fprintf (fp, strchr (plain, dir[i]) ? "%c" : "%%%02X",
             (unsigned char)dir[i]);
  if (length == 0 || dir[length - 1] != '/')
    fputc ('/', fp);
}

char *
uri_absolute (const char *uri, const char *cwd)
{
  const char *const end = uri + strcspn (uri, "#");
  const char *p = memchr (uri, '?', end - uri);
  const char *name, *rest = uri, *param_end;
  char *absolute = NULL;
  size_t size;
  bool failed;
  FILE *fp;

  if (p == NULL || !backend_name_is_uri (uri))
    return strdup (uri);
  fp = open_memstream (&absolute, &size);
  if (fp == NULL)
    return NULL;

  for (p++; p < end; p = param_end + 1) {
    param_end = parameter_end (p, end);
    name = relative_name (p, param_end);
    if (name) {
      fwrite (rest, 1, name - rest, fp);
      put_directory (cwd, fp);
      rest = name;
    }
  }
  fputs (rest, fp);

  failed = ferror (fp);
  if (fclose (fp) != 0 || failed) {
    free (absolute);
    errno = ENOMEM;
    return NULL;
  }
  return absolute;
}
