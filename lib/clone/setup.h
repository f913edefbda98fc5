/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Setup: open or create the clone that the user's parameters describe.
 *
 * The creation rules and the identity checks (I11, I12) are here.  All checks
 * are made before anything is created or changed.  If a later step fails, the
 * files that were created are removed.
 */

#ifndef CLONE_SETUP_H
#define CLONE_SETUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"
#include "clone/clone.h"

enum setup_create { CREATE_AUTO, CREATE_ALWAYS, CREATE_NEVER };

struct setup {
  const char *source;      /* may be NULL for a complete clone */
  const char *destination;
  const char *metadata;    /* NULL: the destination's path and ".clone" */
  enum setup_create create;
  uint64_t region_size;    /* bytes; 0: choose */
  unsigned source_connections, destination_connections;
  unsigned timeout;        /* seconds until opening the source fails; 0: 60 */
  unsigned deadline;       /* for tests, as in backend_params */
  double (*clock) (void);  /* for tests: replaces monotonic_seconds; or NULL */
  struct clone_options options;
};

/* The region size that is chosen for a disk: the smallest that keeps the bitmap
 * within 32 MiB.
 */
extern uint64_t setup_region_size (uint64_t size);

/* NULL on failure, with one message in the log. */
extern struct clone *setup_clone (const struct setup *s,
                                  const struct log *log);

#endif /* CLONE_SETUP_H */
