/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "history.h"
#include "register.h"

struct round {
  struct round *next;
  struct request *request;
  size_t n;
  uint64_t bytes;
};

struct history {
  uint64_t run, first, sectors;
  const uint8_t *initial;
  struct reg *reg;        /* of each sector; none where n is 0 */
  struct round *oldest, *newest;
  uint64_t kept;          /* bytes of rounds */
  bool forgotten;         /* some rounds have been */
  struct history_counts counts;
};

/* One sector of a request. */
struct touch {
  uint64_t sector;
  const struct request *request;
};

static void *
must (void *ptr)
{
  if (ptr == NULL)
    abort ();
  return ptr;
}

struct history *
history_new (uint64_t run, uint64_t offset, uint64_t size,
             const uint8_t *initial)
{
  struct history *h = must (calloc (1, sizeof *h));

  h->run = run;
  h->first = offset / SECTOR;
  h->sectors = size / SECTOR;
  h->initial = initial;
  h->reg = must (calloc (h->sectors, sizeof *h->reg));
  return h;
}

/* ---- rounds ---- */

static void
forget_oldest (struct history *h)
{
  struct round *r = h->oldest;

  h->oldest = r->next;
  h->kept -= r->bytes;
  h->forgotten = true;
  for (size_t i = 0; i < r->n; ++i)
    request_free (&r->request[i]);
  free (r->request);
  free (r);
}

void
history_free (struct history *h)
{
  while (h->oldest)
    forget_oldest (h);
  for (uint64_t i = 0; i < h->sectors; ++i)
    reg_free (&h->reg[i]);
  free (h->reg);
  free (h);
}

struct request *
history_begin_round (struct history *h, size_t n)
{
  struct round *r = must (calloc (1, sizeof *r));

  r->n = n;
  r->request = must (calloc (n, sizeof *r->request));
  if (h->newest && h->oldest)
    h->newest->next = r;
  else
    h->oldest = r;
  h->newest = r;
  return r->request;
}

struct history_counts
history_counts (const struct history *h)
{
  return h->counts;
}

/* ---- one sector ---- */

static struct place
place_of (const struct history *h, uint64_t sector)
{
  return (struct place){
    h->run, sector, h->initial + (sector - h->first) * SECTOR
  };
}

/* The access of a request to a sector of its range.  False: none. */
static bool
access_of (const struct request *r, uint64_t sector, struct access *a)
{
  *a = (struct access){ .start = r->start, .end = r->end, .opaque = r };
  switch (r->type) {
  case REQUEST_READ:
  case REQUEST_EXTENTS:
    a->type = ACCESS_READ;
    a->value = r->seen[sector - request_first (r)];
    if (a->value == VALUE_OTHER)
      a->bytes = request_bytes (r, sector);
    return a->value != VALUE_NONE;
  case REQUEST_WRITE:
    a->type = ACCESS_WRITE;
    a->value = r->value;
    return true;
  case REQUEST_ZERO:
    /* What a server has done when it finds that it cannot go on fast, is not
     * undone.
     */
    a->type = r->refused ? ACCESS_TRIM : ACCESS_ZERO;
    return true;
  case REQUEST_TRIM:
    a->type = ACCESS_TRIM;
    return true;
  case REQUEST_FLUSH:
  case REQUEST_CACHE:
    return false;
  }
  __builtin_unreachable ();
}

static void
count_reads (struct history *h, const struct access *access, size_t n)
{
  uint64_t changed_until = 0;

  /* A change that begins later than the read. */
  for (size_t i = 0; i < n; ++i) {
    bool overlaps = access[i].start <= changed_until;

    if (access[i].type != ACCESS_READ) {
      changed_until = MAX (changed_until, access[i].end);
      continue;
    }
    for (size_t j = i + 1; !overlaps && j < n; ++j) {
      if (access[j].start > access[i].end)
        break;
      overlaps = access[j].type != ACCESS_READ;
    }
    h->counts.reads++;
    h->counts.concurrent += overlaps;
  }
}

/* ---- printing ---- */

static int
compare_starts (const void *a, const void *b)
{
  const struct request *const *x = a, *const *y = b;

  return ((*x)->start > (*y)->start) - ((*x)->start < (*y)->start);
}

static void
print_requests (const struct request **request, size_t n, uint64_t sector,
                const struct request *blamed)
{
  qsort (request, n, sizeof *request, compare_starts);
  fprintf (stderr, "   %13s %13s  %4s  %s\n", "sent", "answered", "conn",
           "request");
  for (size_t i = 0; i < n; ++i) {
    fprintf (stderr, request[i] == blamed ? "=> " : "   ");
    request_print (stderr, request[i], sector);
  }
}

