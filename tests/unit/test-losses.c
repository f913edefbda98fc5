/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A matrix of losses.  Each server is lost at each moment of a commit, while
 * another device fails; then the clone goes on, or ends, with or without the
 * server.  In each cell two clients write, flush, and go on.  Every write that
 * their flushes have acknowledged must be there after a power cut, no read may
 * return bytes that were never written, and no request may hang.  A clone that
 * does not end becomes complete by itself.
 *
 * WHAT MUST BE THERE.  Each client writes to regions of its own.  A write is
 * settled when it has succeeded with FUA, or when a flush of its client has
 * succeeded after it, unless the client was told of a loss in between (one of
 * its flushes has failed).  A sector holds its last settled write or a later
 * one, or the source's bytes if no write is settled.
 *
 * Test points and gates of the mocks hold the threads at these moments, so no
 * test depends on a clock.  A test does not wait for a moment that its fault
 * makes unreachable.  Builds that are broken by patches in tests/controls must
 * fail here, which test-scenarios.sh checks.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/private.h"
#include "hydration/hydrate.h"
#include "mock-backend.h"
#include "points.h"
#include "run-suite.h"

#define K UINT64_C (1024)
#define SECTOR MOCK_SECTOR

/* ---- the matrix ---- */

static const char *const servers[] = { "source", "destination", "metadata" };
enum server { SOURCE, DEST, META, SERVERS };

static const char *const faults[] = {
  "no fault", "a metadata write fails", "a metadata flush fails",
  "a slow destination", "a full destination",
};
enum fault { NO_FAULT, META_WRITE, META_FLUSH, SLOW, FULL, FAULTS };

static const char *const moments[] = {
  "at the snapshot", "in the destination flush", "in the metadata write",
  "after the metadata write", "between rounds", "in the last commit",
};
enum moment { AT_SNAPSHOT, IN_FLUSH, IN_WRITE, AFTER_WRITE, BETWEEN_ROUNDS,
              IN_LAST_COMMIT, MOMENTS };

static const char *const ends[] = {
  "it comes back", "SIGTERM", "SIGTERM and it comes back"
};
enum end { BACK, TERM, TERM_AND_BACK, ENDS };

#define CELLS (SERVERS * FAULTS * MOMENTS * ENDS)

static struct cell {
  enum server server;
  enum fault fault;
  enum moment moment;
  enum end end;
} cell;

/* Only every stride-th cell is tried. */
static int stride = 1;

/* Sums over all cells, which are processes of their own. */
static struct tally {
  _Atomic unsigned begun, ended, reached, acknowledged, told, settled;
} *counts;

static struct mock_disk *d;
static struct hydrate *h;

static void
__attribute__ ((format (printf, 1, 2), noreturn))
wrong (const char *fmt, ...)
{
  char what[256];
  va_list args;

  va_start (args, fmt);
  vsnprintf (what, sizeof what, fmt, args);
  va_end (args);
  ck_abort_msg ("the %s is lost %s, %s, %s: %s", servers[cell.server],
                moments[cell.moment], faults[cell.fault], ends[cell.end],
                what);
  abort ();
}

static struct mock *
lost_server (void)
{
  struct mock *const mock[] = { d->source, d->dest, d->meta };

  return mock[cell.server];
}

/* ---- clients ---- */

#define CLIENTS 2

/* What clients have done to each sector, as numbers of writes.  Each write has
 * its own content, so that a sector shows which write it holds.
 */
static struct sector {
  uint32_t settled;  /* the last one that must not be lost, 0: none */
  uint32_t pending;  /* the last successful one that is not settled, or 0 */
  uint32_t last;     /* the last one that was tried */
  unsigned client;   /* the one that may write to it */
} *sectors;

struct client {
  unsigned number;
  uint32_t writes;
  struct clone_client told;
  struct mock_thread *thread;
};
static struct client client[CLIENTS];

static void
fill_sector (uint8_t *buf, uint64_t sector, unsigned who, uint32_t write)
{
  uint64_t seed = sector << 20 | who << 16 | write;

  for (unsigned i = 0; i < SECTOR; i += 8) {
    const uint64_t word = mock_random (&seed);

    memcpy (buf + i, &word, 8);
  }
}

