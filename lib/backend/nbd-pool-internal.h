/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the pool, its watcher and its healer share.  Nothing else includes this.
 *
 * All times are milliseconds.
 */

#ifndef CLONE_NBD_POOL_INTERNAL_H
#define CLONE_NBD_POOL_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend/nbd-pool.h"

/* A deadline that doubles, up to max, each time that it is missed. */
struct nbd_deadline {
  int64_t normal, now, max;
};

/* The place of one connection. */
struct nbd_slot {
  struct nbd_pool *pool;
  struct nbd_connection *conn; /* in use, dead, or being made; or NULL */
  bool started;                /* the thread runs */
  pthread_t thread;
};

struct nbd_pool {
  struct nbd_pool_params params;
  struct backend_service service;
  unsigned connections;    /* slots in use, at least 1 once it is open */
  unsigned clients;        /* slots for clients: slots[0] to [clients - 1] */
  int64_t opened;          /* when the first connection was begun */
  bool running;            /* nbd_pool_start was called */
  pthread_t watcher;
  atomic_uint generation;

  pthread_mutex_t lock;    /* protects what follows, and the slots */
  pthread_cond_t changed;
  bool news;               /* changed was signalled: the watcher looks again */
  bool watching;           /* false: the watcher ends */
  bool stopping;           /* nbd_pool_interrupt was called */
  int64_t interrupted;     /* time of that call */
  int grace;               /* its argument; -1: no limit */
  bool refused;            /* the server that came back has another disk */
  char reason[256];        /* see nbd_pool_reason */
  struct nbd_deadline reply, connect;
  int64_t pause, next_try;
  int64_t backed_off;      /* when a death last changed the pause */
  bool flapping;           /* connections live shorter than the pause */
  bool missed;             /* a deadline was missed */
  struct nbd_connection *made;    /* the connection that is being made */
  struct nbd_connection *witness; /* its witness, or NULL */
  bool loss_pending;       /* lost must be called (params.together) */
  uint64_t losses;         /* calls of lost */
  bool told_up;            /* what the log says: the server is there */
  int64_t told_lost;       /* when the log said that it is not */
  unsigned told;           /* generation when service.changed was called */
  unsigned short seed[3];
  struct nbd_slot slots[];
};

/* ---- nbd-pool.c: all of these are called with the lock ---- */

extern void nbd_pool_signal_change (struct nbd_pool *pool);
/* Wait for a change, at most ms milliseconds.  Releases the lock meanwhile. */
extern void nbd_pool_wait_change (struct nbd_pool *pool, int64_t ms);

/* Has the slot a connection that has come into use, and is it alive? */
extern bool nbd_slot_is_used (const struct nbd_slot *slot);
extern bool nbd_slot_is_alive (const struct nbd_slot *slot);
extern unsigned nbd_pool_count (const struct nbd_pool *pool,
                                bool (*is) (const struct nbd_slot *));

/* Choose a connection that is alive and become a user of it; NULL if there is
 * none.  For a client, the one with the fewest requests in flight of those for
 * clients, or any other if they are all dead.  For a channel, the one with the
 * fewest channels: sharing with a channel is worse than sharing with clients.
 */
extern struct nbd_connection *nbd_pool_pick (const struct nbd_pool *pool,
                                             bool for_channel);

extern void nbd_pool_set_reason (struct nbd_pool *pool, const char *why);

/* ---- nbd-watcher.c: called without the lock ---- */

extern int nbd_watcher_begin (struct nbd_pool *pool); /* -1, logged */
extern void nbd_watcher_end (struct nbd_pool *pool);

/* ---- nbd-healer.c ---- */

/* The first and the longest pause between two tries to connect, in
 * milliseconds.
 */
#define NBD_PAUSE_MIN INT64_C (100)
#define NBD_PAUSE_MAX INT64_C (10000)

/* The first three are what params.check returns. */
enum nbd_filled {
  NBD_UNFILLED = -1, /* connecting or checking failed; the reason is set */
  NBD_FILLED = 0,    /* the connection is in use */
  NBD_OTHER = 1,     /* the server has another export; the reason is set */
  NBD_OUTDATED,      /* the connection is not wanted any more */
};

/* Make a connection in this slot and check that it leads to the same export,
 * unless it is the first one.  Called with the lock, which is released
 * meanwhile.
 */
extern enum nbd_filled nbd_slot_fill (struct nbd_slot *slot);

/* The thread of a slot. */
extern void *nbd_slot_thread (void *slot);

#endif /* CLONE_NBD_POOL_INTERNAL_H */
