/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that the metadata's bytes follow the format in metadata.h, in both
 * versions (the test reads and writes them with code of its own); that an
 * interrupted creation leaves no partial store; that damage is never read as a
 * valid store with fewer bits; and that unknown features are ignored or refused
 * as their kind demands.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "base/crc32c.h"
#include "mock-backend.h"
#include "run-suite.h"
#include "store/bitmap.h"
#include "store/metadata.h"
#include "store/region-map.h"
#include "store/superblock.h"

#define K UINT64_C (1024)

/* Three bitmap sectors; the last has 9 regions, the last of them short. */
#define REGIONS (2 * REGIONS_PER_SECTOR + 9)
#define SIZE ((REGIONS - 1) * 4 * K + 513)
#define STORE 12288

static struct mock_log *history;
static struct mock *meta;

/* The version of the stores that the test makes. */
static uint32_t version = METADATA_VERSION;

/* ---- the format, by hand ---- */

static uint64_t
get (const uint8_t *p, unsigned n)
{
  uint64_t v = 0;

  while (n-- > 0)
    v = v << 8 | p[n];
  return v;
}

static void
put (uint8_t *p, unsigned n, uint64_t v)
{
  for (unsigned i = 0; i < n; ++i, v >>= 8)
    p[i] = v;
}

