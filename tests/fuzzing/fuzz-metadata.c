/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A fuzzer for the metadata's loader.
 *
 * The input becomes a store in memory, which is probed, opened and loaded.
 * Whatever the bytes are, there is no crash, no leak, and no access out of
 * bounds, neither in memory nor in the store.  If the store loads,
 *
 *   - the current superblock and every bitmap sector have the right magic and
 *     checksum,
 *   - no superblock with a right checksum has an unknown version or an incompat
 *     feature, and the current one has no ro_compat feature,
 *   - a region is valid in the map if and only if its bit is 1 in the store,
 *   - with the complete flag, all regions are valid,
 *   - setting flags and the destination's identity changes none of that, and no
 *     byte of the features, and the store opens again.
 *
 * The fuzzer checks this with its own reading of the format in metadata.h, and
 * its own checksum.
 *
 * Input: byte 0 says how to make a store of the rest, see enum how.  The rest
 * is the used sectors of the store, one after the other: superblocks A and B,
 * bitmap sectors 0, 1, ...; or with HOW_RAW the store as it is.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rounding.h"
#include "store/bitmap.h"
#include "store/metadata.h"
#include "store/superblock.h"

enum how {
  HOW_FIX_SUPERBLOCKS = 1, /* make their checksums right */
  HOW_FIX_BITMAP = 2,      /* make magic and checksums of the bitmap right */
  HOW_SAME_STORE = 4,      /* B gets A's fields but generation and flags */
  HOW_FIT = 8,             /* set the size to that of the bitmap */
  HOW_RAW = 16,
};

#define STORE_MAX (UINT32_C (64) << 10)

