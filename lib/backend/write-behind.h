/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Write-behind: write data back to the device soon after it was written to the
 * file, and drop it from the page cache.  It is for data that nobody reads
 * again soon, such as what hydration copies.
 *
 * Without write-behind gigabytes of dirty pages pile up: other programs lose
 * their cached data, the kernel has to find and clean the pages later, and the
 * next flush takes long.
 *
 * The written ranges, called windows, pass through a queue:
 *
 *    write_behind_add          write_behind_run          write_behind_run
 *   -----------------> waiting ---------------> started -----------------> gone
 *                               starts the               waits for the
 *                               write-back               write-back, drops
 *                                                        the pages
 *
 * Windows wait until together they hold WRITE_BEHIND_GATHER bytes.  A range
 * that touches a waiting window is merged into it, because file system and
 * device handle a few large requests more cheaply than many small ones.
 * Windows that still wait at the end are left to the kernel, or to a flush.
 *
 * While the started windows hold more than WRITE_BEHIND_BYTES, the oldest of
 * them is dropped.  By then its write-back has mostly ended, so there is little
 * to wait for, and the device always has work.
 *
 * Threads: any number of threads may call these functions at once, except
 * init and destroy.
 *
 * Errors: after a failed write-back the pages are clean, but only memory holds
 * their data.  If the pages were dropped, a client would read what the device
 * held before.  So the first error ends write-behind for good.  Linux reports
 * an error once for each open file description, not for each page.  So windows
 * take turns: no window drops its pages while the error that concerns them is
 * being reported to another window.
 *
 * A flush on another description gets the same error, with one exception:
 * where the file system cannot start the write-back (ext4's delayed
 * allocation), it may discard the pages and report this only to the caller
 * that started the write-back.  So a flush also checks write_behind_error when
 * fdatasync has returned.
 */

#ifndef CLONE_WRITE_BEHIND_H
#define CLONE_WRITE_BEHIND_H

#include <pthread.h>
#include <stdint.h>

/* Bytes whose write-back is in progress.  This should be what a device can
 * have in flight, say 1 GB/s for 10 ms, and not much more.  On a disk with
 * 400 MB/s there is no difference between 4M and 32M.
 */
#define WRITE_BEHIND_BYTES (UINT64_C (16) << 20)

/* Bytes whose write-back is started together.  Without gathering, copies of
 * 256K and less take half as long again.  Above 2M there is next to no gain,
 * and the calls that start the write-back take longer, so that clients may
 * have to wait for them.
 */
#define WRITE_BEHIND_GATHER (UINT64_C (2) << 20)

/* Smaller writes are left to the kernel, which may merge them with others. */
#define WRITE_BEHIND_MIN (UINT64_C (64) << 10)

/* Room for WRITE_BEHIND_BYTES in the smallest windows, and for many more that
 * wait.  Ranges that find no room are left to the kernel.
 */
#define WRITE_BEHIND_WINDOWS 512

struct write_behind_window {
  uint64_t offset, count; /* bytes */
};

struct write_behind {
  int fd;               /* -1: write-behind is off */

  pthread_mutex_t turn; /* held across I/O; protects: */
  int error;            /* the first errno, or 0; never reset */

  pthread_mutex_t lock; /* not held across I/O; protects: */
  /* Window i is window[i % WRITE_BEHIND_WINDOWS].  Windows from first to next
   * are started, windows from next to end wait.
   */
  struct write_behind_window window[WRITE_BEHIND_WINDOWS];
  uint64_t first, next, end;
  uint64_t waiting, started; /* their bytes */
};

/* fd must be the only descriptor of its open file description;
 * write_behind_destroy closes it.  With -1 all functions do nothing, until the
 * caller sets it.
 */
extern void write_behind_init (struct write_behind *wb, int fd);
extern void write_behind_destroy (struct write_behind *wb);

/* Queue a range that has been written to the file.  Never blocks on I/O. */
extern void write_behind_add (struct write_behind *wb, uint64_t count,
                              uint64_t offset);

/* If enough windows wait, start them, and drop the oldest started windows.
 * Handles only windows that are queued when it is called, whatever other
 * threads add.  It may block on the device, so the caller must hold no lock,
 * and should own nothing that others wait for.
 */
extern void write_behind_run (struct write_behind *wb);

/* The errno of the first write-back that failed before this call, or 0.  Waits
 * for a window that is being started or dropped.
 */
extern int write_behind_error (struct write_behind *wb);

#endif /* CLONE_WRITE_BEHIND_H */
