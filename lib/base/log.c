/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>

#include "base/log.h"

#define FORWARD(func)                           \
  do {                                          \
    int err = errno;                            \
    va_list args;                               \
                                                \
    va_start (args, fmt);                       \
    errno = err;                                \
    func (fmt, args);                           \
    va_end (args);                              \
    errno = err;                                \
  } while (0)

void
log_error (const struct log *log, const char *fmt, ...)
{
  FORWARD (log->error);
}

void
log_info (const struct log *log, const char *fmt, ...)
{
  FORWARD (log->info);
}

void
log_debug_1 (const struct log *log, const char *fmt, ...)
{
  FORWARD (log->debug);
}
