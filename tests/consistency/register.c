/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/iszero.h"
#include "base/rounding.h"
#include "register.h"

/* A round while it is looked at. */
struct round {
  const struct place *place;
  const struct reg *reg;
  const struct access *access;
  size_t n;
  size_t *read;          /* the reads' indices in access, by their ends */
  size_t nr_reads;
  struct cluster *cluster;
  size_t nr_clusters;
  bool *settled;         /* for each of read: its cluster is known */
};

static void *
must (void *ptr)
{
  if (ptr == NULL)
    abort ();
  return ptr;
}

void
reg_init (struct reg *reg, const struct place *place)
{
  reg->n = 1;
  reg->cluster = must (calloc (1, sizeof *reg->cluster));
  reg->cluster->value =
    is_zero (place->initial, SECTOR) ? VALUE_ZERO : VALUE_INITIAL;
  reg->cluster->certain = true;
}

void
reg_free (struct reg *reg)
{
  free (reg->cluster);
}

/* ---- clusters ---- */

static bool
must_precede (const struct cluster *x, const struct cluster *y)
{
  return x->first_end < y->last_start;
}

static bool
contradict (const struct cluster *x, const struct cluster *y)
{
  return must_precede (x, y) && must_precede (y, x);
}

static void
add_read (struct cluster *c, const struct access *read)
{
  c->certain = true;
  c->first_end = MIN (c->first_end, read->end);
  c->last_start = MAX (c->last_start, read->start);
}

static struct cluster *
find_cluster (const struct round *r, value_t value)
{
  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (r->cluster[i].value == value)
      return &r->cluster[i];
  return NULL;
}

/* The values at the start of the round, and its changes; no reads. */
static void
begin_clusters (struct round *r)
{
  r->nr_clusters = r->reg->n;
  memcpy (r->cluster, r->reg->cluster, r->reg->n * sizeof *r->cluster);
  for (size_t i = 0; i < r->n; ++i) {
    const struct access *a = &r->access[i];

    if (a->type != ACCESS_READ)
      r->cluster[r->nr_clusters++] = (struct cluster){
        .value = a->type == ACCESS_WRITE ? a->value : VALUE_ZERO,
        .certain = a->type != ACCESS_TRIM,
        .start = a->start, .end = a->end,
        .first_end = a->end, .last_start = a->start,
      };
  }
}

/* Does a cluster contradict no other? */
static bool
fits (const struct round *r, const struct cluster *c, size_t index)
{
  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (i != index && r->cluster[i].certain && contradict (c, &r->cluster[i]))
      return false;
  return true;
}

/* Would the cluster fit with this read in it? */
static bool
fits_with (const struct round *r, size_t index, const struct access *read)
{
  struct cluster c = r->cluster[index];

  if (read->end < c.start)
    return false;
  add_read (&c, read);
  return fits (r, &c, index);
}

/* ---- reads ---- */

/* Reads of values that are written once, and all clusters. */
static bool
settle_unique_reads (struct round *r, const value_t *value, size_t nr_reads)
{
  for (size_t i = 0; i < nr_reads; ++i) {
    const struct access *read = &r->access[r->read[i]];
    struct cluster *c;

    r->settled[i] = value[i] != VALUE_ZERO;
    if (value[i] == VALUE_ZERO || value[i] == VALUE_OTHER)
      continue;
    c = find_cluster (r, value[i]);
    if (c == NULL || read->end < c->start)
      return false;
    add_read (c, read);
  }

  /* Of two that contradict each other one is such that some request in it was
   * over before another began.
   */
  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (r->cluster[i].certain &&
        r->cluster[i].first_end < r->cluster[i].last_start &&
        !fits (r, &r->cluster[i], i))
      return false;
  return true;
}

/* Give a read of zeroes to the only cluster that it can belong to, if there is
 * only one.  False if there is none.
 */
static bool
settle_zero_read (struct round *r, const struct access *read, bool *settled)
{
  size_t possible = 0, last = 0;

  for (size_t i = 0; i < r->nr_clusters && possible < 2; ++i)
    if (r->cluster[i].value == VALUE_ZERO && fits_with (r, i, read)) {
      possible++;
      last = i;
    }
  *settled = possible == 1;
  if (*settled)
    add_read (&r->cluster[last], read);
  return possible > 0;
}

static bool
settle_zero_reads (struct round *r, size_t nr_reads)
{
  bool changed;

  do {
    changed = false;
    for (size_t i = 0; i < nr_reads; ++i) {
      if (r->settled[i])
        continue;
      if (!settle_zero_read (r, &r->access[r->read[i]], &r->settled[i]))
        return false;
      changed |= r->settled[i];
    }
  } while (changed);
  return true;
}

/* May a read be a mixture of values that were being written, and of one other
 * at most?
 */
static bool
may_be_torn (const struct round *r, const struct access *read)
{
  CLEANUP_FREE value_t *value = must (calloc (r->nr_clusters + 1,
                                              sizeof *value));
  const struct place *p = r->place;
  size_t n = 0;

  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (r->cluster[i].end >= read->start && fits_with (r, i, read))
      value[n++] = r->cluster[i].value;
  if (n == 0)
    return false;
  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (fits_with (r, i, read)) {
      value[n] = r->cluster[i].value;
      if (sector_is_mixture (read->bytes, p->run, p->sector, p->initial,
                             value, n + 1))
        return true;
    }
  return false;
}

