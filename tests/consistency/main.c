/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A consistency tester for any NBD server.
 *
 *   consistency URI [source=FILE] [finally=COMMAND] [seed=N] [ops=N]
 *               [round=N] [connections=N] [in-flight=N] [offset=SIZE]
 *               [size=SIZE] [max-length=SIZE]
 *
 * It overwrites the export, or size bytes of it from offset on.  Many
 * connections, each with several requests under way, read, write, zero, trim,
 * flush, cache and ask for extents, on ranges that overlap (choose.h).  Each
 * sector's content tells which write it comes from (sector.h).  Each read of a
 * sector is checked against what a linearizable register allows (register.h).
 *
 * The disk's initial content is read first.  A server that copies what is read
 * would then copy everything at once; with source=FILE the initial content is
 * read from a file instead.
 *
 * In the end everything is flushed, the shell runs COMMAND, which may wait for
 * the server's work in the background, and the whole area is read and checked
 * once more.
 *
 * Exit status 0: all reads were legal.  1: one was not; a message says why.  2:
 * wrong usage.  3: another failure, of the server, the connection or COMMAND.
 *
 * The seed determines each connection's requests and their order.  How requests
 * of several connections meet is up to the machine.  So a failure is printed
 * with all requests that led to it, and the same seed mostly finds a similar
 * one soon.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "choose.h"
#include "client.h"
#include "history.h"

/* Bytes of one read where the whole area is read. */
#define CHUNK (UINT64_C (256) << 10)

struct tester {
  const char *source, *finally;
  uint64_t seed, ops, round, connections, in_flight;
  uint64_t offset, size, max_length;

  struct world world;
  struct area area;
  struct worker *worker;
  struct history *history;
};

/* A thread with a connection. */
struct worker {
  struct tester *t;
  struct client *client;
  struct chooser chooser;
  struct request *request; /* its share of the round */
  size_t n;
  pthread_t thread;
};

static void *
must (void *ptr)
{
  if (ptr == NULL)
    die ("malloc: %m");
  return ptr;
}

/* ---- the command line ---- */

static bool
parse_number (const char *arg, const char *name, bool is_size, uint64_t *value)
{
  const size_t len = strlen (name);
  const char *const suffixes = "KMGT", *suffix;
  const char *number = arg + len + 1;
  char *end;

  if (strncmp (arg, name, len) != 0 || arg[len] != '=' ||
      *number < '0' || *number > '9')
    return false;
  errno = 0;
  *value = strtoull (number, &end, 10);
  if (is_size && *end != '\0' && (suffix = strchr (suffixes, *end)) != NULL) {
    const unsigned shift = 10 * (suffix - suffixes + 1);

    if (*value > UINT64_MAX >> shift)
      return false;
    *value <<= shift;
    end++;
  }
  return errno == 0 && *end == '\0';
}

static bool
parse_text (const char *arg, const char *name, const char **value)
{
  const size_t len = strlen (name);

  if (strncmp (arg, name, len) != 0 || arg[len] != '=')
    return false;
  *value = arg + len + 1;
  return true;
}

static bool
parse (struct tester *t, const char *arg)
{
  return
    parse_text (arg, "source", &t->source) ||
    parse_text (arg, "finally", &t->finally) ||
    parse_number (arg, "seed", false, &t->seed) ||
    parse_number (arg, "ops", false, &t->ops) ||
    parse_number (arg, "round", false, &t->round) ||
    parse_number (arg, "connections", false, &t->connections) ||
    parse_number (arg, "in-flight", false, &t->in_flight) ||
    parse_number (arg, "offset", true, &t->offset) ||
    parse_number (arg, "size", true, &t->size) ||
    parse_number (arg, "max-length", true, &t->max_length);
}

static bool
is_usable (const struct tester *t)
{
  return t->world.uri && t->round > 0 && t->in_flight > 0 &&
    t->connections > 0 && t->connections <= MAX_CONNECTIONS &&
    t->connections <= t->round && t->offset % SECTOR == 0 &&
    t->max_length >= SECTOR;
}

/* ---- the area ---- */

