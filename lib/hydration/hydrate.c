/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How a range is copied is drawn in hydrate.h; which range comes next is
 * decided in plan.c; how many are under way at once, in next_range below.
 *
 * Locking: h->lock protects the plan, the settings and the counters, and is
 * never held across I/O.  All else belongs to one worker and is touched on
 * its thread only, but for the list of granted copies: ownership may be granted
 * on any thread, which then wakes the worker's loop.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ev.h>

#include "backend/channel.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "base/thread.h"
#include "clone/install.h"
#include "hydration/hydrate.h"
#include "hydration/pace.h"
#include "hydration/plan.h"

#define MAX_WORKERS 4

/* For choose_batch. */
#define REQUESTS_SERVED 16
#define SMALLEST_CHOICE (UINT64_C (512) << 10)
#define LARGEST_CHOICE (UINT64_C (1) << 20)

/* Ranges under way in one worker, holes included, which take no buffer. */
#define MAX_COPIES 64

/* Seconds between two looks at the rate of progress, and how much a new look
 * counts.
 */
#define TICK 0.5
#define RATE_WEIGHT 0.3

/* So many messages about what has become bad, then a summary for each walk. */
#define MAX_BAD_SAID 8

/* A range whose reads have cost the connection so often, one after the other,
 * is bad: perhaps the server does not survive being asked for it.
 */
#define MAX_LOST_READS 5

/* With a rate limit a copy is at most what may be read in this time. */
#define RATE_SLICE 0.25

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

struct copy {
  struct worker *w;
  struct plan_range range;
  uint64_t cost;      /* bytes of the threshold that it takes */
  enum copy_method method;
  int error;          /* an errno, or 0 */
  double asked;       /* when the source was */
  struct install install;
  struct io io;
  uint8_t *buf;
  size_t buf_size;
  struct copy *next;  /* in a list of the worker's */
};

/* A question about the source's extents, while it is under way. */
struct asking {
  struct ahead_question *question; /* NULL: this is free */
  struct worker *w;
  struct io io;
  struct extents answer;
};

struct worker {
  struct hydrate *h;
  pthread_t thread;
  bool started;
  struct ev_loop *loop;
  ev_async wake;
  ev_timer later;     /* when the rate limit allows the next copy */
  ev_timer tick;      /* the first worker's only */
  struct backend *source;
  struct channel *from, *to;

  struct copy *idle;  /* with their buffers, for the next ranges of data */
  uint64_t idle_bytes; /* of those buffers */
  unsigned copies;    /* under way */
  uint64_t bytes;     /* of the threshold, in this worker */

  unsigned asked;     /* questions under way */
  bool shares;        /* until the destination has refused that */

  struct copy *granted; /* owned, to be gone on with; under h->lock */
};

struct hydrate {
  struct clone *clone;
  const struct log *log;
  void (*on_end) (void *opaque);
  void *on_end_opaque;
  struct worker worker[MAX_WORKERS];
  unsigned nr_workers;

  pthread_mutex_t lock; /* protects what follows */
  struct plan plan;
  struct pace pace;
  struct hydrate_settings settings;
  bool paused;          /* by the user */
  bool running;         /* the workers are there */
  bool stopping;        /* hydrate_stop */
  bool stopped;         /* by an error */
  bool stopped_by_mode; /* which was that no region could become valid */
  bool finishing;       /* the last commit was asked for */
  struct asking asking[AHEAD_QUESTIONS];
  unsigned asked;       /* those under way */
  uint64_t bytes;       /* of the threshold, in all workers */
  unsigned copies;
  uint64_t regions;     /* whole regions being copied */
  double retry_at;      /* only bad ranges are left, which are tried again then;
                         * 0: others are, too */
  double retry_delay;   /* how long the last rest was; 0: there was none */
  uint64_t valid_at_rest; /* bytes valid when it began */
  unsigned bad_said;    /* ranges that became bad, with a message, */
  unsigned bad_unsaid;  /* and without one, since the last summary */
  uint64_t suspect;     /* where a range begins whose reads are lost, */
  unsigned lost_reads;  /* and how many; 0: there is none */
  double rate_next;     /* when the rate limit allows the next copy */
  uint64_t valid_then;  /* bytes valid at the last tick */
  double rate;          /* bytes a second */
};

static void fill (struct worker *w);
static void go_on (struct copy *copy);

static void
wake_all (struct hydrate *h)
{
  for (unsigned i = 0; i < h->nr_workers; ++i)
    if (h->worker[i].loop)
      ev_async_send (h->worker[i].loop, &h->worker[i].wake);
}

/* Are there workers, and is the clone to be heard?  The lock is held. */
static bool
is_running (const struct hydrate *h)
{
  return h->running && !h->stopping;
}

