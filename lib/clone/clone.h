/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The clone: the disk that clients see, made of a source, a destination and
 * the map that says which of them holds a region.
 *
 * A request is split into runs of regions in the same state.  For a run of
 * valid regions it goes to the destination, after one atomic look at the map.
 * For a run of invalid regions a read goes to the source.  A change that covers
 * a region only partly first reads the bytes around it from the source; then it
 * installs the run (install.h).
 *
 * The source is read outside the gate (gate.h), everything else is done inside.
 * A request that fails because a server is lost is tried again from its
 * beginning (retry.h).
 *
 * All functions may be called from many threads at once; offsets, counts and
 * sizes are bytes; ranges lie within the disk, a count is not 0.  They return
 * -1 with errno EIO, ENOSPC, ENOMEM, EPERM, ESHUTDOWN at the end, or EOPNOTSUPP
 * for fast zeroes.
 */

#ifndef CLONE_CLONE_H
#define CLONE_CLONE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/extents.h"
#include "clone/counters.h"
#include "clone/last-error.h"
#include "store/commit.h"
#include "store/metadata.h"
#include "store/region-map.h"

struct clone;

/* Events for hydration.  A function may be NULL.  It may be called on any
 * thread until clone_close has returned, and must not wait.
 */
struct clone_events {
  /* The clone has become complete.  Called once. */
  void (*complete) (void *opaque);
  /* A commit that clone_ask_commit asked for has ended: 0 or an errno. */
  void (*committed) (void *opaque, int error);
  /* The map was set back.  The gate is still closed. */
  void (*set_back) (void *opaque);
  /* A server was lost, or has returned. */
  void (*servers_changed) (void *opaque);
  /* Called on a client's thread: before it reads [start, end) from the source,
   * and after it has read `count' bytes in `took' seconds.
   */
  void (*source_read) (void *opaque, uint64_t start, uint64_t end);
  void (*source_was_read) (void *opaque, uint64_t count, double took);
  void *opaque;
};

struct clone_options {
  bool discard_passdown; /* trim the destination */
  /* Keep the whole regions of what clients read from the source.  If keeping
   * them fails, the read still succeeds.  See clone_set_copy_on_read.
   */
  bool copy_on_read;
  bool timed;        /* measure how long clients' reads and writes take */
  bool source_check; /* compare the source's fingerprint at the start, and
                      * when the source returns */
  /* This thread runs a client's request: has the client gone?  A request that
   * has waited for a server asks this before it goes on, because the client may
   * have written newer data over another connection.  NULL: no.
   */
  bool (*client_is_gone) (void);
  struct clone_events events;
};

/* One client's state: the setbacks that a flush has reported to it. */
struct clone_client {
  _Atomic uint64_t setbacks; /* the number from commit_setbacks */
};

/* Make a clone of its parts, and take ownership of them.  On failure, with
 * errno ENOMEM, the caller keeps them.  The map is loaded.  source is NULL if
 * and only if the metadata is complete.
 */
extern struct clone *clone_new (struct backend *source, struct backend *dest,
                                struct metadata *md, struct region_map *map,
                                const struct clone_options *options,
                                const struct log *log);

#define CLONE_SOURCE_TIMEOUT_MAX (365 * 24 * 3600) /* seconds */

/* How it runs. */
struct clone_service {
  unsigned source_timeout;  /* seconds that a request waits for a lost source
                             * before it fails with EIO, 0: for ever; see
                             * clone_set_source_timeout */
  unsigned commit_interval; /* seconds between background commits, 0: none */
};

/* Start the threads: from now on lost servers are reconnected, requests wait
 * for them, and the committer commits.  Called after the process has forked for
 * the last time.  On failure -1, logged.
 */
extern int clone_start (struct clone *c, const struct clone_service *service);

/* THE END has three steps.  Between them the caller ends what it has started.
 *
 * clone_interrupt: the process is about to end.  Requests that wait for a lost
 * server fail with ESHUTDOWN.  Requests in flight to the source and the
 * metadata get a short grace.  A commit is begun.  This waits for nothing.
 *
 * clone_stop: ends the clone's threads and closes the source.  No client's
 * request may be running.
 *
 * clone_close: commits, marks the metadata clean, and frees everything.  -1 if
 * the commit failed, which is logged: the disk is intact, but changes that were
 * not flushed may be gone.
 */
extern void clone_interrupt (struct clone *c);
extern void clone_stop (struct clone *c);
extern int clone_close (struct clone *c);

/* ANOTHER END, for clients that reconnect and repeat unanswered requests: close
 * the gate for good and commit.  Requests that need the destination never
 * return after that; the caller ends the process.  On failure -1 with errno,
 * logged; the next process takes over what is not durable (inherit.h).
 */
extern int clone_halt (struct clone *c);

extern int clone_pread (struct clone *c, void *buf, uint32_t count,
                        uint64_t offset);