/* RFC 3720's CRC, bit by bit, to check the library's. */
static uint32_t
slow_crc (uint32_t crc, const uint8_t *p, size_t n)
{
  crc = ~crc;
  while (n-- > 0) {
    crc ^= *p++;
    for (unsigned i = 0; i < 8; ++i)
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

static uint32_t
superblock_crc (const uint8_t *sector)
{
  uint8_t copy[512];

  memcpy (copy, sector, 512);
  memset (copy + 12, 0, 4);
  return slow_crc (0, copy, 512);
}

static uint32_t
bitmap_crc (const uint8_t *uuid, uint64_t s, const uint8_t *sector)
{
  uint8_t number[8];
  uint32_t crc;

  put (number, 8, s);
  crc = slow_crc (0, uuid, 16);
  crc = slow_crc (crc, number, 8);
  return slow_crc (crc, sector, 508);
}

/* ---- stores ---- */

static struct superblock
parameters (void)
{
  struct superblock sb = {
    .size = SIZE, .region_size = 4 * K, .generation = 99, .version = version
  };

  if (version >= 2)
    sb.destination = (struct backend_identity){ 0x1122334455667788, -5, 999 };
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    sb.fingerprint.crc[i] = 0x01020304 * (i + 1);
  return sb;
}

static void
setup (void)
{
  history = mock_log_new (true);
  meta = mock_new (history, "metadata", STORE, false);
}

static void
teardown (void)
{
  mock_free (meta);
  mock_log_free (history);
}

/* Make a store without valid regions.  metadata_create makes only the newest
 * version.
 */
static struct metadata *
new_store (void)
{
  static const uint32_t sectors[] = { 0, 1, 2 };
  const uint64_t words[WORDS_PER_SECTOR] = { 0 };
  uint8_t images[3][METADATA_SECTOR];
  struct superblock sb = parameters ();
  struct metadata *md;

  sb.flags = METADATA_CLEAN;
  md = metadata_begin (mock_backend (meta), &sb, &mock_messages);
  ck_assert_ptr_nonnull (md);
  for (unsigned s = 0; s < 3; ++s)
    metadata_encode (md, s, words, images[s]);
  ck_assert_int_eq (metadata_write (md, sectors, images, 3), 0);
  ck_assert_int_eq (metadata_finish (md), 0);
  return md;
}

/* Make a store with these regions valid. */
static void
make_store (uint32_t flags, unsigned n, ...)
{
  struct metadata *md = new_store ();
  va_list args;

  va_start (args, n);
  for (unsigned i = 0; i < n; ++i) {
    uint64_t r = va_arg (args, uint64_t);
    uint32_t s = r / REGIONS_PER_SECTOR;
    uint64_t words[WORDS_PER_SECTOR];
    uint8_t image[1][METADATA_SECTOR];

    ck_assert_int_eq (metadata_decode (md, s, mock_content (meta) + 8192 +
                                       512 * s, words), 0);
    words[r % REGIONS_PER_SECTOR / 64] |= UINT64_C (1) << (r % 64);
    metadata_encode (md, s, words, image[0]);
    ck_assert_int_eq (metadata_write (md, &s, image, 1), 0);
  }
  va_end (args);
  ck_assert_int_eq (metadata_flush (md), 0);
  ck_assert_int_eq (metadata_set_flags (md, flags), 0);
  metadata_close (md);
  mock_reopen (meta);
}

/* The result of opening the store in m. */
struct found {
  enum metadata_presence presence;
  bool opens;
  struct superblock sb;
  uint64_t valid;              /* regions */
  uint64_t sum;                /* of the valid regions' numbers */
};

static struct found
look (struct mock *m)
{
  struct found f = { 0 };
  struct metadata *md;
  struct region_map *map;

  f.presence = metadata_probe (mock_backend (m), &mock_messages);
  md = metadata_open (mock_backend (m), &mock_messages);
  if (md == NULL)
    return f;
  f.sb = md->sb;
  map = region_map_new (md->sb.size, md->sb.region_size);
  ck_assert_ptr_nonnull (map);
  f.opens = metadata_load (md, map) == 0;
  if (f.opens) {
    f.valid = region_map_count_valid (map);
    ck_assert_uint_eq (region_map_count_durable (map), f.valid);
    for (uint64_t r = 0; r < region_map_regions (map); ++r)
      f.sum += region_map_is_valid (map, r) ? r : 0;
  }
  region_map_free (map);
  metadata_close (md);
  mock_reopen (m);
  return f;
}

/* ---- tests ---- */

/* The CRC is Castagnoli's, whole and in parts. */
START_TEST (crc)
{
  uint8_t buf[1000];

  ck_assert_uint_eq (crc32c (0, "123456789", 9), 0xe3069283);
  ck_assert_uint_eq (crc32c (crc32c (0, "1234", 4), "56789", 5), 0xe3069283);
  ck_assert_uint_eq (slow_crc (0, (const uint8_t *)"123456789", 9),
                     0xe3069283);
  for (unsigned i = 0; i < sizeof buf; ++i)
    buf[i] = i * i >> 3;
  for (unsigned i = 0; i <= sizeof buf; ++i)
    ck_assert_uint_eq (crc32c (7, buf, i), slow_crc (7, buf, i));
}
END_TEST

/* Every byte of a store has the value that the format says. */
START_TEST (format)
{
  const uint8_t *p, *a, *b;
  struct superblock sb;

  version = _i;
  sb = parameters ();
  make_store (METADATA_CLEAN, 4, UINT64_C (0), UINT64_C (65),
              (uint64_t)REGIONS_PER_SECTOR - 1, (uint64_t)REGIONS - 1);
  ck_assert_uint_eq (metadata_store_size (SIZE, 4 * K), STORE);
  p = mock_durable (meta);
  a = p;
  b = p + 4096;

  ck_assert_mem_eq (a, b, 512);
  ck_assert_mem_eq (a, "NBDCLONE", 8);
  ck_assert_uint_eq (get (a + 8, 4), version);
  ck_assert_uint_eq (get (a + 12, 4), superblock_crc (a));
  ck_assert_uint_eq (get (a + 32, 8), 1);
  ck_assert_uint_eq (get (a + 40, 8), SIZE);
  ck_assert_uint_eq (get (a + 48, 8), 4096);
  ck_assert_uint_eq (get (a + 56, 4), 1);
  ck_assert_uint_eq (get (a + 60, 4), 0);
  for (unsigned i = 0; i < 32; ++i)
    ck_assert_uint_eq (get (a + 64 + 4 * i, 4), sb.fingerprint.crc[i]);
  for (unsigned i = 192; i < 512; ++i)
    if (version == 1 || i < 208 || i >= 228)
      ck_assert_uint_eq (a[i], 0);
  if (version == 2) {
    ck_assert_uint_eq (get (a + 208, 8), 0x1122334455667788);
    ck_assert_uint_eq (get (a + 216, 8), -5);
    ck_assert_uint_eq (get (a + 224, 4), 999);
  }

  for (unsigned s = 0; s < 3; ++s) {
    const uint8_t *q = p + 8192 + 512 * s;
    unsigned bits = 0;

    for (unsigned i = 0; i < 504; ++i)
      bits += __builtin_popcount (q[i]);
    ck_assert_uint_eq (bits, s == 0 ? 3 : s == 1 ? 0 : 1);
    ck_assert_mem_eq (q + 504, "CLBM", 4);
    ck_assert_uint_eq (get (q + 508, 4), bitmap_crc (a + 16, s, q));
  }
  ck_assert_uint_eq (p[8192], 1);               /* region 0 */
  ck_assert_uint_eq (p[8192 + 8], 2);           /* region 65 */
  ck_assert_uint_eq (p[8192 + 503], 0x80);      /* region 4031 */
  ck_assert_uint_eq (p[8192 + 1024 + 1], 1);    /* region 2 * 4032 + 8 */

  /* What is not used is zero. */
  for (unsigned i = 0; i < STORE; ++i)
    if ((i >= 512 && i < 4096) || (i >= 4608 && i < 8192) ||
        i >= 8192 + 3 * 512)
      ck_assert_uint_eq (p[i], 0);
}
END_TEST

/* A store that the test has built from the format alone is read correctly. */
START_TEST (reads_independent_store)
{
  uint8_t image[STORE] = { 0 };
  struct found f;

  version = _i;
  for (unsigned copy = 0; copy < 2; ++copy) {
    uint8_t *sb = image + 4096 * copy;

    memcpy (sb, "NBDCLONE", 8);
    put (sb + 8, 4, version);
    memcpy (sb + 16, "0123456789abcdef", 16);
    put (sb + 32, 8, 0x1122334455667788 - copy);
    put (sb + 40, 8, 100 * K);
    put (sb + 48, 8, 8 * K);
    put (sb + 56, 4, 0);
    put (sb + 64 + 4 * 31, 4, 0xcafe);
    if (version == 2) {
      put (sb + 192, 4, 0x80000001);
      put (sb + 208, 8, 0xfedcba9876543210);
      put (sb + 216, 8, 1767323045);
      put (sb + 224, 4, 999999999);
      put (sb + 511, 1, 9);
    }
    put (sb + 12, 4, superblock_crc (sb));
  }
  image[8192 + 1] = 0x10;       /* region 12, the last */
  image[8192] = 0x04;           /* region 2 */
  memcpy (image + 8192 + 504, "CLBM", 4);
  put (image + 8192 + 508, 4, bitmap_crc (image + 16, 0, image + 8192));
  mock_fill (meta, image, STORE, 0);

  f = look (meta);
  ck_assert_int_eq (f.presence, METADATA_PRESENT);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.sb.generation, 0x1122334455667788);
  ck_assert_uint_eq (f.sb.size, 100 * K);
  ck_assert_uint_eq (f.sb.region_size, 8 * K);
  ck_assert_uint_eq (f.sb.fingerprint.crc[31], 0xcafe);
  ck_assert_uint_eq (f.sb.version, version);
  if (version == 2) {
    ck_assert_uint_eq (f.sb.compat, 0x80000001);
    ck_assert_uint_eq (f.sb.destination.inode, 0xfedcba9876543210);
    ck_assert_int_eq (f.sb.destination.birth_sec, 1767323045);
    ck_assert_uint_eq (f.sb.destination.birth_nsec, 999999999);
    ck_assert_uint_eq (f.sb.feature_area[511 - 232], 9);
  }
  ck_assert_uint_eq (f.valid, 2);
  ck_assert_uint_eq (f.sum, 14);
}
END_TEST

/* The next call must be of this kind, and begin after the last one ended. */
static const struct mock_call *
next (size_t *i, enum mock_kind kind)
{
  const struct mock_call *call = mock_log_call (history, *i);

  ck_assert_ptr_nonnull (call);
  ck_assert_int_eq (call->kind, kind);
  if (*i > 0)
    ck_assert_uint_lt (mock_log_call (history, *i - 1)->end, call->start);
  ++*i;
  return call;
}

/* Creation zeroes the superblocks, flushes, writes the bitmap, flushes, writes
 * superblock A, flushes, writes superblock B, flushes, and does nothing else.
 */
START_TEST (creation_order)
{
  const struct superblock sb = parameters ();
  const struct mock_call *call;
  struct metadata *md;
  uint8_t old[STORE];
  size_t i = 0;

  memset (old, 0x55, sizeof old);
  mock_fill (meta, old, sizeof old, 0);
  md = metadata_create (mock_backend (meta), &sb, &mock_messages);
  ck_assert_ptr_nonnull (md);
  ck_assert_int_eq (mock_errors (), 0);

  call = next (&i, MOCK_ZERO);
  ck_assert_uint_eq (call->range[0].offset, 0);
  ck_assert_uint_ge (call->range[0].count, 4608);
  next (&i, MOCK_FLUSH);
  call = next (&i, MOCK_PWRITE);
  ck_assert_uint_eq (call->n, 1);
  ck_assert_uint_eq (call->range[0].offset, 8192);
  ck_assert_uint_eq (call->range[0].count, 3 * 512);
  next (&i, MOCK_FLUSH);
  call = next (&i, MOCK_PWRITE);
  ck_assert_uint_eq (call->n, 1);
  ck_assert_uint_eq (call->range[0].offset, 0);
  ck_assert_uint_eq (call->range[0].count, 512);
  next (&i, MOCK_FLUSH);
  call = next (&i, MOCK_PWRITE);
  ck_assert_uint_eq (call->range[0].offset, 4096);
  next (&i, MOCK_FLUSH);
  ck_assert_uint_eq (mock_log_len (history), i);

  ck_assert_uint_eq (md->sb.version, 2);
  /* The store has a UUID. */
  ck_assert_mem_ne (md->sb.uuid, ((uint8_t[16]){ 0 }), 16);
  ck_assert_uint_eq (md->sb.generation, 1);
  metadata_close (md);
}
END_TEST

static bool
keep_randomly (uint64_t sector, void *seed)
{
  return mock_random (seed) % 2;
}

/* A power cut at any call of creation, with any subset of sectors kept, leaves
 * the old, foreign content, or no store, or a whole store without valid
 * regions.
 */
START_TEST (creation_cut)
{
  static const enum mock_kind kinds[] = {
    MOCK_ZERO, MOCK_FLUSH, MOCK_PWRITE, MOCK_FLUSH, MOCK_PWRITE, MOCK_FLUSH,
    MOCK_PWRITE, MOCK_FLUSH
  };
  const struct superblock sb = parameters ();
  unsigned whole = 0, absent = 0;
  uint64_t seed = 5;
  uint8_t old[STORE];

  memset (old, 0x55, sizeof old);
  for (unsigned cut = 0; cut < 8; ++cut)
    for (unsigned variant = 0; variant < 60; ++variant) {
      struct mock *m = mock_new (history, "cut", STORE, false);
      unsigned nth[MOCK_KINDS] = { 0 };
      struct found f;

      if (variant % 2)
        mock_fill (m, old, sizeof old, 0);
      for (unsigned i = 0; i <= cut; ++i)
        nth[kinds[i]]++;
      mock_fail (m, kinds[cut], MOCK_ANYWHERE, nth[kinds[cut]], 0, EIO);
      ck_assert_ptr_null (metadata_create (mock_backend (m), &sb,
                                           &mock_messages));
      mock_heal (m);
      mock_crash (m, keep_randomly, &seed);

      f = look (m);
      switch (f.presence) {
      case METADATA_PRESENT:
        ck_assert (f.opens);
        ck_assert_uint_eq (f.valid, 0);
        ck_assert_uint_ge (cut, 5);
        whole++;
        break;
      case METADATA_ABSENT:
        ck_assert_uint_le (cut, 5);
        absent++;
        break;
      case METADATA_FOREIGN:
        ck_assert_uint_le (cut, 1);
        ck_assert (!f.opens);
        break;
      default:
        ck_abort_msg ("cut %u: presence %d", cut, f.presence);
      }
      mock_free (m);
    }
  ck_assert_uint_gt (whole, 60);
  ck_assert_uint_gt (absent, 60);
}
END_TEST

/* A store that is made in steps does not exist before the last step, even
 * though its bitmap is written.  Then it has the flags and bits that it was
 * given.
 */
START_TEST (begin_and_finish)
{
  static const uint32_t sectors[] = { 0, 1, 2 };
  uint64_t words[WORDS_PER_SECTOR] = { 0x30 };
  uint8_t images[3][METADATA_SECTOR];
  struct superblock sb = parameters ();
  uint64_t seed = 7;
  struct found f;

  sb.flags = 0;
  for (unsigned finished = 0; finished < 2; ++finished)
    for (unsigned variant = 0; variant < 20; ++variant) {
      struct metadata *md = metadata_begin (mock_backend (meta), &sb,
                                            &mock_messages);

      ck_assert_ptr_nonnull (md);
      for (unsigned s = 0; s < 3; ++s)
        metadata_encode (md, s, words, images[s]);
      ck_assert_int_eq (metadata_write (md, sectors, images, 3), 0);
      if (finished)
        ck_assert_int_eq (metadata_finish (md), 0);
      metadata_close (md);
      mock_heal (meta);
      mock_crash (meta, keep_randomly, &seed);

      f = look (meta);
      ck_assert_int_eq (f.presence,
                        finished ? METADATA_PRESENT : METADATA_ABSENT);
      ck_assert_int_eq (f.opens, finished);
      if (!finished)
        continue;
      ck_assert_uint_eq (f.valid, 6);
      ck_assert_uint_eq (f.sb.flags, 0);
      ck_assert_uint_eq (f.sb.generation, 1);
    }
}
END_TEST

/* Flags are written to one superblock after the other, with a flush between.  A
 * power cut after any call leaves a valid store with the old or the new flags.
 */
START_TEST (flags_cut)
{
  uint64_t seed = 6;

  version = _i;
  for (unsigned cut = 0; cut < 4; ++cut)
    for (unsigned variant = 0; variant < 20; ++variant) {
      struct metadata *md;
      struct found f;

      make_store (0, 1, UINT64_C (3));
      md = metadata_open (mock_backend (meta), &mock_messages);
      mock_fail (meta, cut % 2 ? MOCK_FLUSH : MOCK_PWRITE, MOCK_ANYWHERE,
                 cut / 2 + 1, 0, EIO);
      ck_assert_int_eq (metadata_set_flags (md, METADATA_CLEAN), -1);
      ck_assert_int_eq (errno, EIO);
      ck_assert_uint_eq (md->sb.flags, 0);
      metadata_close (md);
      mock_heal (meta);
      mock_crash (meta, keep_randomly, &seed);
      f = look (meta);
      ck_assert (f.opens);
      ck_assert_uint_eq (f.valid, 1);
      ck_assert_uint_eq (f.sum, 3);
      if (cut == 0)             /* the first write failed */
        ck_assert_uint_eq (f.sb.flags, 0);
      else if (cut == 1)        /* it may have been kept */
        ck_assert (f.sb.flags == 0 || f.sb.flags == METADATA_CLEAN);
      else
        ck_assert_uint_eq (f.sb.flags, METADATA_CLEAN);
    }
}
END_TEST

/* A process that is killed between a commit's write and its flush leaves bits
 * that are not durable.  The next process reads them and takes them for
 * durable, so loading must make them durable: the power may be cut soon after.
 */
START_TEST (loaded_is_durable)
{
  const uint32_t first = 0;
  uint64_t words[WORDS_PER_SECTOR] = { 1 };
  uint8_t image[1][METADATA_SECTOR];
  struct metadata *md;
  struct found f;

  make_store (0, 0);
  md = metadata_open (mock_backend (meta), &mock_messages);
  metadata_encode (md, first, words, image[0]);
  ck_assert_int_eq (metadata_write (md, &first, image, 1), 0);
  metadata_close (md);
  mock_reopen (meta);
  f = look (meta);
  ck_assert (f.opens && f.valid == 1);
  mock_crash (meta, NULL, NULL);
  f = look (meta);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.valid, 1);

  /* If that is not possible, the store does not open. */
  mock_fail (meta, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
  f = look (meta);
  ck_assert (!f.opens);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "cannot write"));
}
END_TEST

