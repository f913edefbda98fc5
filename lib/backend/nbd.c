/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for NBD exports: opening and closing.
 *
 *   nbd-transfer.c    read, write, flush
 *   nbd-zero.c        zero and trim
 *   nbd-extents.c     block status
 *   nbd-blocks.c      read-modify-write of partly covered blocks
 *   nbd-pieces.c      splitting operations into requests
 *   nbd-channel.c     channels: requests from an event loop
 *   nbd-identity.c    is it the same export?
 *   nbd-pool.h        the connections, and how dead ones are replaced
 *   nbd-connection.h  one connection
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "backend/nbd-internal.h"
#include "backend/nbd.h"
#include "base/rounding.h"

/* The largest transfer, in bytes: qemu-nbd drops the connection above it. */
#define MAX_TRANSFER (UINT64_C (32) << 20)
/* The largest minimum block size: that of hydration's pieces. */
#define MAX_BLOCK (INT64_C (64) << 10)

/* ---- The peer ---- */

static unsigned
nbd_backend_connections (struct backend *b)
{
  return nbd_pool_alive (to_nbd (b)->pool);
}

static int
nbd_backend_start (struct backend *b, const struct backend_service *service)
{
  struct nbd *n = to_nbd (b);

  n->same_disk = service->same_disk;
  n->same_disk_opaque = service->opaque;
  return nbd_pool_start (n->pool, service);
}

static void
nbd_backend_set_timeout (struct backend *b, unsigned seconds)
{
  nbd_pool_set_timeout (to_nbd (b)->pool, seconds);
}

static void
nbd_backend_interrupt (struct backend *b, int grace)
{
  nbd_pool_interrupt (to_nbd (b)->pool, grace);
}

static enum backend_state
nbd_backend_state (struct backend *b)
{
  return nbd_pool_state (to_nbd (b)->pool);
}

static void
nbd_backend_reason (struct backend *b, char *buf, size_t size)
{
  nbd_pool_reason (to_nbd (b)->pool, buf, size);
}

/* ---- Opening and closing ---- */

static void
nbd_backend_close (struct backend *b)
{
  struct nbd *n = to_nbd (b);

  nbd_pool_close (n->pool);
  range_lock_destroy (&n->blocks);
  free (n->b.name);
  free (n);
}

static const struct backend_ops nbd_ops = {
  .close = nbd_backend_close,
  .pread = nbd_backend_pread,
  .pwrite = nbd_backend_pwrite,
  .zero = nbd_backend_zero,
  .trim = nbd_backend_trim,
  .flush = nbd_backend_flush,
  .extents = nbd_backend_extents,
  .channel = nbd_channel_new,
  .connections = nbd_backend_connections,
  .start = nbd_backend_start,
  .set_timeout = nbd_backend_set_timeout,
  .interrupt = nbd_backend_interrupt,
  .state = nbd_backend_state,
  .reason = nbd_backend_reason,
};

/* Why the export cannot be used for what it is opened for; NULL if it can. */
static const char *
check_export (struct nbd_handle *h, const struct backend_params *params)
{
  const char *protocol = nbd_get_protocol (h);

  /* Oldstyle has no export names, block sizes, extents or TLS. */
  if (protocol && strcmp (protocol, "oldstyle") == 0)
    return "the server speaks the oldstyle protocol, which is not supported; "
           "make it use newstyle";
  if (nbd_get_size (h) == -1)
    return "the server does not report the size";
  if (nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM) > MAX_BLOCK)
    return "the server's minimum block size is larger than 64K, which is not "
           "supported";
  if (!params->readonly && nbd_is_read_only (h) != 0)
    return "it is read-only; make its server export it writable";
  if (!params->readonly && nbd_can_flush (h) != 1)
    return "the server does not support flush, without which nothing can be "
           "made durable";
  return NULL;
}

static void
learn_export (struct nbd *n, struct nbd_handle *h)
{
  int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  n->b.size = nbd_get_size (h);
  n->b.minimum_block = minimum > 0 && is_power_of_2 (minimum) ? minimum : 1;
  n->max_transfer = maximum > 0 ? MIN (MAX_TRANSFER, (uint64_t)maximum)
                    : MAX_TRANSFER;
  n->max_transfer = MAX (nbd_block_start (n, n->max_transfer),
                         (uint64_t)n->b.minimum_block);
  n->b.can_zero = nbd_can_zero (h) == 1;
  n->can_trim = nbd_can_trim (h) == 1;
  n->can_fua = nbd_can_fua (h) == 1;
  /* nbdkit and QEMU do FUA by fdatasync of the file that they also flush. */
  n->b.fua_takes_errors = true;
  n->b.can_fast_zero = n->b.can_zero && nbd_can_fast_zero (h) == 1;
  n->b.knows_extents =
    nbd_can_meta_context (h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
}

static int
connect_all (struct nbd *n, const struct backend_params *params)
{
  const struct nbd_pool_params pp = {
    .role = params->role, .uri = n->b.name, .log = n->b.log,
    .connections = params->connections, .together = !params->readonly,
    .timeout = params->timeout, .deadline = params->deadline,
    .check = nbd_check_connection, .opaque = n,
  };
  const char *why;

  n->pool = nbd_pool_open (&pp);
  if (n->pool == NULL) {
    errno = EIO;
    return -1;
  }
  why = check_export (nbd_pool_handle (n->pool), params);
  if (why) {
    log_error (n->b.log, "%s %s: %s", params->role, params->name, why);
    errno = EINVAL;
    return -1;
  }
  learn_export (n, nbd_pool_handle (n->pool));
  nbd_pool_connect_further (n->pool);
  return 0;
}

struct backend *
backend_nbd_open (const struct backend_params *params, const struct log *log)
{
  struct nbd *n = calloc (1, sizeof *n);
  int err;

  if (n == NULL) {
    log_error (log, "%s %s: %m", params->role, params->name);
    return NULL;
  }
  n->b.ops = &nbd_ops;
  n->b.log = log;
  n->b.readonly = params->readonly;
  n->b.minimum_block = 1;
  range_lock_init (&n->blocks);
  n->b.name = strdup (params->name);
  if (n->b.name == NULL)
    log_error (log, "%s %s: %m", params->role, params->name);
  else if (connect_all (n, params) == 0)
    return &n->b;

  err = errno;
  nbd_backend_close (&n->b);
  errno = err;
  return NULL;
}
