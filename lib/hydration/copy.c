/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One range on its way to the destination.  hydrate.h draws the states; enum
 * copy_method in private.h has the ways through them.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backend/channel.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/iszero.h"
#include "clone/install.h"
#include "hydration/pace.h"
#include "hydration/plan.h"
#include "hydration/private.h"

/* ---- the end ---- */

/* The range has been copied, or not.  This is the last function for a copy. */
static void
copy_end (struct copy *copy)
{
  struct worker *w = copy->w;
  struct hydrate *h = w->h;
  uint64_t share;

  {
    LOCK_FOR_SCOPE (&h->lock);
    admission_count (w, &copy->range, copy->cost, -1);
    plan_range_done (&h->plan, &copy->range);
    share = h->settings.threshold / h->nr_workers;
  }
  worker_reuse (w, copy, share);
}

/* The copy owns nothing, and ends without having copied its range. */
static void
copy_abandon (struct copy *copy)
{
  struct hydrate *h = copy->w->h;

  if (copy->range.cut) {
    LOCK_FOR_SCOPE (&h->lock);
    plan_piece_done (&h->plan, copy->range.cut, false);
  }
  copy_end (copy);
}

/* A server was lost: return the range to the plan. */
static void
copy_lost (struct copy *copy)
{
  struct hydrate *h = copy->w->h;
  LOCK_FOR_SCOPE (&h->lock);

  /* Zeroes that were found by reading need not be read again. */
  copy->range.zero = copy->method == COPY_HOLE;
  plan_return (&h->plan, &copy->range);
}

/* A write to the destination failed.  Only the first failure is logged. */
static void
copy_failed (struct copy *copy, int error)
{
  struct hydrate *h = copy->w->h;

  copy->error = error;
  if (error == ENOTCONN) {
    copy_lost (copy);
    return;
  }
  errno = error;
  clone_note_error (h->clone, CLONE_DESTINATION, "cannot write %" PRIu64
                    " bytes at offset %" PRIu64 ": %m", copy->io.count,
                    copy->io.offset);
  if (hydrate_fail (h, false)) {
    log_error (h->log, "hydration stopped: cannot write to destination %s at "
               "offset %" PRIu64 ": %m; remove the cause, then resume "
               "hydration or start again",
               clone_destination (h->clone)->name, copy->io.offset);
    hydrate_tell_end (h);
  }
}

/* No region can become valid now.  The commit has logged why, and hydrate_tick
 * goes on when that is over.
 */
static void
copy_failed_by_mode (struct copy *copy)
{
  copy->error = EIO;
  if (hydrate_fail (copy->w->h, true))
    hydrate_tell_end (copy->w->h);
}

/* ---- owning ---- */

/* On any thread. */
static void
copy_owned (struct install *install)
{
  struct copy *copy = install->opaque;
  struct worker *w = copy->w;
  LOCK_FOR_SCOPE (&w->h->lock);

  SLIST_INSERT_HEAD (&w->granted, copy, link);
  ev_async_send (w->loop, &w->wake);
}

/* Own these bytes, then go on, perhaps at once.  Inside the gate. */
static void
copy_own (struct copy *copy, uint64_t start, uint64_t end, bool piece)
{
  struct install *i = &copy->install;

  i->start = start;
  i->end = end;
  i->piece = piece;
  if (install_request (i))
    copy_go_on (copy);
}

/* The bytes were read, or are not needed.  Enter the gate and own the range. */
static void
copy_enter (struct copy *copy)
{
  const struct plan_range *range = &copy->range;

  copy->install.clone = copy->w->h->clone;
  copy->install.by = INSTALL_HYDRATION;
  copy->install.owned = copy_owned;
  copy->install.opaque = copy;
  if (install_enter (&copy->install)) {
    copy_own (copy, range->start, range->end, range->cut != NULL);
    return;
  }
  copy_lost (copy);
  copy_abandon (copy);
}

/* ---- reading ---- */

/* Tell the pace how long the read took. */
static void
copy_time (const struct copy *copy)
{
  struct hydrate *h = copy->w->h;
  const double now = monotonic_seconds ();
  const uint64_t requests = clone_requests (h->clone);
  LOCK_FOR_SCOPE (&h->lock);

  pace_was_copied (&h->pace, copy->io.count, now - copy->asked, requests, now,
                   admission_batch (&h->settings), h->settings.threshold);
}

