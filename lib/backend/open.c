/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opening by name: a URI is an NBD export, anything else is a path. */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "backend/backend.h"
#include "backend/file.h"
#include "backend/nbd.h"

/* The length of a URI's scheme; 0 for a path.  A scheme is as in RFC 3986 and
 * has "://" after it, so "/tmp/a://b" is a path.
 */
static size_t
scheme_length (const char *name)
{
  size_t n = 0;

  if (!isalpha ((unsigned char)name[0]))
    return 0;
  while (isalnum ((unsigned char)name[n]) ||
         (name[n] != '\0' && strchr ("+-.", name[n])))
    n++;
  return strncmp (name + n, "://", 3) == 0 ? n : 0;
}

bool
backend_name_is_uri (const char *name)
{
  return scheme_length (name) > 0;
}

static bool
scheme_is_nbd (const char *name, size_t length)
{
  static const char *const schemes[] = {
    "nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"
  };

  for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; i++) {
    if (strlen (schemes[i]) == length &&
        strncmp (schemes[i], name, length) == 0)
      return true;
  }
  return false;
}

struct backend *
backend_open (const struct backend_params *params, const struct log *log)
{
  size_t length = scheme_length (params->name);

  if (length == 0)
    return backend_file_open (params, log);
  if (scheme_is_nbd (params->name, length))
    return backend_nbd_open (params, log);

  log_error (log, "%s %s: unsupported URI scheme \"%.*s\"; use nbd://, "
             "nbds://, nbd+unix:// or nbds+unix://, or a path",
             params->role, params->name, (int)length, params->name);
  errno = EINVAL;
  return NULL;
}

struct backend *
backend_create (const struct backend_params *params, uint64_t size,
                const struct log *log)
{
  if (!backend_name_is_uri (params->name))
    return backend_file_create (params, size, log);

  log_error (log, "%s %s: an NBD export cannot be created from here; create "
             "it on its server", params->role, params->name);
  errno = EINVAL;
  return NULL;
}

bool
backend_same (const char *a, const char *b)
{
  if (strcmp (a, b) == 0)
    return true;
  if (backend_name_is_uri (a) || backend_name_is_uri (b))
    return false;
  return backend_file_same (a, b);
}
