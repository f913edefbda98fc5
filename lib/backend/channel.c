/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Channels: the backend's own kind, or, for a backend that never waits for a
 * peer, the inline channel, which does each request at once and keeps done
 * for the loop's next turn.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <ev.h>

#include "backend/channel.h"

/* After so many writes backend_write_behind is called in any case. */
#define WRITE_BEHIND_DEFER_MAX 32

struct inline_channel {
  struct channel channel;
  struct backend *backend;
  struct ev_loop *loop;
  struct io *done, **done_end;
  unsigned written_behind; /* writes since backend_write_behind was called */
  /* Runs once in each turn of the loop in which something was done, after the
   * loop has looked at its sockets.  (An idle watcher would wait for as long
   * as sockets are busy.)
   */
  ev_async wakeup;
};

static int
do_io (struct backend *b, struct io *io)
{
  switch (io->type) {
  case IO_READ:
    return backend_pread (b, io->buf, io->count, io->offset);
  case IO_WRITE:
    return backend_pwrite (b, io->buf, io->count, io->offset, io->flags);
  case IO_ZERO:
    return backend_zero (b, io->count, io->offset, io->flags);
  case IO_SHARE:
    return backend_share (b, io->from, io->count, io->offset);
  case IO_EXTENTS:
    return backend_extents (b, io->count, io->offset, 0, io->extents);
  }
  __builtin_unreachable ();
}

static void
inline_submit (struct channel *channel, struct io *io)
{
  struct inline_channel *ch = (struct inline_channel *)channel;

  io->error = do_io (ch->backend, io) == -1 ? errno : 0;
  io->next = NULL;
  *ch->done_end = io;
  ch->done_end = &io->next;
  ch->written_behind +=
    io->type == IO_WRITE && (io->flags & BACKEND_WRITE_BEHIND);
  ev_async_send (ch->loop, &ch->wakeup);
}

/* Only what is on the list now: done may submit more. */
static void
inline_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct inline_channel *ch = w->data;
  struct io *io = ch->done, *next;

  ch->done = NULL;
  ch->done_end = &ch->done;
  for (; io; io = next) {
    next = io->next;
    io->done (io);
  }

  /* What was submitted meanwhile is done, but its done has not been called, so
   * that regions may be owned, and clients wait for them.  Rather wait for the
   * device when that is not so, unless that is never.
   */
  if (ch->written_behind > 0 &&
      (ch->done == NULL || ch->written_behind >= WRITE_BEHIND_DEFER_MAX)) {
    ch->written_behind = 0;
    backend_write_behind (ch->backend);
  }
}

static void
inline_free (struct channel *channel)
{
  struct inline_channel *ch = (struct inline_channel *)channel;

  assert (ch->done == NULL);
  ev_async_stop (ch->loop, &ch->wakeup);
  free (ch);
}

static const struct channel_ops inline_ops = {
  .submit = inline_submit,
  .free = inline_free,
};

static struct channel *
inline_new (struct backend *b, struct ev_loop *loop)
{
  struct inline_channel *ch = calloc (1, sizeof *ch);

  if (ch == NULL) {
    log_error (b->log, "%s: channel: %m", b->name);
    return NULL;
  }
  ch->channel.ops = &inline_ops;
  ch->backend = b;
  ch->loop = loop;
  ch->done_end = &ch->done;
  ev_async_init (&ch->wakeup, inline_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  return &ch->channel;
}

struct channel *
channel_new (struct backend *b, struct ev_loop *loop)
{
  return b->ops->channel ? b->ops->channel (b, loop) : inline_new (b, loop);
}

void
channel_submit (struct channel *ch, struct io *io)
{
  ch->ops->submit (ch, io);
}

void
channel_free (struct channel *ch)
{
  if (ch)
    ch->ops->free (ch);
}
