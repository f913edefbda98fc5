/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The parts of hydration, for the files that move data: hydrate.c, finish.c,
 * bad-source.c, worker.c, admission.c, questions.c and copy.c.  Everything else
 * uses hydrate.h.
 *
 * Locking: hydrate.lock protects what stands below it in struct hydrate, and
 * the list of granted copies of each worker.  It is never held across I/O.
 * Everything else in a worker, and its copies, belong to the worker's thread.
 * Ownership of a range may be granted on any thread; that thread appends the
 * copy to the worker's list and wakes the worker's loop.
 *
 * While hydration's lock is held, only one other lock is taken: that of a pool
 * of connections, in backend_state.
 *
 * Sizes and offsets are bytes; times are seconds of monotonic_seconds.
 */

#ifndef CLONE_HYDRATION_PRIVATE_H
#define CLONE_HYDRATION_PRIVATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include <ev.h>

#include "backend/channel.h"
#include "base/extents.h"
#include "clone/install.h"
#include "hydration/hydrate.h"
#include "hydration/news.h"
#include "hydration/pace.h"
#include "hydration/plan.h"

#define HYDRATE_MAX_WORKERS 4

/* The most copies under way in one worker.  This bounds copies of zeroes, which
 * the threshold does not count.
 */
#define HYDRATE_MAX_COPIES 64
_Static_assert (HYDRATE_MAX_WORKERS * HYDRATE_MAX_COPIES <= HYDRATE_FLIGHT_MAX,
                "each copy under way has a place in hydrate.in_flight");

/* Seconds between two calls of hydrate_tick. */
#define HYDRATE_TICK 0.5

/* How a range gets to the destination.  A method may fall back to another one:
 * COPY_SHARE to COPY_BUFFER when the destination refuses, and COPY_BUFFER to
 * COPY_HOLE when all bytes that were read are zeroes.
 */
enum copy_method {
  COPY_BUFFER, /* read the source into the buffer, write the buffer */
  COPY_SHARE,  /* let the destination share the source's blocks */
  COPY_HOLE,   /* make a hole, for a range of zeroes */
  COPY_PROBE,  /* read the source, write nothing */
  COPY_JOIN,   /* write nothing: all pieces of a region are in the destination;
                * own the region and make it valid */
};

/* One range on its way to the destination (copy.c). */
struct copy {
  struct worker *w;
  struct plan_range range;
  enum copy_method method;
  uint64_t cost;   /* bytes of the threshold that it uses */
  int error;       /* the destination's errno, or 0 */
  double asked;    /* when the read of the source began */
  struct install install;
  uint64_t next;   /* of the run in install: it is written up to here */
  struct io io;
  uint8_t *buf;
  size_t buf_size;
  SLIST_ENTRY (copy) link; /* in one of the worker's lists */
};

SLIST_HEAD (copy_list, copy);

/* A question about the source's extents (questions.c). */
struct question {
  struct ahead_question *question; /* NULL: this slot is free */
  struct worker *w;
  struct io io;
  struct extents answer;
};

/* A thread with a loop (worker.c). */
struct worker {
  struct hydrate *h;
  pthread_t thread;
  bool started;
  struct ev_loop *loop;
  ev_async wake;
  ev_timer later;          /* the rate limit allows the next copy */
  ev_timer tick;           /* only the first worker uses it */
  struct backend *source;
  struct channel *from, *to;
  bool shares;             /* COPY_SHARE is tried first */

  struct copy_list idle;   /* copies with buffers, for the next ranges */
  uint64_t idle_bytes;     /* sum of these buffers */
  unsigned copies;         /* number of copies under way */
  uint64_t bytes;          /* bytes of the threshold that these use */
  unsigned questions;      /* number of questions under way */

  struct copy_list granted; /* copies that have become owners of their ranges;
                             * under hydrate.lock */
};

/* Unreadable ranges of the source (bad-source.c). */
struct bad_source {
  double rest_until;      /* only bad ranges are left, and the next round begins
                           * then; 0: there is no rest */
  double rest;            /* length of the last rest; 0: there was none */
  uint64_t valid_at_rest; /* bytes that were valid when it began */
  unsigned said;          /* number of ranges that became bad, with a message */
  unsigned unsaid;        /* those without a message, since the last summary */
  uint64_t suspect;       /* start of the range whose reads lose the server */
  unsigned lost_reads;    /* number of these reads, in a row; 0: no range is
                           * suspected */
};

struct hydrate {
  struct clone *clone;     /* NULL before hydrate_start */
  const struct log *log;
  void (*on_end) (void *opaque); /* NULL after hydrate_stop */
  void *on_end_opaque;
  pthread_mutex_t telling; /* held while on_end is called */
  struct worker worker[HYDRATE_MAX_WORKERS];
  unsigned nr_workers;

