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
write_behind_init (struct write_behind *wb, int fd)
{
  wb->fd = fd;
  wb->error = 0;
  pthread_mutex_init (&wb->lock, NULL);
  pthread_mutex_init (&wb->turn, NULL);
  wb->first = wb->next = wb->end = wb->waiting = wb->started = 0;
}

void
write_behind_destroy (struct write_behind *wb)
{
  if (wb->fd >= 0)
    close (wb->fd);
  pthread_mutex_destroy (&wb->lock);
  pthread_mutex_destroy (&wb->turn);
}

static struct write_behind_window *
get_window (struct write_behind *wb, uint64_t i)
{
  return &wb->window[i % WRITE_BEHIND_WINDOWS];
}

/* Merge the range into a waiting window that it touches, and that does not
 * become larger than WRITE_BEHIND_GATHER.  The newest window is the most likely
 * one, so it comes first.  False if there is no such window.
 */
static bool
merge_window (struct write_behind *wb, uint64_t count, uint64_t offset)
{
  for (uint64_t i = wb->end; i > wb->next; --i) {
    struct write_behind_window *w = get_window (wb, i - 1);

    if (w->count + count > WRITE_BEHIND_GATHER)
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
write_behind_add (struct write_behind *wb, uint64_t count, uint64_t offset)
{
  if (wb->fd == -1 || count < WRITE_BEHIND_MIN)
    return;

  LOCK_FOR_SCOPE (&wb->lock);

  if (!merge_window (wb, count, offset)) {
    if (wb->end - wb->first == WRITE_BEHIND_WINDOWS)
      return;
    *get_window (wb, wb->end++) =
      (struct write_behind_window){ offset, count };
  }
  wb->waiting += count;
}

/* Take the next waiting window off the queue, for the caller to start, and
 * count it as started.  False if there is none with an index below end.
 */
static bool
take_waiting (struct write_behind *wb, uint64_t end,
              struct write_behind_window *w)
{
  LOCK_FOR_SCOPE (&wb->lock);

  if (wb->next >= end)
    return false;
  *w = *get_window (wb, wb->next++);
  wb->waiting -= w->count;
  wb->started += w->count;
  return true;
}

/* Take the oldest started window, for the caller to drop.  False if started
 * windows hold no more than WRITE_BEHIND_BYTES, or if there is none with an
 * index below end.
 */
static bool
take_oldest (struct write_behind *wb, uint64_t end,
             struct write_behind_window *w)
{
  LOCK_FOR_SCOPE (&wb->lock);

  if (wb->started <= WRITE_BEHIND_BYTES || wb->first >= end)
    return false;
  *w = *get_window (wb, wb->first++);
  wb->started -= w->count;
  return true;
}

/* The caller holds wb->turn. */
static void
sync_window (struct write_behind *wb, const struct write_behind_window *w,
             unsigned flags)
{
  if (sync_file_range (wb->fd, w->offset, w->count, flags) == 0)
    return;
  /* These three say that data was lost.  After any other error nothing has been
   * written back here, and the kernel does it later.
   */
  if (errno == EIO || errno == ENOSPC || errno == EDQUOT)
    wb->error = errno;
}

static void
start_window (struct write_behind *wb, const struct write_behind_window *w)
{
  LOCK_FOR_SCOPE (&wb->turn);

  if (wb->error == 0)
    sync_window (wb, w, SYNC_FILE_RANGE_WRITE);
}

static void
drop_window (struct write_behind *wb, const struct write_behind_window *w)
{
  LOCK_FOR_SCOPE (&wb->turn);

  /* Start the write-back once more: pages may have become dirty again, and the
   * first start may have skipped some.
   */
  if (wb->error == 0)
    sync_window (wb, w, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                 SYNC_FILE_RANGE_WAIT_AFTER);
  if (wb->error == 0)
    posix_fadvise (wb->fd, w->offset, w->count, POSIX_FADV_DONTNEED);
}

void
write_behind_run (struct write_behind *wb)
{
  struct write_behind_window w;
  uint64_t end;

  if (wb->fd == -1)
    return;
  {
    LOCK_FOR_SCOPE (&wb->lock);
    if (wb->waiting < WRITE_BEHIND_GATHER)
      return;
    end = wb->end;
  }
  while (take_waiting (wb, end, &w))
    start_window (wb, &w);
  while (take_oldest (wb, end, &w))
    drop_window (wb, &w);
}

int
write_behind_error (struct write_behind *wb)
{
  LOCK_FOR_SCOPE (&wb->turn);

  return wb->error;
}
