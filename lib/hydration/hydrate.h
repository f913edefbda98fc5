/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Hydration: the background copier.
 *
 * A plan, shared and under one lock, hands out the next range to copy, in the
 * order of the disk, but what clients need first (plan_next in plan.c is the
 * place to change that order).
 * Workers, each a thread with a libev loop and channels of its own, take ranges
 * from the plan and copy them, many at a time:
 *
 *    plan_next ---> READING ---> OWNING ---> WRITING ---> done
 *       |          the source,   owned by    what is still invalid,
 *       |           unowned      nobody      run by run; each run becomes
 *       |                        else        valid when it is written
 *       +-- a hole of the source ---^
 *       +-- blocks to be shared ----^ ---> refused: back to READING
 *
 * The source is read unowned, then the range is owned, looked at again, and
 * only what is still invalid is written: a client's write that came in between
 * wins and has not waited for the source.  A range ends only after its last
 * write to the destination has returned, whatever happens.
 *
 * Where the source knows its extents, they are asked for ahead of the plan, and
 * its holes become holes of the destination without being read.  So do copied
 * ranges that turn out to be all zeroes.
 *
 * Where source and destination are files of one file system that can let them
 * share blocks (XFS, btrfs), nothing is read nor written: the destination gets
 * the source's blocks, while the range is owned.  That is work for the file
 * system only, as punching a hole is, so nobody's round trip is waited for.
 * What cannot be shared, such as the disk's last bytes, is copied.
 *
 * A region larger than a batch is copied in pieces, and becomes valid when all
 * of them are in the destination.
 *
 * While source or destination are lost nothing is handed out.  A copy that is
 * under way then gives its range back to the plan.  A loop never waits for a
 * server, nor for a commit: the last one is made by the clone's committer.
 *
 * What the source fails to read is set aside as bad, and the rest goes on.
 * When only bad ranges are left they are tried again, in rounds (plan.h): the
 * first one after BAD_DELAY, and each later one after twice the time of the one
 * before, at most BAD_DELAY_MAX; after a round that got something, it is
 * BAD_DELAY again.  Errors of the destination stop hydration.
 *
 * Units: sizes in bytes, rates in bytes a second.
 */

#ifndef CLONE_HYDRATE_H
#define CLONE_HYDRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "clone/clone.h"
#include "hydration/plan.h"

#define HYDRATE_THRESHOLD_DEFAULT (UINT64_C (16) << 20)
#define HYDRATE_BATCH_DEFAULT 0 /* hydrate_new chooses */
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
  bool access;        /* what clients read, and what follows it, comes first */
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
  uint64_t hydrating;          /* regions being copied at this moment */
  uint64_t rate;               /* bytes a second that became valid, lately */
  bool eta_known;
  uint64_t eta;                /* seconds */
  bool source_connected;       /* false also when it is closed */
  unsigned source_connections; /* 1 for a file */
  struct plan_bad_sum bad;     /* what the source could not be read at */
};

struct hydrate;

/* on_end is called when the state becomes complete or failed, on any thread.  It
 * must not wait; NULL: it is not called.  settings->batch may be
 * HYDRATE_BATCH_DEFAULT.  NULL with errno ENOMEM.
 */
extern struct hydrate *hydrate_new (const struct hydrate_settings *settings,
                                    bool paused,
                                    void (*on_end) (void *opaque),
                                    void *opaque, const struct log *log);

/* After hydrate_stop, and after the clone was closed that was given its events.
 * NULL is allowed.
 */
extern void hydrate_free (struct hydrate *h);

/* The events that the clone tells this object, to be given to clone_new. */
extern struct clone_events hydrate_events (struct hydrate *h);

/* Hydrate this clone: start the threads, with all signals blocked, after the
 * process has forked for the last time.  Called once.  -1, logged.
 */
extern int hydrate_start (struct hydrate *h, struct clone *c);

/* Stop taking new ranges, finish or drop those under way, join the threads.
 * What the clone tells from then on is ignored.  Started or not.
 */
extern void hydrate_stop (struct hydrate *h);

/* Any thread may call these; status only after hydrate_start. */
extern void hydrate_pause (struct hydrate *h);
extern void hydrate_resume (struct hydrate *h); /* tries bad ranges, too */
extern void hydrate_get_settings (struct hydrate *h,
                                  struct hydrate_settings *settings);
extern void hydrate_set_settings (struct hydrate *h,
                                  const struct hydrate_settings *settings);
extern void hydrate_get_status (struct hydrate *h,
                                struct hydrate_status *status);

#endif /* CLONE_HYDRATE_H */
