/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Hydration: the background copier.
 *
 * One plan hands out ranges to copy (plan.h).  Workers, each a thread with a
 * libev loop and channels of its own, take ranges from the plan and copy many
 * of them at a time.  A copy goes through these states:
 *
 *    plan_next --1--> READING --3--> OWNING --4--> WRITING --7--> done
 *        |               ^            ^  ^          | ^ |
 *        +--------2------|------------+  +-----8----+ 5 |
 *                        |                          +-+ |
 *                        +---------------6--------------+
 *
 * READING needs nothing but the source.  OWNING waits until no other owner of
 * the range is left.  WRITING writes one run of regions that are still invalid.
 * The functions are in copy.c unless another file is named:
 *
 *    1  admission_next (admission.c), copy_start, copy_read: data, or a probe
 *    2  admission_next, copy_start, copy_enter: a hole, or blocks to share
 *    3  copy_was_read, copy_enter.  A probe ends here, and so does a range that
 *       is unreadable (bad_source_failed, bad-source.c) or whose server is lost
 *       (copy_lost)
 *    4  copy_owned, copy_go_on, copy_write; or 7, if nothing is invalid now
 *    5  copy_written: the run is valid; copy_go_on: the next one
 *    6  copy_share_failed: the destination refuses to share blocks
 *    7  copy_finish, copy_end: no invalid run is left, or a write has failed
 *       (copy_failed)
 *    8  copy_finish: this was the last piece of a region that is copied in
 *       pieces.  The copy owns the whole region next, and copy_join makes it
 *       valid
 *
 * The source is read unowned.  Then the copy owns the range, looks at it again,
 * and writes only the runs that are still invalid (clone/install.h).  So a
 * client's write that came in between wins, and has not waited for the source.
 * A copy ends only after its last write to the destination has returned,
 * whatever happens.
 *
 * Holes: where the source knows its extents, they are asked for ahead of the
 * plan, and the source's holes become holes of the destination without being
 * read.  A range that was read and contains only zeroes becomes a hole, too.
 *
 * Shared blocks: where source and destination are files of one file system that
 * can share blocks between files (XFS, btrfs), the destination gets the
 * source's blocks, and no data is read or written.  This happens while the copy
 * owns the range, because no round trip to a server delays other owners.  A
 * range that cannot be shared, such as the disk's last bytes, is copied.
 *
 * A region larger than a batch is copied in pieces, and becomes valid when all
 * of them are in the destination.
 *
 * While source or destination are lost, nothing new begins, and copies that are
 * under way return their ranges to the plan.  A loop never waits for a server,
 * nor for a commit: the clone's committer makes the last commit.
 *
 * Unreadable ranges of the source are set aside as bad, and everything else is
 * hydrated.  When only bad ranges are left, they are tried again in rounds: the
 * first after BAD_DELAY, each later one after twice the time, at most
 * BAD_DELAY_MAX.  After a round in which regions became valid, the time is
 * BAD_DELAY again.  An error of the destination stops hydration.
 *
 * Sizes are bytes, rates are bytes a second.
 */

#ifndef CLONE_HYDRATE_H
#define CLONE_HYDRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "clone/clone.h"
#include "hydration/plan.h"

#define HYDRATE_THRESHOLD_DEFAULT (UINT64_C (16) << 20)
#define HYDRATE_BATCH_DEFAULT 0 /* hydrate_start chooses */
#define HYDRATE_THRESHOLD_MAX (UINT64_C (1) << 30)
#define HYDRATE_BATCH_MIN (UINT64_C (4) << 10)
#define HYDRATE_BATCH_MAX (UINT64_C (32) << 20)

/* Seconds. */
#define BAD_DELAY 1
#define BAD_DELAY_MAX 60

struct hydrate_settings {
  uint64_t rate;      /* bytes of data read a second; 0: no limit */
  uint64_t threshold; /* most bytes being copied at once, up to
                       * HYDRATE_THRESHOLD_MAX; 0: stop */
  uint64_t batch;     /* largest single copy, HYDRATE_BATCH_MIN.._MAX, or
                       * HYDRATE_BATCH_DEFAULT for hydrate_new */
  bool access;        /* ranges that clients read, and a batch after each of
                       * them, come first; a change counts for later reads */
};

enum hydrate_state {
  HYDRATE_HYDRATING,
  HYDRATE_PAUSED,   /* by the user, or by a threshold of 0 */
  HYDRATE_WAITING,  /* the source is lost */
  HYDRATE_COMPLETE, /* durably */
  HYDRATE_FAILED,   /* an error, after which hydrate_resume tries again; or
                     * the source that came back is another one */
};

struct hydrate_status {
  enum hydrate_state state;
  uint64_t hydrating;          /* regions being copied now */
  uint64_t rate;               /* recent bytes a second that became valid */
  bool eta_known;
  uint64_t eta;                /* seconds */
  bool source_connected;       /* false also when the source is closed */
  unsigned source_connections; /* 1 for a file */
  struct plan_bad_sum bad;     /* unreadable ranges of the source */
};

/* What hydration has handed out and not finished, and the source's bad ranges.
 * The bad ranges ascend and do not overlap; parts of them may be valid by now.
 */
#define HYDRATE_FLIGHT_MAX 256
#define HYDRATE_BAD_MAX BAD_MAX
struct hydrate_range {
  uint64_t start, end; /* bytes */
};
struct hydrate_ranges {
  unsigned flight, bad; /* entries */
  struct hydrate_range in_flight[HYDRATE_FLIGHT_MAX];
  struct hydrate_range bad_range[HYDRATE_BAD_MAX];
};

struct hydrate;

/* on_end is called when the state becomes complete or failed, on any thread.
 * It must not wait.  NULL: nothing is called.  settings->batch may be
 * HYDRATE_BATCH_DEFAULT.  Returns NULL with errno ENOMEM on failure.
 */
extern struct hydrate *hydrate_new (const struct hydrate_settings *settings,
                                    bool paused,
                                    void (*on_end) (void *opaque),
                                    void *opaque, const struct log *log);

/* After hydrate_stop, and after the clone with these events was closed.  NULL
 * is allowed.
 */
extern void hydrate_free (struct hydrate *h);

/* The events of the clone that hydration needs: pass them to clone_new. */
extern struct clone_events hydrate_events (struct hydrate *h);

/* Hydrate this clone: start the threads, after the process has forked for the
 * last time.  Called once.  -1, logged, on failure.
 */
extern int hydrate_start (struct hydrate *h, struct clone *c);

/* Begin no more copies, finish or drop those under way, and join the threads.
 * From then on the clone's events are ignored, and on_end is not called.  May
 * be called without hydrate_start.
 */
extern void hydrate_stop (struct hydrate *h);

/* The process is about to end: begin no more copies, and log no more progress.
 * Any thread may call this.
 */
extern void hydrate_wind_down (struct hydrate *h);

/* Any thread may call these; status only after hydrate_start.  Pauses are
 * logged.
 */
extern void hydrate_pause (struct hydrate *h);
extern void hydrate_resume (struct hydrate *h); /* tries bad ranges, too */
extern void hydrate_get_settings (struct hydrate *h,
                                  struct hydrate_settings *settings);
extern void hydrate_set_settings (struct hydrate *h,
                                  const struct hydrate_settings *settings);
extern void hydrate_get_status (struct hydrate *h,
                                struct hydrate_status *status);
extern void hydrate_get_ranges (struct hydrate *h,
                                struct hydrate_ranges *ranges);

#endif /* CLONE_HYDRATE_H */
