/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/fetch.h"
#include "clone/install.h"
#include "clone/private.h"
#include "clone/retry.h"

/* Give the run that install_next found these bytes.  NULL: they are there. */
static int
fetch_write_run (const struct install *i, const uint8_t *buf)
{
  struct backend *dest = i->clone->dest;
  uint64_t n;
  bool zero;
  int r = 0;

  if (buf == NULL)
    return 0;
  for (uint64_t pos = i->pos; pos < i->run_end && r == 0; pos += n) {
    const uint8_t *p = buf + (pos - i->start);

    n = install_zero_run (i, p, i->run_end - pos, &zero);
    r = zero ? backend_zero (dest, n, pos, install_zero_flags (i->clone))
      : backend_pwrite (dest, p, n, pos, 0);
    clone_check_dest (i->clone, r, "write", n, pos);
  }
  return r;
}

/* Install a range, inside the gate. */
static int
fetch_install_owned (struct install *i, uint64_t closings, const uint8_t *buf)
{
  struct gate_pass pass;
  int r;

  gate_enter (&i->clone->gate, &pass);
  install_own (i);
  r = clone_check_not_set_back (i->clone, closings);
  while (r == 0 && (r = install_next (i)) == 1) {
    r = fetch_write_run (i, buf);
    if (r == 0)
      install_set (i);
  }
  install_release (i);
  gate_leave (&i->clone->gate, &pass);
  return r;
}

int
fetch_install (struct clone *c, uint64_t closings, const uint8_t *buf,
               uint64_t start, uint64_t end)
{
  struct install i = {
    .clone = c, .by = INSTALL_COPY, .start = start, .end = end,
  };

  return fetch_install_owned (&i, closings, buf);
}

static int
fetch_read (struct clone *c, struct backend *source, uint8_t *buf,
            uint64_t start, uint64_t end)
{
  const struct segment seg = { buf, end - start, start };

  return source_read (c, source, &seg, 1);
}

int
fetch_piecewise (struct clone *c, struct backend *source, uint8_t *buf,
                 uint64_t start, uint64_t end)
{
  const uint64_t region = start / region_map_region_size (c->map);
  const uint64_t closings = gate_closings (&c->gate);
  int r = 0;

  for (; start < end && r == 0; start += CLONE_COPY_MAX) {
    struct install i = {
      .clone = c, .by = INSTALL_COPY, .piece = true,
      .start = start, .end = MIN (end, start + CLONE_COPY_MAX),
    };

    if (region_map_is_valid (c->map, region))
      return 0;
    r = fetch_read (c, source, buf, i.start, i.end);
    if (r == 0)
      r = fetch_install_owned (&i, closings, buf);
  }
  return r;
}

uint64_t
fetch_step (const struct clone *c)
{
  return MAX (region_map_region_size (c->map), CLONE_COPY_MAX);
}

int
fetch_regions (struct clone *c, struct backend *source, uint64_t start,
               uint64_t end)
{
  CLEANUP_FREE uint8_t *buf = malloc (MIN (end - start, CLONE_COPY_MAX));
  const uint64_t step = fetch_step (c);
  uint64_t n;
  bool valid;
  int r = buf ? 0 : -1;

  for (; start < end && r == 0; start += n) {
    const uint64_t closings = gate_closings (&c->gate);

    n = region_map_run_bytes (c->map, start, end, &valid);
    if (valid)
      continue;
    n = MIN (n, step);
    /* A large region: piece by piece, then it becomes valid as a whole. */
    r = n <= CLONE_COPY_MAX ? fetch_read (c, source, buf, start, start + n)
      : fetch_piecewise (c, source, buf, start, start + n);
    if (r == 0)
      r = fetch_install (c, closings, n <= CLONE_COPY_MAX ? buf : NULL, start,
                         start + n);
  }
  return r;
}

static int
fetch_cache_once (struct clone *c, uint32_t count, uint64_t offset)
{
  const uint64_t region_size = region_map_region_size (c->map);
  const uint64_t start = round_down (offset, region_size);
  const uint64_t end = MIN (round_up (offset + count, region_size), c->size);
  struct backend *source;
  bool valid;
  int r;

  if (region_map_run_bytes (c->map, start, end, &valid) == end - start && valid)
    return 0;
  source = clone_source_get (c);
  if (source == NULL)
    return 0;
  r = fetch_regions (c, source, start, end);
  clone_source_put (c);
  return r;
}

int
clone_cache (struct clone *c, uint32_t count, uint64_t offset)
{
  const int r = RETRY_WHILE_LOST (c, fetch_cache_once (c, count, offset));

  counters_count (&c->counters, COUNTED_CACHE, COUNTED_ALL);
  return r;
}