static void
check_error (const char *what)
{
  if (errno != EIO && errno != ENOSPC && errno != ESHUTDOWN)
    wrong ("a %s failed: %s", what, strerror (errno));
  if (errno == ESHUTDOWN && cell.end == BACK)
    wrong ("a %s failed: %s", what, strerror (errno));
}

static bool
client_write (struct client *cl, uint64_t first, uint64_t n, bool fua)
{
  CLEANUP_FREE uint8_t *buf = calloc (n, SECTOR);
  const uint32_t write = ++cl->writes;
  int r;

  for (uint64_t s = first; s < first + n; ++s) {
    fill_sector (buf + (s - first) * SECTOR, s, cl->number, write);
    sectors[s].last = write;
  }
  r = clone_pwrite (d->clone, buf, n * SECTOR, first * SECTOR,
                    fua ? BACKEND_FUA : 0);
  if (r == -1)
    check_error ("write");
  for (uint64_t s = first; s < first + n && r == 0; ++s) {
    sectors[s].pending = fua ? 0 : write;
    if (fua)
      sectors[s].settled = write;
  }
  counts->acknowledged += r == 0 && fua;
  return r == 0;
}

/* The client's writes that were not flushed are settled, or given up. */
static void
settle (struct client *cl, bool safe)
{
  for (uint64_t s = 0; s < d->size / SECTOR; ++s) {
    struct sector *sector = &sectors[s];

    if (sector->client != cl->number || sector->pending == 0)
      continue;
    if (safe) {
      sector->settled = sector->pending;
      counts->settled++;
    }
    sector->pending = 0;
  }
}

static bool
client_flush (struct client *cl)
{
  const int r = clone_flush (d->clone, &cl->told);

  if (r == -1)
    check_error ("flush");
  counts->acknowledged += r == 0;
  counts->told += r == -1 && errno != ESHUTDOWN;
  settle (cl, r == 0);
  return r == 0;
}

/* The first sector of this client's region i.  One client has regions at the
 * start of the disk, the other one at its end.  They belong to different
 * sectors of the bitmap if it has more than one.
 */
static uint64_t
region_of (const struct client *cl, unsigned i)
{
  const uint64_t regions = d->size / d->region_size;

  return (cl->number ? regions - 1 - i : i) * (d->region_size / SECTOR);
}

/* A whole region, or a part of it. */
static bool
write_region (struct client *cl, unsigned i)
{
  return client_write (cl, region_of (cl, i), d->region_size / SECTOR, false);
}

static bool
write_part (struct client *cl, unsigned i, bool fua)
{
  return client_write (cl, region_of (cl, i) + 1, 3, fua);
}

/* Before the moment: writes that are flushed, and then writes that are not. */
static void
begin_clients (void)
{
  for (unsigned i = 0; i < CLIENTS; ++i) {
    client[i] = (struct client){ .number = i };
    clone_client_init (d->clone, &client[i].told);
    write_region (&client[i], 0);
    write_part (&client[i], 1, false);
    if (!client_flush (&client[i]))
      wrong ("the first flush failed");
  }
  for (unsigned i = 0; i < CLIENTS; ++i) {
    write_part (&client[i], 0, false);
    write_region (&client[i], 2);
  }
}

/* The clients while the commit is held, when the server is lost, and after
 * that. The commit is the first client's flush, or hydration's last one.
 */
#define TRIES 10

static _Atomic bool flush_ended, server_is_lost;

static bool
is_true (void *opaque)
{
  return *(_Atomic bool *)opaque;
}

static bool
notice_loss (void *opaque)
{
  server_is_lost =
    backend_state (mock_backend (lost_server ())) == BACKEND_LOST;
  return server_is_lost;
}

static void
client_main (void *opaque)
{
  struct client *cl = opaque;
  bool done = false;

  if (cl->number == 0) {
    client_flush (cl);
    flush_ended = true;
    mock_wait_until (is_true, &server_is_lost);
  }
  write_part (cl, 3, false);    /* needs the source's bytes around it */
  client_flush (cl);
  write_part (cl, 4, true);
  write_region (cl, 5);
  client_flush (cl);

  /* In the end everything works again. */
  for (unsigned i = 0; i < TRIES && !done; ++i) {
    const bool written = write_part (cl, 2, false);

    done = client_flush (cl) && written;
  }
  if (!done && cell.end == BACK)
    wrong ("a client can still not write and flush after %u times", TRIES);
}