#define CHECK(cond)                                                     \
  do {                                                                  \
    if (!(cond)) {                                                      \
      fprintf (stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
      abort ();                                                         \
    }                                                                   \
  } while (0)

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* ---- a backend in memory: the functions that the loader calls ---- */

static uint8_t *store;
static struct backend backend;

static uint8_t *
range (uint64_t count, uint64_t offset)
{
  CHECK (count > 0 && offset <= backend.size &&
         count <= backend.size - offset);
  return store + offset;
}

int
backend_preadv (struct backend *b, const struct segment *seg, size_t n)
{
  for (size_t i = 0; i < n; ++i)
    memcpy (seg[i].buf, range (seg[i].count, seg[i].offset), seg[i].count);
  return 0;
}

int
backend_pread (struct backend *b, void *buf, size_t count, uint64_t offset)
{
  memcpy (buf, range (count, offset), count);
  return 0;
}

int
backend_pwritev (struct backend *b, const struct segment *seg, size_t n,
                 unsigned flags)
{
  for (size_t i = 0; i < n; ++i)
    memcpy (range (seg[i].count, seg[i].offset), seg[i].buf, seg[i].count);
  return 0;
}

int
backend_pwrite (struct backend *b, const void *buf, size_t count,
                uint64_t offset, unsigned flags)
{
  memcpy (range (count, offset), buf, count);
  return 0;
}

int
backend_zero (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags)
{
  memset (range (count, offset), 0, count);
  return 0;
}

int
backend_flush (struct backend *b)
{
  return 0;
}

void
backend_log_failure (struct backend *b, const char *role, const char *what)
{
  log_error (b->log, "%s %s: %s: %m", role, b->name, what);
}

void
backend_close (struct backend *b)
{
}

/* ---- messages: formatted, to find wrong arguments ---- */

static unsigned errors;

static void
format (const char *fmt, va_list args)
{
  char message[1024];

  vsnprintf (message, sizeof message, fmt, args);
  CHECK (strchr (message, '\n') == NULL);
}

static void
on_error (const char *fmt, va_list args)
{
  errors++;
  format (fmt, args);
}

static bool
wants (enum log_topic topic)
{
  return false;
}

static const struct log messages = {
  .error = on_error, .info = format, .debug = format, .wants = wants,
};

/* ---- the format, read independently ---- */

static uint32_t
crc_add (uint32_t crc, const uint8_t *p, size_t n)
{
  static uint32_t table[256];

  if (table[1] == 0)
    for (unsigned i = 0; i < 256; ++i) {
      table[i] = i;
      for (unsigned bit = 0; bit < 8; ++bit)
        table[i] = table[i] >> 1 ^ (table[i] & 1 ? UINT32_C (0x82f63b78) : 0);
    }
  for (; n > 0; --n, ++p)
    crc = crc >> 8 ^ table[(crc ^ *p) & 0xff];
  return crc;
}

static uint64_t
get_le (const uint8_t *p, unsigned bytes)
{
  uint64_t v = 0;

  while (bytes > 0)
    v = v << 8 | p[--bytes];
  return v;
}

static void
put_le (uint8_t *p, unsigned bytes, uint64_t v)
{
  for (unsigned i = 0; i < bytes; ++i, v >>= 8)
    p[i] = v;
}

static uint32_t
superblock_crc (const uint8_t *sb)
{
  static const uint8_t zero[4];
  uint32_t crc = UINT32_MAX;

  crc = crc_add (crc, sb, 12);
  crc = crc_add (crc, zero, 4);
  return ~crc_add (crc, sb + 16, METADATA_SECTOR - 16);
}

static uint32_t
bitmap_crc (const uint8_t *uuid, uint64_t s, const uint8_t *sector)
{
  uint8_t number[8];
  uint32_t crc = UINT32_MAX;

  put_le (number, sizeof number, s);
  crc = crc_add (crc, uuid, METADATA_UUID_SIZE);
  crc = crc_add (crc, number, sizeof number);
  return ~crc_add (crc, sector, METADATA_SECTOR - 4);
}

static uint8_t *
superblock (unsigned i)
{
  return store + 4096 * i;
}

static uint8_t *
bitmap_sector (uint64_t s)
{
  return store + 8192 + METADATA_SECTOR * s;
}

/* ---- from input to store ---- */

/* Copy a sector of the input, or what is left of it. */
static size_t
take_sector (uint8_t *to, const uint8_t *data, size_t size)
{
  size_t n = MIN (size, (size_t)METADATA_SECTOR);

  memcpy (to, data, n);
  return n;
}

static void
fix (unsigned how, uint64_t sectors)
{
  uint8_t *a = superblock (0), *b = superblock (1);

  if (how & HOW_FIT) {
    const uint64_t regions =
      sectors * REGIONS_PER_SECTOR - get_le (a + 40, 2) % REGIONS_PER_SECTOR;

    put_le (a + 40, 8, regions * get_le (a + 48, 8));
  }
  if (how & HOW_SAME_STORE) {
    memcpy (b, a, 32);
    memcpy (b + 40, a + 40, 16);
    memcpy (b + 60, a + 60, METADATA_SECTOR - 60);
  }
  if (how & HOW_FIX_SUPERBLOCKS) {
    put_le (a + 12, 4, superblock_crc (a));
    put_le (b + 12, 4, superblock_crc (b));
  }
  if (how & HOW_FIX_BITMAP)
    for (uint64_t s = 0; s < sectors; ++s) {
      uint8_t *sector = bitmap_sector (s);

      memcpy (sector + 504, "CLBM", 4);
      put_le (sector + 508, 4, bitmap_crc (a + 16, s, sector));
    }
}

static void
make_store (const uint8_t *data, size_t size)
{
  const unsigned how = data[0];
  uint64_t sectors;

  data++;
  size--;
  if (how & HOW_RAW) {
    backend.size = MIN (size, (size_t)STORE_MAX);
    store = malloc (backend.size);
    CHECK (store != NULL || backend.size == 0);
    if (backend.size > 0)
      memcpy (store, data, backend.size);
    return;
  }

  sectors = size <= 2 * METADATA_SECTOR ? 1 :
    div_round_up (size - 2 * METADATA_SECTOR, (uint64_t)METADATA_SECTOR);
  sectors = MIN (sectors, (uint64_t)64);
  backend.size = 8192 + round_up (sectors * METADATA_SECTOR, (uint64_t)4096);
  store = calloc (1, backend.size);
  CHECK (store != NULL);
  for (uint64_t i = 0; i < 2 + sectors && size > 0; ++i) {
    size_t n = take_sector (i < 2 ? superblock (i) : bitmap_sector (i - 2),
                            data, size);

    data += n;
    size -= n;
  }
  fix (how, sectors);
}

/* ---- checks of a loaded store ---- */

static bool
is_whole (const uint8_t *sb)
{
  return memcmp (sb, "NBDCLONE", 8) == 0 &&
    get_le (sb + 12, 4) == superblock_crc (sb);
}

static bool
is_zero_in (const uint8_t *sb, unsigned from, unsigned to)
{
  while (from < to && sb[from] == 0)
    from++;
  return from == to;
}

/* Are the bytes that differ between the versions valid? */
static bool
has_right_tail (const uint8_t *sb)
{
  if (get_le (sb + 8, 4) == 1)
    return is_zero_in (sb, 192, METADATA_SECTOR);
  return is_zero_in (sb, 204, 208) && is_zero_in (sb, 228, 232) &&
    get_le (sb + 224, 4) < 1000000000 &&
    (!is_zero_in (sb, 192, 204) || is_zero_in (sb, 232, METADATA_SECTOR));
}

static void
check_superblock (const struct metadata *md)
{
  const uint8_t *sb = superblock (md->current), *other;
  const uint64_t version = get_le (sb + 8, 4);

  CHECK (is_whole (sb));
  CHECK (version == 1 || version == 2);
  CHECK (version == md->sb.version);
  CHECK (has_right_tail (sb));
  if (version == 2) {
    CHECK (get_le (sb + 192, 4) == md->sb.compat);
    CHECK (get_le (sb + 196, 8) == 0); /* ro_compat and incompat */
    CHECK (get_le (sb + 208, 8) == md->sb.destination.inode);
    CHECK (get_le (sb + 216, 8) == (uint64_t)md->sb.destination.birth_sec);
    CHECK (get_le (sb + 224, 4) == md->sb.destination.birth_nsec);
  }
  CHECK (get_le (sb + 32, 8) == md->sb.generation);
  CHECK (get_le (sb + 40, 8) == md->sb.size);
  CHECK (get_le (sb + 48, 8) == md->sb.region_size);
  CHECK (get_le (sb + 56, 4) == md->sb.flags);

  /* The other copy is damaged, older, or the same. */
  other = superblock (1 - md->current);
  if (!is_whole (other))
    return;
  CHECK (get_le (other + 8, 4) == 1 || get_le (other + 8, 4) == 2);
  CHECK (get_le (other + 8, 4) == 1 || get_le (other + 200, 4) == 0);
  if (get_le (other + 8, 4) == version &&
      memcmp (other + 16, sb + 16, METADATA_UUID_SIZE) == 0 &&
      memcmp (other + 40, sb + 40, 16) == 0 && get_le (other + 56, 4) <= 3 &&
      is_zero_in (other, 60, 64) && has_right_tail (other)) {
    CHECK (get_le (other + 32, 8) <= md->sb.generation);
    if (version == 1)
      CHECK (memcmp (other + 64, sb + 64, 128) == 0);
    else if (get_le (other + 32, 8) == md->sb.generation)
      CHECK (memcmp (other, sb, METADATA_SECTOR) == 0);
  }
}

static void
check_bitmap (const struct metadata *md, struct region_map *map)
{
  const uint64_t regions = region_map_regions (map);
  uint64_t ones = 0;

  CHECK (regions == div_round_up (md->sb.size, md->sb.region_size));
  for (uint64_t s = 0; s < region_map_sectors (map); ++s) {
    const uint8_t *sector = bitmap_sector (s);

    CHECK (memcmp (sector + 504, "CLBM", 4) == 0);
    CHECK (get_le (sector + 508, 4) ==
           bitmap_crc (md->sb.uuid, s, sector));
    for (uint64_t i = 0; i < REGIONS_PER_SECTOR; ++i) {
      const uint64_t region = s * REGIONS_PER_SECTOR + i;
      const bool bit = sector[i / 8] >> (i % 8) & 1;

      ones += bit;
      if (region >= regions)
        CHECK (!bit);
      else {
        CHECK (region_map_is_valid (map, region) == bit);
        CHECK (region_map_is_durable (map, region, 1) == bit);
      }
    }
  }
  CHECK (region_map_count_valid (map) == ones);
  CHECK (region_map_count_durable (map) == ones);
  CHECK (!region_map_is_dirty (map));
  if (md->sb.flags & METADATA_COMPLETE)
    CHECK (ones == regions);
}

static struct region_map *
load (struct metadata *md)
{
  struct region_map *map = region_map_new (md->sb.size, md->sb.region_size);

  /* metadata_open has checked the geometry. */
  CHECK (map != NULL);
  if (metadata_load (md, map) == -1) {
    region_map_free (map);
    return NULL;
  }
  check_superblock (md);
  check_bitmap (md, map);
  return map;
}

static void
change_and_load_again (struct metadata *md)
{
  const uint32_t flags = md->sb.flags ^ METADATA_CLEAN;
  const uint64_t generation = md->sb.generation;
  const struct backend_identity id = { md->sb.destination.inode + 1, -1, 0 };
  const uint8_t *sb = superblock (md->current);
  uint8_t features[16], area[METADATA_SECTOR - METADATA_FEATURE_AREA];
  struct region_map *map;
  struct metadata *again;

  memcpy (features, sb + 192, sizeof features);
  memcpy (area, sb + METADATA_FEATURE_AREA, sizeof area);
  CHECK (metadata_set_flags (md, flags) == 0);
  for (unsigned i = 0; i < 2; ++i) {
    CHECK (memcmp (superblock (i) + 192, features, sizeof features) == 0);
    CHECK (memcmp (superblock (i) + METADATA_FEATURE_AREA, area,
                   sizeof area) == 0);
  }
  again = metadata_open (&backend, &messages);
  CHECK (again != NULL);
  CHECK (again->sb.flags == flags);
  CHECK (again->sb.generation == generation + 1);
  map = load (again);
  CHECK (map != NULL);
  region_map_free (map);
  CHECK (metadata_set_destination (again, &id) == 0);
  CHECK (memcmp (superblock (0), superblock (1), METADATA_SECTOR) == 0);
  CHECK (get_le (superblock (0) + 208, 8) ==
         (md->sb.version == 1 ? 0 : id.inode));
  metadata_close (again);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  enum metadata_presence presence;
  struct region_map *map;
  struct metadata *md;

  if (size == 0)
    return 0;
  make_store (data, size);
  backend.name = (char *)"store";
  errors = 0;

  presence = metadata_probe (&backend, &messages);
  CHECK (presence != METADATA_IO_ERROR && errors == 0);

  md = metadata_open (&backend, &messages);
  CHECK ((md != NULL) == (errors == 0));
  if (md) {
    CHECK (presence == METADATA_PRESENT);
    map = load (md);
    CHECK ((map != NULL) == (errors == 0));
    if (map)
      change_and_load_again (md);
    region_map_free (map);
    metadata_close (md);
  }

  free (store);
  store = NULL;
  return 0;
}
