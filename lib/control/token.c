/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "control/token.h"

bool
token_is_valid (const char *token)
{
  const char *p;

  for (p = token; *p > ' ' && *p <= '~'; p++)
    ;
  return p > token && *p == '\0' && p - token <= TOKEN_MAX;
}

bool
token_matches (const char *token, const char *value)
{
  static const char scheme[] = "Bearer ";
  volatile unsigned char diff;
  size_t i, len, given_len;

  if (value == NULL || strncasecmp (value, scheme, strlen (scheme)) != 0)
    return false;
  value += strlen (scheme);
  value += strspn (value, " ");

  len = strlen (token);
  given_len = strlen (value);
  diff = len != given_len;
  for (i = 0; i < len; i++)
    diff |= token[i] ^ value[i < given_len ? i : 0];
  return diff == 0;
}

/* ---- the file ---- */

/* Read at most `size' bytes.  Returns their number, or -1 with errno. */
static ssize_t
read_file (const char *file, char *buf, size_t size)
{
  CLEANUP_CLOSE int fd = open (file, O_RDONLY | O_CLOEXEC);
  size_t len = 0;
  ssize_t n = -1;

  if (fd == -1)
    return -1;
  while (len < size) {
    n = read (fd, buf + len, size - len);
    if (n == 0 || (n == -1 && errno != EINTR))
      break;
    len += n > 0 ? n : 0;
  }
  return n == -1 ? -1 : (ssize_t)len;
}

/* What is wrong with this content; NULL: nothing. */
static const char *
wrong_content (const char *buf, size_t len)
{
  if (len > TOKEN_MAX + 1 || (len == TOKEN_MAX + 1 && buf[len - 1] != '\n'))
    return "the file is too long: a token has at most 4096 bytes";
  if (memchr (buf, '\0', len))
    return "the file contains a NUL byte";
  if (len == 0 || buf[0] == '\n')
    return "the file is empty, or its first line is";
  return NULL;
}

char *
token_read (const char *file, char **why)
{
  char buf[TOKEN_MAX + 2], *token = NULL;
  const ssize_t len = read_file (file, buf, sizeof buf);
  const char *wrong = len == -1 ? strerror (errno) : wrong_content (buf, len);
  const char *end;

  *why = wrong ? strdup (wrong) : NULL;
  if (wrong == NULL) {
    end = memchr (buf, '\n', len);
    token = strndup (buf, end ? end - buf : len);
  }
  explicit_bzero (buf, sizeof buf);
  return token;
}
