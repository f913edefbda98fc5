/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "value.h"

/* Something that was done to one sector. */
struct version {
  const struct mock_call *call;
  const uint8_t *content;  /* NULL: zeroes */
  uint64_t durable;        /* the tick at which it became so */
};

struct versions {
  struct version *v;       /* in the order in which they took effect */
  size_t n, alloc;
};

struct device {
  const uint8_t *before;
  struct versions *sector;
  uint64_t sectors;
  uint64_t *changed;       /* the sectors that have versions */
  uint64_t nr_changed;
};

const char *const keep_names[KEEPS] = {
  "nothing", "everything", "what had returned", "some", "most", "any"
};

static bool
changes (const struct mock_call *call, bool trims)
{
  return call->kind == MOCK_PWRITE || call->kind == MOCK_ZERO ||
    (call->kind == MOCK_TRIM && trims);
}

/* A call that failed may have been done in part. */
static uint64_t
effect_of (const struct mock_call *call)
{
  return call->error ? call->end : call->effect;
}

static int
compare_effect (const void *a, const void *b)
{
  const uint64_t x = effect_of (*(const struct mock_call **)a);
  const uint64_t y = effect_of (*(const struct mock_call **)b);

  return (x > y) - (x < y);
}

/* The first flush that failed when this had taken effect: after that no flush
 * writes it any more.  (One whose server was lost has not even tried.)
 */
static uint64_t
lost_at (struct mock_log *log, const struct mock_call *call)
{
  uint64_t lost = UINT64_MAX;
  const struct mock_call *f;

  for (size_t i = 0; (f = mock_log_call (log, i)) != NULL; ++i)
    if (f->mock == call->mock && f->kind == MOCK_FLUSH && f->error != 0 &&
        f->error != ENOTCONN &&
        f->end > call->effect && f->start < lost)
      lost = f->start;
  return lost;
}

/* When did what this call wrote become durable? */
static uint64_t
durable_at (struct mock_log *log, const struct mock_call *call)
{
  const uint64_t lost = lost_at (log, call);
  uint64_t durable = call->flags & BACKEND_FUA ? call->end : UINT64_MAX;
  const struct mock_call *f;

  if (call->error)
    return UINT64_MAX;
  for (size_t i = 0; (f = mock_log_call (log, i)) != NULL; ++i)
    if (f->mock == call->mock && f->kind == MOCK_FLUSH && f->error == 0 &&
        f->start > call->end && f->end < lost && f->end < durable)
      durable = f->end;
  return durable;
}

static void
add_version (struct versions *vs, const struct version *v)
{
  if (vs->n == vs->alloc) {
    vs->alloc = vs->alloc ? vs->alloc * 2 : 4;
    vs->v = reallocarray (vs->v, vs->alloc, sizeof *vs->v);
    if (vs->v == NULL)
      abort ();
  }
  vs->v[vs->n++] = *v;
}

/* Every call of the lab is on whole sectors. */
static void
add_call (struct device *dev, struct mock_log *log,
          const struct mock_call *call)
{
  struct version v = { .call = call, .durable = durable_at (log, call) };
  const uint8_t *data = call->data;

  for (size_t i = 0; i < call->n; ++i) {
    const struct mock_range *r = &call->range[i];

    if (r->offset % SECTOR || r->count % SECTOR)
      abort ();
    for (uint64_t pos = 0; pos < r->count; pos += SECTOR) {
      v.content = data ? data + pos : NULL;
      add_version (&dev->sector[(r->offset + pos) / SECTOR], &v);
    }
    if (data)
      data += r->count;
  }
}

struct device *
device_new (struct mock_log *log, const struct mock *m, uint64_t size,
            const uint8_t *before, bool trims)
{
  struct device *dev = calloc (1, sizeof *dev);
  const size_t len = mock_log_len (log);
  const struct mock_call **calls = calloc (len + 1, sizeof *calls);
  size_t n = 0;

  if (dev == NULL || calls == NULL || size % SECTOR)
    abort ();
  dev->before = before;
  dev->sectors = size / SECTOR;
  dev->sector = calloc (dev->sectors, sizeof *dev->sector);
  dev->changed = calloc (dev->sectors, sizeof *dev->changed);
  if (dev->sector == NULL || dev->changed == NULL)
    abort ();

  for (size_t i = 0; i < len; ++i) {
    const struct mock_call *call = mock_log_call (log, i);

    if (call->mock == m && changes (call, trims))
      calls[n++] = call;
  }
  qsort (calls, n, sizeof *calls, compare_effect);
  for (size_t i = 0; i < n; ++i)
    add_call (dev, log, calls[i]);
  free (calls);
  for (uint64_t s = 0; s < dev->sectors; ++s)
    if (dev->sector[s].n > 0)
      dev->changed[dev->nr_changed++] = s;
  return dev;
}

void
device_free (struct device *dev)
{
  for (uint64_t s = 0; s < dev->sectors; ++s)
    free (dev->sector[s].v);
  free (dev->sector);
  free (dev->changed);
  free (dev);
}

/* How a random image throws its dice: the chance in 8 that a sector has the
 * oldest or the newest of its versions, and not any of them.
 */
static unsigned
chance (enum keep keep)
{
  return keep == KEEP_ANY ? 0 : 6;
}

/* The index of the version that this sector gets; -1 is what was before.  Sets
 * *others where there are other legal ones.
 */
static long
choose (const struct versions *vs, uint64_t cut, enum keep keep,
        uint64_t *seed, bool *others)
{
  long oldest = -1, newest, returned, legal[16];
  size_t n = 0;

  for (size_t i = 0; i < vs->n; ++i)
    if (vs->v[i].durable <= cut)
      oldest = i;

  newest = returned = legal[n++] = oldest;
  for (size_t i = oldest + 1; i < vs->n; ++i) {
    if (vs->v[i].call->start > cut)
      continue;
    newest = i;
    if (effect_of (vs->v[i].call) <= cut)
      returned = i;
    if (n < sizeof legal / sizeof legal[0])
      legal[n++] = i;
    else
      legal[1 + mock_random (seed) % (n - 1)] = i;
  }
  *others |= n > 1;

  switch (keep) {
  case KEEP_NOTHING: return oldest;
  case KEEP_ALL: return newest;
  case KEEP_RETURNED: return returned;
  default: break;
  }
  if (n == 1)
    return oldest;
  if (mock_random (seed) % 8 < chance (keep))
    return keep == KEEP_SOME ? oldest : newest;
  return legal[mock_random (seed) % n];
}

bool
device_image (const struct device *dev, uint64_t cut, enum keep keep,
              uint64_t *seed, uint8_t *image)
{
  bool others = false;

  for (uint64_t n = 0; n < dev->nr_changed; ++n) {
    const uint64_t s = dev->changed[n];
    const struct versions *vs = &dev->sector[s];
    const long i = choose (vs, cut, keep, seed, &others);
    const uint8_t *content =
      i == -1 ? dev->before + s * SECTOR : vs->v[i].content;

    if (content)
      memcpy (image + s * SECTOR, content, SECTOR);
    else
      memset (image + s * SECTOR, 0, SECTOR);
  }
  return others;
}
