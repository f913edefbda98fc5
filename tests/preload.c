/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Loaded into nbdkit after a sanitizer's library, and linked with -z initfirst:
 * this constructor runs before any other, and makes the sanitizer start.
 *
 * Otherwise it starts with the first malloc, which is the one in newlocale that
 * libp11-kit, a library of GnuTLS, calls when it is loaded.  To start is to call
 * dlerror, which has a message translated, and takes glibc's lock on the locale
 * that newlocale holds.  glibc gives that lock up once too often then, and
 * nbdkit may hang in libp11-kit when it exits.
 */

#include <config.h>

#include <stdlib.h>

static void *volatile p;

__attribute__ ((constructor)) static void
start_sanitizer (void)
{
  p = malloc (1);
  free (p);
}
