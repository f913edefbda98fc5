/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Data and holes of a file, by SEEK_DATA and SEEK_HOLE.
 *
 * The last run of data is remembered.  Without that, short questions about a
 * long run take quadratic time where SEEK_HOLE looks at each page of it, as on
 * tmpfs.  Each operation that may turn data into a hole calls file_forget_data
 * afterwards.  A question that began before that call remembers nothing.
 */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/file-internal.h"
#include "base/cleanup.h"
#include "base/extents.h"
#include "base/rounding.h"

/* The most extents that one call reports. */
#define MAX_EXTENTS 1024

void
file_forget_data (struct file *f)
{
  LOCK_FOR_SCOPE (&f->data_lock);

  f->data_end = f->data_start;
  f->holes_made++;
}

/* The end of the remembered run of data, if offset is in it; otherwise 0. */
static uint64_t
remembered_end (struct file *f, uint64_t offset, uint64_t *holes_made)
{
  LOCK_FOR_SCOPE (&f->data_lock);

  *holes_made = f->holes_made;
  return f->data_start <= offset && offset < f->data_end ? f->data_end : 0;
}

static void
remember_data (struct file *f, uint64_t start, uint64_t end,
               uint64_t holes_made)
{
  LOCK_FOR_SCOPE (&f->data_lock);

  if (f->holes_made == holes_made) {
    f->data_start = start;
    f->data_end = end;
  }
}

/* There is no data from offset up to the end of the file.  So the rest is a
 * hole, unless the file has become shorter.
 */
static int
add_last_hole (struct file *f, uint64_t offset, uint64_t end,
               struct extents *list)
{
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return file_failed ();
  if (!f->is_block && (uint64_t)st.st_size < end) {
    errno = EIO;
    return -1;
  }
  return extents_add (list, offset, end - offset, EXTENT_HOLE | EXTENT_ZERO);
}

int
file_extents (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags, struct extents *list)
{
  const size_t max = flags & BACKEND_REQ_ONE ? 1 : MAX_EXTENTS;
  struct file *f = to_file (b);
  const uint64_t end = offset + count;

  if (!b->knows_extents)
    return extents_add (list, offset, count, 0);

  /* A write between the two calls may make either answer stale.  A range that
   * was a hole during one of them counts as a hole for this request.
   */
  while (offset < end && list->len < max) {
    uint64_t holes_made, known = remembered_end (f, offset, &holes_made);
    off_t data, hole;

    if (known) {
      known = MIN (known, end);
      if (extents_add (list, offset, known - offset, 0) == -1)
        return file_failed ();
      offset = known;
      continue;
    }

    data = lseek (f->fd, offset, SEEK_DATA);
    if (data == -1 && errno == ENXIO)
      return add_last_hole (f, offset, end, list);
    if (data == -1)
      return file_failed ();
    if ((uint64_t)data > offset) {
      uint64_t stop = MIN ((uint64_t)data, end);

      if (extents_add (list, offset, stop - offset,
                       EXTENT_HOLE | EXTENT_ZERO) == -1)
        return file_failed ();
      offset = stop;
      continue;
    }

    hole = lseek (f->fd, offset, SEEK_HOLE);
    if (hole == -1 || (uint64_t)hole <= offset) {
      /* Trimmed between the two calls, or the file became shorter. */
      if (hole == -1 && errno != ENXIO)
        return file_failed ();
      return extents_add (list, offset, end - offset, 0);
    }
    remember_data (f, offset, hole, holes_made);
    hole = MIN ((uint64_t)hole, end);
    if (extents_add (list, offset, hole - offset, 0) == -1)
      return file_failed ();
    offset = hole;
  }
  return 0;
}
