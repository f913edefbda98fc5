/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A backend: a regular file, a block device or an NBD export.
 *
 * Source, destination and metadata are each one backend, and everything above
 * reaches them through this one small table of functions.  backend-file.c and
 * backend-nbd.c implement it; the unit tests have a third one that records
 * the calls and injects faults.
 *
 * All offsets, counts and sizes are in bytes.  A range never goes past the
 * backend's size.  A count is never 0, and has no upper limit: a backend
 * splits what its peer would refuse.
 *
 * Threads: every function may be called from many threads at once, but for
 * backend_close, which must be the last.  A call returns when its operation
 * is done.  Nothing orders two calls that overlap in time; a call that has
 * returned is seen by each one that begins after it.
 *
 * Errors: -1 with errno set to EIO, ENOSPC, ENOMEM, EPERM or ENOTCONN, and
 * EOPNOTSUPP only where said below.  A transfer that failed may have been done
 * in part.  ENOTCONN: the peer is lost.  A request fails with it at once; no
 * backend waits for a peer to return or sends a request again.  (The
 * connections are made again in the background, see backend_start.)  The
 * functions log nothing: the caller knows what the failure means.  (Opening is
 * different, it logs what is wrong.)
 *
 * Durability: what pwrite, zero and trim did is durable when a flush that
 * began after they returned has succeeded, or when they had BACKEND_FUA and
 * succeeded.
 */

#ifndef CLONE_BACKEND_H
#define CLONE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/extents.h"
#include "base/log.h"

struct ev_loop;
struct backend;
struct channel;

/* One piece of a transfer.  The pieces of one call do not overlap. */
struct segment {
  void *buf; /* not written to by a pwrite */
  size_t count;
  uint64_t offset;
};

#define BACKEND_FUA 1      /* durable before the call returns */
#define BACKEND_MAY_TRIM 2 /* zero: may become a hole */
#define BACKEND_FAST 4     /* zero: EOPNOTSUPP if slower than that */
#define BACKEND_REQ_ONE 8  /* extents: one extent is enough */
#define BACKEND_WRITE_BEHIND 16 /* pwrite: nobody reads it again soon */

/* What the user of a backend wants to know about its peer. */
struct backend_service {
  /* Seconds without progress after which a connection with requests in flight
   * counts as lost, where that is shorter than the backend's own deadline.
   * 0: the backend's own.
   */
  unsigned timeout;
  /* Is the peer that came back, read through b, still the same disk?  0 yes; 1
   * no, or -1 that is not known, and then *why is a text to be freed, or NULL.
   * Called on a thread of the backend's; it may wait for the peer, and use
   * nothing but b.  Size and block sizes have been compared.  NULL: yes.
   */
  int (*same_disk) (void *opaque, struct backend *b, char **why);
  /* Both may be NULL, and are called on a thread of the backend's.  They may
   * ask for the backend's state, connections and reason, and do nothing else
   * with it.
   *
   * lost: the peer of a backend that is not read-only was lost, with perhaps
   * everything that had been written to it and not flushed.  All its
   * connections are dead, so that requests in flight fail, and no new one comes
   * into use before lost returns.  It may wait for those who use the backend.
   *
   * changed: a connection was lost or made, or backend_state is another.  It
   * is called after each such event, so that whoever got ENOTCONN and waits for
   * a change may try again.  It must not wait.
   */
  void (*lost) (void *opaque);
  void (*changed) (void *opaque);
  void *opaque;
};

enum backend_state {
  BACKEND_UP,      /* there is a connection */
  BACKEND_LOST,    /* there is none; they are being made again */
  BACKEND_REFUSED, /* what came back is another disk, and is not used.  (When
                    * the right one comes back, that is used.) */
};

struct backend_ops {
  /* Free everything, connections and locks included. */
  void (*close) (struct backend *b);

  /* Transfer all segments.  A backend with a round trip has them in flight
   * together: use one call for pieces that lie apart.
   */
  int (*pread) (struct backend *b, const struct segment *seg, size_t n);
  int (*pwrite) (struct backend *b, const struct segment *seg, size_t n,
                 unsigned flags);

  /* Make the range read as zeroes.  Without BACKEND_MAY_TRIM it keeps its
   * space.  With BACKEND_FAST it fails with EOPNOTSUPP, having done nothing,
   * where writing zeroes would be needed.
   */
  int (*zero) (struct backend *b, uint64_t count, uint64_t offset,
               unsigned flags);

  /* The range's content is not needed any more.  A backend that cannot trim
   * returns 0 without doing anything.
   */
  int (*trim) (struct backend *b, uint64_t count, uint64_t offset,
               unsigned flags);

  int (*flush) (struct backend *b);

  /* Give the range the content that it has in another backend, without copying
   * it: both have the same blocks until one is written to.  Fails, with the
   * range's content not changed or already the new one, with EINVAL where this
   * range cannot be shared, and with another errno where probably none can.
   * Both are files.  NULL where this is never possible.
   */
  int (*share) (struct backend *b, struct backend *from, uint64_t count,
                uint64_t offset);

  /* Move data that were written with BACKEND_WRITE_BEHIND from the host's
   * memory to the device.  The writer calls this regularly, soon after its
   * writes.  It may wait for the device, which slows down a writer that is
   * faster than the device; so the caller must own and hold nothing.  It does
   * not make data durable.  NULL where the flag does nothing.
   */
  void (*write_behind) (struct backend *b);