/* All requests for a sector, in the order in which they were sent. */
static void
print_history (const struct history *h, uint64_t sector,
               const struct request *blamed)
{
  CLEANUP_FREE const struct request **request = NULL;
  size_t n = 0, room = 0;

  for (const struct round *r = h->oldest; r; r = r->next)
    for (size_t i = 0; i < r->n; ++i) {
      const struct request *q = &r->request[i];

      if (sector < request_first (q) ||
          sector >= request_first (q) + request_sectors (q))
        continue;
      if (n == room) {
        room = room ? room * 2 : 64;
        request = must (reallocarray (request, room, sizeof *request));
      }
      request[n++] = q;
    }
  fprintf (stderr, "requests for this sector, in the order in which they were "
           "sent, times in seconds%s:\n",
           h->forgotten ? " (the oldest have been forgotten)" : "");
  print_requests (request, n, sector, blamed);
}

static void
print_allowed (const struct reg_verdict *v)
{
  fprintf (stderr, "allowed: ");
  for (size_t i = 0; i < v->nr_allowed; ++i) {
    fprintf (stderr, i ? ", " : "");
    value_print (stderr, v->allowed[i]);
  }
  fprintf (stderr, "\n");
}

static void
print_illegal (const struct history *h, const struct place *place,
               const struct access *read, const struct reg_verdict *v)
{
  const struct request *r = read->opaque;

  fprintf (stderr, "illegal: sector %" PRIu64 " (offset %" PRIu64
           ") was read on connection %u as ", place->sector,
           place->sector * SECTOR, r->connection);
  if (read->value == VALUE_OTHER)
    sector_print_other (stderr, read->bytes, place->run, place->sector);
  else
    value_print (stderr, read->value);
  fprintf (stderr, "\n");
  print_allowed (v);
  print_history (h, place->sector, r);
  if (read->value == VALUE_OTHER) {
    fprintf (stderr, "what was read:\n");
    sector_dump (stderr, read->bytes);
    fprintf (stderr, "the initial content:\n");
    sector_dump (stderr, place->initial);
  }
}

/* ---- a round ---- */

static bool
check_sector (struct history *h, const struct touch *touch, size_t n)
{
  const struct place place = place_of (h, touch->sector);
  struct reg *reg = &h->reg[place.sector - h->first];
  CLEANUP_FREE struct access *access = must (calloc (n, sizeof *access));
  struct reg_verdict verdict;
  size_t nr = 0;

  for (size_t i = 0; i < n; ++i)
    nr += access_of (touch[i].request, place.sector, &access[nr]);
  if (reg->n == 0)
    reg_init (reg, &place);
  reg_check (reg, &place, access, nr, &verdict);
  if (!verdict.legal) {
    print_illegal (h, &place, &access[verdict.read], &verdict);
    free (verdict.allowed);
    return false;
  }
  h->counts.torn += verdict.torn;
  count_reads (h, access, nr);
  return true;
}

static int
compare_touches (const void *a, const void *b)
{
  const struct touch *x = a, *y = b;

  if (x->sector != y->sector)
    return x->sector > y->sector ? 1 : -1;
  return (x->request->start > y->request->start) -
    (x->request->start < y->request->start);
}

/* The memory that a round needs, and how many sectors its requests have. */
static size_t
measure (struct history *h, struct round *r)
{
  size_t touches = 0;

  r->bytes = r->n * sizeof *r->request;
  for (size_t i = 0; i < r->n; ++i) {
    touches += request_sectors (&r->request[i]);
    if (r->request[i].seen)
      r->bytes += request_sectors (&r->request[i]) * sizeof (value_t);
    h->counts.requests += r->request[i].end != 0;
  }
  h->kept += r->bytes;
  return touches;
}

bool
history_end_round (struct history *h)
{
  struct round *r = h->newest;
  const size_t n = measure (h, r);
  CLEANUP_FREE struct touch *touch = must (calloc (n + 1, sizeof *touch));
  size_t k = 0, next;

  for (size_t i = 0; i < r->n; ++i)
    for (uint64_t s = 0; s < request_sectors (&r->request[i]); ++s)
      touch[k++] = (struct touch){
        request_first (&r->request[i]) + s, &r->request[i]
      };
  qsort (touch, n, sizeof *touch, compare_touches);

  for (size_t i = 0; i < n; i = next) {
    for (next = i + 1; next < n && touch[next].sector == touch[i].sector;)
      next++;
    if (!check_sector (h, &touch[i], next - i))
      return false;
  }
  while (h->kept > HISTORY_KEPT && h->oldest != h->newest)
    forget_oldest (h);
  return true;
}
