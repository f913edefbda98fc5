/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The table's functions, with the checks that all backends have in common; and
 * functions made of them.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/zero-if-data.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/iszero.h"
#include "base/rounding.h"

void
backend_close (struct backend *b)
{
  if (b)
    b->ops->close (b);
}

int
backend_pread (struct backend *b, void *buf, size_t count, uint64_t offset)
{
  const struct segment seg = { buf, count, offset };

  return count ? b->ops->pread (b, &seg, 1) : 0;
}

int
backend_preadv (struct backend *b, const struct segment *seg, size_t n)
{
  return n ? b->ops->pread (b, seg, n) : 0;
}

int
backend_pread_once (struct backend *b, void *buf, size_t count,
                    uint64_t offset)
{
  if (count == 0 || b->ops->pread_once == NULL)
    return backend_pread (b, buf, count, offset);
  return b->ops->pread_once (b, buf, count, offset);
}

/* A backend that was opened read-only is never written to, whatever the caller
 * or the backend does.
 */
static int
check_writable (const struct backend *b)
{
  if (!b->readonly)
    return 0;
  errno = EPERM;
  return -1;
}

int
backend_pwrite (struct backend *b, const void *buf, size_t count,
                uint64_t offset, unsigned flags)
{
  const struct segment seg = { (void *)buf, count, offset };

  return count ? backend_pwritev (b, &seg, 1, flags) : 0;
}

int
backend_pwritev (struct backend *b, const struct segment *seg, size_t n,
                 unsigned flags)
{
  if (n == 0)
    return 0;
  if (check_writable (b) == -1)
    return -1;
  return b->ops->pwrite (b, seg, n, flags);
}

int
backend_zero (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags)
{
  double begin;
  int r;

  if (count == 0)
    return 0;
  if (check_writable (b) == -1)
    return -1;
  begin = monotonic_seconds ();
  r = flags & BACKEND_IF_DATA ? zero_if_data (b, count, offset, flags)
    : b->ops->zero (b, count, offset, flags);
  if (r == 0)
    zero_step_learn (&b->zero_step, count, monotonic_seconds () - begin);
  return r;
}

int
backend_trim (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags)
{
  if (count == 0)
    return 0;
  if (check_writable (b) == -1)
    return -1;
  return b->ops->trim (b, count, offset, flags);
}

int
backend_flush (struct backend *b)
{
  if (check_writable (b) == -1)
    return -1;
  return b->ops->flush (b);
}

bool
backend_can_share (const struct backend *b, const struct backend *from)
{
  return b->ops->share && b->is_file && from->is_file;
}

int
backend_share (struct backend *b, struct backend *from, uint64_t count,
               uint64_t offset)
{
  if (count == 0)
    return 0;
  if (check_writable (b) == -1)
    return -1;
  return b->ops->share (b, from, count, offset);
}

void
backend_write_behind (struct backend *b)
{
  if (b->ops->write_behind)
    b->ops->write_behind (b);
}

int
backend_extents (struct backend *b, uint64_t count, uint64_t offset,
                 unsigned flags, struct extents *list)
{
  return count ? b->ops->extents (b, count, offset, flags, list) : 0;
}

unsigned
backend_connections (struct backend *b)
{
  return b->ops->connections ? b->ops->connections (b) : 1;
}

int
backend_start (struct backend *b, const struct backend_service *service)
{
  return b->ops->start ? b->ops->start (b, service) : 0;
}

void
backend_set_timeout (struct backend *b, unsigned seconds)
{
  if (b->ops->set_timeout)
    b->ops->set_timeout (b, seconds);
}

void
backend_interrupt (struct backend *b, int grace)
{
  if (b->ops->interrupt)
    b->ops->interrupt (b, grace);
}

bool
backend_has_peer (const struct backend *b)
{
  return b->ops->start != NULL;
}

enum backend_state
backend_state (struct backend *b)
{
  return b->ops->state ? b->ops->state (b) : BACKEND_UP;
}

void
backend_reason (struct backend *b, char *buf, size_t size)
{
  buf[0] = '\0';
  if (b->ops->reason)
    b->ops->reason (b, buf, size);
}

void
backend_log_failure (struct backend *b, const char *role, const char *what)
{
  char reason[256] = "";

  if (errno == ENOTCONN)
    backend_reason (b, reason, sizeof reason);
  if (reason[0])
    log_error (b->log, "%s %s: %s: %s; check its server, and start again",
               role, b->name, what, reason);
  else
    log_error (b->log, "%s %s: %s: %m", role, b->name, what);
}

struct zero_check {
  struct backend *b;
  uint64_t start;
  void *buf;            /* allocated for the first read */
  void (*progress) (void *opaque, uint64_t done);
  void *opaque;
};

static void
zero_is_known (const struct zero_check *z, uint64_t end)
{
  if (z->progress)
    z->progress (z->opaque, end - z->start);
}

/* backend_is_zero for an extent that is not known to be zero. */
static int
data_is_zero (struct zero_check *z, const struct extent *extent)
{
  uint64_t offset = extent->offset;
  uint64_t end = extent->offset + extent->length;

  if (z->buf == NULL &&
      (z->buf = aligned_alloc (BACKEND_ALIGN, ZERO_PIECE)) == NULL)
    return -1;
  while (offset < end) {
    size_t count = MIN (ZERO_PIECE, end - offset);

    if (backend_pread_once (z->b, z->buf, count, offset) == -1)
      return -1;
    if (!is_zero (z->buf, count))
      return 0;
    offset += count;
    zero_is_known (z, offset);
  }
  return 1;
}

static int
range_is_zero (struct zero_check *z, uint64_t count)
{
  CLEANUP_EXTENTS_FREE struct extents list = EXTENTS_INIT;
  uint64_t offset = z->start, end = z->start + count;

  while (offset < end) {
    extents_clear (&list);
    if (backend_extents (z->b, end - offset, offset, 0, &list) == -1)
      return -1;
    for (size_t i = 0; i < list.len; i++) {
      const struct extent *e = &list.extent[i];
      int r = e->flags & EXTENT_ZERO ? 1 : data_is_zero (z, e);

      if (r != 1)
        return r;
      zero_is_known (z, e->offset + e->length);
    }
    offset = extents_end (&list);
  }
  return 1;
}

int
backend_is_zero (struct backend *b, uint64_t count, uint64_t offset,
                 void (*progress) (void *opaque, uint64_t done), void *opaque)
{
  struct zero_check z = {
    .b = b, .start = offset, .progress = progress, .opaque = opaque
  };
  int r = range_is_zero (&z, count);

  free (z.buf);
  return r;
}