static void
choose_area (struct tester *t, struct client *c)
{
  struct area *a = &t->area;
  const uint64_t size = client_export_size (c);

  client_look (c, a);
  if (!a->can[REQUEST_WRITE])
    die ("%s: is read-only", t->world.uri);
  a->offset = t->offset;
  a->size = t->offset < size ? size - t->offset : 0;
  if (t->size)
    a->size = MIN (a->size, t->size);
  a->size = round_down (a->size, a->align);
  a->max_length = MAX (round_down (MIN (a->max_length, t->max_length),
                                   a->align), a->align);
  if (a->size == 0 || a->offset % a->align != 0)
    die ("%s: offset and size leave nothing of %" PRIu64 " bytes, in blocks "
         "of %" PRIu64, t->world.uri, size, a->align);
}

/* The area's content, from a file. */
static const uint8_t *
map_file (int fd, const char *name, uint64_t offset, uint64_t size)
{
  const uint64_t start = round_down (offset, sysconf (_SC_PAGESIZE));
  const off_t length = lseek (fd, 0, SEEK_END);
  const uint8_t *map;

  if (length == -1)
    die ("%s: %m", name);
  if ((uint64_t)length < offset + size)
    die ("%s: is smaller than the area to be tested", name);
  map = mmap (NULL, offset + size - start, PROT_READ, MAP_PRIVATE, fd, start);
  if (map == MAP_FAILED)
    die ("%s: %m", name);
  return map + (offset - start);
}

static const uint8_t *
map_source (struct tester *t)
{
  CLEANUP_CLOSE int fd = open (t->source, O_RDONLY | O_CLOEXEC);

  if (fd == -1)
    die ("%s: %m", t->source);
  return map_file (fd, t->source, t->area.offset, t->area.size);
}

/* ... or from the server, through a file without a name. */
static const uint8_t *
read_initial (struct tester *t, struct client *c)
{
  FILE *file = tmpfile ();
  const uint64_t chunk = MIN (CHUNK, t->area.max_length);
  CLEANUP_FREE uint8_t *buf = must (malloc (chunk));
  const uint8_t *map;

  if (file == NULL)
    die ("tmpfile: %m");
  for (uint64_t pos = 0, n; pos < t->area.size; pos += n) {
    n = MIN (chunk, t->area.size - pos);
    client_read (c, buf, n, t->area.offset + pos);
    if (fwrite (buf, 1, n, file) != n)
      die ("tmpfile: %m");
  }
  if (fflush (file) != 0)
    die ("tmpfile: %m");
  map = map_file (fileno (file), "tmpfile", 0, t->area.size);
  fclose (file);
  return map;
}

/* ---- rounds ---- */

static void
connect_all (struct tester *t)
{
  struct client *first = client_connect (&t->world, 0);

  choose_area (t, first);
  if (!client_can_multi_conn (first))
    t->connections = 1;
  t->world.initial = t->source ? map_source (t) : read_initial (t, first);

  t->worker = must (calloc (t->connections, sizeof *t->worker));
  for (unsigned i = 0; i < t->connections; ++i)
    t->worker[i] = (struct worker){
      .t = t,
      .client = i == 0 ? first : client_connect (&t->world, i),
      .chooser = { .area = &t->area, .seed = t->seed, .connection = i },
    };
}

static void *
work (void *arg)
{
  struct worker *w = arg;

  client_run (w->client, w->request, w->n, w->t->in_flight);
  return NULL;
}

/* All connections do their shares at the same time. */
static void
run_round (struct tester *t)
{
  for (unsigned i = 0; i < t->connections; ++i) {
    errno = pthread_create (&t->worker[i].thread, NULL, work, &t->worker[i]);
    if (errno)
      die ("pthread_create: %m");
  }
  for (unsigned i = 0; i < t->connections; ++i)
    pthread_join (t->worker[i].thread, NULL);
}