/* Two updates, one after the other, fail at any point, and the power is cut.
 * The store is valid, and has the state before the updates, or that of one of
 * them. (Two superblocks of one generation that differ would be refused.)
 */
START_TEST (updates_cut)
{
  const struct backend_identity id = { 7, 8, 9 };
  const struct backend_identity old = parameters ().destination;
  uint64_t seed = 9;
  unsigned seen[2][2] = { { 0 } };

  for (unsigned cut = 0; cut < 16; ++cut)
    for (unsigned variant = 0; variant < 40; ++variant) {
      const unsigned first = cut % 4, second = cut / 4;
      struct metadata *md;
      struct found f;
      bool moved;

      make_store (0, 1, UINT64_C (3));
      md = metadata_open (mock_backend (meta), &mock_messages);
      mock_fail (meta, first % 2 ? MOCK_FLUSH : MOCK_PWRITE, MOCK_ANYWHERE,
                 first / 2 + 1, 1, EIO);
      ck_assert_int_eq (metadata_set_flags (md, METADATA_CLEAN), -1);
      mock_heal (meta);
      mock_fail (meta, second % 2 ? MOCK_FLUSH : MOCK_PWRITE, MOCK_ANYWHERE,
                 second / 2 + 1, 0, EIO);
      ck_assert_int_eq (metadata_set_destination (md, &id), -1);
      metadata_close (md);
      mock_heal (meta);
      mock_crash (meta, keep_randomly, &seed);

      f = look (meta);
      ck_assert (f.opens);
      ck_assert_uint_eq (f.valid, 1);
      moved = metadata_same_identity (&f.sb.destination, &id);
      ck_assert (moved || metadata_same_identity (&f.sb.destination, &old));
      ck_assert (f.sb.flags == 0 || (f.sb.flags == METADATA_CLEAN && !moved));
      seen[moved][f.sb.flags]++;
    }
  ck_assert_uint_gt (seen[0][0], 0);
  ck_assert_uint_gt (seen[0][1], 0);
  ck_assert_uint_gt (seen[1][0], 0);
}
END_TEST