  pthread_mutex_t lock;    /* protects what follows */
  struct plan plan;
  struct pace pace;
  struct bad_source bad;
  struct news news;
  struct hydrate_settings settings;
  bool paused;             /* by the user */
  bool running;            /* the workers exist */
  bool ending;             /* hydrate_wind_down was called */
  bool stopping;           /* hydrate_stop was called */
  bool failed;             /* an error stopped hydration */
  bool failed_by_mode;     /* the error: no region could become valid */
  bool finishing;          /* the plan is at its end: see hydrate_finish */
  struct question question[AHEAD_QUESTIONS];
  unsigned questions;      /* number of questions under way */
  uint64_t bytes;          /* bytes of the threshold that all copies use */
  unsigned copies;         /* number of copies under way */
  struct hydrate_range in_flight[HYDRATE_FLIGHT_MAX]; /* their ranges, in no
                                                       * order */
  uint64_t regions;        /* whole regions being copied */
  double rate_next;        /* when the rate limit allows the next copy */
  uint64_t valid_then;     /* bytes that were valid at the last tick */
  double rate;             /* bytes a second */
};

/* ---- hydrate.c ---- */

/* Make all workers look again at what they may begin. */
extern void hydrate_wake (struct hydrate *h);

/* Do the workers exist, and do the clone's events count?  With the lock. */
extern bool hydrate_is_running (const struct hydrate *h);

/* Should the workers end?  With the lock. */
extern bool hydrate_is_over (struct hydrate *h);

/* Every HYDRATE_TICK: measure progress, and go on if a rest is over or an error
 * has gone.
 */
extern void hydrate_tick (struct hydrate *h);

/* ---- finish.c ---- */

/* Hydration stops because of an error; by_mode says that the error is the
 * clone's mode.  True: the caller logs why, and calls hydrate_tell_end.  False
 * where hydration has failed before, or is about to stop anyway.
 */
extern bool hydrate_fail (struct hydrate *h, bool by_mode);

/* The state has become complete or failed.  Without the lock. */
extern void hydrate_tell_end (struct hydrate *h);

/* Forget an error, and look for what it left out.  With the lock. */
extern void hydrate_start_over (struct hydrate *h);

/* The plan is at its end, and no copy is under way. */
extern void hydrate_finish (struct worker *w);

/* The clone's event: a commit has ended. */
extern void hydrate_committed (void *opaque, int error);

/* ---- bad-source.c ---- */

/* A read of the source has ended, and the server was lost, or not.  True: the
 * range has lost the server too often, and counts as bad.
 */
extern bool bad_source_suspects (struct copy *copy, bool lost);

/* The source cannot read the copy's range, which is bad from now on.  error is
 * not ENOTCONN.
 */
extern void bad_source_failed (struct copy *copy, int error);

/* At the end of a walk: log what has become bad without a message. */
extern void bad_source_summarize (struct worker *w);

/* If only bad ranges are left, begin a rest before the next round, and return
 * true.  With the lock.
 */
extern bool bad_source_rest (struct hydrate *h);

/* Begin a round if the rest is over.  valid is the number of valid bytes of the
 * disk.  With the lock.
 */
extern void bad_source_tick (struct hydrate *h, uint64_t valid);

/* Begin a round at once.  With the lock. */
extern void bad_source_retry (struct hydrate *h);

/* ---- worker.c ---- */

/* Make everything the worker needs, except its thread; then the thread.  -1,
 * logged.
 */
extern int worker_init (struct hydrate *h, struct worker *w);
extern int worker_start (struct worker *w);

/* Wait for the thread, if it was started, and free all but the loop, which
 * hydrate_wake may still use.
 */
extern void worker_join (struct worker *w);

/* Begin as many copies and questions as are admitted. */
extern void worker_fill (struct worker *w);

/* Take back a copy that has ended, and begin others.  share is this worker's
 * part of the threshold.
 */
extern void worker_reuse (struct worker *w, struct copy *copy, uint64_t share);

/* ---- admission.c ---- */

/* May a copy or a question begin?  With the lock. */
extern bool admission_is_open (const struct worker *w);

/* The largest copy that settings allow. */
extern uint64_t admission_batch (const struct hydrate_settings *s);

/* Count a range in (by is 1) or out (-1).  With the lock. */
extern void admission_count (struct worker *w, const struct plan_range *range,
                             uint64_t cost, int by);

enum admission {
  ADMISSION_RANGE, /* copy this range; it is counted in */
  ADMISSION_WAIT,  /* until something changes; then the worker is woken */
  ADMISSION_LATER, /* the rate limit: after *wait seconds */
  ADMISSION_END,   /* the plan is at its end: call hydrate_finish */
};

/* The next range, if one may begin now, and the bytes of the threshold that its
 * copy uses.
 */
extern enum admission admission_next (struct worker *w,
                                      struct plan_range *range,
                                      uint64_t *cost, double *wait);

/* ---- questions.c ---- */

/* Ask the source for the extents that the plan wants. */
extern void questions_ask (struct worker *w);

/* ---- copy.c ---- */

/* Begin.  The worker has set w, range, method, cost and the buffer. */
extern void copy_start (struct copy *copy);

/* The copy owns what it asked for: go on. */
extern void copy_go_on (struct copy *copy);

#endif /* CLONE_HYDRATION_PRIVATE_H */