static bool
is_over (struct hydrate *h)
{
  return h->stopping || clone_is_complete (h->clone);
}

static void
tell_end (struct hydrate *h)
{
  if (h->on_end)
    h->on_end (h->on_end_opaque);
}

/* Hydration cannot go on by itself.  False where that is known, or does not
 * matter any more; otherwise the caller says why and calls tell_end.
 */
static bool
stop (struct hydrate *h, bool by_mode)
{
  LOCK_FOR_SCOPE (&h->lock);

  if (h->stopped || h->stopping)
    return false;
  h->stopped = true;
  h->stopped_by_mode = by_mode;
  return true;
}

/* May a range or a question be begun?  The lock is held. */
static bool
may_begin (const struct worker *w)
{
  struct hydrate *h = w->h;

  return !h->paused && !h->stopped && !is_over (h) &&
    backend_state (w->source) == BACKEND_UP &&
    backend_state (clone_destination (h->clone)) == BACKEND_UP;
}

/* The largest copy that settings allow now. */
static uint64_t
batch_size (const struct hydrate_settings *s)
{
  uint64_t batch = MIN (s->batch, s->threshold);

  if (s->rate)
    batch = MIN (batch, (uint64_t)(s->rate * RATE_SLICE));
  return MAX (batch, HYDRATE_BATCH_MIN);
}

/* ---- one range ---- */

static void
free_copy (struct copy *copy)
{
  free (copy->buf);
  free (copy);
}

/* An idle one, NULL if there is none. */
static struct copy *
pop_idle (struct worker *w)
{
  struct copy *copy = w->idle;

  if (copy) {
    w->idle = copy->next;
    w->idle_bytes -= copy->buf_size;
  }
  return copy;
}

/* With a buffer of so many bytes at least.  A hole, which needs none, must not
 * take one that the next data could use: new ones cost page faults.
 */
static struct copy *
get_copy (struct worker *w, size_t buf_size)
{
  struct copy *copy = buf_size > 0 ? pop_idle (w) : NULL;

  if (copy == NULL)
    copy = calloc (1, sizeof *copy);
  if (copy && copy->buf_size < buf_size) {
    free (copy->buf);
    copy->buf_size = buf_size;
    copy->buf = malloc (buf_size);
    if (copy->buf == NULL) {
      free (copy);
      return NULL;
    }
  }
  return copy;
}

static void
free_idle (struct worker *w)
{
  struct copy *copy;

  while ((copy = pop_idle (w)) != NULL)
    free_copy (copy);
}

/* Keep it and its buffer for the next range, as long as the idle ones, and what
 * is under way, are within the worker's share of the threshold.  As a small
 * range may get a large buffer, all buffers together can take up to twice the
 * threshold; without this rule each of MAX_COPIES would grow to a batch.
 */
static void
put_copy (struct worker *w, struct copy *copy, uint64_t share)
{
  if (copy->buf == NULL ||
      w->bytes + w->idle_bytes + copy->buf_size > share) {
    free_copy (copy);
    return;
  }
  w->idle_bytes += copy->buf_size;
  copy->next = w->idle;
  w->idle = copy;
}

/* Count a range in or out.  Called with the lock. */
static void
count_range (struct worker *w, const struct plan_range *range, uint64_t cost,
             int by)
{
  struct hydrate *h = w->h;
  const uint64_t region_size = region_map_region_size (clone_map (h->clone));

  w->copies += by;
  w->bytes += by * cost;
  h->copies += by;
  h->bytes += by * cost;
  if (!range->cut)
    h->regions += by * div_round_up (range->end - range->start, region_size);
}

/* The range is done, or given up. */
static void
end_copy (struct copy *copy)
{
  struct worker *w = copy->w;
  struct hydrate *h = w->h;
  uint64_t share;

  {
    LOCK_FOR_SCOPE (&h->lock);
    count_range (w, &copy->range, copy->cost, -1);
    plan_range_done (&h->plan, &copy->range);
    share = h->settings.threshold / h->nr_workers;
  }
  put_copy (w, copy, share);
  fill (w);
  if (w->copies == 0)           /* perhaps it is all over */
    ev_async_send (w->loop, &w->wake);
}

/* The whole of a region that was copied in pieces is owned, and all of its
 * bytes are in the destination, unless a client's write came first.
 */
static void
finish_cut (struct copy *copy)
{
  struct hydrate *h = copy->w->h;

  while (install_next (&copy->install) == 1)
    install_set (&copy->install);
  install_release (&copy->install);
  install_leave (&copy->install);
  {
    LOCK_FOR_SCOPE (&h->lock);
    plan_cut_done (&h->plan, copy->range.cut);
  }
  end_copy (copy);
}

