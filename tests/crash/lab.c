/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The power-cut laboratory.  It proves I7: whenever the power fails, each
 * sector of the disk reads as a client may expect.
 *
 *   lab [seed=N] [cuts=N] [histories=N] [every=N] [images=N] [deep=0]
 *       [faults=1]
 *
 * It runs histories (history.h) until it has tried `cuts' cut points or
 * `histories' histories.  At each cut point, or with every=N at each Nth, it
 * builds after-crash images (image.h): the named ones and `images' random ones.
 * It opens each image with the real code, and compares what a client reads
 * (judge.h) with what a client may read (oracle.h).  Unless deep=0 is given, it
 * also looks at what clients have read before the cut, and copies or hydrates
 * some images to the end.  Exit status 0: all images were legal; 1: one was
 * not, and a message says why; anything else: the laboratory itself failed.
 *
 * The seed determines the requests, and the random choices for a recording.
 * The order of threads is up to the machine.  So a failure is printed with all
 * calls that led to it, and the same seed mostly finds a similar one soon.
 *
 * With faults=1 a device fails in some histories.  A history begins on a new
 * disk or, half of the time, on an image of the one before: then it is a
 * recovery, whose cuts are cuts during recovery.
 *
 * WHAT A POWER CUT LEAVES.  A device has a volatile cache.  A call that changes
 * it (write, zero, trim) takes effect in the cache at one moment between its
 * start and its end, which the mock backend records with the call's data.  A
 * flush that succeeds covers the calls that had ENDED when it STARTED.  After a
 * cut at time T, for each sector of 512 bytes by itself and each device by
 * itself:
 *
 *   - A change that a flush covers which ended until T is durable.  So is one
 *     with FUA that ended until T.
 *   - The sector holds its last durable change, last in the order of the
 *     effects, or any change whose effect is later, or that is in flight at T.
 *     Why any: the cache may be written back at any moment, and the sector can
 *     have been written back after each of these changes and not again.
 *   - Without a durable change, what it held before the history may remain.
 *   - A flush that fails writes nothing, and what was volatile when it ended
 *     is never written by a later one: so does Linux.  It can still be read
 *     until the cut.  A change that fails may be done in part.
 *   - A sector is not torn inside; a call is, at each sector.
 *   - Nothing orders two sectors, or two devices, but flushes.
 *
 * Of all these images the laboratory takes the extreme ones by name (nothing
 * that may be lost is kept; everything is kept; all metadata and no data; all
 * data and no metadata; what kill -9 leaves) and random ones.
 *
 * WHAT A CLIENT MAY READ.  A request of a client precedes another if it ended
 * before the other started; others are concurrent.  After a cut at T a sector
 * may read as
 *
 *   - the value of a write or zero W that had started until T, unless a write
 *     or zero that W precedes is settled.  It is settled if it ended before the
 *     start of a flush that ended until T, on any connection, or if it had FUA
 *     and ended until T.  A clean end counts as a flush.
 *     A FLUSH (or FUA) that fails tells clients, as a disk does, that what was
 *     written before it ended may be lost: a flush that ends after it began
 *     settles none of that.  But one client at least must have been told.
 *     What else fails settles nothing.
 *   - what the disk held before the history, if nothing is settled: the
 *     source's bytes, or what was read after the last cut.
 *   - zeroes, where a trim had started until T that precedes nothing settled.
 *     A trim settles nothing: what was there before it may stay, because a trim
 *     of a part of a region that is not valid yet does nothing, and because a
 *     destination may ignore trims.
 *   - nothing else: never the destination's old bytes, never another sector's,
 *     never half a sector, never a write of before the last cut that was not
 *     read after it.
 *
 * In some histories the destination's server crashes and comes back while all
 * goes on.  What it had not flushed is gone, or not, sector by sector.  Only a
 * flush that ended before that settles what had started before, also for reads
 * of the running history.
 *
 * Until creation has returned, there may be no metadata; then creation is begun
 * anew, and the disk is the source.  After that it must be there and open.
 * What a client has read after a cut stays so: through another reading,
 * hydration to the end, and opening again; and in the end it is what the
 * destination holds alone.  Metadata that says "complete" makes the clone read
 * from the destination alone, and so must be true.
 *
 * Reads of a running history are checked by the same rules: whatever ended
 * before a read started is settled for it.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "history.h"
#include "image.h"
#include "judge.h"
#include "oracle.h"

/* Look deeper at one image in DEEP_EVERY, at fewer if the disk is large; and
 * hydrate one in HYDRATE_EVERY of these.
 */
#define DEEP_EVERY 16
#define HYDRATE_EVERY 16

/* An image in words: what each device keeps. */
struct recipe {
  enum keep dest, meta;
};

static const struct recipe named[] = {
  { KEEP_NOTHING, KEEP_ALL },
  { KEEP_ALL, KEEP_NOTHING },
  { KEEP_NOTHING, KEEP_NOTHING },
  { KEEP_ALL, KEEP_ALL },
  { KEEP_RETURNED, KEEP_RETURNED },
};
#define NAMED (sizeof named / sizeof named[0])

struct lab {
  uint64_t seed, max_cuts, max_histories, every, random_images, deep, faults;
  uint64_t cuts, images, histories;

  /* The history at hand. */
  const struct history *history;
  struct device *dest, *meta;
  struct oracle *oracle;
  struct judge *judge;
  uint64_t random;
  uint8_t *dest_image, *meta_image;
  value_t *values;

  /* An image of it, for the next history to begin with. */
  uint64_t images_here;
  struct state next;
};

static void *
must (void *ptr)
{
  if (ptr == NULL)
    abort ();
  return ptr;
}

static void *
copy_of (const void *data, size_t size)
{
  return memcpy (must (malloc (size)), data, size);
}

/* Each image of a history has the same chance to be the next one's start. */
static void
keep_for_next (struct lab *lab)
{
  const struct state *s = &lab->history->before;

  if (mock_random (&lab->random) % ++lab->images_here != 0)
    return;
  state_free (&lab->next);
  lab->next = *s;
  lab->next.dest = copy_of (lab->dest_image, s->size + s->excess);
  lab->next.meta = copy_of (lab->meta_image,
                            mock_backend (lab->history->disk->meta)->size);
  lab->next.values = copy_of (lab->values,
                              s->size / SECTOR * sizeof *lab->values);
  lab->next.next_value = lab->history->next_value;
}

static enum depth
choose_depth (const struct lab *lab)
{
  const uint64_t mib = lab->history->before.size >> 20;
  const uint64_t every = DEEP_EVERY * (mib + 1);

  if (!lab->deep || lab->images % every != 0)
    return DEPTH_READ;
  return lab->images / every % HYDRATE_EVERY == 0
    ? DEPTH_HYDRATE : DEPTH_COPY;
}

/* Build an image and judge it.  *others: are there others at this cut? */
static bool
try_image (struct lab *lab, uint64_t cut, const struct recipe *r, bool *others)
{
  *others = device_image (lab->dest, cut, r->dest, &lab->random,
                          lab->dest_image);
  *others |= device_image (lab->meta, cut, r->meta, &lab->random,
                           lab->meta_image);
  lab->images++;
  if (!judge_image (lab->judge, cut, lab->dest_image, lab->meta_image,
                    choose_depth (lab), lab->values)) {
    fprintf (stderr, "seed %" PRIu64 ", history %" PRIu64 " (of %zu requests, "
             "on %s), cut at %" PRIu64 ", image %" PRIu64 ": of what may be "
             "lost, kept: destination %s, metadata %s\n", lab->seed,
             lab->histories, lab->history->n,
             lab->history->before.next_value == VALUE_FIRST_WRITE
             ? "a new disk" : "an image", cut,
             lab->images, keep_names[r->dest], keep_names[r->meta]);
    return false;
  }
  keep_for_next (lab);
  return true;
}

static bool
try_cut (struct lab *lab, uint64_t cut)
{
  bool others = true;

  lab->cuts++;
  oracle_set_cut (lab->oracle, cut);
  for (unsigned i = 0; i < NAMED && others; ++i)
    if (!try_image (lab, cut, &named[i], &others))
      return false;
  for (uint64_t i = 0; i < lab->random_images && others; ++i) {
    struct recipe r = {
      mock_random (&lab->random) % KEEPS, mock_random (&lab->random) % KEEPS
    };

    if (!try_image (lab, cut, &r, &others))
      return false;
  }
  return true;
}

/* ---- the cut points of a history ---- */

static int
compare_ticks (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

  return (x > y) - (x < y);
}

/* All moments after which something is different: the beginning, and the start,
 * the effect and the end of each call that changes or flushes a device and of
 * each request.  Ascending; to be freed.
 */
static uint64_t *
cut_points (const struct history *h, size_t *n)
{
  struct mock_log *log = h->disk->log;
  const size_t len = mock_log_len (log);
  uint64_t *cuts = must (calloc (1 + len * 3 + h->n * 2, sizeof *cuts));

  *n = 1;
  for (size_t i = 0; i < len; ++i) {
    const struct mock_call *call = mock_log_call (log, i);

    if (call->kind < MOCK_PWRITE || call->kind > MOCK_FLUSH)
      continue;
    cuts[(*n)++] = call->start;
    cuts[(*n)++] = call->effect;
    cuts[(*n)++] = call->end;
  }
  for (size_t i = 0; i < h->n; ++i) {
    cuts[(*n)++] = h->event[i].start;
    cuts[(*n)++] = h->event[i].end;
  }
  qsort (cuts, *n, sizeof *cuts, compare_ticks);
  return cuts;
}

static bool
try_reads (struct lab *lab)
{
  uint64_t sector;
  const struct event *ev = oracle_check_reads (lab->oracle, &sector);

  if (ev == NULL)
    return true;
  fprintf (stderr, "illegal: sector %" PRIu64 " was read as %s by client %u, "
           "%" PRIu64 " to %" PRIu64 ", without a cut\n", sector,
           value_name (ev->seen[sector - ev->first]), ev->client, ev->start,
           ev->end);
  oracle_print (lab->oracle, sector);
  history_print (lab->history, sector, ev->end);
  fprintf (stderr, "seed %" PRIu64 ", history %" PRIu64 "\n", lab->seed,
           lab->histories);
  return false;
}

static bool
try_cuts (struct lab *lab)
{
  size_t n;
  uint64_t *cuts = cut_points (lab->history, &n);
  bool ok = true;

  /* Not the same ones in every history. */
  for (size_t i = lab->histories % lab->every; i < n && ok; i += lab->every)
    if (i == 0 || cuts[i] != cuts[i - 1])
      ok = try_cut (lab, cuts[i]);
  free (cuts);
  return ok;
}

static bool
try_history (struct lab *lab, const struct history *h)
{
  const struct state *s = &h->before;
  struct mock_disk *d = h->disk;
  bool ok;

  lab->history = h;
  lab->histories++;
  lab->dest = device_new (d->log, d->dest, s->size + s->excess, s->dest,
                          h->trims);
  lab->meta = device_new (d->log, d->meta, mock_backend (d->meta)->size,
                          s->meta, true);
  lab->oracle = oracle_new (h);
  lab->judge = judge_new (h, lab->oracle);
  lab->dest_image = copy_of (s->dest, s->size + s->excess);
  lab->meta_image = copy_of (s->meta, mock_backend (d->meta)->size);
  lab->values = copy_of (s->values, s->size / SECTOR * sizeof *lab->values);
  lab->images_here = 0;

  ok = (!lab->deep || try_reads (lab)) && try_cuts (lab);

  device_free (lab->dest);
  device_free (lab->meta);
  oracle_free (lab->oracle);
  judge_free (lab->judge);
  free (lab->dest_image);
  free (lab->meta_image);
  free (lab->values);
  return ok;
}

/* ---- main ---- */

/* Where the next history begins. */
static struct state
choose_state (struct lab *lab)
{
  struct state s = lab->next;

  lab->next = (struct state){ 0 };
  if (s.values && mock_random (&lab->random) % 2)
    return s;
  state_free (&s);
  return state_new (mock_random (&lab->random), VALUE_FIRST_WRITE);
}

static bool
run (struct lab *lab)
{
  bool ok = true;

  while (ok && lab->cuts < lab->max_cuts &&
         lab->histories < lab->max_histories) {
    struct state before;
    struct history *h;

    /* A history does not depend on the result of the one before. */
    lab->random = lab->seed + lab->histories;
    before = choose_state (lab);
    h = history_run (&before, mock_random (&lab->random),
                     lab->faults);
    ok = try_history (lab, h);
    history_free (h);
  }
  state_free (&lab->next);
  return ok;
}

static bool
parse (struct lab *lab, const char *arg)
{
  const struct { const char *name; uint64_t *value; } known[] = {
    { "seed", &lab->seed }, { "cuts", &lab->max_cuts },
    { "histories", &lab->max_histories }, { "images", &lab->random_images },
    { "deep", &lab->deep }, { "faults", &lab->faults },
    { "every", &lab->every },
  };

  for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i) {
    const size_t len = strlen (known[i].name);
    char *end;

    if (strncmp (arg, known[i].name, len) != 0 || arg[len] != '=')
      continue;
    errno = 0;
    *known[i].value = strtoull (arg + len + 1, &end, 10);
    return errno == 0 && *end == '\0' && end != arg + len + 1 &&
      lab->every > 0;
  }
  return false;
}

int
main (int argc, char *argv[])
{
  struct lab lab = {
    .seed = time (NULL), .max_cuts = 10000, .max_histories = UINT64_MAX,
    .every = 1, .random_images = 3, .deep = 1,
  };
  bool ok;

  for (int i = 1; i < argc; ++i)
    if (!parse (&lab, argv[i])) {
      fprintf (stderr, "usage: %s [seed=N] [cuts=N] [histories=N] "
               "[every=N] [images=N] [deep=0] [faults=1]\n", argv[0]);
      return 2;
    }
  ok = run (&lab);
  printf ("cut points tried: %" PRIu64 ", images: %" PRIu64 ", histories: %"
          PRIu64 ", seed: %" PRIu64 "\n", lab.cuts, lab.images, lab.histories,
          lab.seed);
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
