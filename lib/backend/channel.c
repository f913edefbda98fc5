/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Channels.  A backend whose peer may keep it waiting has its own kind of
 * channel (backend_ops.channel).  The others use the inline channel: it
 * executes each request inside channel_submit and calls done in the loop's next
 * turn.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <ev.h>

#include "backend/channel.h"

/* The call of backend_write_behind is put off for at most this many writes. */
#define WRITE_BEHIND_DEFER_MAX 32

struct inline_channel {
  struct channel channel;
  struct backend *backend;
  struct ev_loop *loop;
  struct io_queue finished; /* their done functions have not been called */
  unsigned write_behinds;   /* writes with BACKEND_WRITE_BEHIND since the last
                             * call of backend_write_behind */
  /* inline_submit sends it.  It calls inline_wakeup once in the loop's next
   * turn, however many requests there are, after the loop has polled its
   * sockets.  (An idle watcher would not be called while sockets are busy.)
   */
  ev_async wakeup;
};

static int
do_io (struct backend *b, struct io *io)
{
  switch (io->type) {
  case IO_READ:
    return backend_pread_once (b, io->buf, io->count, io->offset);
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
  STAILQ_INSERT_TAIL (&ch->finished, io, link);
  ch->write_behinds +=
    io->type == IO_WRITE && (io->flags & BACKEND_WRITE_BEHIND);
  ev_async_send (ch->loop, &ch->wakeup);
}

/* Call done for each request that is in the queue now.  Requests that these
 * functions submit wait for the next turn.
 */
static void
inline_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct inline_channel *ch = w->data;
  struct io_queue now = STAILQ_HEAD_INITIALIZER (now);
  struct io *io;

  STAILQ_CONCAT (&now, &ch->finished);
  while ((io = STAILQ_FIRST (&now))) {
    STAILQ_REMOVE_HEAD (&now, link);
    io->done (io);
  }

  /* backend_write_behind may wait for the device.  While requests are in the
   * queue, this loop may own regions that clients wait for, so put the call off
   * until the queue is empty.  After WRITE_BEHIND_DEFER_MAX writes call it all
   * the same: a loop that is always busy must not be faster than the device.
   */
  if (ch->write_behinds > 0 &&
      (STAILQ_EMPTY (&ch->finished) ||
       ch->write_behinds >= WRITE_BEHIND_DEFER_MAX)) {
    ch->write_behinds = 0;
    backend_write_behind (ch->backend);
  }
}

static void
inline_free (struct channel *channel)
{
  struct inline_channel *ch = (struct inline_channel *)channel;

  assert (STAILQ_EMPTY (&ch->finished));
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
  STAILQ_INIT (&ch->finished);
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
