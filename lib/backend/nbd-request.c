/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Sending requests, and completing them when the replies arrive. */

#include <config.h>

#include <errno.h>
#include <string.h>

#include <libnbd.h>

#include "backend/nbd-connection-internal.h"
#include "base/rounding.h"
#include "base/thread.h"

_Static_assert (EXTENT_HOLE == LIBNBD_STATE_HOLE &&
                EXTENT_ZERO == LIBNBD_STATE_ZERO,
                "extent flags are those of base:allocation");

/* ---- Completion ----
 *
 * libnbd calls the on_ functions with the handle's lock held.
 */

/* Requests that were completed on this thread and not delivered yet. */
static THREAD_LOCAL SLIST_HEAD (, nbd_request) completed;

/* May the server take as long as it likes for this? */
static bool
is_slow (const struct nbd_request *req)
{
  return req->type == NBD_REQUEST_FLUSH || req->type == NBD_REQUEST_ZERO ||
         req->type == NBD_REQUEST_TRIM || req->flags & LIBNBD_CMD_FLAG_FUA;
}

static void
complete_request (struct nbd_request *req, int error)
{
  struct nbd_connection *conn = req->conn;

  /* No server sends ENOTCONN: libnbd sets it when a handle dies. */
  if (error == ENOTCONN)
    conn->alive = false;
  else
    conn->progress++;
  conn->slow -= is_slow (req);
  conn->load--;
  req->error = error;
  SLIST_INSERT_HEAD (&completed, req, link);
}

/* The request that this thread is issuing, and whether it was completed
 * meanwhile.  That happens when the handle dies in that call.  libnbd 1.14
 * reads the command once more before the call returns.  So the callback must
 * not retire it, which would free it.
 */
static THREAD_LOCAL struct {
  struct nbd_request *req;
  bool completed;
} issuing;

static int
on_completion (void *opaque, int *error)
{
  struct nbd_request *req = opaque;

  /* Part of the data has not arrived.  libnbd checks this only in
   * nbd_aio_command_completed, which comes too late.
   */
  if (*error == 0 && req->type == NBD_REQUEST_READ &&
      (req->received != req->count || req->mark != req->offset + req->count))
    *error = EPROTO;
  if (*error == ESHUTDOWN) {
    nbd_connection_kill (req->conn, "the server is shutting down");
    *error = ENOTCONN;
  }
  complete_request (req, *error);
  if (req != issuing.req)
    return 1;                   /* retire the command */
  issuing.completed = true;
  return 0;
}

/* A server may send the chunks of a read in any order.  If it left out one part
 * and sent another part twice, the client would get the buffer's old content.
 * To prevent that, this stays true: all bytes below the mark are received or
 * cleared, and none above it is received.
 */
static int
on_chunk (void *opaque, const void *subbuf, size_t count, uint64_t offset,
          unsigned status, int *error)
{
  struct nbd_request *req = opaque;

  if (status == LIBNBD_READ_ERROR)
    return 0;
  if (offset > req->mark)
    memset ((char *)req->buf + (req->mark - req->offset), 0,
            offset - req->mark);
  req->mark = MAX (req->mark, offset + count);
  req->received += count;
  return 0;
}

/* The protocol allows only one reply for each context: later ones are
 * ignored.
 */
static bool
wants_extents (const struct nbd_request *req, const char *context)
{
  return strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
         req->extents->len == 0;
}

/* Append an extent of a reply, if the list is not full, and move *offset to its
 * end.  The extent may go beyond the export; it is cut at INT64_MAX.  -1 with
 * *error set.
 */
static int
append_extent (struct nbd_request *req, uint64_t *offset, uint64_t length,
               uint64_t flags, int *error)
{
  if (req->extents->len == EXTENTS_MAX_REPLY)
    return 0;
  length = MIN (length, INT64_MAX - *offset);
  if (extents_add (req->extents, *offset, length,
                   flags & (EXTENT_HOLE | EXTENT_ZERO)) == -1) {
    *error = errno;
    return -1;
  }
  *offset += length;
  return 0;
}