/* ---- the clone ---- */

static void
new_disk (void)
{
  const uint64_t regions = cell.moment == BETWEEN_ROUNDS ?
                           REGIONS_PER_SECTOR + 8 : 16;
  const uint64_t region_size = cell.moment == BETWEEN_ROUNDS ? 4 * K : 16 * K;

  d = mock_disk_devices (regions * region_size, region_size, 5000, false);
  mock_set_server (d->source);
  mock_set_server (d->dest);
  mock_set_server (d->meta);
  mock_set_async (d->source);
  mock_set_async (d->dest);
  mock_disk_create (d);
  if (cell.moment == BETWEEN_ROUNDS)
    commit_limit_round (d->clone->commit, 1);
  sectors = calloc (d->size / SECTOR, sizeof *sectors);
  for (uint64_t s = d->size / SECTOR / 2; s < d->size / SECTOR; ++s)
    sectors[s].client = 1;
}

static void
start_hydration (void)
{
  const struct hydrate_settings settings = {
    .batch = MAX (d->region_size, d->size / 8), .threshold = d->size / 2
  };

  h = mock_disk_hydrate (d, &settings, false, NULL);
}

static bool
is_complete (void *opaque)
{
  return commit_is_complete (d->clone->commit);
}

static bool
source_is_closed (void *opaque)
{
  return mock_is_closed (d->source);
}

static void
set_up_fault (void)
{
  switch (cell.fault) {
  case META_WRITE:
    mock_fail (d->meta, MOCK_PWRITE, MOCK_ANYWHERE, 1, 1, EIO);
    break;
  case META_FLUSH:
    mock_fail (d->meta, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, EIO);
    break;
  case SLOW:
    mock_set_delay (d->dest, 2000);
    break;
  case FULL:
    mock_fail (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1, 1, ENOSPC);
    break;
  default:
    break;
  }
}

/* ---- the moment ---- */

static struct mock_gate *gate;
static enum test_point point;
static unsigned arrivals;       /* at the point, which make the moment */

static void
set_up_moment (void)
{
  gate = NULL;
  points_reset ();
  arrivals = 1;
  point = POINT_COMMIT_SNAPSHOT;
  switch (cell.moment) {
  case IN_FLUSH:
    gate = mock_gate (d->dest, MOCK_FLUSH, MOCK_ANYWHERE, 1);
    return;
  case IN_WRITE:
    gate = mock_gate (d->meta, MOCK_PWRITE, MOCK_ANYWHERE, 1);
    return;
  case AFTER_WRITE:
    point = POINT_COMMIT_WRITTEN;
    break;
  case BETWEEN_ROUNDS:
    arrivals = 2;
    break;
  default:
    break;
  }
  points_hold (point, 1);
}

static bool
is_there (void)
{
  return gate ? mock_gate_arrived (gate) : points_count (point) >= arrivals;
}

/* The moment has come, or never will. */
static bool
is_there_or_over (void *opaque)
{
  return is_there () || flush_ended;
}

static bool
first_round (void *opaque)
{
  return points_count (point) > 0 || flush_ended;
}

static void
wait_for_moment (void)
{
  if (cell.moment == BETWEEN_ROUNDS) {
    mock_wait_until (first_round, NULL);
    points_step (point);
  }
  mock_wait_until (is_there_or_over, NULL);
  counts->reached += is_there ();
}

static void
let_go (void)
{
  points_let_go (point);
  if (gate)
    mock_gate_open (gate);
}

/* ---- a cell ---- */

/* On a thread of its own, like a server's: this waits until no thread is inside
 * the gate, or between the metadata's write and flush.
 */
static void
lose_server (void *opaque)
{
  mock_server_crash (lost_server (), NULL, NULL);
}

static void
join_clients (void)
{
  for (unsigned i = 0; i < CLIENTS; ++i)
    mock_join (client[i].thread);
}

/* As plugin.c does.  A clean end is a flush. */
static void
end_clone (void)
{
  int r;

  hydrate_stop (h);
  clone_stop (d->clone);
  r = mock_disk_close (d);
  mock_disk_listen (d, NULL);
  hydrate_free (h);
  h = NULL;
  for (unsigned i = 0; i < CLIENTS && r == 0; ++i)
    if (cell.server != DEST && cell.fault != FULL)
      settle (&client[i], true);
}

