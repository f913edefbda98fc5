/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A backend in memory for the unit tests.
 *
 * It records every call in a log that several mocks share, so that a test knows
 * the order of calls on different devices.  It fails calls, and stops them, on
 * demand.  And it knows what a power cut would leave.
 *
 * The device behind it has a volatile cache.  A call takes effect in the cache
 * at one moment, just before it returns.  A flush makes durable what had taken
 * effect when it began, not what came while it ran.  A flush that fails behaves
 * as Linux does: what it should have made durable can still be read, but no
 * later flush writes it.
 *
 * It is strict: a range outside the device, an empty or overlapping one, a
 * write to a device that is read-only, and a call after close abort the test.
 *
 * A mock outlives the backend's close, so that a test can look at the device's
 * content, cut its power and open it again.
 *
 * Threads: all functions may be called from any thread, except for those that
 * make, free, crash or open a mock again.
 */

#ifndef MOCK_BACKEND_H
#define MOCK_BACKEND_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"
#include "clone/clone.h"
#include "hydration/hydrate.h"
#include "store/superblock.h"

#define MOCK_SECTOR 512

enum mock_kind {
  MOCK_PREAD, MOCK_PWRITE, MOCK_ZERO, MOCK_TRIM, MOCK_FLUSH, MOCK_EXTENTS,
  MOCK_CLOSE,
  MOCK_KINDS
};

struct mock;

/* ---- the log ---- */

struct mock_range {
  uint64_t offset, count;
};

/* One call.  Times are ticks of the log's clock: no two moments are equal. */
struct mock_call {
  const struct mock *mock;
  enum mock_kind kind;
  unsigned flags;            /* BACKEND_FUA, ... */
  struct mock_range *range;  /* n of them, the segments of a transfer */
  size_t n;
  uint8_t *data;             /* PWRITE, if the log keeps data: the segments'
                              * bytes, one after the other */
  uint64_t start;            /* ticks */
  uint64_t effect;           /* when it took effect; 0: it did not */
  uint64_t end;              /* 0: it is still running */
  int error;                 /* when ended: 0 or an errno */
  bool recorded;             /* it belongs to the log */
  unsigned incarnation;      /* of the server when it began, 0: it was down */
};

struct mock_log;

extern struct mock_log *mock_log_new (bool keep_data);
extern void mock_log_free (struct mock_log *log);
/* Forget the calls that have ended. */
extern void mock_log_clear (struct mock_log *log);
/* Switch recording off or on; off for tests that make millions of calls. */
extern void mock_log_enable (struct mock_log *log, bool enabled);

/* A new tick, for an event that is not a call. */
extern uint64_t mock_log_tick (struct mock_log *log);

extern size_t mock_log_len (struct mock_log *log);
/* Call i.  Valid until the log is cleared or freed; a call that runs changes.
 */
extern const struct mock_call *mock_log_call (struct mock_log *log, size_t i);

/* The first call of this kind on this mock at or after index i, and its index
 * in *found.  NULL if there is none.
 */
extern const struct mock_call *mock_log_find (struct mock_log *log,
                                              const struct mock *m,
                                              enum mock_kind kind, size_t i,
                                              size_t *found);

/* Of the calls in the log: how many of a kind, how many bytes they had, and
 * how many of those bytes lie in [offset, offset + count).
 */
extern size_t mock_count (const struct mock *m, enum mock_kind kind);
extern uint64_t mock_bytes (const struct mock *m, enum mock_kind kind);
extern uint64_t mock_bytes_in (const struct mock *m, enum mock_kind kind,
                               uint64_t offset, uint64_t count);

/* ---- mocks ---- */

/* A device of zeroes, which is one hole, durable.  The name must outlive it. */
extern struct mock *mock_new (struct mock_log *log, const char *name,
                              uint64_t size, bool readonly);
extern void mock_free (struct mock *m);

/* The backend for the code under test. */
extern struct backend *mock_backend (struct mock *m);

