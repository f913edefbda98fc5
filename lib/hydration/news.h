/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What hydration logs about its progress: the beginning, every tenth of the
 * disk that becomes valid, and the end.
 *
 * The rule for tenths (news_tenth):
 *
 *   - A tenth is logged NEWS_DELAY seconds after it was reached.  If further
 *     tenths have been reached by then, only the last of them is logged.
 *   - Ten tenths are not logged: the end has a message of its own.
 *   - After the map was set back, a tenth is logged again only if so much has
 *     become invalid that the tenth before it is not reached any more.
 *
 * The struct is protected by its user.  Nothing here waits.
 */

#ifndef CLONE_NEWS_H
#define CLONE_NEWS_H

#include <stdbool.h>
#include <stdint.h>

#include "clone/clone.h"
#include "hydration/hydrate.h"

/* Seconds. */
#define NEWS_DELAY 1

struct news {
  uint64_t size;  /* of the disk */
  uint64_t then;  /* bytes that were valid at the beginning */
  double begun;   /* when that was; times are those of monotonic_seconds */
  unsigned told;  /* the last tenth that was logged, or needs no message */
  bool waiting;   /* a later tenth was reached, and is not logged yet */
  double reached; /* when that was */
};

extern void news_init (struct news *n, uint64_t size, uint64_t valid,
                       double now);

/* So many bytes are valid now.  The tenth that is to be logged, from 1 to 9, or
 * 0.
 */
extern unsigned news_tenth (struct news *n, uint64_t valid, double now);

/* The messages.  source is NULL if the clone is complete. */
extern void news_log_begin (const struct log *log, const struct backend *source,
                            struct clone *c, bool paused);
extern void news_log_tenth (const struct log *log, struct clone *c,
                            unsigned tenth, uint64_t valid,
                            const struct hydrate_status *st);
extern void news_log_end (const struct log *log, struct clone *c,
                          const struct news *n, double now);

#endif /* CLONE_NEWS_H */