static void
granted (struct install *install)
{
  struct copy *copy = install->opaque;
  struct worker *w = copy->w;
  LOCK_FOR_SCOPE (&w->h->lock);

  copy->next = w->granted;
  w->granted = copy;
  ev_async_send (w->loop, &w->wake);
}

/* Own bytes, then go on, perhaps at once.  Inside the gate. */
static void
own (struct copy *copy, uint64_t start, uint64_t end, bool piece)
{
  struct install *i = &copy->install;

  i->start = start;
  i->end = end;
  i->piece = piece;
  if (install_request (i))
    go_on (copy);
}

/* A server was lost: others, or this worker later, copy the range. */
static void
copy_lost (struct copy *copy)
{
  struct hydrate *h = copy->w->h;
  LOCK_FOR_SCOPE (&h->lock);

  /* Zeroes that were found by reading need not be read again. */
  copy->range.zero = copy->method == COPY_HOLE;
  plan_return (&h->plan, &copy->range);
}

/* A range that owns nothing ends without having been copied. */
static void
abandon_copy (struct copy *copy)
{
  struct hydrate *h = copy->w->h;

  if (copy->range.cut) {
    LOCK_FOR_SCOPE (&h->lock);
    plan_piece_done (&h->plan, copy->range.cut, false);
  }
  end_copy (copy);
}

/* Its bytes are there, or are not needed: take them to the destination. */
static void
enter_and_own (struct copy *copy)
{
  copy->install.clone = copy->w->h->clone;
  copy->install.by = INSTALL_HYDRATION;
  copy->install.owned = granted;
  copy->install.opaque = copy;
  if (install_enter (&copy->install)) {
    own (copy, copy->range.start, copy->range.end, copy->range.cut != NULL);
    return;
  }
  copy_lost (copy);
  abandon_copy (copy);
}

/* The last write of a range has returned: give up the ownership.  Whoever owns
 * the whole of a region after its last piece has stayed inside the gate.
 */
static void
finish_range (struct copy *copy)
{
  struct hydrate *h = copy->w->h;
  struct plan_cut *cut = copy->range.cut;
  bool last = false;

  install_release (&copy->install);
  if (cut) {
    LOCK_FOR_SCOPE (&h->lock);
    last = plan_piece_done (&h->plan, cut, copy->error == 0);
  }
  if (last) {
    copy->method = COPY_JOIN;
    own (copy, cut->start, cut->end, false);
  }
  else {
    install_leave (&copy->install);
    end_copy (copy);
  }
}

/* Say why, once: later failures of ranges that were under way say nothing. */
static void
copy_failed (struct copy *copy, struct backend *b, const char *what, int error)
{
  struct hydrate *h = copy->w->h;

  copy->error = error;
  if (error == ENOTCONN)
    copy_lost (copy);
  else if (stop (h, false)) {
    errno = error;
    log_error (h->log, "hydration stopped: cannot %s %s at offset %" PRIu64
               ": %m; remove the cause, then resume hydration or start again",
               what, b->name, copy->io.offset);
    tell_end (h);
  }
}

/* What to do about it, in all messages. */
#define BAD_ADVICE "hydration goes on elsewhere and tries again: repair the " \
  "source, or write to these bytes or discard them"

/* The source cannot read the bytes of this copy: they are set aside. */
static void
source_failed (struct copy *copy, int error)
{
  struct worker *w = copy->w;
  struct hydrate *h = w->h;
  bool new, said;

  if (error == ENOTCONN) {
    copy_lost (copy);
    return;
  }
  {
    LOCK_FOR_SCOPE (&h->lock);
    new = plan_bad (&h->plan, &copy->range) && !h->stopping;
    said = new && h->bad_said < MAX_BAD_SAID;
    h->bad_said += said;
    h->bad_unsaid += new && !said;
  }
  if (said) {
    errno = error;
    log_error (h->log, "source %s: cannot read %" PRIu64 " bytes at offset %"
               PRIu64 ": %m; " BAD_ADVICE, w->source->name, copy->io.count,
               copy->io.offset);
  }
}

/* Its read was lost, or not.  Is the range to be taken for bad?  Of those that
 * were lost the first one is watched, until it can be read.
 */
static bool
suspect (struct copy *copy, bool lost)
{
  struct hydrate *h = copy->w->h;
  const uint64_t start = copy->range.start;
  LOCK_FOR_SCOPE (&h->lock);

  if (lost && (h->lost_reads == 0 || start < h->suspect)) {
    h->suspect = start;
    h->lost_reads = 0;
  }
  if (h->suspect != start)
    return false;
  h->lost_reads = lost ? (h->lost_reads + 1) % MAX_LOST_READS : 0;
  return lost && h->lost_reads == 0;
}

/* No region can become valid now.  The commit has said why, and when it says
 * that this is over, on_tick goes on.
 */
