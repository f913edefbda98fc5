/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <ev.h>

#include "backend/channel.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "mock-backend.h"
#include "store/bitmap.h"
#include "store/superblock.h"

static const char *const kind_names[MOCK_KINDS] = {
  "pread", "pwrite", "zero", "trim", "flush", "extents", "close"
};

/* A fault or a gate: which call it is for. */
struct match {
  enum mock_kind kind;
  uint64_t offset, count;
  unsigned nth;    /* counts down; 1: the next one */
};

struct fault {
  struct match match;
  unsigned times;  /* counts down; 0: for ever */
  int error;
  bool over;
  struct fault *next;
};

struct mock_gate {
  struct mock *mock;
  struct match match;
  bool after;      /* stops the call after its effect */
  bool taken;      /* the call has been chosen */
  bool arrived;    /* it waits here, or has passed */
  bool open;
  struct mock_gate *next;
};

struct mock_log {
  pthread_mutex_t lock;
  struct mock_call **call;
  size_t len, alloc;
  uint64_t clock;
  bool keep_data, enabled;
};

struct mock {
  struct backend b;
  struct backend_ops ops;
  struct mock_log *log;

  pthread_mutex_t lock;     /* protects all that follows */
  pthread_cond_t cond;      /* a gate has changed */
  bool closed;
  unsigned running;         /* calls */
  unsigned incarnation;     /* of the server, from 1 */
  bool down;                /* it is lost */
  struct backend_service service;

  uint8_t *cache, *durable;
  uint8_t *state;           /* of each sector: an extent's flags */
  /* Versions of each sector: the cached one, and the one that the next flush
   * does not write, because it is durable or a flush that failed has lost it.
   */
  uint64_t *version, *clean;
  uint64_t versions;

  enum mock_trim trim;
  unsigned share_refused;   /* every n-th range is refused; 0: none is */
  int share_error;          /* errno of the refusal */
  unsigned shares;          /* calls */
  size_t max_extents;
  unsigned delay;
  uint64_t seed;
  uint64_t reading, max_reading;

  struct fault *faults;
  struct mock_gate *gates;
};

__attribute__ ((format (printf, 2, 3), noreturn)) static void
die (const struct mock *m, const char *fmt, ...)
{
  va_list args;

  fprintf (stderr, "mock %s: ", m->b.name);
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fputc ('\n', stderr);
  abort ();
}

static void *
must (void *ptr)
{
  if (ptr == NULL)
    abort ();
  return ptr;
}