/* After the backend was closed: open it again, with the same content. */
extern void mock_reopen (struct mock *m);
extern bool mock_is_closed (struct mock *m);

/* Set the content, durably, without a call. */
extern void mock_fill (struct mock *m, const void *buf, uint64_t count,
                       uint64_t offset);
extern void mock_fill_random (struct mock *m, uint64_t count,
                              uint64_t offset, uint64_t seed);
/* The content that a read returns now, and the durable one.  Only while no call
 * runs.
 */
extern const uint8_t *mock_content (struct mock *m);
extern const uint8_t *mock_durable (struct mock *m);

/* How the device behaves. */
enum mock_trim { MOCK_TRIM_ZEROES, MOCK_TRIM_NOTHING, MOCK_TRIM_GARBAGE };
extern void mock_set_trim (struct mock *m, enum mock_trim trim);
/* It can share blocks with other mocks.  This is a MOCK_PWRITE of their
 * content, without a call of theirs.  Every refused-th range is refused with
 * this errno; 0: none is.
 */
extern void mock_set_share (struct mock *m, unsigned refused, int error);
/* How many ranges it was asked to share. */
extern unsigned mock_shares (struct mock *m);
/* The most extents that one call returns; 0: no limit. */
extern void mock_set_max_extents (struct mock *m, size_t max);
/* Each call takes between half of usec and one and a half times usec. */
extern void mock_set_delay (struct mock *m, unsigned usec);
/* Have a channel on which many requests are in flight; without it, a loop's
 * requests are done one by one.
 */
extern void mock_set_async (struct mock *m);

/* The most bytes that were being read at the same time, ever. */
extern uint64_t mock_max_reading (struct mock *m);

/* ---- faults and gates ---- */

#define MOCK_ANYWHERE 0, UINT64_MAX

/* The nth call from now (1 is the next) of this kind that touches the range
 * fails with this error, and so do the times - 1 after it; with times 0, all
 * after it.  These calls have no effect.  mock_heal ends all faults.
 */
extern void mock_fail (struct mock *m, enum mock_kind kind, uint64_t offset,
                       uint64_t count, unsigned nth, unsigned times,
                       int error);
extern void mock_heal (struct mock *m);

/* A gate stops the nth call from now of this kind that touches the range,
 * before it takes effect, until the gate is opened.
 */
struct mock_gate;
extern struct mock_gate *mock_gate (struct mock *m, enum mock_kind kind,
                                    uint64_t offset, uint64_t count,
                                    unsigned nth);
/* The same, but stops it after it took effect and before it returns. */
extern struct mock_gate *mock_gate_after (struct mock *m, enum mock_kind kind,
                                          uint64_t offset, uint64_t count,
                                          unsigned nth);
/* Wait until the call is stopped there.  Aborts the test if it does not come.
 */
extern void mock_gate_wait (struct mock_gate *gate);
extern bool mock_gate_arrived (struct mock_gate *gate);
extern void mock_gate_open (struct mock_gate *gate);

/* ---- power cuts ---- */

/* Has this sector data that a power cut may lose? */
extern bool mock_is_volatile (struct mock *m, uint64_t sector);

/* Cut the power: of each volatile sector, keep decides whether the cached
 * version came to the medium.  NULL keeps none.  Nothing may be running.  What
 * is left is the content, durably, and the mock is open.
 */
extern void mock_crash (struct mock *m,
                        bool (*keep) (uint64_t sector, void *opaque),
                        void *opaque);

/* ---- servers ---- */

/* There is a server behind it, which can be lost (struct backend_service). */
extern void mock_set_server (struct mock *m);

/* The server crashes: as mock_crash, but calls that are running, also those
 * that are stopped at a gate, fail with ENOTCONN, as does every one that
 * begins.  The backend's user is told, as by a backend's own thread: this
 * returns when `lost' has.  The log shows it as a write with FUA of all that is
 * left.
 */