/* flags: BACKEND_FUA */
extern int clone_pwrite (struct clone *c, const void *buf, uint32_t count,
                         uint64_t offset, unsigned flags);

/* flags: BACKEND_FUA, BACKEND_MAY_TRIM, BACKEND_FAST */
extern int clone_zero (struct clone *c, uint32_t count, uint64_t offset,
                       unsigned flags);

/* flags: BACKEND_FUA */
extern int clone_trim (struct clone *c, uint32_t count, uint64_t offset,
                       unsigned flags);

/* A new client: setbacks that were reported to an earlier client are not
 * reported to it, others are.
 */
extern void clone_client_init (struct clone *c, struct clone_client *client);

/* Make everything durable that was written before.  After changes that were not
 * durable were lost with the destination's server, this fails once for each
 * client, with EIO.  client may be NULL: nothing is reported.
 */
extern int clone_flush (struct clone *c, struct clone_client *client);

/* clone_ask_commit asks the committer for a commit, and does not wait.
 * clone_wait_committed waits until no commit is running or asked for, for at
 * most `seconds'; false if one still is.
 */
extern void clone_ask_commit (struct clone *c);
extern bool clone_wait_committed (struct clone *c, double seconds);

/* For the committer: one commit; with always false, only if there is something
 * to do.  -1 with errno, also ENOTCONN.
 */
extern int clone_commit (struct clone *c, bool always);

/* Append to list, which is empty, extents that begin at offset and cover at
 * least one byte of the range.  While a server is lost its ranges are data,
 * except what is known (kept-extents.h).
 * flags: BACKEND_REQ_ONE
 */
extern int clone_extents (struct clone *c, uint32_t count, uint64_t offset,
                          unsigned flags, struct extents *list);

/* Hydrate the regions of this range now. */
extern int clone_cache (struct clone *c, uint32_t count, uint64_t offset);

/* ---- settings that can change while the clone runs: any thread ---- */

extern bool clone_copy_on_read (const struct clone *c);
extern void clone_set_copy_on_read (struct clone *c, bool on);

/* Requests that wait for the source already get the new limit, too.  It counts
 * from the moment at which they began to wait.
 */
extern unsigned clone_source_timeout (const struct clone *c);
extern void clone_set_source_timeout (struct clone *c, unsigned seconds);

/* ---- the source ---- */

/* Use the source, and end that use.  NULL if it is closed; then all regions are
 * valid.
 */
extern struct backend *clone_source_get (struct clone *c);
extern void clone_source_put (struct clone *c);

/* ---- look-ups: any thread, and they wait for nothing ---- */

extern uint64_t clone_size (const struct clone *c);
extern const struct region_map *clone_map (const struct clone *c);

/* For its name and abilities, and for channels.  Only an installer writes to
 * invalid regions of it (install.h).
 */
extern struct backend *clone_destination (const struct clone *c);

/* May the destination share blocks with the source?  Not if it is to keep the
 * space that it has.
 */
extern bool clone_can_share (const struct clone *c,
                             const struct backend *source);

/* Is the clone complete, durably? */
extern bool clone_is_complete (const struct clone *c);

/* See commit_may_set. */
extern bool clone_may_set (const struct clone *c);

/* Reads and changes that clients have begun while there was a source. */
extern uint64_t clone_requests (const struct clone *c);

/* The commit's mode (commit.h), or MODE_FAIL while the destination is lost. */
extern enum clone_mode clone_mode (struct clone *c);

/* What the clone has done since the start.  The commit counts the last three:
 * commits that wrote to the metadata; flushes that clients, writes with FUA and
 * the background asked for; and how many of these flushes were done by a commit
 * that another one had begun.
 */
struct clone_counters {
  struct counts counts;
  uint64_t commits, flushes, flushes_shared;
};
extern void clone_get_counters (struct clone *c, struct clone_counters *sum);

/* Hydration has read these bytes from the source. */
extern void clone_count_hydration (struct clone *c, uint64_t bytes);

/* Remember the latest error of a side, and get it: an empty text if there was
 * none.  See last-error.h.
 */
enum clone_side { CLONE_SOURCE, CLONE_DESTINATION, CLONE_SIDES };
extern void clone_note_error (struct clone *c, enum clone_side side,
                              const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
extern void clone_last_error (struct clone *c, enum clone_side side, char *buf,
                              size_t size);

/* The state of the source; BACKEND_LOST and no connections if it is closed. */
extern enum backend_state clone_source_status (struct clone *c,
                                               unsigned *connections);

/* Why the source is lost: a text in buf, empty while the source is up and after
 * it was closed.
 */
extern void clone_source_reason (struct clone *c, char *buf, size_t size);

/* The source's name, which the caller frees.  NULL after it was closed, or if
 * out of memory.
 */
extern char *clone_source_name (struct clone *c);

#endif /* CLONE_CLONE_H */
