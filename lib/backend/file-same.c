/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Do two paths lead to the same data?
 *
 * A path leads to a range of bytes of a file or of a disk.  Two layers are
 * looked through:
 *
 *   a partition     is a range of its disk
 *   a loop device   is a range of its backing file, which may be a device
 *
 * Two paths are the same if their ranges overlap.  Halves of one disk are
 * different.  Other layers, such as device mapper, are not looked through.
 */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <linux/loop.h>

#include "backend/file-internal.h"
#include "backend/file.h"
#include "base/cleanup.h"
#include "base/rounding.h"

/* How many layers are looked through.  Nobody stacks more. */
#define MAX_LAYERS 16

struct span {
  bool is_block;
  dev_t dev;  /* a block device's number, or that of a file's file system */
  ino_t ino;  /* a file's; 0 for a block device */
  uint64_t start, end; /* bytes */
};

static bool
span_of_path (const char *path, struct span *span)
{
  struct stat st;

  if (stat (path, &st) == -1)
    return false;
  span->is_block = S_ISBLK (st.st_mode);
  span->dev = span->is_block ? st.st_rdev : st.st_dev;
  span->ino = span->is_block ? 0 : st.st_ino;
  span->start = 0;
  span->end = UINT64_MAX;
  return true;
}

/* The device is a part of what is below it: size bytes at offset.  Size 0: all
 * bytes from offset on.
 */
static void
span_shift (struct span *span, uint64_t offset, uint64_t size)
{
  const uint64_t most = size > 0 && size < UINT64_MAX - offset
    ? offset + size : UINT64_MAX;

  span->start += offset;
  span->end = span->end < UINT64_MAX - offset
    ? MIN (span->end + offset, most) : most;
}

static bool
sys_number (dev_t dev, const char *name, uint64_t *number)
{
  char text[32];

  if (!file_read_sys (dev, name, text, sizeof text))
    return false;
  *number = strtoull (text, NULL, 10);
  return true;
}

/* From a partition to its disk.  False if it is none, or if there is no /sys.
 */
static bool
span_of_disk (struct span *span)
{
  uint64_t partition, start, size;
  unsigned major, minor;
  char text[32];

  if (!sys_number (span->dev, "partition", &partition) ||
      !sys_number (span->dev, "start", &start) ||
      !sys_number (span->dev, "size", &size) ||
      !file_read_sys (span->dev, "../dev", text, sizeof text) ||
      sscanf (text, "%u:%u", &major, &minor) != 2)
    return false;
  span->dev = makedev (major, minor);
  span_shift (span, start * 512, size * 512); /* whatever its sector size */
  return true;
}

/* The kernel's encoding of a device number in struct loop_info64, which is not
 * the C library's on every machine.
 */
static dev_t
decode_dev (uint64_t dev)
{
  return makedev ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00));
}

/* From a loop device, or one of its partitions, to its backing file.  fd is
 * open.  False if it is none.
 */
static bool
span_of_backing_file (struct span *span, int fd)
{
  struct loop_info64 info;

  if (ioctl (fd, LOOP_GET_STATUS64, &info) == -1)
    return false;
  span->is_block = info.lo_rdevice != 0;
  span->dev = decode_dev (span->is_block ? info.lo_rdevice : info.lo_device);
  span->ino = span->is_block ? 0 : info.lo_inode;
  span_shift (span, info.lo_offset, info.lo_sizelimit);
  return true;
}

/* Look through all layers below the path. */
static bool
span_find (const char *path, struct span *span)
{
  CLEANUP_FREE char *name = strdup (path);

  if (name == NULL || !span_of_path (name, span))
    return false;
  for (unsigned i = 0; i < MAX_LAYERS && span->is_block; ++i) {
    char below[4096];
    struct span s;
    dev_t disk;

    span_of_disk (span);
    disk = span->dev;
    CLEANUP_CLOSE int fd = open (name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd == -1 || !span_of_backing_file (span, fd))
      break;
    /* The name may lead to another device by now: then stop here. */
    if (!span->is_block ||
        !file_read_sys (disk, "loop/backing_file", below, sizeof below) ||
        !span_of_path (below, &s) || !s.is_block || s.dev != span->dev)
      break;
    free (name);
    name = strdup (below);
    if (name == NULL)
      break;
  }
  return true;
}

bool
backend_file_same (const char *a, const char *b)
{
  struct span x, y;

  return span_find (a, &x) && span_find (b, &y) &&
    x.is_block == y.is_block && x.dev == y.dev && x.ino == y.ino &&
    x.start < y.end && y.start < x.end;
}