static void
stop_by_mode (struct copy *copy)
{
  copy->error = EIO;
  if (stop (copy->w->h, true))
    tell_end (copy->w->h);
}

static void was_read (struct io *io);

static void
read_source (struct copy *copy)
{
  const struct plan_range *range = &copy->range;

  copy->io = (struct io){
    .type = IO_READ, .buf = copy->buf, .offset = range->start,
    .count = range->end - range->start, .done = was_read, .opaque = copy,
  };
  copy->asked = monotonic_seconds ();
  channel_submit (copy->w->from, &copy->io);
}

/* Copy it, as if nothing had been tried: a copy that fails says why. */
static void
share_failed (struct copy *copy, int error)
{
  struct worker *w = copy->w;

  log_debug (w->h->log, LOG_HYDRATE, "hydrate: cannot share blocks with the "
             "source: %s", strerror (error));
  if (error != EINVAL)
    w->shares = false;
  copy->method = COPY_BUFFER;
  install_release (&copy->install);
  install_leave (&copy->install);
  read_source (copy);
}

/* A run of what was invalid is written. */
static void
written (struct io *io)
{
  struct copy *copy = io->opaque;

  if (io->error && io->type == IO_SHARE) {
    share_failed (copy, io->error);
    return;
  }
  if (io->error) {
    copy_failed (copy, clone_destination (copy->w->h->clone),
                 "write to destination", io->error);
    finish_range (copy);
    return;
  }
  install_set (&copy->install);
  go_on (copy);
}

/* The range (or the whole of a region in pieces) is owned.  Look again, and
 * write the next run that is still invalid.
 */
static void
go_on (struct copy *copy)
{
  const struct install *i = &copy->install;

  if (copy->method == COPY_JOIN) {
    finish_cut (copy);
    return;
  }
  switch (install_next (&copy->install)) {
  case -1:
    stop_by_mode (copy);
    finish_range (copy);
    return;
  case 0:
    finish_range (copy);
    return;
  }

  copy->io = (struct io){
    .offset = i->pos, .count = i->run_end - i->pos,
    .done = written, .opaque = copy,
  };
  switch (copy->method) {
  case COPY_HOLE:
    copy->io.type = IO_ZERO;
    copy->io.flags = BACKEND_MAY_TRIM;
    break;
  case COPY_SHARE:
    copy->io.type = IO_SHARE;
    copy->io.from = copy->w->source;
    break;
  default:
    copy->io.type = IO_WRITE;
    copy->io.buf = copy->buf + (i->pos - copy->range.start);
    copy->io.flags = BACKEND_WRITE_BEHIND;
  }
  channel_submit (copy->w->to, &copy->io);
}

/* Tell the pace how long that took. */
static void
time_copy (const struct copy *copy)
{
  struct hydrate *h = copy->w->h;
  const double now = monotonic_seconds ();
  const uint64_t requests = clone_requests (h->clone);
  LOCK_FOR_SCOPE (&h->lock);

  pace_was_copied (&h->pace, copy->io.count, now - copy->asked, requests, now,
                   batch_size (&h->settings), h->settings.threshold);
}

/* The source's bytes have come. */
static void
was_read (struct io *io)
{
  struct copy *copy = io->opaque;

  if (suspect (copy, io->error == ENOTCONN))
    io->error = EIO;
  if (io->error) {
    source_failed (copy, io->error);
    abandon_copy (copy);
    return;
  }
  time_copy (copy);
  if (copy->method == COPY_PROBE) {
    end_copy (copy);
    return;
  }
  if (is_zero (copy->buf, io->count))
    copy->method = COPY_HOLE;
  enter_and_own (copy);
}

static void
start_copy (struct copy *copy)
{
  const struct plan_range *range = &copy->range;

  log_debug (copy->w->h->log, LOG_HYDRATE, "hydrate: %s %" PRIu64 "+%" PRIu64,
             copy->method == COPY_HOLE ? "hole" : "data", range->start,
             range->end - range->start);
  if (copy->method == COPY_BUFFER || copy->method == COPY_PROBE)
    read_source (copy);
  else
    enter_and_own (copy);
}

/* ---- the source's extents, ahead of the plan ---- */

static void
extents_came (struct io *io)
{
  struct asking *a = io->opaque;
  struct worker *w = a->w;
  struct hydrate *h = w->h;

  /* What is not known is data. */
  if (io->error) {
    extents_clear (&a->answer);
    extents_add (&a->answer, io->offset, io->count, 0);
  }
  w->asked--;
  {
    LOCK_FOR_SCOPE (&h->lock);
    if (io->error == ENOTCONN)
      plan_unanswered (&h->plan, a->question);
    else
      plan_answer (&h->plan, a->question, &a->answer);
    extents_free (&a->answer);
    a->question = NULL;
    h->asked--;
  }
  wake_all (h);
}

