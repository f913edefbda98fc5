/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The channels of the backend for NBD exports.
 *
 * A channel is one loop's use of one connection, its link.  Each struct io gets
 * a struct transfer, which carries its pieces one after the other.
 *
 *   nbd_channel_submit -> start_piece -> piece_done -> finish_transfer
 *                              ^             |              |
 *                              +-------------+              v
 *                                                        io->done
 *
 * A piece whose connection is lost fails with ENOTCONN, and so does the
 * io.  The next piece to be started takes another link: where the connection of
 * the link is dead, and where it is shared and the pool has a better one.  The
 * old link is given back when its last piece has ended.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include <ev.h>

#include "channel.h"
#include "nbd.h"
#include "nbd-conn.h"
#include "nbd-pool.h"
#include "rounding.h"

struct link {
  struct nbd_slot *slot;
  struct nbd_attachment *attachment; /* to its connection */
  unsigned in_flight;  /* pieces */
  struct link *next;
};

struct transfer {
  struct nbd_req req;  /* the piece in flight; must be first */
  struct io *io;
  struct nbd_channel *ch;
  struct link *link;   /* of this piece */
  uint64_t next, end;  /* what is left of the io's range, in whole blocks */
  bool as_data;        /* a zero, for which zeroes are written */
  struct extents reply;
  struct transfer *spare;
};

struct nbd_channel {
  struct channel channel;
  struct nbd *n;
  struct ev_loop *loop;
  struct link *links;  /* the first is in use, unless its connection is dead */
  unsigned generation; /* of the pool when it was chosen */
  struct transfer *spare;
  struct io *finished; /* without the wire: done is due on the loop's turn */
  ev_async wakeup;
};

static void
finish_later (struct nbd_channel *ch, struct io *io, int error)
{
  io->error = nbd_to_errno (error);
  io->next = ch->finished;
  ch->finished = io;
  ev_async_send (ch->loop, &ch->wakeup);
}

/* ---- links ---- */

/* Give back those that are of no use any more. */
static void
drop_links (struct nbd_channel *ch, struct link **p)
{
  struct link *link;

  while ((link = *p)) {
    if (link->in_flight > 0) {
      p = &link->next;
      continue;
    }
    *p = link->next;
    nbd_conn_detach (link->attachment);
    nbd_pool_give_back (ch->n->pool, link->slot);
    free (link);
  }
}

/* Put another link first.  0, ENOTCONN or ENOMEM. */
static int
take_link (struct nbd_channel *ch)
{
  struct nbd_pool *pool = ch->n->pool;
  struct link *link = malloc (sizeof *link);

  if (link == NULL)
    return ENOMEM;
  *link = (struct link){ .slot = nbd_pool_take (pool), .next = ch->links };
  if (link->slot == NULL) {
    free (link);
    return ENOTCONN;
  }
  link->attachment = nbd_conn_attach (nbd_slot_conn (link->slot), ch->loop);
  if (link->attachment == NULL) {
    nbd_pool_give_back (pool, link->slot);
    free (link);
    return ENOMEM;
  }
  ch->links = link;
  ev_async_send (ch->loop, &ch->wakeup);
  return 0;
}

/* Before a piece is sent: see to it that the first link is the right one. */
static int
choose_link (struct nbd_channel *ch)
{
  const unsigned generation = nbd_pool_generation (ch->n->pool);
  struct link *link = ch->links;
  const bool alive = link && nbd_conn_is_alive (nbd_slot_conn (link->slot));
  int error;

  if (alive && generation == ch->generation)
    return 0;
  ch->generation = generation;
  if (alive && !nbd_pool_has_better (ch->n->pool, link->slot))
    return 0;
  error = take_link (ch);
  return alive ? 0 : error;
}

/* ---- transfers ---- */

static struct transfer *
new_transfer (struct nbd_channel *ch, struct io *io)
{
  struct nbd *n = ch->n;
  struct transfer *t = ch->spare;

  if (t)
    ch->spare = t->spare;
  else if ((t = malloc (sizeof *t)))
    t->reply = EXTENTS_INIT;
  else
    return NULL;
  t->io = io;
  t->ch = ch;
  t->next = nbd_block_start (n, io->offset);
  t->end = nbd_block_end (n, io->offset + io->count);
  t->as_data = io->type == IO_ZERO && !n->can_zero;
  return t;
}

