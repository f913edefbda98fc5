/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Inheritance: valid bits that outlive a crash of the program.
 *
 * A crash of the program is not a power cut.  What the process has written to a
 * file or a block device stays in the kernel, flushed or not.  Only the valid
 * bits that no commit has made durable would be gone, and with them changes
 * that clients were told are done.  So the map keeps its valid bits in POSIX
 * shared memory (/dev/shm), which survives the process but not the boot.  A bit
 * is set there as in any memory, after its bytes are in the destination.  There
 * is no second copy to keep up to date.
 *
 * The next process takes the bits over.  Those that are not durable are dirty,
 * and are committed in the usual order, the destination flushed first.  It
 * takes them over if and only if all of these are the same:
 *
 *   boot          the kernel still has what was written
 *   UUID          of the metadata
 *   generation    of the metadata: no other process has served the clone since
 *   destination   device and inode, or the size of a block device; and which
 *                 disk has this device number: Linux has a sequence number for
 *                 attached disks since 5.15
 *
 * and if the last process has not seen a flush of the destination fail, after
 * which Linux may have dropped what was written.  Otherwise the bits are
 * removed, and the crash has the outcome of a power cut.
 *
 * When a process starts it gives the metadata a new generation, a random step
 * higher.  So a process that served the clone in between, with another
 * /dev/shm, is detected.  A crash at this moment is covered: the object names
 * the next generation before the metadata has it.
 *
 * This works only if the destination is a file or a block device: the program
 * cannot know whether an NBD server has kept what was written.  Without shared
 * memory, or without room in it, a message says so, and the clone works without
 * inheritance.
 *
 * The object is named after the metadata's UUID, has mode 0600, and belongs to
 * the process's user; an object of another user is not used.  Its process holds
 * a lock on it.  If two copies of a clone are served at the same time, the
 * second works without inheritance.  The object is removed when the clone is
 * closed in order, and when it is complete.
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
 * one.  Called after the last fork, before other threads use the map.  Never
 * fails: *inheritance is NULL if the clone works without, or is complete.
 * Problems are logged.
 */
extern void inheritance_open (struct inheritance **inheritance,
                              struct backend *dest, struct metadata *md,
                              struct region_map *map, const struct log *log);

/* true: a flush of the destination has failed, and the next process must take
 * nothing over; false: the map has been set back.  i may be NULL, here and
 * below.
 */
extern void inheritance_spoil (struct inheritance *i, bool spoilt);

/* Remove the object's name: every valid bit is durable, so that nothing is left
 * to take over.  The map still uses the memory.
 */
extern void inheritance_remove (struct inheritance *i);

/* Called after the map was freed. */
extern void inheritance_close (struct inheritance *i);

#endif /* CLONE_INHERIT_H */