/* The next question, if there is one to ask now. */
static struct asking *
next_question (struct worker *w)
{
  struct hydrate *h = w->h;
  struct ahead_question *q;
  struct asking *a = h->asking;
  LOCK_FOR_SCOPE (&h->lock);

  if (!may_begin (w) || (q = plan_ask (&h->plan)) == NULL)
    return NULL;
  while (a->question)
    a++;
  *a = (struct asking){
    .question = q, .w = w,
    .io = {
      .type = IO_EXTENTS, .offset = q->offset, .count = q->count,
      .extents = &a->answer, .done = extents_came, .opaque = a,
    },
  };
  h->asked++;
  return a;
}

static void
ask_extents (struct worker *w)
{
  struct asking *a;

  while ((a = next_question (w)) != NULL) {
    w->asked++;
    channel_submit (w->from, &a->io);
  }
}

/* ---- how much at once ---- */

enum next { NEXT_RANGE, NEXT_WAIT, NEXT_LATER, NEXT_END };

/* Is there room for another batch, in all and in this worker's share?  A lone
 * copy always has room.
 */
static bool
has_room (const struct worker *w, uint64_t batch, double now)
{
  const struct hydrate *h = w->h;
  const uint64_t window = pace_window (&h->pace, now, batch,
                                       h->settings.threshold);
  const uint64_t share = MAX (window / h->nr_workers, batch);

  return w->copies < MAX_COPIES &&
    (h->bytes == 0 || h->bytes + batch <= window) &&
    (w->bytes == 0 || w->bytes + batch <= share);
}

/* Take the next range from the plan, if it may start now.  *wait is set to
 * seconds for NEXT_LATER.
 */
static enum next
next_range (struct worker *w, struct plan_range *range, uint64_t *cost,
            double *wait)
{
  struct hydrate *h = w->h;
  const struct hydrate_settings *s = &h->settings;
  /* Not ev_now, which jumps when somebody sets the clock. */
  const double now = monotonic_seconds ();
  uint64_t batch;
  LOCK_FOR_SCOPE (&h->lock);

  if (!may_begin (w) || h->finishing || h->retry_at || s->threshold == 0)
    return NEXT_WAIT;
  batch = batch_size (s);
  if (!has_room (w, batch, now))
    return NEXT_WAIT;
  if (s->rate && h->rate_next > now) {
    *wait = h->rate_next - now;
    return NEXT_LATER;
  }

  switch (plan_next (&h->plan, batch, range)) {
  case PLAN_WANT_EXTENTS:
    return NEXT_WAIT;
  case PLAN_END:
    if (h->copies > 0)
      return NEXT_WAIT;
    h->finishing = true;
    return NEXT_END;
  case PLAN_RANGE:
    break;
  }

  *cost = range->zero ? 0 : range->end - range->start;
  if (s->rate)
    h->rate_next = MAX (h->rate_next, now) + (double)*cost / s->rate;
  count_range (w, range, *cost, 1);
  return NEXT_RANGE;
}

/* What was left out is looked for.  When all of it is bad, that waits. */
static void
begin_again (struct hydrate *h)
{
  const struct region_map *map = clone_map (h->clone);
  struct plan_bad_sum bad;
  uint64_t invalid, valid;

  {
    LOCK_FOR_SCOPE (&h->lock);
    plan_sum_bad (&h->plan, &bad);
    invalid = region_map_regions (map) - region_map_count_valid (map);
    if (invalid > 0 && bad.regions >= invalid && !h->plan.retry.on) {
      valid = region_map_bytes_valid (map);
      h->retry_delay = h->retry_delay && valid <= h->valid_at_rest ?
        MIN (2 * h->retry_delay, (double)BAD_DELAY_MAX) : BAD_DELAY;
      h->retry_at = monotonic_seconds () + h->retry_delay;
      h->valid_at_rest = valid;
    }
    else
      plan_restart (&h->plan);
    h->finishing = false;
  }
  wake_all (h);
}

/* Every range has been handed out, and is done.  If all is valid, ask for a
 * commit: when that makes the clone complete, clone_became_complete ends all
 * workers.
 */
static void
finish (struct worker *w)
{
  struct hydrate *h = w->h;
  const struct region_map *map = clone_map (h->clone);
  struct plan_bad_sum bad;
  unsigned unsaid;

  {
    LOCK_FOR_SCOPE (&h->lock);
    plan_sum_bad (&h->plan, &bad);
    unsaid = h->bad_unsaid;
    h->bad_unsaid = 0;
  }
  if (unsaid > 0)
    log_error (h->log, "source %s: %u more reads have failed, in all %" PRIu64
               " bytes in %" PRIu64 " regions are bad; " BAD_ADVICE,
               w->source->name, unsaid, bad.bytes, bad.regions);
  if (region_map_count_valid (map) == region_map_regions (map))
    clone_ask_commit (h->clone);
  else
    begin_again (h);
}