/* libnbd 1.20 has block status with lengths of 64 bits.  It negotiates this by
 * itself if the server supports it.
 */
#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64

typedef nbd_extent64_callback extents_callback;
#define block_status nbd_aio_block_status_64

static int
on_extents (void *opaque, const char *context, uint64_t offset,
            nbd_extent *entries, size_t nr_entries, int *error)
{
  struct nbd_request *req = opaque;

  if (!wants_extents (req, context))
    return 0;
  for (size_t i = 0; i < nr_entries; i++)
    if (append_extent (req, &offset, entries[i].length, entries[i].flags,
                       error) == -1)
      return -1;
  return 0;
}

#else

typedef nbd_extent_callback extents_callback;
#define block_status nbd_aio_block_status

static int
on_extents (void *opaque, const char *context, uint64_t offset,
            uint32_t *entries, size_t nr_entries, int *error)
{
  struct nbd_request *req = opaque;

  if (!wants_extents (req, context))
    return 0;
  for (size_t i = 0; i + 1 < nr_entries; i += 2)
    if (append_extent (req, &offset, entries[i], entries[i + 1],
                       error) == -1)
      return -1;
  return 0;
}

#endif

void
nbd_connection_deliver (void)
{
  struct nbd_request *req;

  while ((req = SLIST_FIRST (&completed))) {
    SLIST_REMOVE_HEAD (&completed, link);
    req->done (req);
  }
}

bool
nbd_connection_has_completed (void)
{
  return !SLIST_EMPTY (&completed);
}

/* ---- Submission ---- */

/* The command's cookie.  -1: the request was not issued, and no callback will
 * run.
 */
static int64_t
issue_command (struct nbd_handle *nbd, struct nbd_request *req)
{
  const nbd_completion_callback completion = { on_completion, req, NULL };
  const nbd_chunk_callback chunk = { on_chunk, req, NULL };
  const extents_callback extents = { on_extents, req, NULL };

  switch (req->type) {
  case NBD_REQUEST_READ:
    req->received = 0;
    req->mark = req->offset;
    return nbd_aio_pread_structured (nbd, req->buf, req->count, req->offset,
                                     chunk, completion, req->flags);
  case NBD_REQUEST_WRITE:
    return nbd_aio_pwrite (nbd, req->buf, req->count, req->offset, completion,
                           req->flags);
  case NBD_REQUEST_ZERO:
    return nbd_aio_zero (nbd, req->count, req->offset, completion, req->flags);
  case NBD_REQUEST_TRIM:
    return nbd_aio_trim (nbd, req->count, req->offset, completion, req->flags);
  case NBD_REQUEST_FLUSH:
    return nbd_aio_flush (nbd, completion, req->flags);
  case NBD_REQUEST_EXTENTS:
    return block_status (nbd, req->count, req->offset, extents, completion,
                         req->flags);
  }
  __builtin_unreachable ();
}

/* False: as above. */
static bool
issue_request (struct nbd_handle *nbd, struct nbd_request *req)
{
  int64_t cookie;

  issuing.req = req;
  issuing.completed = false;
  cookie = issue_command (nbd, req);
  issuing.req = NULL;
  if (issuing.completed)
    nbd_aio_command_completed (nbd, cookie); /* retire it now */
  return cookie != -1 || issuing.completed;
}

void
nbd_connection_submit (struct nbd_connection *conn, struct nbd_request *req)
{
  unsigned direction;

  req->conn = conn;
  conn->load++;
  conn->slow += is_slow (req);
  if (!issue_request (conn->nbd, req)) {
    int error = nbd_get_errno ();
    bool dead = nbd_aio_is_dead (conn->nbd) || nbd_aio_is_closed (conn->nbd);

    complete_request (req, dead ? ENOTCONN : error ? error : EIO);
  }
  direction = nbd_aio_get_direction (conn->nbd);
  if (direction == 0 || direction & ~conn->armed)
    nbd_connection_wake_driver (conn);
  nbd_connection_deliver ();
}
