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
backend_file_same (const char *a, const char *b)
{
  struct stat x, y;

  if (stat (a, &x) == -1 || stat (b, &y) == -1)
    return false;
  if (S_ISBLK (x.st_mode) && S_ISBLK (y.st_mode))
    return x.st_rdev == y.st_rdev;
  return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

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

/* The kernel's sequence number (diskseq) of the disk with this device number,
 * or of the disk whose partition has it; 0 if there is none.
 */
static uint64_t
disk_number (dev_t dev)
{
  static const char *const files[] = { "diskseq", "../diskseq" };
  uint64_t number = 0;

  for (size_t i = 0; i < 2 && number == 0; ++i) {
    char path[64], text[32];
    ssize_t n;

    snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%s", major (dev),
              minor (dev), files[i]);
    CLEANUP_CLOSE int fd = open (path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? read (fd, text, sizeof text - 1) : 0;
    if (n > 0) {
      text[n] = '\0';
      number = strtoull (text, NULL, 10);
    }
  }
  return number;
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