static void
copy_was_read (struct io *io)
{
  struct copy *copy = io->opaque;

  if (bad_source_suspects (copy, io->error == ENOTCONN))
    io->error = EIO;
  if (io->error == ENOTCONN) {
    copy_lost (copy);
    copy_abandon (copy);
    return;
  }
  if (io->error) {
    bad_source_failed (copy, io->error);
    copy_abandon (copy);
    return;
  }

  copy_time (copy);
  clone_count_hydration (copy->w->h->clone, io->count);
  if (copy->method == COPY_PROBE) {
    copy_end (copy);
    return;
  }
  if (is_zero (copy->buf, io->count))
    copy->method = COPY_HOLE;
  copy_enter (copy);
}

static void
copy_read (struct copy *copy)
{
  const struct plan_range *range = &copy->range;

  copy->io = (struct io){
    .type = IO_READ, .buf = copy->buf, .offset = range->start,
    .count = range->end - range->start, .done = copy_was_read, .opaque = copy,
  };
  copy->asked = monotonic_seconds ();
  channel_submit (copy->w->from, &copy->io);
}

void
copy_start (struct copy *copy)
{
  const struct plan_range *range = &copy->range;

  log_debug (copy->w->h->log, LOG_HYDRATE, "hydrate: %s %" PRIu64 "+%" PRIu64,
             copy->method == COPY_HOLE ? "hole" : "data", range->start,
             range->end - range->start);
  if (copy->method == COPY_BUFFER || copy->method == COPY_PROBE)
    copy_read (copy);
  else
    copy_enter (copy);
}

/* ---- writing ---- */

/* The destination refuses to share these blocks: copy the range instead.  Only
 * EINVAL is about this range alone (backend.h).  An error that has another
 * cause comes again when the buffer is written.
 */
static void
copy_share_failed (struct copy *copy, int error)
{
  struct worker *w = copy->w;

  log_debug (w->h->log, LOG_HYDRATE, "hydrate: cannot share blocks with the "
             "source: %s", strerror (error));
  if (error != EINVAL)
    w->shares = false;
  copy->method = COPY_BUFFER;
  install_release (&copy->install);
  install_leave (&copy->install);
  copy_read (copy);
}

/* The last write of the range has returned: release it.  After the last piece
 * of a region the copy stays inside the gate, and owns the region next.
 */
static void
copy_finish (struct copy *copy)
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
    copy_own (copy, cut->start, cut->end, false);
  }
  else {
    install_leave (&copy->install);
    copy_end (copy);
  }
}

/* A whole region is owned whose pieces are all in the destination: make it
 * valid, unless a client's write came first.
 */
static void
copy_join (struct copy *copy)
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
  copy_end (copy);
}

static void copy_write (struct copy *copy);

static void
copy_written (struct io *io)
{
  struct copy *copy = io->opaque;

  if (io->error && io->type == IO_SHARE) {
    copy_share_failed (copy, io->error);
    return;
  }
  if (io->error) {
    copy_failed (copy, io->error);
    copy_finish (copy);
    return;
  }
  copy->next += io->count;
  if (copy->next < copy->install.run_end) {
    copy_write (copy);
    return;
  }
  install_set (&copy->install);
  copy_go_on (copy);
}

/* Write the rest of the run that install_next has found, or the start of it. */
static void
copy_write (struct copy *copy)
{
  const struct install *i = &copy->install;
  bool zero = copy->method == COPY_HOLE;

  copy->io = (struct io){
    .offset = copy->next, .count = i->run_end - copy->next,
    .done = copy_written, .opaque = copy,
  };
  if (copy->method == COPY_BUFFER) {
    copy->io.buf = copy->buf + (copy->next - copy->range.start);
    copy->io.count = install_zero_run (i, copy->io.buf, copy->io.count, &zero);
  }
  if (zero) {
    copy->io.type = IO_ZERO;
    copy->io.flags = install_zero_flags (i->clone);
  }
  else if (copy->method == COPY_SHARE) {
    copy->io.type = IO_SHARE;
    copy->io.from = copy->w->source;
  }
  else {
    copy->io.type = IO_WRITE;
    copy->io.flags = BACKEND_WRITE_BEHIND;
  }
  channel_submit (copy->w->to, &copy->io);
}

void
copy_go_on (struct copy *copy)
{
  if (copy->method == COPY_JOIN) {
    copy_join (copy);
    return;
  }
  switch (install_next (&copy->install)) {
  case 1:
    copy->next = copy->install.pos;
    copy_write (copy);
    return;
  case -1:
    copy_failed_by_mode (copy);
  }
  copy_finish (copy);
}
