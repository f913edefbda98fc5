/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A worker: a thread with a loop, two channels, and a store of idle copies with
 * their buffers.  All of its copies run in this loop.  The loop never waits for
 * a server, an owner or a commit.
 *
 * The loop wakes up
 *
 *   worker_on_wake    when a copy owns its range, or when something has changed
 *                     that admission depends on (hydrate_wake)
 *   worker_on_later   when the rate limit allows the next copy
 *   worker_on_tick    periodically; only in the first worker
 *
 * and for its channels, which call copies and questions back.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include <ev.h>

#include "backend/channel.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/rounding.h"
#include "base/thread.h"
#include "hydration/plan.h"
#include "hydration/private.h"

/* ---- idle copies ---- */

static void
worker_free_copy (struct copy *copy)
{
  free (copy->buf);
  free (copy);
}

/* NULL: there is none. */
static struct copy *
worker_pop_idle (struct worker *w)
{
  struct copy *copy = SLIST_FIRST (&w->idle);

  if (copy) {
    SLIST_REMOVE_HEAD (&w->idle, link);
    w->idle_bytes -= copy->buf_size;
  }
  return copy;
}

static void
worker_free_idle (struct worker *w)
{
  struct copy *copy;

  while ((copy = worker_pop_idle (w)) != NULL)
    worker_free_copy (copy);
}

/* A copy with a buffer of at least buf_size bytes.  If that is 0, no idle copy
 * is used: idle copies are kept for data, because a new buffer costs page
 * faults.  NULL: no memory.
 */
static struct copy *
worker_get_copy (struct worker *w, size_t buf_size)
{
  struct copy *copy = buf_size > 0 ? worker_pop_idle (w) : NULL;

  if (copy == NULL)
    copy = calloc (1, sizeof *copy);
  if (copy && copy->buf_size < buf_size) {
    free (copy->buf);
    copy->buf_size = round_up (buf_size, BACKEND_ALIGN);
    copy->buf = aligned_alloc (BACKEND_ALIGN, copy->buf_size);
    if (copy->buf == NULL) {
      free (copy);
      return NULL;
    }
  }
  return copy;
}

/* Keep the copy for the next range, if idle buffers and copies under way are
 * within the worker's share of the threshold.  A small range may use a large
 * buffer, so all buffers together take up to twice the threshold.  Without this
 * bound, each of HYDRATE_MAX_COPIES buffers would grow to a batch.
 */
static void
worker_put_copy (struct worker *w, struct copy *copy, uint64_t share)
{
  if (copy->buf == NULL ||
      w->bytes + w->idle_bytes + copy->buf_size > share) {
    worker_free_copy (copy);
    return;
  }
  w->idle_bytes += copy->buf_size;
  SLIST_INSERT_HEAD (&w->idle, copy, link);
}

/* ---- beginning copies ---- */

static enum copy_method
worker_choose_method (const struct worker *w, const struct plan_range *range)
{
  if (range->zero)
    return COPY_HOLE;
  if (range->probe)
    return COPY_PROBE;
  return w->shares ? COPY_SHARE : COPY_BUFFER;
}

static void
worker_no_memory (struct worker *w, const struct plan_range *range,
                  uint64_t cost)
{
  struct hydrate *h = w->h;

  log_error (h->log, "hydration stopped: no memory for a copy of %" PRIu64
             " bytes; choose a smaller hydration-batch-size, then resume "
             "hydration", cost);
  {
    LOCK_FOR_SCOPE (&h->lock);
    admission_count (w, range, cost, -1);
    if (range->cut)
      plan_piece_done (&h->plan, range->cut, false);
    plan_range_done (&h->plan, range);
  }
  if (hydrate_fail (h, false))
    hydrate_tell_end (h);
}

/* A channel to a file or device makes holes inside worker_fill, and their
 * ranges stay owned until worker_fill returns.  So it returns after this time,
 * and goes on in the next turn of the loop.
 */
#define FILL_SECONDS ZERO_STEP_SECONDS

