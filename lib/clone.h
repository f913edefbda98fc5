/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The clone: the disk that clients see, made of a source, a destination and
 * the map that says which of them holds a region.
 *
 * The way of a request: it is split into runs of regions in the same state.
 * A run of valid regions goes to the destination, after one atomic look at the
 * map.  Of a run of invalid regions a read goes to the source; whatever changes
 * them reads the source first where it must, then owns the run, looks again,
 * writes to the destination, makes the regions valid, and releases them
 * (ownership.h).
 *
 * All functions may be called from many threads at once; offsets, counts and
 * sizes are bytes; ranges lie within the disk, a count is not 0.  They return
 * -1 with errno as the backends set it (EIO, ENOSPC, ENOMEM, EPERM, ESHUTDOWN;
 * EOPNOTSUPP for fast zeroes).
 */

#ifndef CLONE_CLONE_H
#define CLONE_CLONE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "commit.h"
#include "extents.h"
#include "metadata.h"
#include "ownership.h"
#include "region-map.h"

/* The most that is copied through memory at once on a client's thread. */
#define CLONE_COPY_MAX (UINT32_C (1) << 20)

struct clone_options {
  bool discard_passdown; /* trim the destination */
  /* Keep what clients read from the source: the whole regions of it.  A read
   * does not fail because that fails.
   */
  bool copy_on_read;
  bool source_check; /* compare the source's fingerprint, and again when it
                      * comes back */
};

struct clone {
  const struct log *log;
  uint64_t size;
  struct clone_options options;

  struct backend *dest;
  struct metadata *metadata;
  struct region_map *map;
  struct ownership ownership;
  struct commit commit;
  _Atomic uint64_t losses_told; /* of commit_losses: some client knows */

  /* Told once, on whichever thread makes the clone complete.  Must not wait. */
  void (*on_complete) (void *opaque);
  void *on_complete_opaque;

  /* Told, on a client's thread, what that is about to read from the source; and
   * how many bytes that was, and how many seconds it took.  Both are set before
   * the first client comes, or NULL.  They must not wait.
   */
  void (*on_source_read) (void *opaque, uint64_t start, uint64_t end);
  void (*on_source_was_read) (void *opaque, uint64_t count, double took);
  void *on_source_read_opaque;

  pthread_mutex_t source_lock; /* protects the two below */
  struct backend *source;      /* NULL when it is closed */
  unsigned source_users;       /* it is closed when this becomes 0 */
  _Atomic bool source_dropped; /* the clone's own use has ended */

  /* Reads and changes that clients have begun, until the source is dropped.
   * Here, far from what each of them looks at, because they all write to it.
   */
  _Atomic uint64_t requests;
};

/* One of the clone's clients: what it has been told.  See clone_flush. */
struct clone_client {
  _Atomic uint64_t losses; /* of commit_losses */
};

/* Make a clone of its parts, which it owns from then on; on failure, with errno
 * ENOMEM, it owns none.  The map is loaded.  source is NULL if and only if the
 * metadata is complete.
 */
extern struct clone *clone_new (struct backend *source, struct backend *dest,
                                struct metadata *md, struct region_map *map,
                                const struct clone_options *options,
                                const struct log *log);

/* The process has forked for the last time: from now on servers that are lost
 * are waited for, the source's for so many seconds, 0 for ever.  changed may be
 * NULL.  It is told when clone_source_status says something else, on any
 * thread; it must not wait.  -1, logged.
 */
extern int clone_start (struct clone *c, unsigned source_timeout,
                        void (*changed) (void *opaque), void *opaque);

/* The process is about to end: who waits for a lost server fails with
 * ESHUTDOWN, and what the source's has under way has a second left.
 */
extern void clone_interrupt (struct clone *c);

/* Commit, mark the metadata clean, and free everything.  No function of the
 * clone may be running.  -1 where the commit failed (which is logged): the
 * disk is intact but what was not flushed may be lost.
 */
extern int clone_close (struct clone *c);

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

/* The periodic commit.  Errors are logged. */
extern int clone_background_commit (struct clone *c);

/* Append extents that begin at offset and cover one byte or more of the range
 * to list, which is empty.  flags: BACKEND_REQ_ONE
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

/* The commit's mode (commit.h), but MODE_FAIL when the destination is lost.
 * Waits for nothing.
 */
extern enum clone_mode clone_mode (struct clone *c);

/* How is the source?  BACKEND_LOST and no connections where it is closed.
 * Waits for nothing.
 */
extern enum backend_state clone_source_status (struct clone *c,
                                               unsigned *connections);

#endif /* CLONE_CLONE_H */