/* A new identity of the destination is stored in both superblocks, and changes
 * nothing else.  Nothing is written if it is the same, or if the store has
 * version 1, which has no place for it.
 */
START_TEST (destination)
{
  const struct backend_identity id = { 7, -8, 9 };
  struct metadata *md;
  struct found f;

  version = _i;
  make_store (METADATA_CLEAN, 1, UINT64_C (3));
  md = metadata_open (mock_backend (meta), &mock_messages);
  mock_log_clear (history);
  ck_assert_int_eq (metadata_set_destination (md, &md->sb.destination), 0);
  ck_assert_uint_eq (mock_log_len (history), 0);
  ck_assert_int_eq (metadata_set_destination (md, &id), 0);
  ck_assert_uint_eq (mock_log_len (history), version == 1 ? 0 : 4);
  metadata_close (md);
  mock_reopen (meta);

  for (unsigned copy = 0; copy < 2; ++copy) {
    ck_assert_uint_eq (get (mock_durable (meta) + 4096 * copy + 208, 8),
                       version == 1 ? 0 : 7);
    ck_assert_uint_eq (get (mock_durable (meta) + 4096 * copy + 8, 4), version);
  }
  f = look (meta);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.valid, 1);
  ck_assert_uint_eq (f.sb.flags, METADATA_CLEAN);
  ck_assert_int_eq (metadata_same_identity (&f.sb.destination, &id),
                    version == 2);
}
END_TEST