/* A commit has ended, perhaps the one that finish asked for.  When the metadata
 * cannot be written, on_tick goes on once that works again.
 */
static void
on_committed (void *opaque, int error)
{
  struct hydrate *h = opaque;
  bool last, full;

  {
    LOCK_FOR_SCOPE (&h->lock);
    last = is_running (h) && h->finishing && !is_over (h);
  }
  if (!last)
    return;
  full = error == ENOSPC && clone_may_set (h->clone);
  if (error && error != ENOTCONN && !full && stop (h, true)) {
    errno = error;
    log_error (h->log, "hydration stopped: the last commit failed: %m; remove "
               "the cause, then resume hydration or start again");
    tell_end (h);
  }
  begin_again (h);
}

static enum copy_method
first_method (const struct worker *w, const struct plan_range *range)
{
  if (range->zero)
    return COPY_HOLE;
  if (range->probe)
    return COPY_PROBE;
  return w->shares ? COPY_SHARE : COPY_BUFFER;
}

/* Begin as many copies as there is room for. */
static void
fill (struct worker *w)
{
  struct hydrate *h = w->h;
  struct plan_range range;
  struct copy *copy;
  uint64_t cost;
  double wait;
  enum next next;

  while ((next = next_range (w, &range, &cost, &wait)) == NEXT_RANGE) {
    copy = get_copy (w, cost);
    if (copy == NULL) {
      log_error (h->log, "hydration stopped: no memory for a copy of %" PRIu64
                 " bytes; choose a smaller hydration-batch-size, then resume "
                 "hydration", cost);
      {
        LOCK_FOR_SCOPE (&h->lock);
        count_range (w, &range, cost, -1);
        if (range.cut)
          plan_piece_done (&h->plan, range.cut, false);
        plan_range_done (&h->plan, &range);
      }
      if (stop (h, false))
        tell_end (h);
      break;
    }
    *copy = (struct copy){
      .w = w, .range = range, .cost = cost,
      .method = first_method (w, &range),
      .buf = copy->buf, .buf_size = copy->buf_size,
    };
    start_copy (copy);
  }

  if (next == NEXT_LATER) {
    w->later.repeat = wait;
    ev_timer_again (w->loop, &w->later);
  }
  else if (next == NEXT_END)
    finish (w);
  ask_extents (w);
}

/* ---- the worker's loop ---- */

/* Somebody granted a copy its ownership, or has changed what fill looks at. */
static void
on_wake (struct ev_loop *loop, ev_async *ev, int revents)
{
  struct worker *w = ev->data;
  struct hydrate *h = w->h;
  struct copy *copy, *next;
  bool over, waits;

  {
    LOCK_FOR_SCOPE (&h->lock);
    copy = w->granted;
    w->granted = NULL;
  }
  for (; copy; copy = next) {
    next = copy->next;
    go_on (copy);
  }
  fill (w);

  {
    LOCK_FOR_SCOPE (&h->lock);
    over = is_over (h);
    waits = h->asked > 0;
  }
  if (over && w->copies == 0 && w->asked == 0)
    ev_break (loop, EVBREAK_ALL);
  else if (w->copies == 0 && !waits)
    free_idle (w);
}

static void
on_later (struct ev_loop *loop, ev_timer *timer, int revents)
{
  ev_timer_stop (loop, timer);
  fill (timer->data);
}

/* Forget an error, and look for what it left out.  The lock is held. */
static void
start_over (struct hydrate *h)
{
  if (!h->stopped)
    return;
  h->stopped = h->stopped_by_mode = false;
  plan_restart (&h->plan);
}

static void
on_tick (struct ev_loop *loop, ev_timer *timer, int revents)
{
  struct worker *w = timer->data;
  struct hydrate *h = w->h;
  const uint64_t valid = region_map_bytes_valid (clone_map (h->clone));

  {
    LOCK_FOR_SCOPE (&h->lock);
    /* Less than before where the destination was lost. */
    const double now = valid > h->valid_then ?
                       (valid - h->valid_then) / TICK : 0;

    h->rate = h->rate ? h->rate + RATE_WEIGHT * (now - h->rate) : now;
    h->valid_then = valid;
    if (h->stopped_by_mode && clone_may_set (h->clone))
      start_over (h);
    if (h->retry_at && !h->paused &&
        (valid == clone_size (h->clone) || monotonic_seconds () >= h->retry_at)) {
      h->retry_at = 0;
      plan_retry (&h->plan);
    }
  }
  wake_all (h);
}

