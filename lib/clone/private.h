/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The clone's parts, for the files of this folder and for tests.  Everything
 * else sees a clone through the functions in clone.h and install.h.
 */

#ifndef CLONE_PRIVATE_H
#define CLONE_PRIVATE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/range-lock.h"
#include "base/rounding.h"
#include "clone/clone.h"
#include "clone/committer.h"
#include "clone/gate.h"
#include "clone/kept-extents.h"
#include "clone/outage.h"
#include "store/commit.h"
#include "store/inherit.h"
#include "store/metadata.h"
#include "store/region-map.h"

/* The most that is copied through memory at once on a client's thread. */
#define CLONE_COPY_MAX (UINT64_C (1) << 20)

struct clone {
  const struct log *log;
  uint64_t size;
  struct clone_options options;

  struct backend *dest;
  struct metadata *metadata;
  struct region_map *map;
  struct gate gate;
  struct range_lock ownership;
  struct commit *commit;
  struct committer committer;
  struct inheritance *inheritance; /* NULL: there is none */
  struct outage outage;
  atomic_uint source_timeout;   /* seconds that a request waits, 0: for ever */
  atomic_bool copy_on_read;
  _Atomic uint64_t setbacks_told; /* commit_setbacks, at the last report to a
                                   * client */

  struct kept_extents kept;     /* for block status */
  struct last_error last_error[CLONE_SIDES];

  pthread_mutex_t source_lock; /* protects the two below */
  struct backend *source;      /* NULL when it is closed */
  unsigned source_users;       /* it is closed when this becomes 0 */
  _Atomic bool source_dropped; /* the clone's own use has ended */

  /* All clients write to what follows, so no client's look-up may share a cache
   * line with it.
   *
   * requests: reads and changes that clients have begun, until the source is
   * dropped.  changes_begun, changes_ended: changes (kept-extents.h).
   */
  char cache_line[64];
  _Atomic uint64_t requests;
  _Atomic uint64_t changes_begun, changes_ended;

  struct counters counters;     /* each copy on lines of its own */
};

/* Call an event's function, if there is one, with these further arguments. */
#define TELL(c, event, ...)                                             \
  do {                                                                  \
    const struct clone_events *e_ = &(c)->options.events;               \
                                                                        \
    if (e_->event)                                                      \
      e_->event (e_->opaque, ## __VA_ARGS__);                           \
  } while (0)

static inline int
clone_fail (int error)
{
  errno = error;
  return -1;
}

/* A client's request begins: for hydration's pace, so not once that is over. */
static inline void
clone_count_request (struct clone *c)
{
  if (!atomic_load_explicit (&c->source_dropped, memory_order_relaxed))
    atomic_fetch_add_explicit (&c->requests, 1, memory_order_relaxed);
}

/* The regions that a range of bytes touches. */
static inline void
clone_regions_of (const struct clone *c, uint64_t start, uint64_t end,
                  uint64_t *first, uint64_t *count)
{
  const uint64_t region_size = region_map_region_size (c->map);

  *first = start / region_size;
  *count = div_round_up (end, region_size) - *first;
}

/* Shrink a range of bytes to the whole regions in it.  False if there is none.
 * The disk's last region is whole where the range reaches the disk's end.
 */
extern bool clone_whole_regions (const struct clone *c, uint64_t *start,
                                 uint64_t *end);

/* Has the gate been closed again since gate_closings returned `closings'?  Then
 * the map may have been set back, and what the request saw before, or wrote to
 * invalid regions, does not count: -1 with errno ENOTCONN, and the request
 * begins again.
 */
extern int clone_check_not_set_back (struct clone *c, uint64_t closings);

/* A change, or a read, of [offset, offset + count) of the destination has
 * returned r, with errno set: note an error.  Returns r, and preserves errno.
 */
extern int clone_check_dest (struct clone *c, int r, const char *what,
                             uint64_t count, uint64_t offset);

/* A commit has failed: note the error of the destination, if that is why. */
extern void clone_note_commit (struct clone *c);

/* servers.c */

/* Called by the backends: see struct backend_service. */
extern const char *servers_tell_mode (void *opaque);
extern void servers_changed (void *opaque);
extern void servers_lost_destination (void *opaque);
extern void servers_lost_metadata (void *opaque);
extern int servers_same_source (void *opaque, struct backend *source,
                                char **why);

/* A commit has failed: set the map back if the flush of the destination failed
 * because it is full, unless another thread has done so.  Outside the gate.
 */
extern void servers_set_back (struct clone *c);

/* source.c */

/* backend_preadv from the source on a client's thread: counted, and an error is
 * noted.
 */
extern int source_read (struct clone *c, struct backend *source,
                        const struct segment *seg, size_t n);

/* After a commit that succeeded: close the source once the clone is complete,
 * when its last user has put it back.
 */
extern void source_drop_if_complete (struct clone *c);

/* The clone is complete, so no region becomes invalid.  Remove the gate, unless
 * the destination is a server: clients must still learn that it lost changes.
 */
extern void source_remove_gate (struct clone *c);

#endif /* CLONE_PRIVATE_H */