/* Nothing is written if the flags stay the same. */
START_TEST (same_flags)
{
  struct metadata *md;

  make_store (METADATA_CLEAN, 0);
  md = metadata_open (mock_backend (meta), &mock_messages);
  mock_log_clear (history);
  ck_assert_int_eq (metadata_set_flags (md, METADATA_CLEAN), 0);
  ck_assert_uint_eq (mock_log_len (history), 0);
  metadata_close (md);
}
END_TEST

/* Either copy of the superblock is enough, if the other is zeroed or garbage.
 */
START_TEST (one_superblock_is_enough)
{
  uint8_t junk[512];

  version = 1 + _i / 4;
  make_store (METADATA_CLEAN, 2, UINT64_C (7), (uint64_t)REGIONS - 1);
  memset (junk, _i & 2 ? 0xa5 : 0, sizeof junk);
  mock_fill (meta, junk, sizeof junk, _i & 1 ? 4096 : 0);

  struct found f = look (meta);
  ck_assert_int_eq (f.presence, METADATA_PRESENT);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.valid, 2);
  ck_assert_uint_eq (f.sum, 7 + REGIONS - 1);
  ck_assert_uint_eq (f.sb.flags, METADATA_CLEAN);
}
END_TEST

/* Change a field of superblock `copy', and its CRC with it. */
static void
edit_superblock (unsigned copy, unsigned at, unsigned n, uint64_t v)
{
  uint8_t sb[512];

  memcpy (sb, mock_content (meta) + 4096 * copy, 512);
  put (sb + at, n, v);
  put (sb + 12, 4, superblock_crc (sb));
  mock_fill (meta, sb, 512, 4096 * copy);
}

/* Of two valid superblocks the one with the higher generation, in 64 bits, is
 * current, A or B.
 */
START_TEST (higher_generation)
{
  static const uint64_t low[] = { 1, 0xffffffff, 0x7fffffffffffffff };

  version = _i;
  for (unsigned i = 0; i < 3; ++i)
    for (unsigned newer = 0; newer < 2; ++newer) {
      struct found f;

      make_store (0, 0);
      edit_superblock (newer, 56, 4, METADATA_CLEAN);
      edit_superblock (newer, 32, 8, low[i] + 1);
      edit_superblock (1 - newer, 32, 8, low[i]);
      f = look (meta);
      ck_assert (f.opens);
      ck_assert_uint_eq (f.sb.generation, low[i] + 1);
      ck_assert_uint_eq (f.sb.flags, METADATA_CLEAN);
    }
}
END_TEST

/* Two valid superblocks of different stores, geometries or sources are refused;
 * in version 2 also two of one generation that differ in any byte.
 */
START_TEST (superblocks_disagree)
{
  /* In the UUID, the size, the region size and the fingerprint; flags, features
   * and the destination.
   */
  static const struct { unsigned at, n; uint64_t flip; unsigned from; } t[] = {
    { 16, 1, 0x80, 0 }, { 31, 1, 1, 0 }, { 40, 8, 1, 0 },
    { 48, 8, 4 * K ^ 8 * K, 0 }, { 64, 4, 1, 0 }, { 188, 4, 0x80000000, 0 },
    { 56, 4, 1, 2 }, { 192, 4, 1, 2 }, { 208, 8, 1, 2 }, { 224, 4, 1, 2 },
  };
  const unsigned i = _i / 4, copy = _i % 2;

  version = 1 + _i % 4 / 2;
  if (version < t[i].from)
    return;
  make_store (0, 0);
  edit_superblock (copy, t[i].at, t[i].n, t[i].flip ^
                   get (mock_content (meta) + 4096 * copy + t[i].at, t[i].n));
  ck_assert (!look (meta).opens);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "different stores"));

  /* An older superblock may differ in fields that change. */
  if (version == 2 && (t[i].at < 16 || t[i].at >= 56)) {
    struct found f;

    edit_superblock (copy, 32, 8, 9);
    f = look (meta);
    ck_assert (f.opens);
    ck_assert_uint_eq (f.sb.generation, 9);
  }
}
END_TEST

/* Superblocks with a right CRC, but impossible or unknown values, are refused.
 */