uint64_t
mock_random (uint64_t *state)
{
  /* splitmix64, public domain, by Sebastiano Vigna */
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* ---- the log ---- */

struct mock_log *
mock_log_new (bool keep_data)
{
  struct mock_log *log = must (calloc (1, sizeof *log));

  pthread_mutex_init (&log->lock, NULL);
  log->keep_data = keep_data;
  log->enabled = true;
  return log;
}

static void
free_call (struct mock_call *call)
{
  free (call->range);
  free (call->data);
  free (call);
}

void
mock_log_clear (struct mock_log *log)
{
  LOCK_FOR_SCOPE (&log->lock);

  size_t running = 0;

  for (size_t i = 0; i < log->len; ++i)
    if (log->call[i]->end > 0)
      free_call (log->call[i]);
    else
      log->call[running++] = log->call[i];
  log->len = running;
}

void
mock_log_free (struct mock_log *log)
{
  mock_log_clear (log);
  free (log->call);
  pthread_mutex_destroy (&log->lock);
  free (log);
}

void
mock_log_enable (struct mock_log *log, bool enabled)
{
  LOCK_FOR_SCOPE (&log->lock);

  log->enabled = enabled;
}

size_t
mock_log_len (struct mock_log *log)
{
  LOCK_FOR_SCOPE (&log->lock);

  return log->len;
}

const struct mock_call *
mock_log_call (struct mock_log *log, size_t i)
{
  LOCK_FOR_SCOPE (&log->lock);

  return i < log->len ? log->call[i] : NULL;
}

const struct mock_call *
mock_log_find (struct mock_log *log, const struct mock *m,
               enum mock_kind kind, size_t i, size_t *found)
{
  LOCK_FOR_SCOPE (&log->lock);

  for (; i < log->len; ++i)
    if (log->call[i]->mock == m && log->call[i]->kind == kind) {
      if (found)
        *found = i;
      return log->call[i];
    }
  return NULL;
}

size_t
mock_count (const struct mock *m, enum mock_kind kind)
{
  size_t n = 0;
  LOCK_FOR_SCOPE (&m->log->lock);

  for (size_t i = 0; i < m->log->len; ++i)
    n += m->log->call[i]->mock == m && m->log->call[i]->kind == kind;
  return n;
}

uint64_t
mock_bytes_in (const struct mock *m, enum mock_kind kind, uint64_t offset,
               uint64_t count)
{
  uint64_t end = count > UINT64_MAX - offset ? UINT64_MAX : offset + count;
  uint64_t bytes = 0;
  LOCK_FOR_SCOPE (&m->log->lock);

  for (size_t i = 0; i < m->log->len; ++i) {
    const struct mock_call *call = m->log->call[i];

    if (call->mock != m || call->kind != kind)
      continue;
    for (size_t j = 0; j < call->n; ++j) {
      uint64_t from = MAX (call->range[j].offset, offset);
      uint64_t to = MIN (call->range[j].offset + call->range[j].count, end);

      if (from < to)
        bytes += to - from;
    }
  }
  return bytes;
}

uint64_t
mock_bytes (const struct mock *m, enum mock_kind kind)
{
  return mock_bytes_in (m, kind, MOCK_ANYWHERE);
}

uint64_t
mock_log_tick (struct mock_log *log)
{
  LOCK_FOR_SCOPE (&log->lock);

  return ++log->clock;
}

static void
record (struct mock_log *log, struct mock_call *call)
{
  LOCK_FOR_SCOPE (&log->lock);

  call->start = ++log->clock;
  call->recorded = log->enabled;
  if (!call->recorded)
    return;
  if (log->len == log->alloc) {
    log->alloc = log->alloc ? log->alloc * 2 : 64;
    log->call = must (reallocarray (log->call, log->alloc,
                                    sizeof *log->call));
  }
  log->call[log->len++] = call;
}

static void
record_end (struct mock_log *log, struct mock_call *call, int error)
{
  LOCK_FOR_SCOPE (&log->lock);

  call->error = error;
  call->end = ++log->clock;
  if (!call->recorded)
    free_call (call);
}

/* ---- matching ---- */

static bool
touches (const struct mock_call *call, const struct match *match)
{
  uint64_t end = match->count > UINT64_MAX - match->offset
    ? UINT64_MAX : match->offset + match->count;

  if (call->kind != match->kind)
    return false;
  if (call->n == 0)             /* flush, close */
    return true;
  for (size_t i = 0; i < call->n; ++i)
    if (call->range[i].offset < end &&
        match->offset < call->range[i].offset + call->range[i].count)
      return true;
  return false;
}

/* Is this the call that the match waits for? */
static bool
hits (const struct mock_call *call, struct match *match)
{
  if (!touches (call, match))
    return false;
  if (match->nth > 1) {
    match->nth--;
    return false;
  }
  return true;
}

/* The error that is injected into this call, or 0.  Called with the lock. */
static int
find_fault (struct mock *m, const struct mock_call *call)
{
  for (struct fault *f = m->faults; f; f = f->next) {
    if (f->over || !hits (call, &f->match))
      continue;
    if (f->times > 0 && --f->times == 0)
      f->over = true;
    return f->error;
  }
  return 0;
}

static struct mock_gate *
find_gate (struct mock *m, const struct mock_call *call)
{
  for (struct mock_gate *g = m->gates; g; g = g->next)
    if (!g->taken && hits (call, &g->match)) {
      g->taken = true;
      return g;
    }
  return NULL;
}

/* Was the server lost since the call began?  Called with the lock. */
static bool
is_lost (const struct mock *m, const struct mock_call *call)
{
  return call->incarnation != m->incarnation;
}

/* Called with the lock, which is released meanwhile. */
static void
wait_at (struct mock *m, struct mock_gate *g, const struct mock_call *call,
         bool after)
{
  if (g == NULL || g->after != after)
    return;
  g->arrived = true;
  pthread_cond_broadcast (&m->cond);
  while (!g->open && !is_lost (m, call))
    pthread_cond_wait (&m->cond, &m->lock);
}

/* ---- calls ---- */

static void
check_range (const struct mock *m, enum mock_kind kind, uint64_t offset,
             uint64_t count)
{
  if (count == 0 || offset > m->b.size || count > m->b.size - offset)
    die (m, "%s of %" PRIu64 " bytes at %" PRIu64 ", the size is %" PRIu64,
         kind_names[kind], count, offset, m->b.size);
}

static void
check_overlap (const struct mock *m, const struct mock_call *call)
{
  for (size_t i = 0; i < call->n; ++i)
    for (size_t j = 0; j < i; ++j) {
      const struct mock_range *a = &call->range[i], *b = &call->range[j];

      if (a->offset < b->offset + b->count &&
          b->offset < a->offset + a->count)
        die (m, "segments of one %s overlap at %" PRIu64,
             kind_names[call->kind], MAX (a->offset, b->offset));
    }
}

static struct mock_call *
begin (struct mock *m, enum mock_kind kind, const struct segment *seg,
       size_t n, unsigned flags)
{
  struct mock_call *call = must (calloc (1, sizeof *call));
  uint64_t bytes = 0;

  call->mock = m;
  call->kind = kind;
  call->flags = flags;
  call->n = n;
  call->range = must (calloc (n + 1, sizeof *call->range));
  for (size_t i = 0; i < n; ++i) {
    check_range (m, kind, seg[i].offset, seg[i].count);
    call->range[i] = (struct mock_range){ seg[i].offset, seg[i].count };
    bytes += seg[i].count;
  }
  check_overlap (m, call);
  if (m->b.readonly && kind >= MOCK_PWRITE && kind <= MOCK_FLUSH)
    die (m, "%s, but it is read-only", kind_names[kind]);

  if (kind == MOCK_PWRITE && m->log->keep_data) {
    uint8_t *p = call->data = must (malloc (bytes));

    for (size_t i = 0; i < n; p += seg[i++].count)
      memcpy (p, seg[i].buf, seg[i].count);
  }
  {
    LOCK_FOR_SCOPE (&m->lock);

    if (m->closed)
      die (m, "%s after close", kind_names[kind]);
    call->incarnation = m->down ? 0 : m->incarnation;
    m->running++;
    if (kind == MOCK_PREAD) {
      m->reading += bytes;
      m->max_reading = MAX (m->max_reading, m->reading);
    }
  }
  record (m->log, call);
  return call;
}

static void
take_time (struct mock *m)
{
  unsigned usec;

  {
    LOCK_FOR_SCOPE (&m->lock);

    usec = m->delay;
    if (usec)
      usec = usec / 2 + mock_random (&m->seed) % (usec + 1);
  }
  if (usec)
    usleep (usec);
}

/* The sectors of a range. */
#define FOR_EACH_SECTOR(s, offset, count)                               \
  for (uint64_t s = (offset) / MOCK_SECTOR;                             \
       s < div_round_up ((offset) + (count), MOCK_SECTOR); ++s)

/* New content, or NULL for zeroes.  state is that of the sectors which are
 * covered as a whole; the others become data.
 */
static void
change (struct mock *m, const void *buf, uint64_t count, uint64_t offset,
        unsigned state, bool fua)
{
  if (buf)
    memcpy (m->cache + offset, buf, count);
  else
    memset (m->cache + offset, 0, count);

  FOR_EACH_SECTOR (s, offset, count) {
    uint64_t start = s * MOCK_SECTOR;
    uint64_t end = MIN (start + MOCK_SECTOR, m->b.size);
    bool whole = offset <= start && end <= offset + count;

    m->state[s] = whole ? state : 0;
    m->version[s] = ++m->versions;
    if (fua) {
      memcpy (m->durable + start, m->cache + start, end - start);
      m->clean[s] = m->version[s];
    }
  }
}

static void
trim_range (struct mock *m, uint64_t count, uint64_t offset, bool fua)
{
  switch (m->trim) {
  case MOCK_TRIM_NOTHING:
    return;
  case MOCK_TRIM_ZEROES:
    change (m, NULL, count, offset, EXTENT_HOLE | EXTENT_ZERO, fua);
    return;
  case MOCK_TRIM_GARBAGE: {
    CLEANUP_FREE uint8_t *buf = must (malloc (count));

    memset (buf, 0xdb, count);
    change (m, buf, count, offset, EXTENT_HOLE, fua);
    return;
  }
  }
}

/* What a flush has seen when it began: all versions, and the content of what
 * was not clean.
 */
struct flush {
  uint64_t *version;
  uint8_t *content;
};

static void
flush_start (struct mock *m, struct flush *f)
{
  uint64_t sectors = div_round_up (m->b.size, MOCK_SECTOR);
  LOCK_FOR_SCOPE (&m->lock);

  f->version = must (malloc ((sectors + 1) * sizeof *f->version));
  memcpy (f->version, m->version, sectors * sizeof *f->version);
  f->content = must (malloc (m->b.size + 1));
  FOR_EACH_SECTOR (s, 0, m->b.size) {
    uint64_t start = s * MOCK_SECTOR;

    if (m->version[s] > m->clean[s])
      memcpy (f->content + start, m->cache + start,
              MIN (start + MOCK_SECTOR, m->b.size) - start);
  }
}

/* Called with the lock.  An earlier flush that ends later does not bring its
 * older copies.
 */
static void
flush_end (struct mock *m, struct flush *f, bool ok)
{
  FOR_EACH_SECTOR (s, 0, m->b.size) {
    uint64_t start = s * MOCK_SECTOR;
    uint64_t n = MIN (start + MOCK_SECTOR, m->b.size) - start;

    if (f->version[s] <= m->clean[s])
      continue;
    m->clean[s] = f->version[s];
    if (ok)
      memcpy (m->durable + start, f->content + start, n);
  }
}

/* The middle and the end of a call.  effect is called with the lock. */
static int
finish (struct mock *m, struct mock_call *call,
        void (*effect) (struct mock *m, int *error, void *opaque),
        void *opaque)
{
  struct mock_gate *gate;
  int error;

  {
    LOCK_FOR_SCOPE (&m->lock);

    error = find_fault (m, call);
    gate = find_gate (m, call);
    wait_at (m, gate, call, false);
  }
  take_time (m);
  {
    LOCK_FOR_SCOPE (&m->lock);

    if (is_lost (m, call))
      error = ENOTCONN;
    effect (m, &error, opaque);
    if (error == 0)
      call->effect = mock_log_tick (m->log);
    wait_at (m, gate, call, true);
    if (error == 0 && is_lost (m, call))
      error = ENOTCONN;
    m->running--;
    pthread_cond_broadcast (&m->cond);
    if (call->kind == MOCK_PREAD)
      for (size_t i = 0; i < call->n; ++i)
        m->reading -= call->range[i].count;
  }
  record_end (m->log, call, error);
  if (error) {
    errno = error;
    return -1;
  }
  return 0;
}

struct transfer {
  const struct segment *seg;
  size_t n;
  unsigned flags;
};

static void
pread_effect (struct mock *m, int *error, void *opaque)
{
  const struct transfer *t = opaque;

  for (size_t i = 0; i < t->n && *error == 0; ++i)
    memcpy (t->seg[i].buf, m->cache + t->seg[i].offset, t->seg[i].count);
}

static int
mock_pread (struct backend *b, const struct segment *seg, size_t n)
{
  struct mock *m = (struct mock *)b;
  struct transfer t = { seg, n, 0 };

  return finish (m, begin (m, MOCK_PREAD, seg, n, 0), pread_effect, &t);
}

static void
pwrite_effect (struct mock *m, int *error, void *opaque)
{
  const struct transfer *t = opaque;

  for (size_t i = 0; i < t->n && *error == 0; ++i)
    change (m, t->seg[i].buf, t->seg[i].count, t->seg[i].offset, 0,
            t->flags & BACKEND_FUA);
}

static int
mock_pwrite (struct backend *b, const struct segment *seg, size_t n,
             unsigned flags)
{
  struct mock *m = (struct mock *)b;
  struct transfer t = { seg, n, flags };

  return finish (m, begin (m, MOCK_PWRITE, seg, n, flags), pwrite_effect, &t);
}

/* The source's content does not change, and is not read by a call.  In the
 * destination this is a write.
 */
static int
mock_share (struct backend *b, struct backend *from, uint64_t count,
            uint64_t offset)
{
  struct mock *m = (struct mock *)b;
  const struct segment seg = {
    ((struct mock *)from)->cache + offset, count, offset
  };
  int error = 0;

  {
    LOCK_FOR_SCOPE (&m->lock);

    m->shares++;
    if (m->share_refused && m->shares % m->share_refused == 0)
      error = m->share_error;
  }
  if (error) {
    errno = error;
    return -1;
  }
  return mock_pwrite (b, &seg, 1, 0);
}

static void
zero_effect (struct mock *m, int *error, void *opaque)
{
  const struct transfer *t = opaque;

  if (*error == 0 && (t->flags & BACKEND_FAST) && !m->b.can_fast_zero)
    *error = EOPNOTSUPP;
  if (*error == 0)
    change (m, NULL, t->seg->count, t->seg->offset,
            t->flags & BACKEND_MAY_TRIM ? EXTENT_HOLE | EXTENT_ZERO
            : EXTENT_ZERO, t->flags & BACKEND_FUA);
}

static int
mock_zero (struct backend *b, uint64_t count, uint64_t offset,
           unsigned flags)
{
  struct mock *m = (struct mock *)b;
  const struct segment seg = { NULL, count, offset };
  struct transfer t = { &seg, 1, flags };

  return finish (m, begin (m, MOCK_ZERO, &seg, 1, flags), zero_effect, &t);
}

static void
trim_effect (struct mock *m, int *error, void *opaque)
{
  const struct transfer *t = opaque;

  if (*error == 0)
    trim_range (m, t->seg->count, t->seg->offset, t->flags & BACKEND_FUA);
}

static int
mock_trim (struct backend *b, uint64_t count, uint64_t offset,
           unsigned flags)
{
  struct mock *m = (struct mock *)b;
  const struct segment seg = { NULL, count, offset };
  struct transfer t = { &seg, 1, flags };

  return finish (m, begin (m, MOCK_TRIM, &seg, 1, flags), trim_effect, &t);
}

static void
flush_effect (struct mock *m, int *error, void *opaque)
{
  if (*error != ENOTCONN)
    flush_end (m, opaque, *error == 0);
}

static int
mock_flush (struct backend *b)
{
  struct mock *m = (struct mock *)b;
  struct mock_call *call = begin (m, MOCK_FLUSH, NULL, 0, 0);
  struct flush f;
  int r, err;

  flush_start (m, &f);
  r = finish (m, call, flush_effect, &f);
  err = errno;
  free (f.version);
  free (f.content);
  errno = err;
  return r;
}

struct question {
  uint64_t count, offset;
  unsigned flags;
  struct extents *list;
};

/* Fills the list with the extents.  Called with the lock. */
static void
extents_effect (struct mock *m, int *error, void *opaque)
{
  const struct question *q = opaque;
  const uint64_t end = q->offset + q->count;
  size_t max = q->flags & BACKEND_REQ_ONE ? 1 : m->max_extents;
  uint64_t pos = q->offset;

  while (pos < end && *error == 0) {
    unsigned state = m->b.knows_extents ? m->state[pos / MOCK_SECTOR] : 0;
    uint64_t stop = MIN ((pos / MOCK_SECTOR + 1) * MOCK_SECTOR, end);

    if (max > 0 && q->list->len == max &&
        q->list->extent[max - 1].flags != state)
      break;
    if (extents_add (q->list, pos, stop - pos, state) == -1)
      *error = errno;
    pos = stop;
  }
}

static int
mock_extents (struct backend *b, uint64_t count, uint64_t offset,
              unsigned flags, struct extents *list)
{
  struct mock *m = (struct mock *)b;
  const struct segment seg = { NULL, count, offset };
  struct question q = { count, offset, flags, list };

  if (list->len != 0)
    die (m, "extents: the list is not empty");
  return finish (m, begin (m, MOCK_EXTENTS, &seg, 1, flags),
                 extents_effect, &q);
}

static void
close_effect (struct mock *m, int *error, void *opaque)
{
  if (m->running > 1)
    die (m, "closed while %u calls are running", m->running - 1);
  m->closed = true;
  m->service = (struct backend_service){ 0 };
}

static void
mock_close (struct backend *b)
{
  struct mock *m = (struct mock *)b;

  finish (m, begin (m, MOCK_CLOSE, NULL, 0, 0), close_effect, NULL);
}

static const struct backend_ops mock_ops = {
  .close = mock_close,
  .pread = mock_pread,
  .pwrite = mock_pwrite,
  .zero = mock_zero,
  .trim = mock_trim,
  .flush = mock_flush,
  .extents = mock_extents,
};

/* ---- mocks ---- */

struct mock *
mock_new (struct mock_log *log, const char *name, uint64_t size,
          bool readonly)
{
  struct mock *m = must (calloc (1, sizeof *m));
  uint64_t sectors = div_round_up (size, MOCK_SECTOR);

  m->ops = mock_ops;
  m->b.ops = &m->ops;
  m->b.log = &mock_messages;
  m->b.name = (char *)name;
  m->b.size = size;
  m->b.minimum_block = 1;
  m->b.readonly = readonly;
  m->b.can_zero = m->b.can_fast_zero = !readonly;
  m->b.is_file = true;
  m->b.knows_extents = true;
  m->log = log;
  pthread_mutex_init (&m->lock, NULL);
  pthread_cond_init (&m->cond, NULL);
  m->cache = must (calloc (1, size + 1));
  m->durable = must (calloc (1, size + 1));
  m->state = must (malloc (sectors + 1));
  memset (m->state, EXTENT_HOLE | EXTENT_ZERO, sectors);
  m->version = must (calloc (sectors + 1, sizeof *m->version));
  m->clean = must (calloc (sectors + 1, sizeof *m->clean));
  m->seed = size;
  m->incarnation = 1;
  return m;
}

static void
free_faults (struct mock *m)
{
  struct fault *next;

  for (struct fault *f = m->faults; f; f = next) {
    next = f->next;
    free (f);
  }
  m->faults = NULL;
}

void
mock_free (struct mock *m)
{
  struct mock_gate *next;

  if (m == NULL)
    return;
  free_faults (m);
  for (struct mock_gate *g = m->gates; g; g = next) {
    next = g->next;
    free (g);
  }
  free (m->cache);
  free (m->durable);
  free (m->state);
  free (m->version);
  free (m->clean);
  pthread_mutex_destroy (&m->lock);
  pthread_cond_destroy (&m->cond);
  free (m);
}

struct backend *
mock_backend (struct mock *m)
{
  return &m->b;
}

void
mock_reopen (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  if (!m->closed)
    die (m, "it was not closed");
  m->closed = false;
}

bool
mock_is_closed (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  return m->closed;
}

void
mock_fill (struct mock *m, const void *buf, uint64_t count, uint64_t offset)
{
  LOCK_FOR_SCOPE (&m->lock);

  change (m, buf, count, offset, buf ? 0 : EXTENT_HOLE | EXTENT_ZERO, true);
}

void
mock_fill_random (struct mock *m, uint64_t count, uint64_t offset,
                  uint64_t seed)
{
  CLEANUP_FREE uint8_t *buf = must (malloc (count));

  for (uint64_t i = 0; i < count; ++i)
    buf[i] = mock_random (&seed);
  mock_fill (m, buf, count, offset);
}

const uint8_t *
mock_content (struct mock *m)
{
  return m->cache;
}

const uint8_t *
mock_durable (struct mock *m)
{
  return m->durable;
}

void
mock_set_trim (struct mock *m, enum mock_trim trim)
{
  LOCK_FOR_SCOPE (&m->lock);

  m->trim = trim;
}

void
mock_set_share (struct mock *m, unsigned refused, int error)
{
  LOCK_FOR_SCOPE (&m->lock);

  m->ops.share = mock_share;
  m->share_refused = refused;
  m->share_error = error;
}

unsigned
mock_shares (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  return m->shares;
}

void
mock_set_max_extents (struct mock *m, size_t max)
{
  LOCK_FOR_SCOPE (&m->lock);

  m->max_extents = max;
}

void
mock_set_delay (struct mock *m, unsigned usec)
{
  LOCK_FOR_SCOPE (&m->lock);

  m->delay = usec;
}

uint64_t
mock_max_reading (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  return m->max_reading;
}

/* ---- faults and gates ---- */

void
mock_fail (struct mock *m, enum mock_kind kind, uint64_t offset,
           uint64_t count, unsigned nth, unsigned times, int error)
{
  struct fault *f = must (calloc (1, sizeof *f));
  LOCK_FOR_SCOPE (&m->lock);

  f->match = (struct match){ kind, offset, count, nth };
  f->times = times;
  f->error = error;
  f->next = m->faults;
  m->faults = f;
}

void
mock_heal (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  free_faults (m);
}

static struct mock_gate *
add_gate (struct mock *m, enum mock_kind kind, uint64_t offset,
          uint64_t count, unsigned nth, bool after)
{
  struct mock_gate *g = must (calloc (1, sizeof *g));
  LOCK_FOR_SCOPE (&m->lock);

  g->mock = m;
  g->match = (struct match){ kind, offset, count, nth };
  g->after = after;
  g->next = m->gates;
  m->gates = g;
  return g;
}

struct mock_gate *
mock_gate (struct mock *m, enum mock_kind kind, uint64_t offset,
           uint64_t count, unsigned nth)
{
  return add_gate (m, kind, offset, count, nth, false);
}

struct mock_gate *
mock_gate_after (struct mock *m, enum mock_kind kind, uint64_t offset,
                 uint64_t count, unsigned nth)
{
  return add_gate (m, kind, offset, count, nth, true);
}

void
mock_gate_wait (struct mock_gate *g)
{
  struct timespec deadline;
  LOCK_FOR_SCOPE (&g->mock->lock);

  clock_gettime (CLOCK_REALTIME, &deadline);
  deadline.tv_sec += mock_patience ();
  while (!g->arrived)
    if (pthread_cond_timedwait (&g->mock->cond, &g->mock->lock,
                                &deadline) != 0)
      die (g->mock, "no %s came to the gate", kind_names[g->match.kind]);
}

bool
mock_gate_arrived (struct mock_gate *g)
{
  LOCK_FOR_SCOPE (&g->mock->lock);

  return g->arrived;
}

void
mock_gate_open (struct mock_gate *g)
{
  LOCK_FOR_SCOPE (&g->mock->lock);

  g->open = true;
  pthread_cond_broadcast (&g->mock->cond);
}

/* ---- power cuts ---- */

/* Called with the lock. */
static bool
is_volatile (const struct mock *m, uint64_t sector)
{
  uint64_t start = sector * MOCK_SECTOR;
  uint64_t n = MIN (start + MOCK_SECTOR, m->b.size) - start;

  /* Not the versions: what a failed flush gave up may be written or not. */
  return memcmp (m->cache + start, m->durable + start, n) != 0;
}

bool
mock_is_volatile (struct mock *m, uint64_t sector)
{
  LOCK_FOR_SCOPE (&m->lock);

  return is_volatile (m, sector);
}

void
mock_crash (struct mock *m, bool (*keep) (uint64_t sector, void *opaque),
            void *opaque)
{
  LOCK_FOR_SCOPE (&m->lock);

  FOR_EACH_SECTOR (s, 0, m->b.size) {
    uint64_t start = s * MOCK_SECTOR;
    uint64_t n = MIN (start + MOCK_SECTOR, m->b.size) - start;

    if (is_volatile (m, s)) {
      if (keep && keep (s, opaque))
        memcpy (m->durable + start, m->cache + start, n);
      else
        memcpy (m->cache + start, m->durable + start, n);
      m->state[s] = 0;          /* not known: data */
    }
    m->clean[s] = m->version[s];
  }
  m->closed = false;
}

/* Record the content as if it had been written just now. */
static void
record_content (struct mock *m)
{
  struct mock_call *call = must (calloc (1, sizeof *call));

  call->mock = m;
  call->kind = MOCK_PWRITE;
  call->flags = BACKEND_FUA;
  call->n = 1;
  call->range = must (calloc (1, sizeof *call->range));
  call->range[0].count = m->b.size;
  if (m->log->keep_data) {
    call->data = must (malloc (m->b.size));
    memcpy (call->data, m->cache, m->b.size);
  }
  record (m->log, call);
  call->effect = mock_log_tick (m->log);
  record_end (m->log, call, 0);
}

/* ---- servers ---- */

static int
mock_start (struct backend *b, const struct backend_service *service)
{
  struct mock *m = (struct mock *)b;
  LOCK_FOR_SCOPE (&m->lock);

  m->service = *service;
  return 0;
}

static enum backend_state
mock_state (struct backend *b)
{
  struct mock *m = (struct mock *)b;
  LOCK_FOR_SCOPE (&m->lock);

  return m->down ? BACKEND_LOST : BACKEND_UP;
}

static unsigned
mock_connections (struct backend *b)
{
  return mock_state (b) == BACKEND_UP ? 4 : 0;
}

void
mock_set_server (struct mock *m)
{
  m->ops.start = mock_start;
  m->ops.state = mock_state;
  m->ops.connections = mock_connections;
  m->b.is_file = false;
}

/* The backend may be closed at any moment. */
static struct backend_service
service_of (struct mock *m)
{
  LOCK_FOR_SCOPE (&m->lock);

  return m->service;
}

static void
server_changed (struct mock *m)
{
  const struct backend_service service = service_of (m);

  if (service.changed)
    service.changed (service.opaque);
}

void
mock_server_crash (struct mock *m,
                   bool (*keep) (uint64_t sector, void *opaque), void *opaque)
{
  struct backend_service service;

  {
    LOCK_FOR_SCOPE (&m->lock);

    m->down = true;
    m->incarnation++;
    pthread_cond_broadcast (&m->cond);
  }
  mock_crash (m, keep, opaque);
  record_content (m);
  server_changed (m);
  service = service_of (m);
  if (service.lost)
    service.lost (service.opaque);
}

void
mock_server_back (struct mock *m)
{
  {
    LOCK_FOR_SCOPE (&m->lock);

    if (!m->down)
      return;
    m->down = false;
  }
  server_changed (m);
}

/* ---- the channel ---- */

/* A thread for each request. */
struct mock_channel {
  struct channel channel;
  struct mock *mock;
  struct ev_loop *loop;
  ev_async wakeup;

  pthread_mutex_t lock;
  pthread_cond_t cond;
  unsigned threads;
  struct io_queue done;
};

static void *
channel_thread (void *opaque)
{
  struct io *io = opaque;
  struct mock_channel *ch = io->channel;
  struct backend *b = &ch->mock->b;
  int r = -1;

  switch (io->type) {
  case IO_READ:
    r = backend_pread (b, io->buf, io->count, io->offset);
    break;
  case IO_WRITE:
    r = backend_pwrite (b, io->buf, io->count, io->offset, 0);
    break;
  case IO_ZERO:
    r = backend_zero (b, io->count, io->offset, io->flags);
    break;
  case IO_SHARE:
    r = backend_share (b, io->from, io->count, io->offset);
    break;
  case IO_EXTENTS:
    r = backend_extents (b, io->count, io->offset, 0, io->extents);
    break;
  }
  io->error = r == -1 ? errno : 0;

  LOCK_FOR_SCOPE (&ch->lock);
  STAILQ_INSERT_TAIL (&ch->done, io, link);
  ev_async_send (ch->loop, &ch->wakeup);
  ch->threads--;
  pthread_cond_broadcast (&ch->cond);
  return NULL;
}

static void
start_detached (void *(*func) (void *opaque), void *opaque)
{
  pthread_attr_t attr;
  pthread_t thread;

  pthread_attr_init (&attr);
  pthread_attr_setdetachstate (&attr, PTHREAD_CREATE_DETACHED);
  if (pthread_create (&thread, &attr, func, opaque) != 0)
    abort ();
  pthread_attr_destroy (&attr);
}

static void
mock_channel_submit (struct channel *channel, struct io *io)
{
  struct mock_channel *ch = (struct mock_channel *)channel;
  static const uint64_t max[] = {
    [IO_READ] = CHANNEL_MAX_TRANSFER, [IO_WRITE] = CHANNEL_MAX_TRANSFER,
    [IO_ZERO] = CHANNEL_MAX_ZERO, [IO_EXTENTS] = CHANNEL_MAX_EXTENTS,
    [IO_SHARE] = CHANNEL_MAX_TRANSFER,
  };

  if (io->count > max[io->type])
    die (ch->mock, "a request of %" PRIu64 " bytes on a channel", io->count);
  io->channel = ch;
  {
    LOCK_FOR_SCOPE (&ch->lock);

    ch->threads++;
  }
  start_detached (channel_thread, io);
}

static void
mock_channel_wakeup (struct ev_loop *loop, ev_async *w, int revents)
{
  struct mock_channel *ch = w->data;
  struct io_queue done = STAILQ_HEAD_INITIALIZER (done);
  struct io *io;

  {
    LOCK_FOR_SCOPE (&ch->lock);

    STAILQ_CONCAT (&done, &ch->done);
  }
  while ((io = STAILQ_FIRST (&done))) {
    STAILQ_REMOVE_HEAD (&done, link);
    io->done (io);
  }
}

static void
mock_channel_free (struct channel *channel)
{
  struct mock_channel *ch = (struct mock_channel *)channel;

  {
    LOCK_FOR_SCOPE (&ch->lock);

    while (ch->threads > 0)
      pthread_cond_wait (&ch->cond, &ch->lock);
    if (!STAILQ_EMPTY (&ch->done))
      die (ch->mock, "a channel is freed with requests in flight");
  }
  ev_async_stop (ch->loop, &ch->wakeup);
  pthread_mutex_destroy (&ch->lock);
  pthread_cond_destroy (&ch->cond);
  free (ch);
}

static const struct channel_ops mock_channel_ops = {
  .submit = mock_channel_submit,
  .free = mock_channel_free,
};

static struct channel *
mock_channel (struct backend *b, struct ev_loop *loop)
{
  struct mock_channel *ch = must (calloc (1, sizeof *ch));

  ch->channel.ops = &mock_channel_ops;
  ch->mock = (struct mock *)b;
  ch->loop = loop;
  STAILQ_INIT (&ch->done);
  pthread_mutex_init (&ch->lock, NULL);
  pthread_cond_init (&ch->cond, NULL);
  ev_async_init (&ch->wakeup, mock_channel_wakeup);
  ch->wakeup.data = ch;
  ev_async_start (loop, &ch->wakeup);
  return &ch->channel;
}

void
mock_set_async (struct mock *m)
{
  m->ops.channel = mock_channel;
}

/* ---- a clone of mocks ---- */

static void
fill_garbage (struct mock *m)
{
  CLEANUP_FREE uint8_t *buf = must (malloc (m->b.size));

  memset (buf, MOCK_GARBAGE, m->b.size);
  mock_fill (m, buf, m->b.size, 0);
}

/* Open the devices that the last clone closed. */
static void
open_again (struct mock_disk *d)
{
  if (mock_is_closed (d->source))
    mock_reopen (d->source);
  if (mock_is_closed (d->dest))
    mock_reopen (d->dest);
  if (mock_is_closed (d->meta))
    mock_reopen (d->meta);
}

/* The clone is given its events once, when it is made; tests set and change
 * their own.
 */
#define FORWARD(event, parameters, ...)                                 \
  static void                                                           \
  forward_ ## event parameters                                          \
  {                                                                     \
    struct mock_disk *d = opaque;                                       \
                                                                        \
    pthread_rwlock_rdlock (&d->listening);                              \
    if (d->events.event)                                                \
      d->events.event (d->events.opaque, ## __VA_ARGS__);               \
    pthread_rwlock_unlock (&d->listening);                              \
  }

FORWARD (complete, (void *opaque))
FORWARD (committed, (void *opaque, int error), error)
FORWARD (set_back, (void *opaque))
FORWARD (servers_changed, (void *opaque))
FORWARD (source_read, (void *opaque, uint64_t start, uint64_t end), start, end)
FORWARD (source_was_read, (void *opaque, uint64_t count, double took), count,
         took)

/* Make a clone from opened metadata. */
static int
make_clone (struct mock_disk *d, struct metadata *md)
{
  d->options.events = (struct clone_events){
    .complete = forward_complete, .committed = forward_committed,
    .set_back = forward_set_back, .servers_changed = forward_servers_changed,
    .source_read = forward_source_read,
    .source_was_read = forward_source_was_read, .opaque = d,
  };
  struct region_map *map = must (region_map_new (d->size, d->region_size));
  bool complete = md->sb.flags & METADATA_COMPLETE;

  if (metadata_load (md, map) == -1) {
    region_map_free (map);
    return -1;
  }
  if (!complete &&
      metadata_set_flags (md, md->sb.flags & ~METADATA_CLEAN) == -1)
    abort ();
  d->clone = must (clone_new (complete ? NULL : &d->source->b, &d->dest->b,
                              md, map, &d->options,
                              &mock_messages));
  if (clone_start (d->clone, &d->service) == -1)
    abort ();
  return 0;
}

void
mock_disk_listen (struct mock_disk *d, const struct clone_events *events)
{
  pthread_rwlock_wrlock (&d->listening);
  d->events = events ? *events : (struct clone_events){ 0 };
  pthread_rwlock_unlock (&d->listening);
}

struct hydrate *
mock_disk_hydrate (struct mock_disk *d, const struct hydrate_settings *settings,
                   bool paused, void (*on_end) (void *opaque))
{
  struct hydrate *h = must (hydrate_new (settings, paused, on_end, NULL,
                                         &mock_messages));
  const struct clone_events events = hydrate_events (h);

  mock_disk_listen (d, &events);
  if (hydrate_start (h, d->clone) == -1)
    abort ();
  return h;
}

void
mock_disk_end_hydration (struct mock_disk *d, struct hydrate *h)
{
  hydrate_stop (h);
  mock_disk_listen (d, NULL);
  hydrate_free (h);
}

struct mock_disk *
mock_disk_devices (uint64_t size, uint64_t region_size, uint64_t excess,
                   bool keep_data)
{
  struct mock_disk *d = must (calloc (1, sizeof *d));

  d->size = size;
  d->region_size = region_size;
  d->options.discard_passdown = true;
  pthread_rwlock_init (&d->listening, NULL);
  d->log = mock_log_new (keep_data);
  d->source = mock_new (d->log, "source", size, true);
  mock_fill_random (d->source, size, 0, size);
  d->dest = mock_new (d->log, "destination", size + excess, false);
  fill_garbage (d->dest);
  d->meta = mock_new (d->log, "metadata",
                      metadata_store_size (size, region_size), false);
  return d;
}

enum metadata_presence
mock_disk_probe (struct mock_disk *d)
{
  open_again (d);
  return metadata_probe (&d->meta->b, &mock_messages);
}

void
mock_disk_create (struct mock_disk *d)
{
  const struct superblock sb = {
    .size = d->size, .region_size = d->region_size
  };
  struct metadata *md;

  open_again (d);
  md = must (metadata_create (&d->meta->b, &sb, &mock_messages));
  if (make_clone (d, md) == -1)
    abort ();
}

struct mock_disk *
mock_disk_new (uint64_t size, uint64_t region_size, uint64_t excess)
{
  struct mock_disk *d = mock_disk_devices (size, region_size, excess, false);

  mock_disk_create (d);
  mock_log_clear (d->log);
  return d;
}

int
mock_disk_close (struct mock_disk *d)
{
  int r = clone_close (d->clone);

  d->clone = NULL;
  return r;
}

void
mock_disk_free (struct mock_disk *d)
{
  if (d->clone)
    mock_disk_close (d);
  for (uint64_t i = d->size; i < d->dest->b.size; ++i)
    if (d->dest->cache[i] != MOCK_GARBAGE)
      die (d->dest, "the byte at %" PRIu64 ", behind the disk, was touched",
           i);
  mock_free (d->source);
  mock_free (d->dest);
  mock_free (d->meta);
  mock_log_free (d->log);
  pthread_rwlock_destroy (&d->listening);
  free (d);
}

struct dice {
  unsigned keep;  /* in 256 */
  uint64_t seed;
};

static bool
throw_dice (uint64_t sector, void *opaque)
{
  struct dice *dice = opaque;

  return mock_random (&dice->seed) % 256 < dice->keep;
}

/* The clone must end without a commit: its devices fail when it is closed. */
void
mock_disk_crash (struct mock_disk *d, unsigned keep_dest, unsigned keep_meta,
                 uint64_t seed)
{
  struct dice dest = { keep_dest, seed };
  struct dice meta = { keep_meta, seed + 1 };

  mock_crash (d->dest, throw_dice, &dest);
  mock_crash (d->meta, throw_dice, &meta);
  if (d->clone) {
    for (int kind = MOCK_PWRITE; kind <= MOCK_FLUSH; ++kind) {
      mock_fail (d->dest, kind, MOCK_ANYWHERE, 1, 0, EIO);
      mock_fail (d->meta, kind, MOCK_ANYWHERE, 1, 0, EIO);
    }
    mock_disk_close (d);
  }
  mock_heal (d->dest);
  mock_heal (d->meta);
}

int
mock_disk_open (struct mock_disk *d)
{
  struct metadata *md;

  open_again (d);
  md = metadata_open (&d->meta->b, &mock_messages);
  if (md == NULL)
    return -1;
  if (md->sb.flags & METADATA_COMPLETE)
    backend_close (&d->source->b);
  if (make_clone (d, md) == -1) {
    free (md);
    return -1;
  }
  return 0;
}

/* ---- helpers ---- */

static pthread_mutex_t messages_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned errors, infos;
static const char *watched = ""; /* text of the messages in infos */
static char last_error[1024];

__attribute__ ((format (printf, 2, 0))) static void
print (const char *prefix, const char *fmt, va_list args)
{
  char line[1024];

  vsnprintf (line, sizeof line, fmt, args);
  if (getenv ("MOCK_VERBOSE"))
    fprintf (stderr, "%s: %s\n", prefix, line);
}

__attribute__ ((format (printf, 1, 0))) static void
on_error (const char *fmt, va_list args)
{
  va_list copy;
  int err = errno;
  LOCK_FOR_SCOPE (&messages_lock);

  va_copy (copy, args);
  errno = err;
  vsnprintf (last_error, sizeof last_error, fmt, copy);
  va_end (copy);
  errors++;
  errno = err;
  print ("error", fmt, args);
}

__attribute__ ((format (printf, 1, 0))) static void
on_info (const char *fmt, va_list args)
{
  char line[1024];
  va_list copy;
  int err = errno;
  LOCK_FOR_SCOPE (&messages_lock);

  va_copy (copy, args);
  errno = err;
  vsnprintf (line, sizeof line, fmt, copy);
  va_end (copy);
  infos += strstr (line, watched) != NULL;
  errno = err;
  print ("info", fmt, args);
}

__attribute__ ((format (printf, 1, 0))) static void
on_debug (const char *fmt, va_list args)
{
  print ("debug", fmt, args);
}

/* All topics, so that every debug message is formatted. */
static bool
on_wants (enum log_topic topic)
{
  return true;
}

const struct log mock_messages = {
  .error = on_error, .info = on_info, .debug = on_debug, .wants = on_wants
};

unsigned
mock_errors (void)
{
  LOCK_FOR_SCOPE (&messages_lock);

  return errors;
}

void
mock_watch_infos (const char *text)
{
  LOCK_FOR_SCOPE (&messages_lock);

  watched = text;
  infos = 0;
}

unsigned
mock_infos (void)
{
  LOCK_FOR_SCOPE (&messages_lock);

  return infos;
}

const char *
mock_last_error (void)
{
  return last_error;
}

struct mock_thread {
  pthread_t thread;
  void (*func) (void *opaque);
  void *opaque;
};

static void *
thread_main (void *opaque)
{
  struct mock_thread *t = opaque;

  t->func (t->opaque);
  return NULL;
}

struct mock_thread *
mock_thread (void (*func) (void *opaque), void *opaque)
{
  struct mock_thread *t = must (calloc (1, sizeof *t));

  t->func = func;
  t->opaque = opaque;
  if (pthread_create (&t->thread, NULL, thread_main, t) != 0)
    abort ();
  return t;
}

void
mock_join (struct mock_thread *t)
{
  pthread_join (t->thread, NULL);
  free (t);
}

unsigned
mock_patience (void)
{
  const char *seconds = getenv ("MOCK_PATIENCE");

  return seconds ? atoi (seconds) : 100;
}

void
mock_settle (void)
{
  usleep (30000);
}

void
mock_wait_until (bool (*cond) (void *opaque), void *opaque)
{
  for (unsigned ms = 0; !cond (opaque); ++ms) {
    if (ms > mock_patience () * 1000) {
      fprintf (stderr, "gave up waiting\n");
      abort ();
    }
    usleep (1000);
  }
}