void
worker_fill (struct worker *w)
{
  const double begin = monotonic_seconds ();
  struct plan_range range;
  struct copy *copy;
  uint64_t cost;
  double wait;
  enum admission next;

  while ((next = admission_next (w, &range, &cost, &wait)) ==
         ADMISSION_RANGE) {
    copy = worker_get_copy (w, cost);
    if (copy == NULL) {
      worker_no_memory (w, &range, cost);
      break;
    }
    *copy = (struct copy){
      .w = w, .range = range, .method = worker_choose_method (w, &range),
      .cost = cost, .buf = copy->buf, .buf_size = copy->buf_size,
    };
    copy_start (copy);
    if (monotonic_seconds () - begin > FILL_SECONDS) {
      ev_async_send (w->loop, &w->wake); /* for the others */
      break;
    }
  }

  if (next == ADMISSION_LATER) {
    w->later.repeat = wait;
    ev_timer_again (w->loop, &w->later);
  }
  else if (next == ADMISSION_END)
    hydrate_finish (w);
  questions_ask (w);
}

void
worker_reuse (struct worker *w, struct copy *copy, uint64_t share)
{
  worker_put_copy (w, copy, share);
  worker_fill (w);
  if (w->copies == 0)           /* perhaps the loop can end */
    ev_async_send (w->loop, &w->wake);
}

/* ---- the loop ---- */

/* Go on with the copies that own their ranges since the last time. */
static void
worker_take_granted (struct worker *w)
{
  struct hydrate *h = w->h;
  struct copy_list granted;
  struct copy *copy;

  {
    LOCK_FOR_SCOPE (&h->lock);
    granted = w->granted;
    SLIST_INIT (&w->granted);
  }
  while ((copy = SLIST_FIRST (&granted)) != NULL) {
    SLIST_REMOVE_HEAD (&granted, link);
    copy_go_on (copy);
  }
}

static void
worker_on_wake (struct ev_loop *loop, ev_async *ev, int revents)
{
  struct worker *w = ev->data;
  struct hydrate *h = w->h;
  bool over, waits;

  worker_take_granted (w);
  worker_fill (w);

  {
    LOCK_FOR_SCOPE (&h->lock);
    over = hydrate_is_over (h);
    waits = h->questions > 0;
  }
  if (over && w->copies == 0 && w->questions == 0)
    ev_break (loop, EVBREAK_ALL);
  else if (w->copies == 0 && !waits)
    worker_free_idle (w);
}

static void
worker_on_later (struct ev_loop *loop, ev_timer *timer, int revents)
{
  ev_timer_stop (loop, timer);
  worker_fill (timer->data);
}

static void
worker_on_tick (struct ev_loop *loop, ev_timer *timer, int revents)
{
  struct worker *w = timer->data;

  hydrate_tick (w->h);
}

/* ---- its life ---- */

int
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
  w->shares = clone_can_share (h->clone, w->source);
  w->from = channel_new (w->source, w->loop);
  w->to = channel_new (clone_destination (h->clone), w->loop);
  if (w->from == NULL || w->to == NULL)
    return -1;

  ev_async_init (&w->wake, worker_on_wake);
  w->wake.data = w;
  ev_async_start (w->loop, &w->wake);
  ev_init (&w->later, worker_on_later);
  w->later.data = w;
  ev_timer_init (&w->tick, worker_on_tick, HYDRATE_TICK, HYDRATE_TICK);
  w->tick.data = w;
  if (w == &h->worker[0])
    ev_timer_start (w->loop, &w->tick);
  return 0;
}

/* On the worker's thread, or where that never started. */
static void
worker_end (struct worker *w)
{
  worker_free_idle (w);
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

int
worker_start (struct worker *w)
{
  if (thread_start (&w->thread, "hydrate", worker_thread, w, w->h->log) == -1)
    return -1;
  w->started = true;
  return 0;
}

void
worker_join (struct worker *w)
{
  if (w->started)
    pthread_join (w->thread, NULL);
  else
    worker_end (w);
  w->started = false;
}
