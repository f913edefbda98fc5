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

#include <libnbd.h>

#include "base/rounding.h"
#include "client.h"

/* libnbd's own limit is 64 MiB, some servers' is less. */
#define MAX_REQUEST (UINT64_C (32) << 20)

struct client {
  const struct world *world;
  unsigned number;
  struct nbd_handle *nbd;
  uint64_t writes;       /* number of writes so far */
  unsigned in_flight;
  struct slot *answered; /* answers that were not looked at yet */
};

/* A request that is under way. */
struct slot {
  struct client *client;
  struct request *request;
  uint8_t *buf;
  int error;
  struct slot *next;
};

void
die (const char *fmt, ...)
{
  static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
  va_list args;

  /* A second thread waits here for the end. */
  pthread_mutex_lock (&once);
  fprintf (stderr, "consistency: ");
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fprintf (stderr, "\n");
  _exit (STATUS_ERROR);
}

static void *
must (void *ptr)
{
  if (ptr == NULL)
    die ("malloc: %m");
  return ptr;
}

uint64_t
client_now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- the connection ---- */

struct client *
client_connect (const struct world *world, unsigned number)
{
  struct client *c = must (calloc (1, sizeof *c));

  c->world = world;
  c->number = number;
  c->nbd = nbd_create ();
  if (c->nbd == NULL ||
      nbd_set_uri_allow_local_file (c->nbd, true) == -1 ||
      nbd_add_meta_context (c->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1 ||
      nbd_connect_uri (c->nbd, world->uri) == -1)
    die ("%s: %s", world->uri, nbd_get_error ());
  return c;
}

void
client_close (struct client *c)
{
  nbd_shutdown (c->nbd, 0);
  nbd_close (c->nbd);
  free (c);
}

uint64_t
client_export_size (struct client *c)
{
  const int64_t size = nbd_get_size (c->nbd);

  if (size == -1)
    die ("%s: %s", c->world->uri, nbd_get_error ());
  return size;
}

bool
client_can_multi_conn (struct client *c)
{
  return nbd_can_multi_conn (c->nbd) == 1;
}

void
client_look (struct client *c, struct area *area)
{
  const int64_t min = nbd_get_block_size (c->nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t max = nbd_get_block_size (c->nbd, LIBNBD_SIZE_MAXIMUM);
  const bool rw = nbd_is_read_only (c->nbd) == 0;

  area->align = MAX (min, SECTOR);
  area->max_length = max > 0 ? MIN ((uint64_t)max, MAX_REQUEST) : MAX_REQUEST;
  area->can[REQUEST_READ] = true;
  area->can[REQUEST_WRITE] = rw;
  area->can[REQUEST_ZERO] = rw && nbd_can_zero (c->nbd) == 1;
  area->can[REQUEST_TRIM] = rw && nbd_can_trim (c->nbd) == 1;
  area->can[REQUEST_FLUSH] = nbd_can_flush (c->nbd) == 1;
  area->can[REQUEST_CACHE] = nbd_can_cache (c->nbd) == 1;
  area->can[REQUEST_EXTENTS] =
    nbd_can_meta_context (c->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  area->can_fua = nbd_can_fua (c->nbd) == 1;
  area->can_fast_zero = nbd_can_fast_zero (c->nbd) == 1;
}

void
client_read (struct client *c, void *buf, uint64_t count, uint64_t offset)
{
  if (nbd_pread (c->nbd, buf, count, offset, 0) == -1)
    die ("%s: read %" PRIu64 "+%" PRIu64 ": %s", c->world->uri, offset, count,
         nbd_get_error ());
}

void
client_flush (struct client *c)
{
  if (nbd_can_flush (c->nbd) == 1 && nbd_flush (c->nbd, 0) == -1)
    die ("%s: flush: %s", c->world->uri, nbd_get_error ());
}

/* ---- answers ---- */

static const uint8_t *
initial_of (const struct client *c, uint64_t offset)
{
  return c->world->initial + (offset - c->world->area->offset);
}

static void
look_at_data (struct client *c, struct request *r, const uint8_t *buf)
{
  r->seen = must (calloc (request_sectors (r), sizeof *r->seen));
  for (uint64_t i = 0; i < request_sectors (r); ++i) {
    const uint8_t *bytes = buf + i * SECTOR;

    r->seen[i] = sector_value (bytes, c->world->run, request_first (r) + i,
                               initial_of (c, r->offset + i * SECTOR));
    if (r->seen[i] == VALUE_OTHER) {
      struct other *o = must (malloc (sizeof *o));

      o->index = i;
      memcpy (o->bytes, bytes, SECTOR);
      o->next = r->other;
      r->other = o;
    }
  }
}

/* An extent of zeroes is as good as a read of zeroes.  One that is none says
 * nothing.
 */
static int
look_at_extents (void *opaque, const char *context, uint64_t offset,
                 uint32_t *entries, size_t n, int *error)
{
  struct slot *s = opaque;
  struct request *r = s->request;
  const uint64_t limit = r->offset + r->count;

  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
    return 0;
  for (size_t i = 0; i + 1 < n && offset < limit; i += 2) {
    const uint64_t end = MIN (offset + entries[i], limit);

    if (entries[i + 1] & LIBNBD_STATE_ZERO)
      for (uint64_t pos = round_up (offset, SECTOR); pos + SECTOR <= end;
           pos += SECTOR)
        r->seen[(pos - r->offset) / SECTOR] = VALUE_ZERO;
    offset = end;
  }
  return 0;
}

/* No more than this: it runs while others wait for their answers. */
static int
answered (void *opaque, int *error)
{
  struct slot *s = opaque;

  s->request->end = client_now () - s->client->world->began;
  s->error = *error;
  s->next = s->client->answered;
  s->client->answered = s;
  return 1;
}

static void
look_at_answer (struct client *c, struct slot *s)
{
  struct request *r = s->request;

  if (s->error && (r->flags & LIBNBD_CMD_FLAG_FAST_ZERO) &&
      (s->error == ENOTSUP || s->error == EOPNOTSUPP))
    r->refused = true;
  else if (s->error) {
    fprintf (stderr, "failed: ");
    request_print (stderr, r, request_first (r));
    die ("%s: %s", c->world->uri, strerror (s->error));
  }
  else if (r->type == REQUEST_READ)
    look_at_data (c, r, s->buf);
  free (s->buf);
  free (s);
  c->in_flight--;
}

static void
look_at_answers (struct client *c)
{
  struct slot *s, *next;

  for (s = c->answered, c->answered = NULL; s; s = next) {
    next = s->next;
    look_at_answer (c, s);
  }
}

/* ---- requests ---- */

static void
prepare (struct client *c, struct slot *s)
{
  struct request *r = s->request;

  r->connection = c->number;
  if (r->type == REQUEST_READ)
    s->buf = must (malloc (r->count));
  else if (r->type == REQUEST_WRITE) {
    s->buf = must (malloc (r->count));
    r->value = value_of_write (c->number, ++c->writes);
    for (uint64_t i = 0; i < request_sectors (r); ++i)
      sector_fill (s->buf + i * SECTOR, c->world->run, request_first (r) + i,
                   r->value);
  }
  else if (r->type == REQUEST_EXTENTS) {
    r->seen = must (calloc (request_sectors (r), sizeof *r->seen));
    for (uint64_t i = 0; i < request_sectors (r); ++i)
      r->seen[i] = VALUE_NONE;
  }
}

static int64_t
send_request (struct nbd_handle *nbd, struct slot *s)
{
  const struct request *r = s->request;
  const nbd_completion_callback cb = { .callback = answered, .user_data = s };
  const nbd_extent_callback extent = {
    .callback = look_at_extents, .user_data = s,
  };

  switch (r->type) {
  case REQUEST_READ:
    return nbd_aio_pread (nbd, s->buf, r->count, r->offset, cb, r->flags);
  case REQUEST_WRITE:
    return nbd_aio_pwrite (nbd, s->buf, r->count, r->offset, cb, r->flags);
  case REQUEST_ZERO:
    return nbd_aio_zero (nbd, r->count, r->offset, cb, r->flags);
  case REQUEST_TRIM:
    return nbd_aio_trim (nbd, r->count, r->offset, cb, r->flags);
  case REQUEST_FLUSH:
    return nbd_aio_flush (nbd, cb, r->flags);
  case REQUEST_CACHE:
    return nbd_aio_cache (nbd, r->count, r->offset, cb, r->flags);
  case REQUEST_EXTENTS:
    return nbd_aio_block_status (nbd, r->count, r->offset, extent, cb,
                                 r->flags);
  }
  __builtin_unreachable ();
}

static void
begin (struct client *c, struct request *r)
{
  struct slot *s = must (calloc (1, sizeof *s));

  s->client = c;
  s->request = r;
  prepare (c, s);
  c->in_flight++;
  r->start = client_now () - c->world->began;
  if (send_request (c->nbd, s) == -1)
    die ("%s: %s", c->world->uri, nbd_get_error ());
}

void
client_run (struct client *c, struct request *request, size_t n,
            unsigned in_flight)
{
  size_t sent = 0;

  while (sent < n || c->in_flight > 0) {
    while (sent < n && c->in_flight < in_flight)
      begin (c, &request[sent++]);
    if (c->answered == NULL && nbd_poll (c->nbd, -1) == -1)
      die ("%s: %s", c->world->uri, nbd_get_error ());
    look_at_answers (c);
  }
}