static bool
check_torn_reads (const struct round *r, const value_t *value, size_t nr_reads)
{
  for (size_t i = 0; i < nr_reads; ++i)
    if (value[i] == VALUE_OTHER && !may_be_torn (r, &r->access[r->read[i]]))
      return false;
  return true;
}

/* Are the first nr_reads reads of the round legal, if they returned these
 * values?
 */
static bool
is_legal (struct round *r, const value_t *value, size_t nr_reads)
{
  begin_clusters (r);
  return settle_unique_reads (r, value, nr_reads) &&
    settle_zero_reads (r, nr_reads) &&
    check_torn_reads (r, value, nr_reads);
}

/* ---- after the round ---- */

/* Must no other cluster come after this one? */
static bool
may_be_last (const struct round *r, size_t index)
{
  for (size_t i = 0; i < r->nr_clusters; ++i)
    if (i != index && r->cluster[i].certain &&
        must_precede (&r->cluster[index], &r->cluster[i]))
      return false;
  return true;
}

/* Keep the clusters whose value may be there now.  Of trims that may have done
 * nothing one is as good as many: each ended before whatever comes, and none
 * must come before or after another one that is kept.
 */
static void
go_on (struct reg *reg, const struct round *r)
{
  struct cluster *keep = must (calloc (r->nr_clusters, sizeof *keep));
  bool has_trim = false;
  size_t n = 0;

  for (size_t i = 0; i < r->nr_clusters; ++i) {
    const struct cluster *c = &r->cluster[i];

    if ((!c->certain && has_trim) || !may_be_last (r, i))
      continue;
    has_trim |= !c->certain;
    keep[n++] = *c;
  }
  free (reg->cluster);
  reg->cluster = must (realloc (keep, n * sizeof *keep));
  reg->n = n;
}

/* ---- when it is not legal ---- */

static bool
contains (const value_t *values, size_t n, value_t value)
{
  for (size_t i = 0; i < n; ++i)
    if (values[i] == value)
      return true;
  return false;
}

/* Find the first read with which it is not legal any more, and what would have
 * been legal in its place.
 */
static void
blame (struct round *r, value_t *value, struct reg_verdict *verdict)
{
  CLEANUP_FREE value_t *known = must (calloc (r->nr_clusters, sizeof *known));
  const size_t nr_known = r->nr_clusters;
  size_t i = 0;

  for (size_t j = 0; j < nr_known; ++j)
    known[j] = r->cluster[j].value;
  while (i + 1 < r->nr_reads && is_legal (r, value, i + 1))
    i++;
  verdict->read = r->read[i];
  verdict->allowed = must (calloc (nr_known, sizeof *verdict->allowed));
  for (size_t j = 0; j < nr_known; ++j) {
    if (contains (verdict->allowed, verdict->nr_allowed, known[j]))
      continue;
    value[i] = known[j];
    if (is_legal (r, value, i + 1))
      verdict->allowed[verdict->nr_allowed++] = known[j];
  }
}

/* ---- a round ---- */

struct by_end {
  uint64_t end;
  size_t index;
};

static int
compare_ends (const void *a, const void *b)
{
  const struct by_end *x = a, *y = b;

  return (x->end > y->end) - (x->end < y->end);
}

static void
sort_reads (struct round *r)
{
  CLEANUP_FREE struct by_end *reads = must (calloc (r->n + 1, sizeof *reads));

  for (size_t i = 0; i < r->n; ++i)
    if (r->access[i].type == ACCESS_READ)
      reads[r->nr_reads++] = (struct by_end){ r->access[i].end, i };
  qsort (reads, r->nr_reads, sizeof *reads, compare_ends);
  for (size_t i = 0; i < r->nr_reads; ++i)
    r->read[i] = reads[i].index;
}

void
reg_check (struct reg *reg, const struct place *place,
           const struct access *access, size_t n, struct reg_verdict *verdict)
{
  CLEANUP_FREE size_t *read = must (calloc (n + 1, sizeof *read));
  CLEANUP_FREE bool *settled = must (calloc (n + 1, sizeof *settled));
  CLEANUP_FREE value_t *value = must (calloc (n + 1, sizeof *value));
  CLEANUP_FREE struct cluster *cluster = must (calloc (reg->n + n,
                                                       sizeof *cluster));
  struct round r = {
    .place = place, .reg = reg, .access = access, .n = n,
    .read = read, .settled = settled, .cluster = cluster,
  };

  *verdict = (struct reg_verdict){ 0 };
  sort_reads (&r);
  for (size_t i = 0; i < r.nr_reads; ++i) {
    value[i] = access[read[i]].value;
    verdict->torn += value[i] == VALUE_OTHER;
  }
  verdict->legal = is_legal (&r, value, r.nr_reads);
  if (verdict->legal)
    go_on (reg, &r);
  else
    blame (&r, value, verdict);
}
