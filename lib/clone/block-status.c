/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>

#include "base/cleanup.h"
#include "base/extents.h"
#include "base/rounding.h"
#include "clone/private.h"

/* Ask a backend.  While its server is lost the range is data. */
static int
status_ask (struct backend *b, uint64_t count, uint64_t offset,
            unsigned flags, struct extents *list)
{
  if (backend_extents (b, count, offset, flags, list) == 0)
    return 0;
  if (errno != ENOTCONN)
    return -1;
  extents_clear (list);
  return extents_add (list, offset, count, 0);
}

/* Questions to the destination for one request.  If it is a server each costs a
 * round trip; a request with more runs gets a shorter answer.
 */
#define MAX_ASKED 16

/* Append to result what list says about [start, end).  If list is empty, ask b
 * about [start, ask_end) first.  1 if list covers all of the range, 0 if it
 * ends earlier, -1 on error.
 */
static int
status_add (struct backend *b, uint64_t start, uint64_t end,
            uint64_t ask_end, unsigned flags, struct extents *list,
            struct extents *result)
{
  if (list->len == 0 &&
      status_ask (b, ask_end - start, start, flags, list) == -1)
    return -1;
  for (size_t i = 0; i < list->len && start < end; ++i) {
    const struct extent *e = &list->extent[i];
    uint64_t stop = MIN (end, e->offset + e->length);

    if (stop <= start)
      continue;
    if (extents_add (result, start, stop - start, e->flags) == -1)
      return -1;
    start = stop;
  }
  return start == end;
}

static int
status_once (struct clone *c, uint32_t count, uint64_t offset,
             unsigned flags, struct extents *list)
{
  CLEANUP_EXTENTS_FREE struct extents from_source = EXTENTS_INIT;
  CLEANUP_EXTENTS_FREE struct extents from_dest = EXTENTS_INIT;
  const uint64_t end = offset + count;
  struct backend *source = clone_source_get (c);
  unsigned asked = 0;
  uint64_t n;
  bool valid;
  int r = 1;

  for (uint64_t pos = offset; pos < end && r == 1; pos += n) {
    n = region_map_run_bytes (c->map, pos, end, &valid);
    /* The source never changes, so one answer serves all runs.  If the source
     * is closed, all is valid by now.
     */
    if (!valid && source)
      r = status_add (source, pos, pos + n, end, flags, &from_source, list);
    /* The destination is asked after the look at the map, and about this run
     * only: an older or longer answer could show a hole where hydration has
     * written data since.
     */
    else if (asked++ < MAX_ASKED) {
      extents_clear (&from_dest);
      r = status_add (c->dest, pos, pos + n, pos + n, flags, &from_dest, list);
    }
    else
      break;
    if ((flags & BACKEND_REQ_ONE) && list->len > 1)
      break;
  }

  if (source)
    clone_source_put (c);
  return r == -1 ? -1 : 0;
}

/* If the map was set back meanwhile, the destination may have been asked about
 * an invalid region: ask again.
 */
int
clone_extents (struct clone *c, uint32_t count, uint64_t offset,
               unsigned flags, struct extents *list)
{
  uint64_t closings;
  int r;

  do {
    closings = gate_closings (&c->gate);
    extents_clear (list);
    r = status_once (c, count, offset, flags, list);
  } while (r == 0 && closings != gate_closings (&c->gate));
  return r;
}
