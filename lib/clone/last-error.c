/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "clone/last-error.h"

void
last_error_init (struct last_error *e)
{
  pthread_mutex_init (&e->lock, NULL);
  e->text[0] = '\0';
}

void
last_error_destroy (struct last_error *e)
{
  pthread_mutex_destroy (&e->lock);
}

void
last_error_set (struct last_error *e, const char *fmt, va_list args)
{
  const int err = errno;
  LOCK_FOR_SCOPE (&e->lock);

  vsnprintf (e->text, sizeof e->text, fmt, args);
  errno = err;
}

void
last_error_get (struct last_error *e, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&e->lock);

  snprintf (buf, size, "%s", e->text);
}
