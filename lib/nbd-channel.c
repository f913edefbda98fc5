/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The channels of the backend for NBD exports.
 *
 * A channel is one loop's use of one connection.  Each struct io gets a struct
 * transfer, which carries its pieces one after the other.
 *
 *   nbd_channel_submit -> start_transfer -> start_piece <-+-------+
 *                            |                   |        |       |
 *        blocks owned by     |              piece_done ---+     stall
 *        somebody else       v                   |                ^
 *   blocks_granted -> channel_wakeup             +- connection ---+
 *                                                |   was lost
 *                                                v
 *                                         finish_transfer -> io->done
 *
 * A channel that has no connection stalls its transfers until it has one again.
 * It lets a connection go only when nothing is in flight on it: one that was
 * lost, and one that it shares while there is a better one.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <ev.h>

#include "channel.h"
#include "cleanup.h"
#include "nbd.h"
#include "nbd-conn.h"
#include "nbd-pool.h"
#include "ownership.h"
#include "rounding.h"

/* A connection may be lost because of what its server said about extents.
 * After so many, all is data.
 */
#define MAX_LOSSES 3

struct transfer {
  struct nbd_req req; /* the piece in flight; must be first */
  struct io *io;
  struct nbd_channel *ch;
  uint64_t start, end; /* the io's range, in whole blocks */
  uint64_t next;       /* what is left of it begins here */
  char *bounce;        /* a read of parts of blocks comes here */
  bool as_data;        /* a zero, for which zeroes are written */
  bool owns;           /* its blocks */
  struct owner owner;
  struct extents reply;
  unsigned losses;     /* of the connection that asked for extents */
  struct transfer *link;
};

struct nbd_channel {
  struct channel channel;
  struct nbd *n;
  struct ev_loop *loop;
  struct nbd_listener listener;
  struct nbd_slot *slot;   /* NULL: no connection now */
  struct nbd_attachment *attachment; /* to its connection */
  bool leaving;            /* as soon as nothing is in flight */
  unsigned in_flight;      /* transfers on this connection */
  struct transfer *stalled, **stalled_end;
  struct transfer *spare;
  struct io *finished; /* without the wire: done is due on the loop's turn */

  ev_async wakeup;
  pthread_mutex_t lock;
  struct transfer *granted; /* they own their blocks now; lock protects this */
};

static void
finish_later (struct nbd_channel *ch, struct io *io, int error)
{
  io->error = nbd_to_errno (error);
  io->next = ch->finished;
  ch->finished = io;
  ev_async_send (ch->loop, &ch->wakeup);
}

static struct transfer *
new_transfer (struct nbd_channel *ch, struct io *io)
{
  struct nbd *n = ch->n;
  struct transfer *t = ch->spare;

  if (t)
    ch->spare = t->link;
  else if ((t = malloc (sizeof *t)))
    t->reply = EXTENTS_INIT;
  else
    return NULL;
  t->io = io;
  t->ch = ch;
  t->next = t->start = nbd_block_start (n, io->offset);
  t->end = nbd_block_end (n, io->offset + io->count);
  t->bounce = NULL;
  t->losses = 0;
  t->as_data = io->type == IO_ZERO && !n->can_zero;
  t->owns = n->b.minimum_block > 1 &&
            (io->type == IO_WRITE || io->type == IO_ZERO);
  t->owner.opaque = t;
  return t;
}

static void
free_transfer (struct transfer *t)
{
  if (t->owns)
    ownership_release (&t->ch->n->blocks, &t->owner);
  extents_clear (&t->reply);
  free (t->bounce);
  t->link = t->ch->spare;
  t->ch->spare = t;
}

static void
finish_transfer (struct transfer *t, int error)
{
  struct io *io = t->io;

  if (t->bounce && error == 0)
    memcpy (io->buf, t->bounce + (io->offset - t->start), io->count);
  free_transfer (t);
  io->error = nbd_to_errno (error);
  io->done (io);
}

/* The io's place for the transfer's next byte. */
static char *
place (const struct transfer *t)
{
  return t->bounce ? t->bounce + (t->next - t->start)
         : (char *)t->io->buf + (t->next - t->io->offset);
}

static void piece_done (struct nbd_req *req);