  /* Append to list, which is empty, extents that begin at offset and cover at
   * least one byte and no more than the range.  What the backend does not know
   * is data (flags 0).
   */
  int (*extents) (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags, struct extents *list);

  /* A channel of this backend's own kind, see channel.h.  NULL where the
   * functions above never wait for a peer, so that a loop can call them.
   */
  struct channel *(*channel) (struct backend *b, struct ev_loop *loop);

  /* How many connections to the peer are alive.  It waits for nothing.  NULL
   * where there is no peer, which counts as one.
   */
  unsigned (*connections) (struct backend *b);

  /* These are NULL where there is no peer.
   *
   * start: the process has forked for the last time.  From now on connections
   * that are lost are made again.  -1, logged.
   */
  int (*start) (struct backend *b, const struct backend_service *service);

  /* The process is about to end: no connection is made any more.  What is in
   * flight fails when no reply has come for so many milliseconds, -1 for no
   * limit.  Waits for nothing.
   */
  void (*interrupt) (struct backend *b, int grace);

  enum backend_state (*state) (struct backend *b);

  /* Why there is no connection, or why the last try to make one failed: a text
   * in buf, empty where there is nothing to say.
   */
  void (*reason) (struct backend *b, char *buf, size_t size);
};

struct backend {
  const struct backend_ops *ops;
  const struct log *log;
  char *name; /* as the user gave it, for messages */
  uint64_t size;
  /* Requests that are not multiples of this cost a read-modify-write. */
  uint32_t minimum_block;
  bool readonly;       /* pwrite, zero, trim and flush fail with EPERM */
  bool can_fast_zero;  /* BACKEND_FAST succeeds at least sometimes */
  bool is_file;        /* a regular file, so that it has neighbours */
  bool knows_extents;  /* false: every extent is said to be data */
  /* A request with BACKEND_FUA that fails may have been told of the loss of
   * other requests' data, and the next flush is not told again.
   */
  bool fua_takes_errors;
};

/* What to open, and how. */
struct backend_params {
  const char *role; /* "source", "destination", "metadata": for messages */
  const char *name; /* a path, or an NBD URI */
  bool readonly;
  /* Take the lock that gives one process this backend (I11).  Files and block
   * devices only: an NBD server keeps its own order.
   */
  bool lock;
  /* NBD connections: in all, 1 where the server lacks multi-conn. */
  unsigned connections;
  /* Seconds without progress after which opening fails.  0: the default. */
  unsigned timeout;
  /* For tests, milliseconds: replaces each deadline of the NBD layer
   * (handshake, replies, opening).  0: the defaults.
   */
  unsigned deadline;
  /* backend_create: the file gets its name later, by backend_file_publish,
   * and until then a flush makes nothing durable.
   */
  bool nameless;
};

/* Open what exists.  On failure say why in the log and return NULL; errno is
 * ENOENT if and only if a path does not exist, which is not logged.
 */
extern struct backend *backend_open (const struct backend_params *params,
                                     const struct log *log);

/* Create a sparse regular file of this size and open it, locked and read-write.
 * Fails, with a message, where the path exists.  The file and its name in the
 * directory are durable on return.  (Where the file system knows no files
 * without a name, a nameless one has its name at once.)
 */
extern struct backend *backend_create (const struct backend_params *params,
                                       uint64_t size, const struct log *log);

/* Does this name have the form of a URI?  Anything else is a path. */
extern bool backend_name_is_uri (const char *name);

/* Do two names lead to the same file, block device or URI?  Different URIs of
 * one NBD export are not recognised.
 */
extern bool backend_same (const char *a, const char *b);

/* Does the range hold nothing but zeroes?  Extents tell where they can, the
 * rest is read.  1 yes, 0 no, -1 error.
 */
extern int backend_is_zero (struct backend *b, uint64_t count,
                            uint64_t offset);

/* The table's functions.  A count of 0 is allowed here and does nothing. */
extern void backend_close (struct backend *b); /* NULL is allowed */
extern int backend_pread (struct backend *b, void *buf, size_t count,
                          uint64_t offset);
extern int backend_preadv (struct backend *b, const struct segment *seg,
                           size_t n);
extern int backend_pwrite (struct backend *b, const void *buf, size_t count,
                           uint64_t offset, unsigned flags);
extern int backend_pwritev (struct backend *b, const struct segment *seg,
                            size_t n, unsigned flags);
extern int backend_zero (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags);
extern int backend_trim (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags);
extern int backend_flush (struct backend *b);
/* False where backend_share is not to be called at all. */
extern bool backend_can_share (const struct backend *b,
                               const struct backend *from);
extern int backend_share (struct backend *b, struct backend *from,
                          uint64_t count, uint64_t offset);
extern void backend_write_behind (struct backend *b);
extern int backend_extents (struct backend *b, uint64_t count, uint64_t offset,
                            unsigned flags, struct extents *list);
extern unsigned backend_connections (struct backend *b);
extern int backend_start (struct backend *b,
                          const struct backend_service *service);
extern void backend_interrupt (struct backend *b, int grace);
/* Is there a peer, a server that can be lost? */
extern bool backend_has_peer (const struct backend *b);
extern enum backend_state backend_state (struct backend *b);
extern void backend_reason (struct backend *b, char *buf, size_t size);
/* Log that something failed, with errno's text, or, where the peer is lost,
 * with the reason for that: "ROLE NAME: WHAT: WHY".
 */
extern void backend_log_failure (struct backend *b, const char *role,
                                 const char *what);

#endif /* CLONE_BACKEND_H */
