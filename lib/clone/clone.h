/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The clone: the disk that clients see, made of a source, a destination and
 * the map that says which of them holds a region.
 *
 * A request is split into runs of regions in the same state.  A run of valid
 * regions goes to the destination, after one atomic look at the map.  Of a run
 * of invalid regions a read goes to the source; a change reads from the source
 * the bytes around it, if it covers a region only partly, and then installs the
 * run (install.h).
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
#include "store/commit.h"
#include "store/metadata.h"
#include "store/region-map.h"

struct clone;

/* What the clone tells hydration.  A function may be NULL; it may be called on
 * any thread, until clone_close has returned, and must not wait.
 */
struct clone_events {
  /* The clone has become complete.  Once, on whichever thread makes it so. */
  void (*complete) (void *opaque);
  /* A commit that the committer was asked for has ended: 0 or an errno. */
  void (*committed) (void *opaque, int error);
  /* The map was set back; nobody is inside the gate. */
  void (*set_back) (void *opaque);
  /* A server was lost or is back. */
  void (*servers_changed) (void *opaque);
  /* A client is about to read these bytes from the source; and it has read so
   * many bytes, which took so many seconds.  On the client's thread.
   */
  void (*source_read) (void *opaque, uint64_t start, uint64_t end);
  void (*source_was_read) (void *opaque, uint64_t count, double took);
  void *opaque;
};

struct clone_options {
  bool discard_passdown; /* trim the destination */
  /* Keep what clients read from the source: the whole regions of it.  A read
   * does not fail because that fails.
   */
  bool copy_on_read;
  bool source_check; /* compare the source's fingerprint, and again when it
                      * comes back */
  /* Is the client gone whose request this thread runs?  A request that has
   * waited for a server asks before it goes on: what it would write may be
   * older than what the client has written since over another connection.
   * NULL: it never is.
   */
  bool (*client_is_gone) (void);
  const struct clone_events *events; /* NULL: nobody listens */
};

/* One of the clone's clients: what it has been told.  See clone_flush. */
struct clone_client {
  _Atomic uint64_t losses; /* of commit_setbacks */
};

/* Make a clone of its parts, which it owns from then on; on failure, with errno
 * ENOMEM, it owns none.  The map is loaded.  source is NULL if and only if the
 * metadata is complete.
 */
extern struct clone *clone_new (struct backend *source, struct backend *dest,
                                struct metadata *md, struct region_map *map,
                                const struct clone_options *options,
                                const struct log *log);

/* How it runs. */
struct clone_service {
  unsigned source_timeout;  /* seconds that a request waits for a lost source
                             * before it fails with EIO, 0: for ever */
  unsigned commit_interval; /* seconds between background commits, 0: none */
};

/* The process has forked for the last time: from now on lost servers are looked
 * for, requests wait for them, and commits are made in the background.  -1,
 * logged.
 */
extern int clone_start (struct clone *c, const struct clone_service *service);

/* THE END has three steps, between which the caller ends what it has started
 * itself.
 *
 * clone_interrupt: the process is about to end.  Requests that wait for a lost
 * server fail with ESHUTDOWN, what the source and the metadata have under way
 * may take a little longer, and a commit is begun.  Waits for nothing.
 *
 * clone_stop: the threads of the clone and the connections to the source end.
 * Only destination and metadata are left.  No client's request is running.
 *
 * clone_close: commit, mark the metadata clean, and free everything.  -1 where
 * the commit failed (which is logged): the disk is intact but what was not
 * flushed may be lost.
 */
extern void clone_interrupt (struct clone *c);
extern void clone_stop (struct clone *c);
extern int clone_close (struct clone *c);

/* ANOTHER END, for clients that reconnect and send again what was not answered:
 * let no request get to the destination any more, and make everything durable
 * that was.  The caller then ends the process.  Requests that are under way
 * never return, as far as they need the destination.  Metadata that does not
 * answer has a little longer.  -1 with errno where the commit failed, which is
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

/* A new client, which may not know of losses that nobody was told of. */
extern void clone_client_init (struct clone *c, struct clone_client *client);

/* Fails once for each client, with EIO, after changes that no flush had made
 * durable were lost with the destination's server.  client may be NULL: then
 * nobody is told.
 */
extern int clone_flush (struct clone *c, struct clone_client *client);

/* Ask the committer for a commit now, and wait for nothing; wait until no commit
 * is under way or asked for, so many seconds at most: false if one still is.
 */
extern void clone_ask_commit (struct clone *c);
extern bool clone_wait_committed (struct clone *c, double seconds);

/* For the committer: one commit; with always false, only if there is something
 * to do.  -1 with errno, also ENOTCONN.
 */
extern int clone_commit (struct clone *c, bool always);

/* Append extents that begin at offset and cover one byte or more of the range
 * to list, which is empty.  What a lost server would have to tell is data.
 * flags: BACKEND_REQ_ONE
 */
extern int clone_extents (struct clone *c, uint32_t count, uint64_t offset,
                          unsigned flags, struct extents *list);

/* Hydrate the regions of this range now. */
extern int clone_cache (struct clone *c, uint32_t count, uint64_t offset);

/* Use the source.  NULL where it is closed, and then every region is valid.
 * Each successful get wants a put.
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

/* Complete, and durably so? */
extern bool clone_is_complete (const struct clone *c);

/* See commit_may_set. */
extern bool clone_may_set (const struct clone *c);

/* Reads and changes that clients have begun while there was a source. */
extern uint64_t clone_requests (const struct clone *c);

/* The commit's mode (commit.h), but MODE_FAIL when the destination is lost.
 * Waits for nothing.
 */
extern enum clone_mode clone_mode (struct clone *c);

/* How is the source?  BACKEND_LOST and no connections where it is closed.
 * Waits for nothing.
 */
extern enum backend_state clone_source_status (struct clone *c,
                                               unsigned *connections);

/* Why is the source not there?  A text in buf, empty while it is up, and after
 * it was closed.  Waits for nothing.
 */
extern void clone_source_reason (struct clone *c, char *buf, size_t size);

#endif /* CLONE_CLONE_H */