static void
go_on_to_the_end (void)
{
  mock_wait_until (is_complete, NULL);
  mock_wait_until (source_is_closed, NULL);
  mock_disk_end_hydration (d, h);
  h = NULL;
}

static void
check_sector (uint64_t s, const uint8_t *buf)
{
  const struct sector *sector = &sectors[s];
  uint8_t expected[SECTOR];

  if (sector->settled == 0 &&
      memcmp (buf, mock_content (d->source) + s * SECTOR, SECTOR) == 0)
    return;
  for (uint32_t w = MAX (sector->settled, 1u); w <= sector->last; ++w) {
    fill_sector (expected, s, sector->client, w);
    if (memcmp (buf, expected, SECTOR) == 0)
      return;
  }
  wrong ("sector %" PRIu64 " of client %u, whose write %u was acknowledged as "
        "durable, has %s", s, sector->client, sector->settled,
        buf[0] == MOCK_GARBAGE && buf[1] == MOCK_GARBAGE ? "garbage" :
        memcmp (buf, mock_content (d->source) + s * SECTOR, SECTOR) == 0 ?
        "the source's bytes" : "something else");
}

static void
check_all (void)
{
  CLEANUP_FREE uint8_t *buf = malloc (d->size);

  if (clone_pread (d->clone, buf, d->size, 0) == -1)
    wrong ("the disk cannot be read: %s", strerror (errno));
  for (uint64_t s = 0; s < d->size / SECTOR; ++s)
    check_sector (s, buf + s * SECTOR);
}

START_TEST (matrix)
{
  const int n = _i * stride;
  struct mock_thread *loser;

  cell = (struct cell){
    .server = n % SERVERS, .fault = n / SERVERS % FAULTS,
    .moment = n / SERVERS / FAULTS % MOMENTS,
    .end = n / SERVERS / FAULTS / MOMENTS,
  };
  counts->begun++;
  new_disk ();
  begin_clients ();

  /* The commit comes to its moment. */
  flush_ended = server_is_lost = false;
  set_up_fault ();
  set_up_moment ();
  if (cell.moment == IN_LAST_COMMIT)
    start_hydration ();
  else
    client[0].thread = mock_thread (client_main, &client[0]);
  wait_for_moment ();

  /* The server is lost while clients and hydration are busy. */
  if (cell.moment == IN_LAST_COMMIT)
    client[0].thread = mock_thread (client_main, &client[0]);
  else
    start_hydration ();
  loser = mock_thread (lose_server, NULL);
  mock_wait_until (notice_loss, NULL);
  client[1].thread = mock_thread (client_main, &client[1]);
  if (cell.end != BACK) {
    hydrate_pause (h);
    clone_interrupt (d->clone);
  }
  let_go ();
  mock_join (loser);
  if (cell.end != TERM)
    mock_server_back (lost_server ());

  join_clients ();
  if (cell.end == BACK)
    go_on_to_the_end ();
  else
    end_clone ();

  mock_disk_crash (d, 0, 0, 1);
  mock_server_back (lost_server ());
  if (mock_disk_open (d) == -1)
    wrong ("it cannot be opened again: %s", mock_last_error ());
  check_all ();
  counts->ended++;
}
END_TEST

static void
teardown (void)
{
  mock_disk_free (d);
  free (sectors);
}

int
main (void)
{
  Suite *suite = suite_create ("losses");
  TCase *tc = tcase_create ("losses");
  int status;

  counts = mmap (NULL, sizeof *counts, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (counts == MAP_FAILED)
    return 1;
  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, NULL, teardown);
  /* Seven has no divisor in common with the numbers of servers, faults, moments
   * and ends, so that each of them is among the cells that are tried.
   */
  if (is_under_tool () && !is_all ()) {
    stride = 7;
    printf ("left to --all: unit/test-losses: six of seven cells\n");
  }
  tcase_add_loop_test (tc, matrix, 0, (CELLS + stride - 1) / stride);
  suite_add_tcase (suite, tc);
  status = run_suite (suite);
  printf ("losses: %u cells, %u of them at their moment, %u flushes "
          "acknowledged, %u told, %u sectors settled, hangs and failures %u\n",
          counts->begun, counts->reached, counts->acknowledged, counts->told,
          counts->settled, counts->begun - counts->ended);
  return status;
}
