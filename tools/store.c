/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/rounding.h"
#include "nbdclone.h"
#include "store.h"

/* ---- opening ---- */

/* Log why there is no current superblock. */
static void
log_unrepairable (const struct store *store)
{
  const char *const *wrong = store->found.wrong;
  const char *name = store->backend->name;

  switch (store->found.presence) {
  case METADATA_UNSUPPORTED:
    log_error (&tool_log, "%s is not damaged, but this program does not know "
               "%s; use a newer one", name, store->found.unsupported);
    break;
  case METADATA_ABSENT:
    log_error (&tool_log, "%s holds no metadata: both superblocks, at offsets "
               "%d and %d, are all zeroes, as after an interrupted "
               "creation; if there was a clone, restore a copy of its "
               "metadata", name, METADATA_SUPERBLOCK_A, METADATA_SUPERBLOCK_B);
    break;
  case METADATA_FOREIGN:
    log_error (&tool_log, "%s is not a clone's metadata: there is no "
               "superblock at offset %d or %d", name, METADATA_SUPERBLOCK_A,
               METADATA_SUPERBLOCK_B);
    break;
  case METADATA_PRESENT:
    log_error (&tool_log, "%s cannot be repaired: the superblocks at offsets "
               "%d and %d belong to different stores; restore a copy of the "
               "metadata, or start over with a new destination", name,
               METADATA_SUPERBLOCK_A, METADATA_SUPERBLOCK_B);
    break;
  default:
    log_error (&tool_log, "%s cannot be repaired: both superblocks are "
               "damaged: %s at offset %d, %s at offset %d; restore a copy of "
               "the metadata, or start over with a new destination", name,
               wrong[0], METADATA_SUPERBLOCK_A,
               wrong[1], METADATA_SUPERBLOCK_B);
  }
}

int
store_open (struct store *store, const char *name)
{
  const struct backend_params params = {
    .role = "metadata", .name = name, .readonly = true, .lock = true,
    .connections = 1
  };

  memset (store, 0, sizeof *store);
  store->backend = backend_open (&params, &tool_log);
  if (store->backend == NULL) {
    if (errno == ENOENT)
      log_error (&tool_log, "cannot open metadata %s: %m", name);
    return EXIT_TROUBLE;
  }
  if (metadata_read_superblocks (store->backend, &store->found) == -1) {
    log_error (&tool_log, "metadata %s: cannot read the superblocks: %m; "
               "copy what can be read to a file, with ddrescue for example, "
               "and use that", name);
    return EXIT_TROUBLE;
  }
  if (store->found.current == -1) {
    log_unrepairable (store);
    return EXIT_UNREPAIRABLE;
  }

  store->sb = &store->found.sb[store->found.current];
  store->regions = div_round_up (store->sb->size, store->sb->region_size);
  store->sectors = metadata_sectors (store->sb->size, store->sb->region_size);
  store->expected_size = metadata_store_size (store->sb->size,
                                              store->sb->region_size);
  return EXIT_CLEAN;
}

void
store_close (struct store *store)
{
  backend_close (store->backend);
}

/* ---- regions ---- */

uint64_t
store_first_region (uint32_t first)
{
  return (uint64_t)first * REGIONS_PER_SECTOR;
}

uint64_t
store_last_region (const struct store *store, uint32_t last)
{
  return MIN (store_first_region (last) + REGIONS_PER_SECTOR,
              store->regions) - 1;
}

uint64_t
store_end_byte (const struct store *store, uint64_t last)
{
  return MIN ((last + 1) * store->sb->region_size, store->sb->size);
}

/* Set the bits of sector s that stand for a region. */
static void
existing_regions (const struct store *store, uint32_t s,
                  uint64_t words[WORDS_PER_SECTOR])
{
  uint64_t n = store_last_region (store, s) - store_first_region (s) + 1;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    uint64_t bits = MIN (n, UINT64_C (64));

    words[i] = bits == 64 ? UINT64_MAX : (UINT64_C (1) << bits) - 1;
    n -= bits;
  }
}

static uint64_t
count_bits (const uint64_t words[WORDS_PER_SECTOR])
{
  uint64_t n = 0;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    n += __builtin_popcountll (words[i]);
  return n;
}

static uint64_t
first_zero (const uint64_t words[WORDS_PER_SECTOR])
{
  unsigned i = 0;

  while (i < WORDS_PER_SECTOR - 1 && words[i] == UINT64_MAX)
    ++i;
  return i * 64 + (words[i] == UINT64_MAX ? 0 : __builtin_ctzll (~words[i]));
}

/* ---- examining ---- */

struct examination {
  struct store *store;
  store_damage *report;
  void *opaque;
  uint64_t zeroes;             /* regions with bit 0 in valid sectors */
};

static int
examine_sector (void *opaque, uint32_t s, const char *wrong,
                const uint64_t words[WORDS_PER_SECTOR])
{
  struct examination *e = opaque;
  struct store *store = e->store;
  const uint64_t first = store_first_region (s);
  const uint64_t regions = store_last_region (store, s) - first + 1;
  uint64_t ones;

  if (wrong) {
    store->damaged++;
    store->unknown += regions;
    if (e->report)
      e->report (e->opaque, s, wrong);
    return 0;
  }
  ones = count_bits (words);
  if (e->zeroes == 0 && ones < regions)
    store->first_contradicting = first + first_zero (words);
  store->valid += ones;
  e->zeroes += regions - ones;
  return 0;
}

int
store_examine (struct store *store, store_damage *report, void *opaque)
{
  struct examination e = { store, report, opaque, 0 };

  if (metadata_walk (store->backend, store->sb, examine_sector, &e,
                     &tool_log) == -1)
    return -1;

  if (!(store->sb->flags & METADATA_COMPLETE))
    store->invalid = e.zeroes;
  else if (e.zeroes > 0) {
    store->contradicting = e.zeroes;
    store->unknown += e.zeroes;
  }
  else {
    store->believe_complete = true;
    store->valid += store->unknown;
    store->unknown = 0;
  }
  return 0;
}

bool
store_is_clean (const struct store *store)
{
  return !store->found.wrong[0] && !store->found.wrong[1] &&
    store->backend->size >= store->expected_size &&
    store->damaged == 0 && store->contradicting == 0;
}

/* ---- walking ---- */

struct walk {
  const struct store *store;
  store_visitor *visit;
  void *opaque;
};

static int
walk_sector (void *opaque, uint32_t s, const char *wrong,
             const uint64_t words[WORDS_PER_SECTOR])
{
  static const uint64_t none[WORDS_PER_SECTOR];
  const struct walk *w = opaque;
  uint64_t all[WORDS_PER_SECTOR];

  existing_regions (w->store, s, all);
  if (wrong && w->store->believe_complete)
    return w->visit (w->opaque, s, all, none);
  if (wrong)
    return w->visit (w->opaque, s, none, all);
  if (w->store->contradicting == 0)
    return w->visit (w->opaque, s, words, none);

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    all[i] &= ~words[i];
  return w->visit (w->opaque, s, words, all);
}

int
store_walk (const struct store *store, store_visitor *visit, void *opaque)
{
  struct walk w = { store, visit, opaque };

  return metadata_walk (store->backend, store->sb, walk_sector, &w, &tool_log);
}