/* After its loop, or where its thread never started. */
static void
worker_end (struct worker *w)
{
  free_idle (w);
  channel_free (w->from);
  channel_free (w->to);
  w->from = w->to = NULL;
  if (w->source)
    clone_source_put (w->h->clone);
  w->source = NULL;
}

static void *
worker_thread (void *arg)
{
  struct worker *w = arg;

  loop_thread_begin ();
  ev_async_send (w->loop, &w->wake);
  ev_run (w->loop, 0);

  worker_end (w);
  return NULL;
}

/* Everything the worker needs, but its thread. */
static int
worker_init (struct hydrate *h, struct worker *w)
{
  w->h = h;
  w->source = clone_source_get (h->clone);
  if (w->source == NULL)
    return -1;
  w->loop = ev_loop_new (EVFLAG_NOENV | EVFLAG_NOSIGMASK);
  if (w->loop == NULL) {
    log_error (h->log, "cannot create an event loop");
    return -1;
  }
  w->shares = backend_can_share (clone_destination (h->clone), w->source);
  w->from = channel_new (w->source, w->loop);
  w->to = channel_new (clone_destination (h->clone), w->loop);
  if (w->from == NULL || w->to == NULL)
    return -1;

  ev_async_init (&w->wake, on_wake);
  w->wake.data = w;
  ev_async_start (w->loop, &w->wake);
  ev_init (&w->later, on_later);
  w->later.data = w;
  ev_timer_init (&w->tick, on_tick, TICK, TICK);
  w->tick.data = w;
  if (w == &h->worker[0])
    ev_timer_start (w->loop, &w->tick);
  return 0;
}

/* ---- public functions ---- */

/* As many workers as processors can help, and no more than the source has
 * connections to spare.
 */
static unsigned
choose_workers (struct backend *source)
{
  const long processors = sysconf (_SC_NPROCESSORS_ONLN);
  unsigned n = MIN (MAX (processors, 1), MAX_WORKERS);

  if (source->ops->connections)
    n = MIN (n, MAX (backend_connections (source) / 2, 1u));
  return n;
}

/* As many copies as a server works on at once fill the threshold: nbdkit and
 * qemu-nbd take 16 requests from each connection, of which each worker has one.
 * Smaller copies overlap more, and their buffers are sooner there; below
 * SMALLEST_CHOICE the requests themselves begin to count.
 */
static uint64_t
choose_batch (uint64_t threshold, unsigned workers)
{
  const uint64_t share = threshold / (workers * REQUESTS_SERVED);

  return share >= LARGEST_CHOICE ? LARGEST_CHOICE : SMALLEST_CHOICE;
}

struct hydrate *
hydrate_new (const struct hydrate_settings *settings, bool paused,
             void (*on_end) (void *opaque), void *opaque,
             const struct log *log)
{
  struct hydrate *h = calloc (1, sizeof *h);

  if (h == NULL)
    return NULL;
  h->log = log;
  h->settings = *settings;
  h->paused = paused;
  h->on_end = on_end;
  h->on_end_opaque = opaque;
  pthread_mutex_init (&h->lock, NULL);
  return h;
}

void
hydrate_free (struct hydrate *h)
{
  if (h == NULL)
    return;
  for (unsigned i = 0; i < h->nr_workers; ++i)
    if (h->worker[i].loop)
      ev_loop_destroy (h->worker[i].loop);
  if (h->clone)
    plan_destroy (&h->plan);
  pthread_mutex_destroy (&h->lock);
  free (h);
}

/* ---- what the clone tells ---- */

/* A client is about to read these bytes from the source: copy them soon, and a
 * batch of what follows.
 */
static void
on_source_read (void *opaque, uint64_t start, uint64_t end)
{
  struct hydrate *h = opaque;
  LOCK_FOR_SCOPE (&h->lock);

  if (is_running (h) && h->settings.access && !h->paused && !h->stopped)
    plan_want (&h->plan, start, end + batch_size (&h->settings));
}

/* It has read so many bytes, which took so long: for the pace. */
static void
on_source_was_read (void *opaque, uint64_t count, double took)
{
  struct hydrate *h = opaque;
  const double now = monotonic_seconds ();
  LOCK_FOR_SCOPE (&h->lock);

  if (is_running (h))
    pace_was_read (&h->pace, count, took, now, batch_size (&h->settings),
                   h->settings.threshold);
}

/* By hydration, or because clients have written everything. */
static void
on_complete (void *opaque)
{
  struct hydrate *h = opaque;
  bool had_bad;

  {
    LOCK_FOR_SCOPE (&h->lock);
    if (!is_running (h))
      return;
    had_bad = h->bad_said > 0;
  }
  if (had_bad)
    log_info (h->log, "all that the source could not be read at has been read "
              "by now, or written by clients");
  tell_end (h);
  wake_all (h);
}

