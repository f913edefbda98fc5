/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include <libnbd.h>

#include "request.h"

static const char *const names[REQUEST_TYPES] = {
  "read", "write", "zero", "trim", "flush", "cache", "extents",
};

void
request_free (struct request *r)
{
  struct other *o, *next;

  for (o = r->other; o; o = next) {
    next = o->next;
    free (o);
  }
  free (r->seen);
}

const uint8_t *
request_bytes (const struct request *r, uint64_t sector)
{
  for (const struct other *o = r->other; o; o = o->next)
    if (o->index == sector - request_first (r))
      return o->bytes;
  return NULL;
}

void
request_print (FILE *fp, const struct request *r, uint64_t sector)
{
  fprintf (fp, "%13.6f %13.6f  %4u  %-7s %10" PRIu64 "+%-8" PRIu32,
           r->start / 1e9, r->end / 1e9, r->connection, names[r->type],
           r->offset, r->count);
  if (r->type == REQUEST_WRITE)
    value_print (fp, r->value);
  else if (r->seen && r->seen[sector - request_first (r)] == VALUE_NONE)
    fprintf (fp, "-> data, perhaps");
  else if (r->seen) {
    fprintf (fp, "-> ");
    value_print (fp, r->seen[sector - request_first (r)]);
  }
  if (r->flags & LIBNBD_CMD_FLAG_FUA)
    fprintf (fp, " fua");
  if (r->flags & LIBNBD_CMD_FLAG_NO_HOLE)
    fprintf (fp, " no-hole");
  if (r->flags & LIBNBD_CMD_FLAG_FAST_ZERO)
    fprintf (fp, " fast");
  if (r->refused)
    fprintf (fp, ", refused");
  fprintf (fp, "\n");
}