START_TEST (impossible_superblocks)
{
  static const struct { unsigned at, n; uint64_t v; unsigned version; } t[] = {
    { 0, 1, 'n', 0 }, { 8, 4, 0, 0 }, { 8, 4, 3, 0 }, { 40, 8, 0, 0 },
    { 40, 8, UINT64_MAX, 0 }, { 40, 8, (UINT64_C (1) << 43) + 1, 0 },
    { 48, 8, 0, 0 }, { 48, 8, 2 * K, 0 }, { 48, 8, 4 * K + 1, 0 },
    { 48, 8, 12 * K, 0 }, { 48, 8, 2 * K * K * K, 0 }, { 56, 4, 4, 0 },
    { 56, 4, 0x80000000, 0 },
    { 60, 4, 1, 0 }, { 511, 1, 1, 0 }, { 192, 1, 1, 1 }, { 208, 1, 1, 1 },
    { 200, 4, 1, 2 }, { 200, 4, 0x80000000, 2 }, { 204, 4, 1, 2 },
    { 224, 4, 1000000000, 2 }, { 228, 4, 1, 2 }, { 232, 1, 1, 2 },
  };
  const unsigned i = _i / 2;

  version = 1 + _i % 2;
  if (t[i].version && t[i].version != version)
    return;
  make_store (0, 0);
  for (unsigned copy = 0; copy < 2; ++copy)
    edit_superblock (copy, t[i].at, t[i].n, t[i].v);
  ck_assert (!look (meta).opens);
}
END_TEST
#define NR_IMPOSSIBLE 23

/* An unknown compat feature is ignored, and kept together with its data. */
START_TEST (compat_features)
{
  uint8_t before[512], after[512];
  struct metadata *md;
  struct found f;

  make_store (0, 1, UINT64_C (3));
  for (unsigned copy = 0; copy < 2; ++copy) {
    edit_superblock (copy, 192, 4, 0x40000001);
    edit_superblock (copy, 232, 8, 0x1234);
    edit_superblock (copy, 511, 1, 0x56);
  }
  memcpy (before, mock_content (meta), 512);
  f = look (meta);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.valid, 1);

  md = metadata_open (mock_backend (meta), &mock_messages);
  ck_assert_int_eq (metadata_set_flags (md, METADATA_CLEAN), 0);
  metadata_close (md);
  mock_reopen (meta);
  for (unsigned copy = 0; copy < 2; ++copy) {
    memcpy (after, mock_durable (meta) + 4096 * copy, 512);
    ck_assert_mem_eq (before + 192, after + 192, 512 - 192);
  }
}
END_TEST

/* With an unknown ro_compat feature a store can be read, but not opened to
 * serve the clone.
 */
START_TEST (ro_compat_features)
{
  struct superblocks found;

  make_store (0, 0);
  for (unsigned copy = 0; copy < 2; ++copy)
    edit_superblock (copy, 196, 4, 0x80000100);
  ck_assert_int_eq (metadata_read_superblocks (mock_backend (meta), &found), 0);
  ck_assert_int_eq (found.presence, METADATA_PRESENT);
  ck_assert_int_eq (found.current, 0);
  ck_assert_uint_eq (found.sb[0].ro_compat, 0x80000100);
  ck_assert (!look (meta).opens);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "ro_compat"));
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "0x80000100"));
}
END_TEST

/* If either superblock, even the older one, has another version or an unknown
 * incompat feature, the store is refused; but not if that superblock's checksum
 * is wrong.
 */
START_TEST (unsupported)
{
  const unsigned copy = _i % 2;
  const bool feature = _i / 2;
  struct superblocks found;
  uint8_t byte;

  make_store (0, 0);
  edit_superblock (1 - copy, 32, 8, 9);
  if (feature)
    edit_superblock (copy, 200, 4, 0x30);
  else
    edit_superblock (copy, 8, 4, 3);
  ck_assert_int_eq (metadata_read_superblocks (mock_backend (meta), &found), 0);
  ck_assert_int_eq (found.presence, METADATA_UNSUPPORTED);
  ck_assert_int_eq (found.current, -1);
  ck_assert (!look (meta).opens);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), feature
                                 ? "incompat features 0x30"
                                 : "format version 3"));

  byte = mock_content (meta)[4096 * copy + 300] ^ 1;
  mock_fill (meta, &byte, 1, 4096 * copy + 300);
  ck_assert (look (meta).opens);
}
END_TEST

/* A store with the complete flag must have every bit. */
START_TEST (complete_with_a_hole)
{
  make_store (0, 1, UINT64_C (1));
  edit_superblock (0, 56, 4, METADATA_COMPLETE);
  edit_superblock (1, 56, 4, METADATA_COMPLETE);
  ck_assert (!look (meta).opens);
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "complete"));
}
END_TEST

/* A bit for a region past the end is refused even if the CRC is right. */
START_TEST (stray_bit)
{
  uint8_t sector[512];

  make_store (0, 0);
  memcpy (sector, mock_content (meta) + 8192 + 1024, 512);
  sector[1] |= 2;               /* region 2 * 4032 + 9 */
  put (sector + 508, 4, bitmap_crc (mock_content (meta) + 16, 2, sector));
  mock_fill (meta, sector, 512, 8192 + 1024);
  ck_assert (!look (meta).opens);
}
END_TEST

/* A bitmap sector from another place or another store is refused. */
START_TEST (misplaced_sector)
{
  uint8_t sector[512];

  make_store (0, 1, UINT64_C (5));
  memcpy (sector, mock_content (meta) + 8192, 512);
  mock_fill (meta, sector, 512, 8192 + 512);
  ck_assert (!look (meta).opens);

  make_store (0, 0);            /* the same geometry, another UUID */
  mock_fill (meta, sector, 512, 8192);
  ck_assert (!look (meta).opens);
}
END_TEST

/* The damaged store is refused, or it still has all that it had. */
static void
check_harmless (const struct found *f)
{
  if (!f->opens)
    return;
  ck_assert_uint_eq (f->valid, 3);
  ck_assert_uint_eq (f->sum, 9 + REGIONS_PER_SECTOR + REGIONS - 1);
  ck_assert_uint_eq (f->sb.size, SIZE);
  ck_assert_uint_eq (f->sb.region_size, 4 * K);
}

static void
make_store_to_damage (void)
{
  make_store (0, 3, UINT64_C (9), (uint64_t)REGIONS_PER_SECTOR,
              (uint64_t)REGIONS - 1);
}

/* Flip each bit of the store, or each seventh under a tool.  If it is in the
 * bitmap, the store must be refused.
 */
