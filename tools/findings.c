/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "base/iszero.h"
#include "base/rounding.h"
#include "findings.h"
#include "nbdclone.h"

#define MAX_LINES 100

static const struct {
  char name;
  uint64_t offset;
} copies[2] = {
  { 'A', METADATA_SUPERBLOCK_A }, { 'B', METADATA_SUPERBLOCK_B }
};

/* ---- bitmap sectors ---- */

/* Sectors [first, last] have the same fault, not printed yet.  No sectors if
 * wrong is NULL.
 */
struct fault {
  const struct store *store;
  uint32_t first, last;
  const char *wrong;
  uint64_t lines;
  uint64_t max_lines;
  uint64_t left_out;           /* sectors */
};

static void
print_fault (struct fault *f)
{
  uint64_t first = store_first_region (f->first);
  uint64_t last = store_last_region (f->store, f->last);

  if (f->wrong == NULL)
    return;
  if (f->lines++ >= f->max_lines) {
    f->left_out += f->last - f->first + 1;
    return;
  }
  printf ("%s: bitmap sector", f->store->backend->name);
  if (f->first == f->last)
    printf (" %" PRIu32 " at offset %" PRIu64, f->first,
            metadata_sector_offset (f->first));
  else
    printf ("s %" PRIu32 "..%" PRIu32 " at offsets %" PRIu64 "..%" PRIu64,
            f->first, f->last, metadata_sector_offset (f->first),
            metadata_sector_offset (f->last));
  printf (": %s: regions %" PRIu64 "..%" PRIu64 ", bytes %" PRIu64 "..%" PRIu64
          " of the disk\n", f->wrong, first, last,
          first * f->store->sb->region_size,
          store_end_byte (f->store, last) - 1);
}

static void
add_fault (void *opaque, uint32_t s, const char *wrong)
{
  struct fault *f = opaque;

  /* The decoder's texts are constants: the same fault has the same address. */
  if (f->wrong == wrong && f->last + 1 == s) {
    f->last = s;
    return;
  }
  print_fault (f);
  f->first = f->last = s;
  f->wrong = wrong;
}

static int
print_bitmap (struct store *store, bool all)
{
  struct fault f = {
    .store = store, .max_lines = all ? UINT64_MAX : MAX_LINES
  };
  int r = store_examine (store, add_fault, &f);

  print_fault (&f);
  if (f.left_out > 0)
    printf ("%s: and %" PRIu64 " more bitmap sectors, which --all lists\n",
            store->backend->name, f.left_out);
  return r;
}

/* ---- everything else ---- */

static void
print_superblocks (const struct store *store)
{
  const struct superblocks *found = &store->found;

  for (unsigned i = 0; i < 2; ++i)
    if (found->wrong[i])
      printf ("%s: superblock %c at offset %" PRIu64 " is damaged: %s; "
              "superblock %c is good\n", store->backend->name, copies[i].name,
              copies[i].offset, found->wrong[i], copies[1 - i].name);
}

int
findings_print (struct store *store, bool all)
{
  const char *name = store->backend->name;

  print_superblocks (store);
  if (store->backend->size < store->expected_size)
    printf ("%s: cut: it has %" PRIu64 " bytes and should have %" PRIu64 "\n",
            name, store->backend->size, store->expected_size);
  if (print_bitmap (store, all) == -1)
    return -1;
  if (store->contradicting > 0)
    printf ("%s: superblock %c says that the clone is complete, the bitmap "
            "that %" PRIu64 " regions, the first of them region %" PRIu64
            ", are not valid: one of them was lost\n", name,
            copies[store->found.current].name, store->contradicting,
            store->first_contradicting);
  return 0;
}

/* ---- notes ---- */

/* Print a note if an unused range is not zero. */
static int
note_range (const struct store *store, uint64_t start, uint64_t end)
{
  uint8_t buf[METADATA_BITMAP];
  size_t count;

  end = MIN (end, store->backend->size);
  if (start >= end)
    return 0;
  count = end - start;
  if (backend_pread (store->backend, buf, count, start) == -1) {
    log_error (&tool_log, "metadata %s: cannot read %zu bytes at offset "
               "%" PRIu64 ": %m", store->backend->name, count, start);
    return -1;
  }
  if (!is_zero (buf, count))
    printf ("%s: note: bytes %" PRIu64 "..%" PRIu64 ", which are not used, "
            "are not all zero: harmless\n", store->backend->name, start,
            end - 1);
  return 0;
}

static void
note_features (const struct store *store)
{
  const uint32_t compat = store->sb->compat & ~METADATA_COMPAT;
  const uint32_t ro_compat = store->sb->ro_compat & ~METADATA_RO_COMPAT;

  if (compat)
    printf ("%s: note: it has compat features that this program does not know, "
            "0x%" PRIx32 ": harmless\n", store->backend->name, compat);
  if (ro_compat)
    printf ("%s: note: it has ro_compat features that this program does not "
            "know, 0x%" PRIx32 ": only a newer one can serve the clone or "
            "repair this\n", store->backend->name, ro_compat);
}

int
findings_print_notes (const struct store *store)
{
  const struct superblocks *found = &store->found;
  const unsigned old = 1 - found->current;

  note_features (store);

  if (!found->wrong[old] &&
      found->sb[old].generation != store->sb->generation)
    printf ("%s: note: superblock %c at offset %" PRIu64 " is of generation "
            "%" PRIu64 ", the other of %" PRIu64 ", as after a crash: "
            "harmless\n", store->backend->name, copies[old].name,
            copies[old].offset, found->sb[old].generation,
            store->sb->generation);

  if (note_range (store, METADATA_SUPERBLOCK_A + METADATA_SECTOR,
                  METADATA_SUPERBLOCK_B) == -1 ||
      note_range (store, METADATA_SUPERBLOCK_B + METADATA_SECTOR,
                  METADATA_BITMAP) == -1)
    return -1;
  return note_range (store, metadata_sector_offset (store->sectors),
                     store->expected_size);
}