static void
free_transfer (struct transfer *t)
{
  extents_clear (&t->reply);
  t->spare = t->ch->spare;
  t->ch->spare = t;
}

static void
finish_transfer (struct transfer *t, int error)
{
  struct io *io = t->io;

  if (io->type == IO_EXTENTS)
    error = nbd_clip_extents (io->extents, &t->reply, error, io->count,
                              io->offset);
  free_transfer (t);
  io->error = nbd_to_errno (error);
  io->done (io);
}

static void piece_done (struct nbd_req *req);

/* 0, or an errno and nothing is in flight. */
static int
start_piece (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;
  struct nbd *n = ch->n;
  const uint64_t left = t->end - t->next;
  int error = choose_link (ch);

  if (error)
    return error;
  t->req = (struct nbd_req){ .offset = t->next, .done = piece_done };
  switch (t->io->type) {
  case IO_READ:
  case IO_WRITE:
    t->req.type = t->io->type == IO_READ ? NBD_REQ_READ : NBD_REQ_WRITE;
    t->req.buf = (char *)t->io->buf + (t->next - t->io->offset);
    t->req.count = MIN (left, n->max_transfer);
    break;
  case IO_ZERO:
    t->req.type = t->as_data ? NBD_REQ_WRITE : NBD_REQ_ZERO;
    t->req.flags = t->as_data ? 0 : nbd_zero_flags (n, t->io->flags);
    t->req.buf = nbd_zeroes;
    t->req.count = MIN (left, t->as_data ? nbd_zeroes_limit (n)
                        : NBD_MAX_RANGE);
    break;
  case IO_SHARE: /* an export is no file */
    __builtin_unreachable ();
  case IO_EXTENTS:
    t->req.type = NBD_REQ_EXTENTS;
    t->req.extents = &t->reply;
    t->req.count = MIN (left, NBD_MAX_STATUS);
    break;
  }
  t->link = ch->links;
  t->link->in_flight++;
  nbd_attachment_submit (t->link->attachment, &t->req);
  return 0;
}

static void
piece_done (struct nbd_req *req)
{
  struct transfer *t = (struct transfer *)req;
  struct nbd_channel *ch = t->ch;
  int error = req->error;

  if (--t->link->in_flight == 0 && t->link != ch->links)
    ev_async_send (ch->loop, &ch->wakeup);
  if (req->type == NBD_REQ_ZERO && nbd_is_refusal (error)) {
    t->as_data = true;
    error = 0;
  }
  else if (error == 0)
    t->next += req->count;

  if (error == 0 && t->next < t->end && req->type != NBD_REQ_EXTENTS) {
    error = start_piece (t);
    if (error == 0)
      return;
  }
  finish_transfer (t, error);
}

/* ---- the channel ---- */

static void
channel_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct nbd_channel *ch = w->data;
  struct io *io = ch->finished, *next;

  ch->finished = NULL;
  for (; io; io = next) {
    next = io->next;
    io->done (io);
  }
  if (ch->links)
    drop_links (ch, &ch->links->next);
}

static void
nbd_channel_submit (struct channel *channel, struct io *io)
{
  static const struct extents unknown;
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct nbd *n = ch->n;
  struct transfer *t = NULL;
  int error = 0;

  if (n->b.readonly && (io->type == IO_WRITE || io->type == IO_ZERO))
    error = EPERM;
  else if (io->type == IO_EXTENTS && !n->b.knows_extents) {
    error = nbd_clip_extents (io->extents, &unknown, 0, io->count, io->offset);
    finish_later (ch, io, error);
    return;
  }
  else if (io->type != IO_EXTENTS &&
           !nbd_is_aligned (n, io->count, io->offset))
    error = EIO;
  else if ((t = new_transfer (ch, io)))
    error = start_piece (t);
  else
    error = ENOMEM;

  if (error && t)
    free_transfer (t);
  if (error)
    finish_later (ch, io, error);
}

static void
nbd_channel_free (struct channel *channel)
{
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct transfer *t;

  drop_links (ch, &ch->links);
  assert (ch->links == NULL && ch->finished == NULL);
  ev_async_stop (ch->loop, &ch->wakeup);
  while ((t = ch->spare)) {
    ch->spare = t->spare;
    extents_free (&t->reply);
    free (t);
  }
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
  ch->n = (struct nbd *)b;
  ch->loop = loop;
  ev_async_init (&ch->wakeup, channel_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  return &ch->channel;
}
