/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where libclone's messages go.
 *
 * The library never prints.  Every object gets a struct log, which must outlive
 * it.  The plugin's struct log calls nbdkit_error and nbdkit_debug, a tool's
 * prints to stderr.
 *
 * Messages are lowercase, without a full stop and without a newline, and name
 * the file, the offset and what the user can do.  %m works: the functions get
 * the caller's errno.  They may be called from any thread, and preserve errno.
 */

#ifndef CLONE_LOG_H
#define CLONE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

/* The subject of a debug message.  The plugin has a debug flag for each: -D
 * clone.request=1 and so on.
 */
enum log_topic {
  LOG_REQUEST, /* clients' requests */
  LOG_REGION,  /* changes of regions' states */
  LOG_COMMIT,  /* epochs: snapshot, flush, bitmap, flush */
  LOG_HYDRATE, /* the background copier, and connections */
  LOG_TOPICS
};

struct log {
  /* An error that the user should know about. */
  void (*error) (const char *fmt, va_list args);
  /* Rare events that are not errors, such as "hydration is complete". */
  void (*info) (const char *fmt, va_list args);
  void (*debug) (const char *fmt, va_list args);
  /* If false, log_debug does not even evaluate its arguments. */
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
