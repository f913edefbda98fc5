/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Loaded into nbdkit after the sanitizers' libraries, which it was not built
 * with, and linked with -z initfirst: this constructor runs before any other.
 * It does two things.
 *
 * It makes the sanitizer start.  Otherwise that starts with the first malloc,
 * which is the one in newlocale that libp11-kit, a library of GnuTLS, calls when
 * it is loaded.  To start is to call dlerror, which has a message translated,
 * and takes glibc's lock on the locale that newlocale holds.  glibc gives that
 * lock up once too often then, and nbdkit may hang in libp11-kit when it exits.
 *
 * It tells UndefinedBehaviorSanitizer where its reports go.  The function for
 * that is in both libraries, and what the one calls is the other's.
 */

#include <config.h>

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define REPORTS "CLONE_REPORTS=" /* see the script `under' */

static void *volatile p;

/* getenv does not work yet. */
__attribute__ ((constructor)) static void
be_first (int argc, char *argv[], char *env[])
{
  void (*set_path) (const char *) = NULL;
  void *ubsan;

  p = malloc (1);
  free (p);

  ubsan = dlopen ("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (ubsan)
    *(void **)&set_path = dlsym (ubsan, "__sanitizer_set_report_path");
  for (; set_path && *env; ++env)
    if (strncmp (*env, REPORTS, strlen (REPORTS)) == 0)
      set_path (*env + strlen (REPORTS));
}