static bool
do_round (struct tester *t, uint64_t round, uint64_t rounds)
{
  const size_t share = t->round / t->connections;
  struct request *request = history_begin_round (t->history,
                                                 share * t->connections);

  for (unsigned i = 0; i < t->connections; ++i) {
    struct worker *w = &t->worker[i];

    w->request = request + i * share;
    w->n = share;
    choose_begin_round (&w->chooser, round, rounds);
    for (size_t j = 0; j < share; ++j)
      choose_request (&w->chooser, &w->request[j]);
  }
  run_round (t);
  return history_end_round (t->history);
}

/* Read everything, a part at a time. */
static bool
read_all (struct tester *t)
{
  const uint64_t chunk = round_down (MIN (CHUNK, t->area.max_length),
                                     t->area.align);
  const uint64_t chunks = div_round_up (t->area.size, chunk);
  const uint64_t at_once = MAX (t->round / 16, 1u);
  bool ok = true;

  for (uint64_t i = 0; i < chunks && ok; i += at_once) {
    const uint64_t n = MIN (at_once, chunks - i);
    struct request *request = history_begin_round (t->history, n);

    for (uint64_t j = 0; j < n; ++j) {
      request[j].offset = t->area.offset + (i + j) * chunk;
      request[j].count = MIN (chunk, t->area.size - (i + j) * chunk);
    }
    client_run (t->worker[0].client, request, n, t->in_flight);
    ok = history_end_round (t->history);
  }
  return ok;
}

static bool
run_all (struct tester *t)
{
  const uint64_t rounds = div_round_up (t->ops, t->round);
  bool ok = true;

  for (uint64_t i = 0; i < rounds && ok; ++i)
    ok = do_round (t, i, rounds);
  if (!ok)
    return false;
  for (unsigned i = 0; i < t->connections; ++i)
    client_flush (t->worker[i].client);
  if (t->finally && system (t->finally) != 0)
    die ("finally: the command failed: %s", t->finally);
  return read_all (t);
}

static void
print_parameters (const struct tester *t)
{
  fprintf (stderr, "%s: seed=%" PRIu64 " ops=%" PRIu64 " round=%" PRIu64
           " connections=%" PRIu64 " in-flight=%" PRIu64 " offset=%" PRIu64
           " size=%" PRIu64 " max-length=%" PRIu64 "\n", t->world.uri, t->seed,
           t->ops, t->round, t->connections, t->in_flight, t->area.offset,
           t->area.size, t->area.max_length);
}

int
main (int argc, char *argv[])
{
  struct tester t = {
    .seed = time (NULL), .ops = 100000, .round = 500, .connections = 4,
    .in_flight = 8, .max_length = 4 << 20,
  };
  struct history_counts counts;
  bool ok = true;

  for (int i = 1; i < argc && ok; ++i)
    if (t.world.uri == NULL && strstr (argv[i], "://") != NULL &&
        strncmp (argv[i], "nbd", 3) == 0)
      t.world.uri = argv[i];
    else
      ok = parse (&t, argv[i]);
  if (!ok || !is_usable (&t)) {
    fprintf (stderr, "usage: %s URI [source=FILE] [finally=COMMAND] [seed=N] "
             "[ops=N] [round=N] [connections=N] [in-flight=N] [offset=SIZE] "
             "[size=SIZE] [max-length=SIZE]\n", argv[0]);
    return 2;
  }

  t.world.began = client_now () - 1;
  t.world.run = t.seed ^ t.world.began << 20 ^ getpid ();
  t.world.area = &t.area;
  connect_all (&t);
  t.history = history_new (t.world.run, t.area.offset, t.area.size,
                           t.world.initial);
  ok = run_all (&t);
  if (!ok)
    print_parameters (&t);
  counts = history_counts (t.history);
  printf ("consistency: operations %" PRIu64 ", sectors checked %" PRIu64
          ", concurrent with a change %" PRIu64 ", torn %" PRIu64
          ", connections %" PRIu64 ", seed %" PRIu64 "\n", counts.requests,
          counts.reads, counts.concurrent, counts.torn, t.connections, t.seed);

  for (unsigned i = 0; i < t.connections; ++i)
    client_close (t.worker[i].client);
  free (t.worker);
  history_free (t.history);
  return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
