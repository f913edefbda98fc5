/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a process leaves to the next one, if it crashes.
 *
 * A crash of the program is not a power cut.  What it has written to a file or
 * a block device is in the kernel's hands and stays there, flushed or not.
 * Only the valid bits that no commit had made durable would be lost with the
 * process, and with them what clients had been told is done.  So the bits live
 * in POSIX shared memory (/dev/shm), which survives the process but not the
 * boot.  A bit is set there as it always is, after its bytes are in the
 * destination: there is no second copy to be kept up to date.
 *
 * The next process takes the bits over, those that are not durable as dirty
 * ones, to be committed in the usual order (destination flushed first), if and
 * only if all of this is the same:
 *
 *   boot          the kernel still has what was written
 *   UUID          of the metadata
 *   generation    of the metadata: no other process has served the clone since
 *   destination   device and inode, or the size of a block device; and the disk
 *                 that has this device number: Linux numbers the disks that are
 *                 attached, since 5.15
 *
 * and the last process has not seen a flush of the destination fail, after
 * which Linux may have dropped what was written.  Otherwise they are removed,
 * and it is the power cut that it would have been.
 *
 * Each process gives the metadata a generation of its own when it starts, by a
 * random step, so that one which served the clone elsewhere in between, with
 * another /dev/shm, is noticed.  A crash in this moment is covered: the object
 * names the next generation before the metadata has it.
 *
 * Only where the destination is a file or a block device: whether an NBD server
 * has kept what was written cannot be known from here.  Where there is no
 * shared memory, or no room in it, this is said once, and the clone does
 * without.
 *
 * The object has a name made of the metadata's UUID, mode 0600, and the owner
 * that the process has; another owner's is not used.  Its process has a lock on
 * it: of two copies of a clone that are served at the same time, the second
 * does without.  It is removed at a clean end and at completion.
 */

#ifndef CLONE_INHERIT_H
#define CLONE_INHERIT_H

#include <stdbool.h>

#include "backend/backend.h"
#include "base/log.h"
#include "store/metadata.h"
#include "store/region-map.h"

struct inheritance;

/* Take over what the last process left, and let the map's bits outlive this
 * one.  After the last fork, before anybody uses the map.  Never fails:
 * *inheritance is NULL where the clone does without, and where it is complete.
 * What is wrong is logged.
 */
extern void inheritance_open (struct inheritance **inheritance,
                              struct backend *dest, struct metadata *md,
                              struct region_map *map, const struct log *log);

/* A flush of the destination has failed: nothing is to be taken over, until the
 * map was set back.  NULL is allowed, here and below.
 */
extern void inheritance_spoil (struct inheritance *i, bool spoilt);

/* Nothing is left to be taken over: every valid bit is durable.  The map still
 * uses the memory.
 */
extern void inheritance_remove (struct inheritance *i);

/* The map is gone. */
extern void inheritance_close (struct inheritance *i);

#endif /* CLONE_INHERIT_H */