/* The next piece has to wait for a connection. */
static void
stall (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;

  t->link = NULL;
  *ch->stalled_end = t;
  ch->stalled_end = &t->link;
  ev_async_send (ch->loop, &ch->wakeup);
}

static void
start_piece (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;
  struct nbd *n = ch->n;
  uint64_t left = t->end - t->next;

  if (ch->attachment == NULL || ch->leaving) {
    stall (t);
    return;
  }
  t->req = (struct nbd_req){ .offset = t->next, .done = piece_done };
  switch (t->io->type) {
  case IO_READ:
  case IO_WRITE:
    t->req.type = t->io->type == IO_READ ? NBD_REQ_READ : NBD_REQ_WRITE;
    t->req.buf = place (t);
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
  ch->in_flight++;
  nbd_attachment_submit (ch->attachment, &t->req);
}

static void
finish_extents (struct transfer *t)
{
  struct io *io = t->io;

  if (t->req.error)
    extents_clear (&t->reply);
  finish_transfer (t, nbd_clip_extents (io->extents, &t->reply, io->count,
                                    io->offset));
}

static void
piece_done (struct nbd_req *req)
{
  struct transfer *t = (struct transfer *)req;
  struct nbd_channel *ch = t->ch;

  ch->in_flight--;
  if (ch->in_flight == 0 && ch->leaving)
    ev_async_send (ch->loop, &ch->wakeup);
  if (nbd_pool_is_loss (ch->n->pool, ch->slot, req->error)) {
    extents_clear (&t->reply);
    if (t->io->type != IO_EXTENTS || ++t->losses < MAX_LOSSES) {
      stall (t);
      return;
    }
  }

  if (t->io->type == IO_EXTENTS) {
    finish_extents (t);
    return;
  }
  if (req->type == NBD_REQ_ZERO && nbd_is_refusal (req->error))
    t->as_data = true;
  else if (req->error) {
    finish_transfer (t, req->error);
    return;
  }
  else
    t->next += req->count;

  if (t->next < t->end)
    start_piece (t);
  else
    finish_transfer (t, 0);
}

/* Writes of parts of blocks are rare (they need regions that are smaller than
 * the server's blocks), so the loop waits for them.
 */
static void
change_now (struct transfer *t)
{
  struct nbd_channel *ch = t->ch;
  struct io *io = t->io;
  int error = nbd_change_span (ch->n, io->type == IO_WRITE ? io->buf : NULL,
                               io->count, io->offset,
                               io->flags & BACKEND_MAY_TRIM);

  free_transfer (t);
  finish_later (ch, io, error);
}

/* Its blocks are owned, if it needs that. */
static void
run_transfer (struct transfer *t)
{
  if (t->owns && !nbd_is_aligned (t->ch->n, t->io->count, t->io->offset))
    change_now (t);
  else
    start_piece (t);
}

/* On any thread: only the loop's may go on. */
static void
blocks_granted (struct owner *owner)
{
  struct transfer *t = owner->opaque;
  struct nbd_channel *ch = t->ch;
  LOCK_FOR_SCOPE (&ch->lock);

  t->link = ch->granted;
  ch->granted = t;
  ev_async_send (ch->loop, &ch->wakeup);
}

static struct transfer *
take_granted (struct nbd_channel *ch)
{
  LOCK_FOR_SCOPE (&ch->lock);
  struct transfer *granted = ch->granted;

  ch->granted = NULL;
  return granted;
}

static struct transfer *
take_stalled (struct nbd_channel *ch)
{
  struct transfer *stalled = ch->stalled;

  ch->stalled = NULL;
  ch->stalled_end = &ch->stalled;
  return stalled;
}

static void
let_go (struct nbd_channel *ch)
{
  nbd_conn_detach (ch->attachment);
  nbd_pool_give_back (ch->n->pool, ch->slot);
  ch->attachment = NULL;
  ch->slot = NULL;
  ch->leaving = false;
}

/* Take a connection, if there is one.  0 or an errno. */
static int
take_connection (struct nbd_channel *ch)
{
  ch->slot = nbd_pool_take (ch->n->pool);
  if (ch->slot == NULL)
    return 0;
  ch->attachment = nbd_conn_attach (nbd_slot_conn (ch->slot), ch->loop);
  if (ch->attachment)
    return 0;
  nbd_pool_give_back (ch->n->pool, ch->slot);
  ch->slot = NULL;
  return ENOMEM;
}

/* Leave a connection that is of no use, or of less than another; take one; and
 * go on with what had to wait, or say that it waits in vain.
 */
static void
settle_connection (struct nbd_channel *ch)
{
  struct nbd_pool *pool = ch->n->pool;
  struct transfer *t, *next;
  int error = 0;

  if (ch->slot)
    ch->leaving = !nbd_conn_is_alive (nbd_slot_conn (ch->slot)) ||
                  nbd_pool_has_better (pool, ch->slot);
  if (ch->leaving && ch->in_flight == 0)
    let_go (ch);
  if (ch->slot == NULL)
    error = take_connection (ch);
  if (ch->leaving)
    return;
  if (ch->slot == NULL && error == 0)
    error = nbd_pool_wait_error (pool);
  if (ch->slot == NULL && error == 0)
    return;

  for (t = take_stalled (ch); t; t = next) {
    next = t->link;
    if (ch->slot)
      start_piece (t);
    else
      finish_transfer (t, error);
  }
}

static void
channel_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct nbd_channel *ch = w->data;
  struct transfer *t = take_granted (ch), *t_next;
  struct io *io = ch->finished, *io_next;

  ch->finished = NULL;
  for (; t; t = t_next) {
    t_next = t->link;
    run_transfer (t);
  }
  for (; io; io = io_next) {
    io_next = io->next;
    io->done (io);
  }
  settle_connection (ch);
}