extern void mock_server_crash (struct mock *m,
                               bool (*keep) (uint64_t sector, void *opaque),
                               void *opaque);
/* The server is back.  No effect if it was not lost. */
extern void mock_server_back (struct mock *m);

/* ---- a clone of mocks ---- */

#define MOCK_GARBAGE 0xee

struct mock_disk {
  uint64_t size, region_size;
  struct mock_log *log;
  struct mock *source, *dest, *meta;
  struct clone *clone; /* NULL: not open */
  struct clone_options options; /* for the next opening */
  struct clone_service service;

  /* Who hears the clone's events now; see mock_disk_listen. */
  pthread_rwlock_t listening;
  struct clone_events events;
};

/* The devices of a new clone, which is not open.  The source has random bytes.
 * The destination is excess bytes larger and full of garbage, which no client
 * may ever see.  The metadata is all zeroes.
 */
extern struct mock_disk *mock_disk_devices (uint64_t size,
                                            uint64_t region_size,
                                            uint64_t excess, bool keep_data);
/* Is there metadata?  While the clone is not open. */
extern enum metadata_presence mock_disk_probe (struct mock_disk *d);
/* Create the metadata, and open the clone. */
extern void mock_disk_create (struct mock_disk *d);

/* Both.  The log is empty and keeps no data. */
extern struct mock_disk *mock_disk_new (uint64_t size, uint64_t region_size,
                                        uint64_t excess);
/* Close the clone, if it is open, and free everything.  Aborts the test where
 * the garbage behind the disk's end was touched.
 */
extern void mock_disk_free (struct mock_disk *d);

/* Close the clone; the result of clone_close. */
extern int mock_disk_close (struct mock_disk *d);
/* Cut the power of destination and metadata.  Each volatile sector is kept with
 * a probability of keep_dest or keep_meta in 256.  Nothing may be running.
 */
extern void mock_disk_crash (struct mock_disk *d, unsigned keep_dest,
                             unsigned keep_meta, uint64_t seed);
/* Open it again, after close or crash.  -1 if that is refused. */
extern int mock_disk_open (struct mock_disk *d);

/* From now on the clone's events go to these functions, NULL: to nobody.  On
 * return nobody is in the former ones.
 */
extern void mock_disk_listen (struct mock_disk *d,
                              const struct clone_events *events);
/* Hydrate the clone, which may have been hydrated before; and end that, while
 * the clone goes on.  Both abort the test where they fail.
 */
extern struct hydrate *mock_disk_hydrate
  (struct mock_disk *d, const struct hydrate_settings *settings, bool paused,
   void (*on_end) (void *opaque));
extern void mock_disk_end_hydration (struct mock_disk *d, struct hydrate *h);

/* ---- helpers for all unit tests ---- */

/* Collects the library's messages. */
extern const struct log mock_messages;
extern unsigned mock_errors (void);  /* how many were logged */
/* Count the messages that are no errors and contain this text, from now on. */
extern void mock_watch_infos (const char *text);
extern unsigned mock_infos (void);
/* The last error, or ""; valid until the next one. */
extern const char *mock_last_error (void);

/* A small random number generator, the same on every machine. */
extern uint64_t mock_random (uint64_t *state);

/* Run func (opaque) on a thread of its own. */
struct mock_thread;
extern struct mock_thread *mock_thread (void (*func) (void *opaque),
                                        void *opaque);
extern void mock_join (struct mock_thread *thread);

/* How many seconds a test waits for what must happen: many, because machines
 * may be busy.  MOCK_PATIENCE in the environment changes it, for tests that
 * must fail.
 */
extern unsigned mock_patience (void);
/* Wait a moment, as a chance for what must not happen. */
extern void mock_settle (void);
/* Wait until cond (opaque) is true.  Aborts the test if it stays false. */
extern void mock_wait_until (bool (*cond) (void *opaque), void *opaque);

#endif /* MOCK_BACKEND_H */
