/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/iszero.h"
#include "base/log.h"
#include "base/rounding.h"
#include "base/test-point.h"
#include "clone/install.h"
#include "clone/private.h"

static const char *const installer[] = {
  [INSTALL_CHANGE] = "a client's change",
  [INSTALL_COPY] = "copied for a client",
  [INSTALL_HYDRATION] = "hydrated",
};

/* The test point of a step, by the kind of installer. */
#define INSTALL_POINT(i, step)                                          \
  do {                                                                  \
    switch ((i)->by) {                                                  \
    case INSTALL_CHANGE: TEST_POINT (CHANGE_ ## step); break;           \
    case INSTALL_COPY: TEST_POINT (COPY_ ## step); break;               \
    case INSTALL_HYDRATION: TEST_POINT (HYDRATE_ ## step); break;       \
    }                                                                   \
  } while (0)

static void
install_begin (struct install *i)
{
  i->pos = i->run_end = i->start;
  INSTALL_POINT (i, UNOWNED);
}

void
install_own (struct install *i)
{
  install_begin (i);
  range_lock_acquire (&i->clone->ownership, &i->owner, i->start, i->end);
  INSTALL_POINT (i, OWNED);
}

bool
install_enter (struct install *i)
{
  return gate_try_enter (&i->clone->gate, &i->pass);
}

void
install_leave (struct install *i)
{
  gate_leave (&i->clone->gate, &i->pass);
}

static void
install_granted (struct owner *owner)
{
  struct install *i = owner->opaque;

  i->owned (i);
}

bool
install_request (struct install *i)
{
  install_begin (i);
  i->owner.opaque = i;
  return range_lock_request (&i->clone->ownership, &i->owner, i->start, i->end,
                             install_granted);
}

int
install_may_set (struct install *i)
{
  if (commit_may_set (i->clone->commit))
    return 0;
  errno = EIO;
  return -1;
}

/* The end of the run at i->pos, all of whose bytes are in one state. */
static uint64_t
install_look (const struct install *i, bool *valid)
{
  struct clone *c = i->clone;

  if (!i->piece)
    return i->pos + region_map_run_bytes (c->map, i->pos, i->end, valid);
  *valid = region_map_is_valid (c->map,
                                i->start / region_map_region_size (c->map));
  return i->end;
}

int
install_next (struct install *i)
{
  bool valid;

  if (i->by == INSTALL_HYDRATION)
    TEST_POINT (HYDRATE_OWNED);
  for (; i->pos < i->end; i->pos = i->run_end) {
    i->run_end = install_look (i, &valid);
    if (!valid)
      return install_may_set (i) == -1 ? -1 : 1;
  }
  return 0;
}

void
install_set_all (struct install *i, uint64_t start, uint64_t end)
{
  struct clone *c = i->clone;
  uint64_t first, count;

  INSTALL_POINT (i, WRITTEN);
  clone_regions_of (c, start, end, &first, &count);
  region_map_set (c->map, first, count);
  log_debug (c->log, LOG_REGION, "region %" PRIu64 "+%" PRIu64 ": valid, %s",
             first, count, installer[i->by]);
  INSTALL_POINT (i, SET);
}

void
install_set (struct install *i)
{
  if (!i->piece)
    install_set_all (i, i->pos, i->run_end);
  i->pos = i->run_end;
}

void
install_release (struct install *i)
{
  range_lock_release (&i->clone->ownership, &i->owner);
}

/* The granule of runs of zeroes.  For a server, shorter runs are sent as data,
 * because that costs less than another request.
 */
#define ZERO_GRANULE_MAX (UINT64_C (64) << 10)

uint64_t
install_zero_run (const struct install *i, const void *buf, uint64_t count,
                  bool *zero)
{
  const struct clone *c = i->clone;
  const uint64_t granule = MIN (region_map_region_size (c->map),
                                ZERO_GRANULE_MAX);

  return zero_run (buf, count, granule, backend_has_peer (c->dest)
                   ? ZERO_GRANULE_MAX : granule, zero);
}

unsigned
install_zero_flags (const struct clone *c)
{
  return BACKEND_IF_DATA |
    (c->options.discard_passdown ? BACKEND_MAY_TRIM : 0);
}
