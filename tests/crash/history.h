/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A history: some clients, hydration and the periodic commit at work on a small
 * disk, from opening (or creation, if there is no metadata) to a clean end, and
 * the recording of all their calls.
 *
 * The seed determines the requests.  The order of threads is up to the machine,
 * so that two histories of one seed are similar but not equal.
 */

#ifndef CRASH_HISTORY_H
#define CRASH_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "mock-backend.h"
#include "value.h"

#define HISTORY_CLIENTS 4

enum event_type { EVENT_READ, EVENT_WRITE, EVENT_ZERO, EVENT_TRIM,
                  EVENT_CACHE, EVENT_FLUSH };

/* One request of a client. */
struct event {
  enum event_type type;
  unsigned client;        /* HISTORY_CLIENTS: the clean end */
  bool fua;
  value_t value;          /* EVENT_WRITE, EVENT_ZERO and EVENT_TRIM */
  uint64_t first, n;      /* sectors */
  uint64_t start, end;    /* ticks: before the call, and after it returned */
  int error;              /* 0 or an errno */
  value_t *seen;          /* EVENT_READ */
};

/* The state that a history begins with. */
struct state {
  uint64_t size, region_size;
  unsigned excess;        /* bytes of the destination behind the disk */
  uint64_t window;        /* bytes at the disk's end, whole regions, in which
                           * clients are busy; the rest is hydrated */
  unsigned requests;      /* of each client */
  uint64_t source_seed;   /* where the source has its holes */
  uint8_t *dest, *meta;   /* what the devices hold */
  value_t *values;        /* what a client reads, per sector of the disk */
  value_t next_value;     /* none that was used */
};

struct history {
  struct state before;
  uint64_t seed;
  struct mock_disk *disk;
  bool trims;             /* the destination zeroes what is trimmed */
  bool faults;            /* a device fails, once or a few times */
  uint64_t created;       /* the tick at which there was metadata */
  /* The destination's server crashed, and came back, between these ticks; both
   * UINT64_MAX where it did not.
   */
  uint64_t loss, loss_end;
  struct event *event;
  size_t n, alloc;
  value_t next_value;
};

/* A new disk: garbage in the destination; no metadata, unless all but the
 * window is hydrated.
 */
extern struct state state_new (uint64_t seed, value_t next_value);
extern void state_free (struct state *s);

/* The window's first sector. */
extern uint64_t state_window (const struct state *s);

/* A mock disk whose source is that of the state; the log keeps data or is
 * off.
 */
extern struct mock_disk *state_disk (const struct state *s, bool record);

/* Run it; a device may fail, or not.  The history owns `before' from then on.
 */
extern struct history *history_run (const struct state *before, uint64_t seed,
                                    bool may_fail);
extern void history_free (struct history *h);

/* Print what happened to one sector of the disk, and to the metadata. */
extern void history_print (const struct history *h, uint64_t sector,
                           uint64_t cut);

#endif /* CRASH_HISTORY_H */