/* The map was set back.  Copies under way go on: they are copied into regions
 * that are invalid.
 */
static void
on_set_back (void *opaque)
{
  struct hydrate *h = opaque;
  LOCK_FOR_SCOPE (&h->lock);

  if (is_running (h))
    plan_set_back (&h->plan);
}

static void
on_servers_changed (void *opaque)
{
  struct hydrate *h = opaque;
  unsigned connections;

  {
    LOCK_FOR_SCOPE (&h->lock);
    if (!is_running (h))
      return;
  }
  if (clone_source_status (h->clone, &connections) == BACKEND_REFUSED)
    tell_end (h);
  wake_all (h);
}

struct clone_events
hydrate_events (struct hydrate *h)
{
  return (struct clone_events){
    .complete = on_complete, .committed = on_committed,
    .set_back = on_set_back, .servers_changed = on_servers_changed,
    .source_read = on_source_read, .source_was_read = on_source_was_read,
    .opaque = h,
  };
}

/* ---- start and end ---- */

static void
hydrate_attach (struct hydrate *h, struct clone *c, struct backend *source)
{
  const struct region_map *map = clone_map (c);
  LOCK_FOR_SCOPE (&h->lock);

  h->nr_workers = source ? choose_workers (source) : 1;
  if (h->settings.batch == HYDRATE_BATCH_DEFAULT)
    h->settings.batch = choose_batch (h->settings.threshold, h->nr_workers);
  plan_init (&h->plan, map, source && source->knows_extents);
  h->valid_then = region_map_bytes_valid (map);
  h->clone = c;
}

int
hydrate_start (struct hydrate *h, struct clone *c)
{
  struct backend *source = clone_source_get (c);
  int r = 0;

  hydrate_attach (h, c, source);
  if (source == NULL)
    return 0;
  clone_source_put (c);

  for (unsigned i = 0; i < h->nr_workers && r == 0; ++i)
    r = worker_init (h, &h->worker[i]);
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->running = r == 0;
  }
  for (unsigned i = 0; i < h->nr_workers && r == 0; ++i) {
    struct worker *w = &h->worker[i];

    r = thread_start (&w->thread, "hydrate", worker_thread, w, h->log);
    w->started = r == 0;
  }
  if (r == -1)
    hydrate_stop (h);
  return r;
}

void
hydrate_stop (struct hydrate *h)
{
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->stopping = true;
  }
  wake_all (h);

  for (unsigned i = 0; i < h->nr_workers; ++i) {
    struct worker *w = &h->worker[i];

    if (w->started)
      pthread_join (w->thread, NULL);
    else
      worker_end (w);
    w->started = false;
  }
}

void
hydrate_pause (struct hydrate *h)
{
  LOCK_FOR_SCOPE (&h->lock);

  h->paused = true;
}

void
hydrate_resume (struct hydrate *h)
{
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->paused = false;
    start_over (h);
    h->retry_delay = h->retry_at = 0;
    plan_retry (&h->plan);
  }
  wake_all (h);
}

void
hydrate_get_settings (struct hydrate *h, struct hydrate_settings *settings)
{
  LOCK_FOR_SCOPE (&h->lock);

  *settings = h->settings;
}

void
hydrate_set_settings (struct hydrate *h,
                      const struct hydrate_settings *settings)
{
  {
    LOCK_FOR_SCOPE (&h->lock);
    h->settings = *settings;
    h->rate_next = 0;
  }
  wake_all (h);
}

void
hydrate_get_status (struct hydrate *h, struct hydrate_status *st)
{
  struct clone *c = h->clone;
  const uint64_t missing = clone_size (c) -
                           region_map_bytes_valid (clone_map (c));
  enum backend_state source;
  double rate;

  *st = (struct hydrate_status){ 0 };
  if (clone_is_complete (c)) {
    st->state = HYDRATE_COMPLETE;
    st->eta_known = true;
    return;
  }
  source = clone_source_status (c, &st->source_connections);
  st->source_connected = st->source_connections > 0;

  LOCK_FOR_SCOPE (&h->lock);
  st->hydrating = h->regions + h->plan.open_cuts;
  plan_sum_bad (&h->plan, &st->bad);
  if (h->stopped || source == BACKEND_REFUSED)
    st->state = HYDRATE_FAILED;
  else if (!st->source_connected)
    st->state = HYDRATE_WAITING;
  else if (h->paused || h->settings.threshold == 0)
    st->state = HYDRATE_PAUSED;
  else
    st->state = HYDRATE_HYDRATING;

  rate = st->state == HYDRATE_HYDRATING ? h->rate : 0;
  st->rate = rate;
  st->eta_known = rate >= 1;
  if (st->eta_known)
    st->eta = missing / rate;
}
