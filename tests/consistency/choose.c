/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <libnbd.h>

#include "base/rounding.h"
#include "choose.h"
#include "random.h"

#define WINDOW_MIN (UINT64_C (64) << 10)
#define WINDOW_DOUBLINGS 7 /* up to 4 MiB */

/* In units of the alignment. */
#define SPOT_LENGTH 16
#define WINDOW_LENGTH 128
#define ANYWHERE_LENGTH 32

void
choose_begin_round (struct chooser *c, uint64_t round, uint64_t rounds)
{
  const struct area *a = c->area;
  uint64_t shared = c->seed + round, room;

  random_next (&shared);
  c->window_size = MIN (WINDOW_MIN << random_below (&shared, WINDOW_DOUBLINGS),
                        a->size);
  room = (a->size - c->window_size) / a->align + 1;
  c->window = a->offset + a->align *
    (round % 2 ? random_below (&shared, room)
     : (uint64_t)((double)room * round / rounds));
  for (unsigned i = 0; i < CHOOSE_SPOTS; ++i)
    c->spot[i] = c->window +
      round_down (random_below (&shared, c->window_size), a->align);

  c->random = shared ^ (uint64_t)c->connection << 32;
  random_next (&c->random);
}

/* One of 1000 things, by weight.  Flushes are rare, for all others wait while a
 * disk does one.
 */
static enum request_type
choose_type (struct chooser *c)
{
  static const struct { enum request_type type; unsigned weight; } mix[] = {
    { REQUEST_READ, 368 }, { REQUEST_WRITE, 380 }, { REQUEST_ZERO, 70 },
    { REQUEST_TRIM, 70 }, { REQUEST_CACHE, 60 }, { REQUEST_EXTENTS, 50 },
    { REQUEST_FLUSH, 2 },
  };
  uint64_t n = random_below (&c->random, 1000);
  unsigned i = 0;

  while (n >= mix[i].weight)
    n -= mix[i++].weight;
  return c->area->can[mix[i].type] ? mix[i].type : REQUEST_READ;
}

static uint32_t
choose_flags (struct chooser *c, enum request_type type)
{
  const bool changes = type == REQUEST_WRITE || type == REQUEST_ZERO ||
    type == REQUEST_TRIM;
  uint32_t flags = 0;

  if (changes && c->area->can_fua && random_below (&c->random, 512) == 0)
    flags |= LIBNBD_CMD_FLAG_FUA;
  if (type == REQUEST_ZERO && random_below (&c->random, 3) == 0)
    flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  if (type == REQUEST_ZERO && c->area->can_fast_zero &&
      random_below (&c->random, 3) == 0)
    flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
  return flags;
}

/* Blocks of a common size, sometimes with a bit less or more at either end. */
static void
choose_blocks (struct chooser *c, uint64_t *start, uint64_t *end)
{
  static const uint64_t sizes[] = { 4 << 10, 4 << 10, 4 << 10, 4 << 10,
                                    64 << 10, 64 << 10, 1 << 20 };
  const struct area *a = c->area;
  const uint64_t size =
    MAX (sizes[random_below (&c->random, sizeof sizes / sizeof sizes[0])],
         a->align);

  *start = round_down (c->window + random_below (&c->random, c->window_size),
                       size);
  *end = *start + size * (1 + random_below (&c->random, 3));
  if (random_below (&c->random, 3) == 0)
    *start += a->align * random_below (&c->random, size / a->align);
  if (random_below (&c->random, 3) == 0)
    *end -= a->align * random_below (&c->random, size / a->align);
}

static void
choose_range (struct chooser *c, uint64_t *start, uint64_t *end)
{
  const struct area *a = c->area;
  const uint64_t kind = random_below (&c->random, 100);
  uint64_t length;

  if (kind < 50) {
    *start = c->spot[random_below (&c->random, CHOOSE_SPOTS)] +
      a->align * random_below (&c->random, SPOT_LENGTH);
    length = random_magnitude (&c->random, SPOT_LENGTH);
  }
  else if (kind < 86) {
    *start = c->window + random_below (&c->random, c->window_size);
    length = random_magnitude (&c->random, WINDOW_LENGTH);
  }
  else if (kind < 90) {
    *start = a->offset + random_below (&c->random, a->size);
    length = random_magnitude (&c->random, ANYWHERE_LENGTH);
  }
  else {
    choose_blocks (c, start, end);
    return;
  }
  *start = round_down (*start, a->align);
  *end = *start + length * a->align;
}

void
choose_request (struct chooser *c, struct request *r)
{
  const struct area *a = c->area;
  const uint64_t limit = a->offset + a->size;
  uint64_t start, end, most;

  r->type = choose_type (c);
  r->flags = choose_flags (c, r->type);
  if (r->type == REQUEST_FLUSH)
    return;

  choose_range (c, &start, &end);
  start = MAX (start, a->offset);
  start = MIN (start, limit - a->align);
  most = MIN (limit - start, a->max_length);
  r->offset = start;
  r->count = end > start ? MIN (end - start, most) : a->align;
}
