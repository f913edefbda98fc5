/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Write-behind: a file's data that nobody will want again soon are written
 * back while more of them come, and leave the page cache.
 *
 * Without it gigabytes of dirty pages pile up: memory that others had to give
 * up for them, work to find and clean them later, and a long flush at the end.
 *
 * The ranges, called windows, go through a queue:
 *
 *     behind_wrote            behind_run              behind_run
 *    -------------> waiting -------------> started -------------> gone
 *                            write-back              write-back has ended,
 *                            begins                  pages are dropped
 *
 * Windows wait until they hold BEHIND_GATHER together, and what is written next
 * to one that waits joins it: the file system and the device do large requests
 * at less cost than many small ones.  What waits at the end is left to the
 * kernel, or to a flush.
 *
 * A window goes when those started after it hold BEHIND_BYTES.  By then its
 * write-back is mostly done, so that there is little to wait for, and the
 * device always has something to do.
 *
 * Threads: all but init and destroy may be called by many at once.
 *
 * Errors.  Pages whose write-back failed are clean, and the only place that has
 * their data: dropped, a client would read what the device held before.  So the
 * first error ends write-behind for good.  Linux tells of an error once for all
 * pages of an open file description: so that no window drops its pages while
 * another is being told of their loss, windows take turns.
 *
 * A flush on another description is told of the same error, but for one kind:
 * where the file system cannot begin to write back (ext4's delayed allocation),
 * it may throw the pages away and tell only whoever asked for it.  So a flush
 * looks at behind_error, too, when it has ended.
 */

#ifndef CLONE_BEHIND_H
#define CLONE_BEHIND_H

#include <pthread.h>
#include <stdint.h>

/* How much is on its way.  It should be what a device can have in flight, say
 * 1 GB/s for 10 ms, and not much more.  From 4M to 32M it makes no difference
 * on a disk with 400 MB/s.
 */
#define BEHIND_BYTES (UINT64_C (16) << 20)

/* How much is started at once.  From 2M on it makes next to no difference to
 * copies of 256K and less, which take half as long again without it; the calls
 * that start more of it take longer, for which clients may have to wait.
 */
#define BEHIND_GATHER (UINT64_C (2) << 20)

/* Smaller pieces are left to the kernel, which may join them with others. */
#define BEHIND_MIN (UINT64_C (64) << 10)

/* Enough for BEHIND_BYTES of the smallest, and for many more that wait.  What
 * finds no place is left to the kernel.
 */
#define BEHIND_WINDOWS 512

struct behind_window {
  uint64_t offset, count; /* bytes */
};

struct behind {
  int fd;              /* -1: there is no write-behind */

  pthread_mutex_t turn; /* held across I/O; protects what follows */
  int error;            /* an errno, or 0; for good */

  pthread_mutex_t lock; /* not held across I/O; protects what follows */
  /* Window i is window[i % BEHIND_WINDOWS].  From first to next they are
   * started, from next to end they wait.
   */
  struct behind_window window[BEHIND_WINDOWS];
  uint64_t first, next, end;
  uint64_t waiting, started; /* bytes of those */
};

/* fd is of an open file description that nothing else uses, and belongs to
 * behind_destroy; -1, until it is set, turns all functions into nothing.
 */
extern void behind_init (struct behind *bh, int fd);
extern void behind_destroy (struct behind *bh);

/* This has been written to the file.  Waits for nothing. */
extern void behind_wrote (struct behind *bh, uint64_t count, uint64_t offset);

/* When enough waits, start it, and wait for what must go: no more than there is
 * now, whatever others add.  The caller may have to wait for the device, so it
 * must hold nothing that others want.
 */
extern void behind_run (struct behind *bh);

/* The errno of data that were lost before this was called, or 0.  Waits for the
 * window that is being started or dropped, if there is one.
 */
extern int behind_error (struct behind *bh);

#endif /* CLONE_BEHIND_H */