START_TEST (flip_every_bit)
{
  const unsigned step = is_under_tool () ? 7 : 1;
  unsigned tried = 0, in_bitmap = 0, refused = 0;

  version = _i;
  make_store_to_damage ();
  for (unsigned bit = 0; bit < STORE * 8; bit += step) {
    uint8_t byte = mock_content (meta)[bit / 8] ^ 1 << bit % 8;
    struct found f;

    mock_fill (meta, &byte, 1, bit / 8);
    f = look (meta);
    check_harmless (&f);
    ++tried;
    refused += !f.opens;
    ck_assert_int_eq (f.presence, METADATA_PRESENT);
    if (bit / 8 >= 8192 && bit / 8 < 8192 + 3 * 512) {
      ++in_bitmap;
      ck_assert (!f.opens);
      ck_assert_ptr_nonnull (strstr (mock_last_error (), "metadata"));
    }
    byte ^= 1 << bit % 8;
    mock_fill (meta, &byte, 1, bit / 8);
  }
  ck_assert_uint_eq (refused, in_bitmap);
  printf ("damage: %u bits flipped, one by one, in version %" PRIu32
          ": %u refused, the others harmless\n", tried, version, refused);
}
END_TEST

/* Zero each sector, and each pair of sectors. */
START_TEST (zero_every_sector)
{
  uint8_t image[STORE];
  unsigned tried = 0, refused = 0;

  version = _i;
  make_store_to_damage ();
  memcpy (image, mock_content (meta), STORE);
  for (unsigned i = 0; i < STORE / 512; ++i)
    for (unsigned j = i; j < STORE / 512; ++j) {
      bool bitmap = (i >= 16 && i < 19) || (j >= 16 && j < 19);
      struct found f;

      mock_fill (meta, NULL, 512, i * 512);
      mock_fill (meta, NULL, 512, j * 512);
      f = look (meta);
      check_harmless (&f);
      tried++;
      refused += !f.opens;
      if (bitmap || (i == 0 && j == 8))
        ck_assert (!f.opens);
      else
        ck_assert (f.opens);
      /* By design, a store without both superblocks is absent.  Then the
       * content of the destination decides.
       */
      ck_assert_int_eq (f.presence, i == 0 && j == 8 ? METADATA_ABSENT
                        : METADATA_PRESENT);
      mock_fill (meta, image, STORE, 0);
    }
  printf ("damage: %u times one or two sectors zeroed, in version %" PRIu32
          ": %u refused, the others harmless\n", tried, version, refused);
}
END_TEST

/* A store that is cut to any shorter length is refused. */
START_TEST (truncate_at_every_length)
{
  /* From here on superblock A is zero, cut or not. */
  const uint64_t used = _i == 1 ? 192 : 227;

  version = _i;
  make_store_to_damage ();
  for (uint64_t size = 0; size < STORE; ++size) {
    struct mock *cut = mock_new (history, "cut", size, false);
    struct found f;

    if (size > 0)
      mock_fill (cut, mock_content (meta), size, 0);
    f = look (cut);
    check_harmless (&f);
    ck_assert (!f.opens);
    if (size == 0)
      ck_assert_int_eq (f.presence, METADATA_ABSENT);
    else if (size < 8)
      ck_assert_int_eq (f.presence, METADATA_FOREIGN);
    else if (size < used - 1)
      ck_assert_int_eq (f.presence, METADATA_DAMAGED);
    else if (size >= used)      /* the missing bytes of A are zero anyway */
      ck_assert_int_eq (f.presence, METADATA_PRESENT);
    mock_free (cut);
  }
  printf ("damage: cut to each of %u lengths, in version %" PRIu32
          ": all refused\n", STORE, version);
}
END_TEST

struct seen {
  uint32_t sectors;
  uint32_t wrong;              /* one bit for each */
  uint64_t bits;
  uint32_t stop_at;
};

static int
see (void *opaque, uint32_t s, const char *wrong,
     const uint64_t words[WORDS_PER_SECTOR])
{
  struct seen *seen = opaque;

  if (s == seen->stop_at)
    return -1;
  ck_assert_uint_eq (s, seen->sectors);
  seen->sectors++;
  seen->wrong |= (wrong != NULL) << s;
  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i)
    seen->bits += __builtin_popcountll (words[i]);
  return 0;
}

/* A walk continues after sectors that are damaged or cut off, and gives no bits
 * for them.  Its visitor can end it.
 */
START_TEST (walk)
{
  const struct superblock sb = parameters ();
  struct superblocks found;
  struct seen seen = { .stop_at = 99 };
  struct mock *cut;

  make_store_to_damage ();
  ck_assert_int_eq (metadata_read_superblocks (mock_backend (meta), &found), 0);
  ck_assert_int_ge (found.current, 0);
  ck_assert_uint_eq (found.sb[found.current].size, sb.size);
  for (unsigned damage = 0; damage < 8; ++damage) {
    uint8_t image[STORE];

    memcpy (image, mock_content (meta), STORE);
    seen = (struct seen){ .stop_at = 99 };
    for (unsigned s = 0; s < 3; ++s)
      if (damage & 1 << s)
        mock_fill (meta, image + 8192 - 512, 512, 8192 + 512 * s);
    ck_assert_int_eq (metadata_walk (mock_backend (meta), &found.sb[0], see,
                                     &seen, &mock_messages), 0);
    ck_assert_uint_eq (seen.sectors, 3);
    ck_assert_uint_eq (seen.wrong, damage);
    ck_assert_uint_eq (seen.bits, 3 - __builtin_popcount (damage));
    mock_fill (meta, image, STORE, 0);
  }

  cut = mock_new (history, "cut", 8192 + 1023, false);
  mock_fill (cut, mock_content (meta), 8192 + 1023, 0);
  seen = (struct seen){ .stop_at = 99 };
  ck_assert_int_eq (metadata_walk (mock_backend (cut), &found.sb[0], see, &seen,
                                   &mock_messages), 0);
  ck_assert_uint_eq (seen.sectors, 3);
  ck_assert_uint_eq (seen.wrong, 6);
  ck_assert_uint_eq (seen.bits, 1);
  mock_free (cut);

  seen = (struct seen){ .stop_at = 1 };
  ck_assert_int_eq (metadata_walk (mock_backend (meta), &found.sb[0], see,
                                   &seen, &mock_messages), -1);
  ck_assert_uint_eq (seen.sectors, 1);
}
END_TEST

