/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone dump: print the content of a store as text or JSON.
 *
 * There may be more runs of regions than fit in memory, so they are printed as
 * they are found.  jansson prints everything before them, without the object's
 * braces.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <jansson.h>
#include <uuid/uuid.h>

#include "base/rounding.h"
#include "nbdclone.h"
#include "store.h"

/* ---- runs of regions in one state ---- */

enum state { INVALID, VALID, UNKNOWN };

static const char *const state_names[] = { "invalid", "valid", "unknown" };

struct runs {
  bool json;
  uint64_t first, end;          /* the current run, not printed yet */
  enum state state;
  uint64_t printed;
};

static void
print_run (struct runs *r)
{
  const char *name = state_names[r->state];

  if (r->state == INVALID)
    return;
  if (r->json)
    printf ("%s\n  {\"first\": %" PRIu64 ", \"count\": %" PRIu64
            ", \"state\": \"%s\"}", r->printed ? "," : "", r->first,
            r->end - r->first, name);
  else if (r->end - r->first == 1)
    printf ("  %" PRIu64 " %s\n", r->first, name);
  else
    printf ("  %" PRIu64 "..%" PRIu64 " %s\n", r->first, r->end - 1, name);
  r->printed++;
}

static void
add_run (struct runs *r, uint64_t count, enum state state)
{
  if (state != r->state) {
    print_run (r);
    r->first = r->end;
    r->state = state;
  }
  r->end += count;
}

/* Add the first n regions of a word. */
static void
add_word (struct runs *r, uint64_t valid, uint64_t unknown, unsigned n)
{
  for (unsigned b = 0; b < n; ) {
    enum state state = valid >> b & 1 ? VALID
      : unknown >> b & 1 ? UNKNOWN : INVALID;
    uint64_t same = state == VALID ? valid
      : state == UNKNOWN ? unknown : ~(valid | unknown);
    uint64_t other = ~same >> b;
    unsigned run = other ? (unsigned)__builtin_ctzll (other) : 64;

    run = MIN (run, n - b);
    add_run (r, run, state);
    b += run;
  }
}

struct dumping {
  const struct store *store;
  struct runs runs;
};

static int
dump_sector (void *opaque, uint32_t s, const uint64_t valid[WORDS_PER_SECTOR],
             const uint64_t unknown[WORDS_PER_SECTOR])
{
  struct dumping *d = opaque;

  for (unsigned i = 0; i < WORDS_PER_SECTOR; ++i) {
    uint64_t first = store_first_region (s) + i * 64;

    if (first >= d->store->regions)
      break;
    add_word (&d->runs, valid[i], unknown[i],
              MIN (d->store->regions - first, UINT64_C (64)));
  }
  /* Stop if the output cannot be written. */
  return ferror (stdout) ? -1 : 0;
}

static int
dump_runs (const struct store *store, bool json)
{
  struct dumping d = { .store = store, .runs.json = json };

  if (store_walk (store, dump_sector, &d) == -1)
    return -1;
  print_run (&d.runs);
  return 0;
}

static bool
has_destination (const struct backend_identity *id)
{
  static const struct backend_identity none;

  return !metadata_same_identity (id, &none);
}

/* ---- text ---- */

static void
print_flags (uint32_t flags)
{
  printf ("flags:          %s%s%s\n",
          flags & METADATA_CLEAN ? "clean" : "",
          flags == (METADATA_CLEAN | METADATA_COMPLETE) ? " " : "",
          flags & METADATA_COMPLETE ? "complete" : flags ? "" : "none");
}

static void
print_destination (const struct backend_identity *id)
{
  if (!has_destination (id))
    printf ("destination:    unknown\n");
  else if (id->birth_sec == 0 && id->birth_nsec == 0)
    printf ("destination:    inode %" PRIu64 "\n", id->inode);
  else
    printf ("destination:    inode %" PRIu64 ", made at %" PRId64 ".%09" PRIu32
            "\n", id->inode, id->birth_sec, id->birth_nsec);
}

static int
dump_text (const struct store *store)
{
  const struct superblock *sb = store->sb;
  char uuid[UUID_STR_LEN];

  uuid_unparse_lower (sb->uuid, uuid);
  printf ("uuid:           %s\n", uuid);
  printf ("version:        %" PRIu32 "\n", sb->version);
  printf ("size:           %" PRIu64 "\n", sb->size);
  printf ("region size:    %" PRIu64 "\n", sb->region_size);
  print_flags (sb->flags);
  printf ("generation:     %" PRIu64 "\n", sb->generation);
  printf ("features:       compat 0x%" PRIx32 ", ro_compat 0x%" PRIx32
          ", incompat 0x%" PRIx32 "\n", sb->compat, sb->ro_compat,
          sb->incompat);
  print_destination (&sb->destination);
  printf ("superblock:     %c\n", "AB"[store->found.current]);
  printf ("bitmap sectors: %" PRIu32 ", damaged: %" PRIu32 "\n",
          store->sectors, store->damaged);
  printf ("fingerprint:");
  for (unsigned i = 0; i < FINGERPRINT_SAMPLES; ++i)
    printf ("%s%08" PRIx32, i % 8 ? " " : i ? "\n                " : "    ",
            sb->fingerprint.crc[i]);
  printf ("\n");
  printf ("regions:        %" PRIu64 ": %" PRIu64 " valid, %" PRIu64
          " invalid, %" PRIu64 " unknown\n", store->regions, store->valid,
          store->invalid, store->unknown);
  return dump_runs (store, false);
}

