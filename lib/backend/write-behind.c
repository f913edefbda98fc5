/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "backend/write-behind.h"
#include "base/cleanup.h"
#include "base/rounding.h"

void
behind_init (struct behind *bh, int fd)
{
  bh->fd = fd;
  bh->error = 0;
  pthread_mutex_init (&bh->lock, NULL);
  pthread_mutex_init (&bh->turn, NULL);
  bh->first = bh->next = bh->end = bh->waiting = bh->started = 0;
}

void
behind_destroy (struct behind *bh)
{
  if (bh->fd >= 0)
    close (bh->fd);
  pthread_mutex_destroy (&bh->lock);
  pthread_mutex_destroy (&bh->turn);
}

static struct behind_window *
window (struct behind *bh, uint64_t i)
{
  return &bh->window[i % BEHIND_WINDOWS];
}

/* Join the range to a window that waits and touches it.  The last ones are the
 * likely ones.
 */
static bool
join (struct behind *bh, uint64_t count, uint64_t offset)
{
  for (uint64_t i = bh->end; i > bh->next; --i) {
    struct behind_window *w = window (bh, i - 1);

    if (w->count + count > BEHIND_GATHER)
      continue;
    if (w->offset + w->count == offset || offset + count == w->offset) {
      w->offset = MIN (w->offset, offset);
      w->count += count;
      return true;
    }
  }
  return false;
}

void
behind_wrote (struct behind *bh, uint64_t count, uint64_t offset)
{
  if (bh->fd == -1 || count < BEHIND_MIN)
    return;

  LOCK_FOR_SCOPE (&bh->lock);

  if (!join (bh, count, offset)) {
    if (bh->end - bh->first == BEHIND_WINDOWS)
      return;
    *window (bh, bh->end++) = (struct behind_window){ offset, count };
  }
  bh->waiting += count;
}

/* Take a window that is to be started, or to go, from among those before end.
 * False if there is none.
 */
static bool
take_waiting (struct behind *bh, uint64_t end, struct behind_window *w)
{
  LOCK_FOR_SCOPE (&bh->lock);

  if (bh->next >= end)
    return false;
  *w = *window (bh, bh->next++);
  bh->waiting -= w->count;
  bh->started += w->count;
  return true;
}

static bool
take_oldest (struct behind *bh, uint64_t end, struct behind_window *w)
{
  LOCK_FOR_SCOPE (&bh->lock);

  if (bh->started <= BEHIND_BYTES || bh->first >= end)
    return false;
  *w = *window (bh, bh->first++);
  bh->started -= w->count;
  return true;
}

/* With the turn. */
static void
sync_window (struct behind *bh, const struct behind_window *w, unsigned flags)
{
  if (sync_file_range (bh->fd, w->offset, w->count, flags) == 0)
    return;
  /* Others say that nothing was done, and that does no harm. */
  if (errno == EIO || errno == ENOSPC || errno == EDQUOT)
    bh->error = errno;
}

static void
start_window (struct behind *bh, const struct behind_window *w)
{
  LOCK_FOR_SCOPE (&bh->turn);

  if (bh->error == 0)
    sync_window (bh, w, SYNC_FILE_RANGE_WRITE);
}

static void
drop_window (struct behind *bh, const struct behind_window *w)
{
  LOCK_FOR_SCOPE (&bh->turn);

  if (bh->error == 0)
    /* WRITE, for pages that became dirty again or were passed over. */
    sync_window (bh, w, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                 SYNC_FILE_RANGE_WAIT_AFTER);
  if (bh->error == 0)
    posix_fadvise (bh->fd, w->offset, w->count, POSIX_FADV_DONTNEED);
}

void
behind_run (struct behind *bh)
{
  struct behind_window w;
  uint64_t end;

  if (bh->fd == -1)
    return;
  {
    LOCK_FOR_SCOPE (&bh->lock);
    if (bh->waiting < BEHIND_GATHER)
      return;
    end = bh->end;
  }
  while (take_waiting (bh, end, &w))
    start_window (bh, &w);
  while (take_oldest (bh, end, &w))
    drop_window (bh, &w);
}

int
behind_error (struct behind *bh)
{
  LOCK_FOR_SCOPE (&bh->turn);

  return bh->error;
}