/* The results of a probe, which changes nothing. */
START_TEST (probe)
{
  uint8_t junk[STORE];

  ck_assert_int_eq (look (meta).presence, METADATA_ABSENT);
  memset (junk, 0x11, sizeof junk);
  mock_fill (meta, junk, 512, 512);   /* not where a superblock is */
  ck_assert_int_eq (look (meta).presence, METADATA_ABSENT);
  mock_fill (meta, junk, 1, 4096);
  ck_assert_int_eq (look (meta).presence, METADATA_FOREIGN);
  mock_fill (meta, junk, sizeof junk, 0);
  ck_assert_int_eq (look (meta).presence, METADATA_FOREIGN);

  make_store (0, 0);
  ck_assert_int_eq (look (meta).presence, METADATA_PRESENT);
  mock_fill (meta, junk, 1, 100);
  ck_assert_int_eq (look (meta).presence, METADATA_PRESENT);
  mock_fill (meta, junk, 1, 4196);
  ck_assert_int_eq (look (meta).presence, METADATA_DAMAGED);
  mock_fill (meta, NULL, 512, 0);
  ck_assert_int_eq (look (meta).presence, METADATA_DAMAGED);

  mock_log_clear (history);
  mock_fail (meta, MOCK_PREAD, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_int_eq (metadata_probe (mock_backend (meta), &mock_messages),
                    METADATA_IO_ERROR);
  ck_assert_uint_eq (mock_log_len (history), mock_count (meta, MOCK_PREAD));
}
END_TEST

/* A read error while opening or loading is an error, not an empty store. */
START_TEST (read_errors)
{
  const struct superblock sb = parameters ();
  struct region_map *map = region_map_new (sb.size, sb.region_size);
  struct metadata *md;

  make_store_to_damage ();
  mock_fail (meta, MOCK_PREAD, MOCK_ANYWHERE, 1, 1, EIO);
  ck_assert_ptr_null (metadata_open (mock_backend (meta), &mock_messages));

  md = metadata_open (mock_backend (meta), &mock_messages);
  mock_fail (meta, MOCK_PREAD, 8192 + 1024, 512, 1, 1, EIO);
  ck_assert_int_eq (metadata_load (md, map), -1);
  metadata_close (md);
  region_map_free (map);
}
END_TEST

/* A store with more sectors than are read and written at once. */
START_TEST (large_store)
{
  const uint64_t regions = 5000 * (uint64_t)REGIONS_PER_SECTOR - 1;
  const struct superblock sb = {
    .size = regions * 4 * K, .region_size = 4 * K
  };
  struct mock *m = mock_new (history, "large",
                             metadata_store_size (sb.size, 4 * K), false);
  uint64_t words[WORDS_PER_SECTOR] = { 1 };
  uint8_t image[1][METADATA_SECTOR];
  const uint32_t last = 4999;
  struct metadata *md;
  struct found f;

  md = metadata_create (mock_backend (m), &sb, &mock_messages);
  ck_assert_ptr_nonnull (md);
  metadata_encode (md, last, words, image[0]);
  ck_assert_int_eq (metadata_write (md, &last, image, 1), 0);
  metadata_close (md);
  mock_reopen (m);
  f = look (m);
  ck_assert (f.opens);
  ck_assert_uint_eq (f.valid, 1);
  ck_assert_uint_eq (f.sum, 4999 * (uint64_t)REGIONS_PER_SECTOR);
  mock_free (m);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("metadata");
  TCase *tc = tcase_create ("metadata");

  tcase_set_timeout (tc, 240);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, crc);
  tcase_add_loop_test (tc, format, 1, 3);
  tcase_add_loop_test (tc, reads_independent_store, 1, 3);
  tcase_add_test (tc, creation_order);
  tcase_add_test (tc, creation_cut);
  tcase_add_test (tc, begin_and_finish);
  tcase_add_loop_test (tc, flags_cut, 1, 3);
  tcase_add_test (tc, loaded_is_durable);
  tcase_add_test (tc, updates_cut);
  tcase_add_loop_test (tc, destination, 1, 3);
  tcase_add_test (tc, same_flags);
  tcase_add_loop_test (tc, one_superblock_is_enough, 0, 8);
  tcase_add_loop_test (tc, higher_generation, 1, 3);
  tcase_add_loop_test (tc, superblocks_disagree, 0, 40);
  tcase_add_loop_test (tc, impossible_superblocks, 0, 2 * NR_IMPOSSIBLE);
  tcase_add_test (tc, compat_features);
  tcase_add_test (tc, ro_compat_features);
  tcase_add_loop_test (tc, unsupported, 0, 4);
  tcase_add_test (tc, complete_with_a_hole);
  tcase_add_test (tc, stray_bit);
  tcase_add_test (tc, misplaced_sector);
  tcase_add_loop_test (tc, flip_every_bit, 1, 3);
  tcase_add_loop_test (tc, zero_every_sector, 1, 3);
  tcase_add_loop_test (tc, truncate_at_every_length, 1, 3);
  tcase_add_test (tc, walk);
  tcase_add_test (tc, probe);
  tcase_add_test (tc, read_errors);
  tcase_add_test (tc, large_store);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
