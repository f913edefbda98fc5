/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone repair: write a new store with what is known of the old one, and
 * with what the user decided about the rest.
 *
 * The new store has a UUID of its own, so that no sector of the old one can be
 * taken for one of the new one.  It becomes a store with its last write
 * (metadata_finish).  A repair that is interrupted before leaves nothing
 * usable, and never a store without some of the bits.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backend/file.h"
#include "findings.h"
#include "nbdclone.h"
#include "store.h"

#define CHUNK_SECTORS 256

enum decision { UNDECIDED, AS_VALID, AS_INVALID };

/* ---- writing ---- */

struct writing {
  struct metadata *md;
  bool unknown_is_valid;
  uint64_t valid;               /* bits written */
  size_t n;                     /* sectors not written yet */
  uint32_t sectors[CHUNK_SECTORS];
  uint8_t images[CHUNK_SECTORS][METADATA_SECTOR];
};

static int
write_chunk (struct writing *w)
{
  size_t n = w->n;

  w->n = 0;
  if (metadata_write (w->md, w->sectors, w->images, n) == 0)
    return 0;
  log_error (&tool_log, "cannot write to %s: %m", w->md->backend->name);
  return -1;
}

static int
write_sector (void *opaque, uint32_t s, const uint64_t valid[WORDS_PER_SECTOR],
              const uint64_t unknown[WORDS_PER_SECTOR])
{
  struct writing *w = opaque;
  uint64_t words[WORDS_PER_SECTOR];

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    words[i] = valid[i] | (w->unknown_is_valid ? unknown[i] : 0);
    w->valid += __builtin_popcountll (words[i]);
  }
  w->sectors[w->n] = s;
  metadata_encode (w->md, s, words, w->images[w->n]);
  w->n++;
  return w->n == CHUNK_SECTORS ? write_chunk (w) : 0;
}

/* Write the bitmap and the superblocks. */
static int
write_store (const struct store *store, struct metadata *md, bool as_valid,
             uint64_t expected)
{
  struct writing w = { .md = md, .unknown_is_valid = as_valid };

  if (store_walk (store, write_sector, &w) == -1 || write_chunk (&w) == -1)
    return -1;
  /* The flags in the superblock depend on what was counted before. */
  if (w.valid != expected) {
    log_error (&tool_log, "%s changed while it was read; stop what writes to "
               "it first", store->backend->name);
    return -1;
  }
  if (metadata_finish (md) == -1) {
    log_error (&tool_log, "cannot write to %s: %m", md->backend->name);
    return -1;
  }
  return 0;
}

/* The superblock of a new store with this many valid regions.  The new store
 * has the version of the old one.
 */
static struct superblock
new_superblock (const struct store *store, uint64_t valid)
{
  struct superblock sb = *store->sb;

  if (valid != store->regions)
    sb.flags &= ~METADATA_COMPLETE;
  if (!store_is_clean (store))
    sb.flags &= ~METADATA_CLEAN;
  /* Unknown features cannot be kept. */
  sb.compat &= METADATA_COMPAT;
  if (!sb.compat && !sb.ro_compat && !sb.incompat)
    memset (sb.feature_area, 0, sizeof sb.feature_area);
  return sb;
}

static int
write_new (const struct store *store, const char *name, bool as_valid)
{
  const struct backend_params params = { .role = "new metadata", .name = name };
  const uint64_t valid = store->valid + (as_valid ? store->unknown : 0);
  const struct superblock sb = new_superblock (store, valid);
  struct backend *b;
  struct metadata *md;
  int r = -1;

  b = backend_create (&params, store->expected_size, &tool_log);
  if (b == NULL)
    return -1;
  md = metadata_begin (b, &sb, &tool_log);
  if (md)
    r = write_store (store, md, as_valid, valid);
  if (r == -1)
    backend_file_unlink (b);
  if (md)
    metadata_close (md);
  else
    backend_close (b);
  return r;
}

/* ---- messages ---- */

static void
ask_for_decision (const struct store *store)
{
  log_error (&tool_log, "nothing was written: the state of %" PRIu64 " regions "
             "of %s is unknown, and you must decide: --unknown=invalid makes "
             "them read as the source again, so that what was written to "
             "them is lost; --unknown=valid takes the destination's bytes as "
             "they are, which are garbage or zeroes where nothing was written "
             "or copied yet", store->unknown, store->backend->name);
}

static void
print_result (const struct store *store, const char *name, bool as_valid)
{
  const bool was_complete = store->sb->flags & METADATA_COMPLETE;
  const uint64_t valid = store->valid + (as_valid ? store->unknown : 0);

  if (store->unknown > 0)
    printf ("%s: given up: the state of %" PRIu64 " regions; they are %s now\n",
            name, store->unknown, as_valid ? "valid" : "invalid");
  if (store->sb->compat & ~METADATA_COMPAT)
    printf ("%s: given up: compat features that this program does not know, "
            "0x%" PRIx32 "\n", name, store->sb->compat & ~METADATA_COMPAT);
  if (was_complete && valid != store->regions)
    printf ("%s: given up: it is not complete any more, and needs the "
            "source\n", name);
  printf ("%s: written: %" PRIu64 " of %" PRIu64 " regions are valid%s\n",
          name, valid, store->regions,
          was_complete && valid == store->regions ? ", complete" : "");
}

/* ---- the command ---- */

static int
repair (struct store *store, const char *name, enum decision decision,
        bool all)
{
  const uint32_t features = store->sb->ro_compat & ~METADATA_RO_COMPAT;

  if (features) {
    log_error (&tool_log, "%s has ro_compat features that this program does "
               "not know, 0x%" PRIx32 "; use a newer one to repair it",
               store->backend->name, features);
    return EXIT_TROUBLE;
  }
  if (findings_print (store, all) == -1)
    return EXIT_TROUBLE;
  if (store->unknown > 0 && decision == UNDECIDED) {
    ask_for_decision (store);
    return EXIT_DAMAGED;
  }
  if (write_new (store, name, decision == AS_VALID) == -1)
    return EXIT_TROUBLE;
  print_result (store, name, decision == AS_VALID);
  return EXIT_CLEAN;
}

static int
parse_decision (const char *value, enum decision *decision)
{
  if (strcmp (value, "valid") == 0)
    *decision = AS_VALID;
  else if (strcmp (value, "invalid") == 0)
    *decision = AS_INVALID;
  else {
    log_error (&tool_log, "--unknown must be valid or invalid, not %s", value);
    return -1;
  }
  return 0;
}

int
repair_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "all", no_argument, NULL, 'a' },
    { "unknown", required_argument, NULL, 'u' },
    { 0 }
  };
  enum decision decision = UNDECIDED;
  struct store store;
  bool all = false;
  int c, status;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == '?' || (c == 'u' && parse_decision (optarg, &decision) == -1))
      return EXIT_TROUBLE;
    all |= c == 'a';
  }
  if (!has_operands (argc, argv, 2, "repair [--all] [--unknown=valid|invalid] "
                     "METADATA NEW"))
    return EXIT_TROUBLE;

  status = store_open (&store, argv[optind]);
  if (status == EXIT_CLEAN)
    status = repair (&store, argv[optind + 1], decision, all);
  store_close (&store);
  return status;
}