/* ---- JSON ---- */

static json_t *
fingerprint_json (const struct fingerprint *fp)
{
  json_t *array = json_array ();
  char hex[9];

  for (unsigned i = 0; array && i < FINGERPRINT_SAMPLES; ++i) {
    snprintf (hex, sizeof hex, "%08" PRIx32, fp->crc[i]);
    if (json_array_append_new (array, json_string (hex)) == -1) {
      json_decref (array);
      array = NULL;
    }
  }
  return array;
}

static json_t *
superblock_json (const struct store *store, unsigned i)
{
  const char *wrong = store->found.wrong[i];

  return json_pack ("{s:s, s:i, s:b, s:s?}",
                    "name", i ? "B" : "A",
                    "offset", i ? METADATA_SUPERBLOCK_B
                                : METADATA_SUPERBLOCK_A,
                    "valid", wrong == NULL,
                    "wrong", wrong);
}

/* Everything but the generation, the destination and the runs.  The first two
 * have 64-bit values that do not fit in json_int_t.
 */
static json_t *
head_json (const struct store *store)
{
  const struct superblock *sb = store->sb;
  char uuid[UUID_STR_LEN];

  uuid_unparse_lower (sb->uuid, uuid);
  return json_pack ("{s:s, s:I, s:I, s:I, s:{s:b, s:b}, s:{s:I, s:I, s:I},"
                    " s:s, s:[o, o], s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:b}",
                    "uuid", uuid,
                    "version", (json_int_t)sb->version,
                    "size", (json_int_t)sb->size,
                    "region_size", (json_int_t)sb->region_size,
                    "flags",
                      "clean", !!(sb->flags & METADATA_CLEAN),
                      "complete", !!(sb->flags & METADATA_COMPLETE),
                    "features",
                      "compat", (json_int_t)sb->compat,
                      "ro_compat", (json_int_t)sb->ro_compat,
                      "incompat", (json_int_t)sb->incompat,
                    "superblock", store->found.current ? "B" : "A",
                    "superblocks", superblock_json (store, 0),
                                   superblock_json (store, 1),
                    "fingerprint", fingerprint_json (&sb->fingerprint),
                    "bitmap_sectors", (json_int_t)store->sectors,
                    "damaged_bitmap_sectors", (json_int_t)store->damaged,
                    "regions", (json_int_t)store->regions,
                    "valid", (json_int_t)store->valid,
                    "invalid", (json_int_t)store->invalid,
                    "unknown", (json_int_t)store->unknown,
                    "damaged", !store_is_clean (store));
}

static void
print_destination_json (const struct backend_identity *id)
{
  if (!has_destination (id))
    printf (" \"destination\": null,\n");
  else
    printf (" \"destination\": {\"inode\": %" PRIu64 ", \"birth_seconds\": "
            "%" PRId64 ", \"birth_nanoseconds\": %" PRIu32 "},\n", id->inode,
            id->birth_sec, id->birth_nsec);
}

static int
dump_json (const struct store *store)
{
  json_t *head = head_json (store);
  char *text = head ? json_dumps (head, JSON_EMBED | JSON_PRESERVE_ORDER)
                    : NULL;
  int r = -1;

  if (text == NULL)
    log_error (&tool_log, "no memory for JSON");
  else {
    printf ("{%s,\n \"generation\": %" PRIu64 ",\n", text,
            store->sb->generation);
    print_destination_json (&store->sb->destination);
    printf (" \"runs\": [");
    r = dump_runs (store, true);
    printf ("]}\n");
  }
  free (text);
  json_decref (head);
  return r;
}

/* ---- the command ---- */

static int
dump (struct store *store, bool json)
{
  if (store_examine (store, NULL, NULL) == -1 ||
      (json ? dump_json : dump_text) (store) == -1)
    return EXIT_TROUBLE;
  if (store_is_clean (store))
    return EXIT_CLEAN;
  log_error (&tool_log, "%s is damaged: nbdclone check says where",
             store->backend->name);
  return EXIT_DAMAGED;
}

int
dump_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "json", no_argument, NULL, 'j' },
    { 0 }
  };
  struct store store;
  bool json = false;
  int c, status;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == '?')
      return EXIT_TROUBLE;
    json = true;
  }
  if (!has_operands (argc, argv, 1, "dump [--json] METADATA"))
    return EXIT_TROUBLE;

  status = store_open (&store, argv[optind]);
  if (status == EXIT_CLEAN)
    status = dump (&store, json);
  store_close (&store);
  return status;
}
