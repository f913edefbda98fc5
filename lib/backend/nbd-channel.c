/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The channels of the backend for NBD exports.
 *
 * A channel uses one connection for one loop.  Each struct io gets a struct
 * transfer, which sends its pieces one after the other.
 *
 *   nbd_channel_submit -> start_piece -> piece_arrived -> channel_wakeup
 *                              ^       (any thread)          |
 *                              +-------- finish_piece <------+
 *                                             |
 *                                             +-> io->done
 *
 * A piece whose connection dies fails with ENOTCONN, and so does the io.
 * Before a piece is started the channel takes another connection if its own is
 * dead, or if the pool's connections have changed.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include <ev.h>

#include "backend/nbd-channel-internal.h"
#include "base/cleanup.h"
#include "base/rounding.h"

struct nbd_channel {
  struct channel channel;
  struct nbd *n;
  struct ev_loop *loop;
  struct nbd_connection *conn; /* perhaps dead; or NULL */
  unsigned generation;         /* the pool's when it was taken */

  pthread_mutex_t lock;
  struct io_queue arrived;     /* io->channel: the transfer, or NULL */
  ev_async wakeup;
};

/* The io, or a piece of it, is done: leave the rest to the loop.  Any thread.
 * (The channel may be gone as soon as the lock is released.)
 */
static void
io_arrived (struct nbd_channel *ch, struct io *io)
{
  LOCK_FOR_SCOPE (&ch->lock);

  STAILQ_INSERT_TAIL (&ch->arrived, io, link);
  ev_async_send (ch->loop, &ch->wakeup);
}

static void
piece_arrived (struct nbd_request *req)
{
  struct transfer *t = req->opaque;

  io_arrived (t->ch, t->io);
}

static void
drop_connection (struct nbd_channel *ch)
{
  if (ch->conn)
    nbd_pool_give_back (ch->n->pool, ch->conn);
  ch->conn = NULL;
}

/* Make sure that the channel has a live connection, and the best one if there
 * was a change.  False if there is none.
 */
static bool
choose_connection (struct nbd_channel *ch)
{
  struct nbd_pool *pool = ch->n->pool;
  const unsigned generation = nbd_pool_generation (pool);

  if (ch->conn == NULL || !ch->conn->alive || generation != ch->generation) {
    drop_connection (ch);
    ch->conn = nbd_pool_take (pool);
    ch->generation = generation;
  }
  return ch->conn != NULL;
}

/* ---- Transfers ---- */

static void
end_transfer (struct transfer *t, int error)
{
  struct io *io = t->io;

  if (io->type == IO_EXTENTS)
    error = nbd_clip_extents (io->extents, &t->reply, error, io->count,
                              io->offset);
  extents_free (&t->reply);
  free (t->buf);
  free (t);
  io->error = nbd_to_errno (error);
  io->done (io);
}

/* Fill in t->req.  False if nothing is left to do. */
static bool
next_piece (struct transfer *t)
{
  struct nbd *n = t->ch->n;
  const uint64_t left = t->end - t->next;

  t->req = (struct nbd_request){
    .offset = t->next, .done = piece_arrived, .opaque = t, .error = ENOTCONN
  };
  switch (t->io->type) {
  case IO_READ:
  case IO_WRITE:
    t->req.type = t->io->type == IO_READ ? NBD_REQUEST_READ : NBD_REQUEST_WRITE;
    t->req.buf = (char *)t->io->buf + (t->next - t->io->offset);
    t->req.count = MIN (left, n->max_transfer);
    return left > 0;
  case IO_ZERO:
    return nbd_channel_zero_next (n, t);
  case IO_SHARE: /* not for exports, see backend_can_share */
    break;
  case IO_EXTENTS:
    t->req.type = NBD_REQUEST_EXTENTS;
    t->req.extents = &t->reply;
    t->req.count = MIN (left, NBD_MAX_STATUS);
    return true;
  }
  __builtin_unreachable ();
}

/* The piece has ended.  0, or the error that ends the io. */
static int
piece_done (struct transfer *t)
{
  if (t->io->type == IO_ZERO)
    return nbd_channel_zero_done (t->ch->n, t);
  if (t->req.error == 0)
    t->next += t->req.count;
  return t->req.error;
}

static void
start_piece (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;

  if (!next_piece (t)) {
    end_transfer (t, 0);
    return;
  }
  if (choose_connection (ch)) {
    t->conn = ch->conn;
    t->conn->users++;
    nbd_connection_submit (t->conn, &t->req);
  }
  else
    io_arrived (ch, t->io);
}

static void
finish_piece (struct transfer *t)
{
  int error;

  nbd_connection_put (t->conn);
  t->conn = NULL;
  error = piece_done (t);
  if (error || t->io->type == IO_EXTENTS)
    end_transfer (t, error);
  else
    start_piece (t);
}

/* ---- The channel ---- */

static void
take_arrived (struct nbd_channel *ch, struct io_queue *queue)
{
  LOCK_FOR_SCOPE (&ch->lock);

  STAILQ_CONCAT (queue, &ch->arrived);
}

static void
channel_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct io_queue arrived = STAILQ_HEAD_INITIALIZER (arrived);
  struct io *io;

  take_arrived (w->data, &arrived);
  while ((io = STAILQ_FIRST (&arrived))) {
    STAILQ_REMOVE_HEAD (&arrived, link);
    if (io->channel)
      finish_piece (io->channel);
    else
      io->done (io);
  }
}

static void
nbd_channel_submit (struct channel *channel, struct io *io)
{
  static const struct extents unknown;
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct nbd *n = ch->n;
  struct transfer *t;

  io->channel = NULL;
  if (n->b.readonly && (io->type == IO_WRITE || io->type == IO_ZERO))
    io->error = EPERM;
  else if (io->type == IO_EXTENTS && !n->b.knows_extents)
    io->error = nbd_clip_extents (io->extents, &unknown, 0, io->count,
                                  io->offset);
  else if (io->type != IO_EXTENTS &&
           !nbd_is_aligned (n, io->count, io->offset))
    io->error = EIO;
  else if ((t = io->channel = calloc (1, sizeof *t)) == NULL)
    io->error = ENOMEM;
  else {
    t->io = io;
    t->ch = ch;
    t->next = nbd_block_start (n, io->offset);
    t->end = nbd_block_end (n, io->offset + io->count);
    if (io->type == IO_ZERO)
      nbd_channel_zero_begin (n, t);
    start_piece (t);
    return;
  }
  io_arrived (ch, io);
}

static void
nbd_channel_free (struct channel *channel)
{
  struct nbd_channel *ch = (struct nbd_channel *)channel;

  drop_connection (ch);
  ev_async_stop (ch->loop, &ch->wakeup);
  pthread_mutex_destroy (&ch->lock);
  free (ch);
}

static const struct channel_ops nbd_channel_ops = {
  .submit = nbd_channel_submit,
  .free = nbd_channel_free,
};

struct channel *
nbd_channel_new (struct backend *b, struct ev_loop *loop)
{
  struct nbd_channel *ch = calloc (1, sizeof *ch);

  if (ch == NULL) {
    log_error (b->log, "%s: channel: %m", b->name);
    return NULL;
  }
  ch->channel.ops = &nbd_channel_ops;
  ch->n = to_nbd (b);
  ch->loop = loop;
  STAILQ_INIT (&ch->arrived);
  pthread_mutex_init (&ch->lock, NULL);
  ev_async_init (&ch->wakeup, channel_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  return &ch->channel;
}
