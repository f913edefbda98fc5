/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Identify the file or block device behind a backend. */

#include <config.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/file-internal.h"
#include "backend/file.h"
#include "base/cleanup.h"

bool
file_is_same (const struct file *f, const struct stat *st)
{
  if (S_ISBLK (st->st_mode))
    return f->is_block && f->dev == st->st_rdev;
  return !f->is_block && f->dev == st->st_dev && f->ino == st->st_ino;
}

void
backend_file_identity (struct backend *b, struct backend_identity *id)
{
  struct statx stx;

  memset (id, 0, sizeof *id);
  if (!is_file_backend (b) || to_file (b)->is_block ||
      statx (to_file (b)->fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME,
             &stx) == -1)
    return;
  id->inode = stx.stx_ino;
  if (stx.stx_mask & STATX_BTIME) {
    id->birth_sec = stx.stx_btime.tv_sec;
    id->birth_nsec = stx.stx_btime.tv_nsec;
  }
}

bool
file_read_sys (dev_t dev, const char *name, char *text, size_t size)
{
  char path[128];
  ssize_t n;

  snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%s", major (dev),
            minor (dev), name);
  CLEANUP_CLOSE int fd = open (path, O_RDONLY | O_CLOEXEC);
  n = fd >= 0 ? read (fd, text, size - 1) : 0;
  if (n <= 0)
    return false;
  text[n] = '\0';
  text[strcspn (text, "\n")] = '\0';
  return true;
}

/* The kernel's sequence number (diskseq) of the disk with this device number,
 * or of the disk whose partition has it; 0 if there is none.
 */
static uint64_t
disk_number (dev_t dev)
{
  char text[32];

  if (file_read_sys (dev, "diskseq", text, sizeof text) ||
      file_read_sys (dev, "../diskseq", text, sizeof text))
    return strtoull (text, NULL, 10);
  return 0;
}

int
backend_file_place (struct backend *b, struct backend_place *place)
{
  struct stat st;

  memset (place, 0, sizeof *place);
  if (!is_file_backend (b) || fstat (to_file (b)->fd, &st) == -1)
    return -1;
  if (to_file (b)->is_block) {
    place->device = st.st_rdev;
    place->size = b->size;
  }
  else {
    place->device = st.st_dev;
    place->inode = st.st_ino;
  }
  place->disk = disk_number (place->device);
  return 0;
}