/* The pool's connections are not what they were. */
static void
pool_changed (struct nbd_listener *listener)
{
  struct nbd_channel *ch = (struct nbd_channel *)
    ((char *)listener - offsetof (struct nbd_channel, listener));

  ev_async_send (ch->loop, &ch->wakeup);
}

static void
start_transfer (struct transfer *t)
{
  struct nbd *n = t->ch->n;

  if (!t->owns ||
      ownership_request (&n->blocks, &t->owner, t->start,
                         round_up (t->end, n->b.minimum_block),
                         blocks_granted))
    run_transfer (t);
}

static void
nbd_channel_submit (struct channel *channel, struct io *io)
{
  static const struct extents unknown;
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct nbd *n = ch->n;
  struct transfer *t;

  if (n->b.readonly && (io->type == IO_WRITE || io->type == IO_ZERO)) {
    finish_later (ch, io, EPERM);
    return;
  }
  if (io->type == IO_EXTENTS && !n->b.knows_extents) {
    finish_later (ch, io, nbd_clip_extents (io->extents, &unknown, io->count,
                                        io->offset));
    return;
  }
  t = new_transfer (ch, io);
  if (t && io->type == IO_READ && !nbd_is_aligned (n, io->count, io->offset)) {
    t->bounce = malloc (t->end - t->start);
    if (t->bounce == NULL) {
      free_transfer (t);
      t = NULL;
    }
  }
  if (t)
    start_transfer (t);
  else
    finish_later (ch, io, ENOMEM);
}

static void
nbd_channel_free (struct channel *channel)
{
  struct nbd_channel *ch = (struct nbd_channel *)channel;
  struct transfer *t;

  assert (ch->stalled == NULL && ch->in_flight == 0);
  nbd_pool_unlisten (ch->n->pool, &ch->listener);
  if (ch->slot)
    let_go (ch);
  ev_async_stop (ch->loop, &ch->wakeup);
  while ((t = ch->spare)) {
    ch->spare = t->link;
    extents_free (&t->reply);
    free (t);
  }
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
  ch->n = (struct nbd *)b;
  ch->loop = loop;
  ch->stalled_end = &ch->stalled;
  pthread_mutex_init (&ch->lock, NULL);
  ev_async_init (&ch->wakeup, channel_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  ch->listener.wake = pool_changed;
  nbd_pool_listen (ch->n->pool, &ch->listener);
  if (take_connection (ch) != 0) {
    log_error (b->log, "%s: channel: %m", b->name);
    nbd_channel_free (&ch->channel);
    return NULL;
  }
  return &ch->channel;
}
