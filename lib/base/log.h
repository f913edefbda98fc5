/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where libclone's messages go.
 *
 * The library never prints.  Whoever uses it hands every object one struct
 * log, which must outlive that object; the plugin's leads to nbdkit_error and
 * nbdkit_debug, a tool's to stderr.
 *
 * Messages are lowercase, without a full stop and without a newline, and name
 * the file, the offset and what the user can do.  %m works: errno is kept.
 * All functions may be called from any thread, and preserve errno.
 */

#ifndef CLONE_LOG_H
#define CLONE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

/* What a debug message is about.  The names are those of the plugin's debug
 * flags: -D clone.request=1 and so on.
 */
enum log_topic {
  LOG_REQUEST, /* clients' requests */
  LOG_REGION,  /* regions that change state */
  LOG_COMMIT,  /* epochs: snapshot, flush, bitmap, flush */
  LOG_HYDRATE, /* the background copier, and connections */
  LOG_TOPICS
};

struct log {
  /* Something went wrong that the user should know. */
  void (*error) (const char *fmt, va_list args);
  /* Rare news that are no error, such as "hydration is complete". */
  void (*info) (const char *fmt, va_list args);
  void (*debug) (const char *fmt, va_list args);
  /* False lets log_debug skip even the formatting of its arguments. */
  bool (*wants) (enum log_topic topic);
};

extern void log_error (const struct log *log, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));
extern void log_info (const struct log *log, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));
extern void log_debug_1 (const struct log *log, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

#define log_debug(log, topic, ...)              \
  do {                                          \
    if ((log)->wants (topic))                   \
      log_debug_1 ((log), __VA_ARGS__);         \
  } while (0)

#endif /* CLONE_LOG_H */
