/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <syslog.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/cleanup.h"
#include "nbdkit-log.h"

/* -D clone.request=1 and so on: one for each enum log_topic. */
NBDKIT_DLL_PUBLIC int clone_debug_request;
NBDKIT_DLL_PUBLIC int clone_debug_region;
NBDKIT_DLL_PUBLIC int clone_debug_commit;
NBDKIT_DLL_PUBLIC int clone_debug_hydrate;

static pid_t pid_at_load;

void
nbdkit_log_load (void)
{
  pid_at_load = getpid ();
}

static void
error_to_nbdkit (const char *fmt, va_list args)
{
  nbdkit_verror (fmt, args);
}

/* When nbdkit goes to the background it redirects standard error to /dev/null,
 * unless it is verbose, and its own errors go to syslog.
 */
static bool
stderr_is_lost (void)
{
  struct stat st;

  return getpid () != pid_at_load &&
         fstat (STDERR_FILENO, &st) == 0 && S_ISCHR (st.st_mode) &&
         st.st_rdev == makedev (1, 3);
}

/* Is standard error the journal?  It sets this variable for the services whose
 * standard error it reads (systemd.exec(5)).
 */
static bool
stderr_is_journal (void)
{
  const char *stream = getenv ("JOURNAL_STREAM");
  uintmax_t dev, ino;
  struct stat st;

  return stream && sscanf (stream, "%ju:%ju", &dev, &ino) == 2 &&
         fstat (STDERR_FILENO, &st) == 0 && st.st_dev == dev &&
         st.st_ino == ino;
}

/* nbdkit has no level for news that are no errors.  Its syslog messages have
 * its name and process ID, and these have them, too.  The journal adds both
 * itself, and takes the priority from the start of the line (sd-daemon(3)).
 */
__attribute__ ((format (printf, 1, 0))) static void
print_info (const char *fmt, va_list args)
{
  CLEANUP_FREE char *line = NULL;

  if (vasprintf (&line, fmt, args) == -1) {
    line = NULL;
    return;
  }
  if (stderr_is_lost ())
    syslog (LOG_DAEMON | LOG_INFO, "clone: %s", line);
  else if (stderr_is_journal ())
    fprintf (stderr, "<%d>clone: %s\n", LOG_INFO, line);
  else
    fprintf (stderr, "nbdkit: clone: %s\n", line);
}

static void
debug_to_nbdkit (const char *fmt, va_list args)
{
  nbdkit_vdebug (fmt, args);
}

static bool
wants_debug (enum log_topic topic)
{
  switch (topic) {
  case LOG_REQUEST: return clone_debug_request;
  case LOG_REGION: return clone_debug_region;
  case LOG_COMMIT: return clone_debug_commit;
  case LOG_HYDRATE: return clone_debug_hydrate;
  case LOG_TOPICS: break;
  }
  return false;
}

const struct log nbdkit_log = {
  .error = error_to_nbdkit,
  .info = print_info,
  .debug = debug_to_nbdkit,
  .wants = wants_debug,
};
