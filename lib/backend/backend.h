/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A backend: a regular file, a block device or an NBD export.
 *
 * Source, destination and metadata are each one backend.  All other code uses
 * them through this small table of functions.  file.c and nbd.c implement it.
 * The unit tests have a third backend, which records the calls and injects
 * faults.
 *
 * All offsets, counts and sizes are in bytes.  A range never goes past the
 * backend's size.  A count is never 0, and has no upper limit: a backend
 * splits requests that its peer would refuse.
 *
 * Threads: many threads may call the functions at once, except backend_close,
 * which must be the last call.  A call returns when its operation is done.
 * Calls that overlap in time take effect in any order.  A call that begins
 * after another one has returned sees its effect.
 *
 * Errors: -1 with errno set to EIO, ENOSPC, ENOMEM, EPERM or ENOTCONN, and
 * EOPNOTSUPP only where said below.  A transfer that failed may have been done
 * in part.  ENOTCONN means that the peer is lost.  A request fails with it at
 * once: no backend waits for a peer to return or sends a request again.
 * (Connections are made again in the background, see backend_start.)  The
 * functions log nothing, because only the caller knows what the failure means.
 * Opening is different: it logs what is wrong.
 *
 * Durability: the effect of pwrite, zero and trim is durable when a flush that
 * began after they returned has succeeded, or when they had BACKEND_FUA and
 * succeeded.
 */

#ifndef CLONE_BACKEND_H
#define CLONE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/zero-step.h"
#include "base/extents.h"
#include "base/log.h"

struct ev_loop;
struct backend;
struct channel;

/* One piece of a transfer.  The pieces of one call do not overlap. */
struct segment {
  void *buf; /* pwrite only reads it */
  size_t count;
  uint64_t offset;
};

#define BACKEND_FUA 1      /* durable before the call returns */
#define BACKEND_MAY_TRIM 2 /* zero: may become a hole */
#define BACKEND_FAST 4     /* zero: EOPNOTSUPP if as slow as writing */
#define BACKEND_REQ_ONE 8  /* extents: one extent is enough */
#define BACKEND_WRITE_BEHIND 16 /* pwrite: nobody reads it again soon */
#define BACKEND_IF_DATA 32 /* zero: leave alone what reads as zeroes already */

/* backend_pread_once is fastest if buffer, count and offset are multiples of
 * this.
 */
#define BACKEND_ALIGN 4096

/* What the user of a backend asks of it, and wants to be told, about the peer.
 */
struct backend_service {
  /* Seconds without progress after which a connection with requests in flight
   * counts as dead, if that is shorter than the backend's own deadline.  0: the
   * backend's own deadline.
   */
  unsigned timeout;
  /* Does the peer that came back still have the same disk?  b reads from that
   * peer.  0: yes.  1: no.  -1: not known.  For 1 and -1 *why is NULL or a text
   * that the backend frees.  Size and block sizes have been compared before.
   * Called on a thread of the backend; it may wait for the peer, and must use
   * nothing but b.  NULL stands for a function that always says yes.
   */
  int (*same_disk) (void *opaque, struct backend *b, char **why);
  /* These may be NULL.  They are called on a thread of the backend.  They may
   * get the backend's state, connections and reason, and must do nothing else
   * with it.
   *
   * consequence: what it means that the peer is lost, or is back, for the end
   * of the message that says so: "; the mode is fail", for example.
   *
   * lost: the peer of a backend that is not read-only is lost, and perhaps all
   * data that had been written to it and not flushed.  All connections are
   * dead, so requests in flight fail.  No new connection comes into use before
   * lost returns.  It may wait for threads that use the backend.
   *
   * changed: a connection died or was made, or backend_state has changed.  It
   * is called after each of these events, so that threads that got ENOTCONN
   * and wait for a change can try again.  It must not wait.
   */
  const char *(*consequence) (void *opaque);
  void (*lost) (void *opaque);
  void (*changed) (void *opaque);
  void *opaque;
};

enum backend_state {
  BACKEND_UP,      /* there is a connection */
  BACKEND_LOST,    /* there is none; the backend tries to make them again */
  BACKEND_REFUSED, /* the peer came back with another disk, which is not used;
                    * when the right one comes back, it is used */
};

struct backend_ops {
  /* Free everything, connections and locks included. */
  void (*close) (struct backend *b);

  /* Transfer all segments.  A backend with a round trip has all of them in
   * flight together, so one call is faster than several.
   */
  int (*pread) (struct backend *b, const struct segment *seg, size_t n);
  int (*pwrite) (struct backend *b, const struct segment *seg, size_t n,
                 unsigned flags);

  /* pread for data that nobody reads again soon: it leaves the page cache as it
   * is.  NULL if this host has nothing of it in its page cache: pread does the
   * same.
   */
  int (*pread_once) (struct backend *b, void *buf, size_t count,
                     uint64_t offset);

  /* Make the range read as zeroes.  Without BACKEND_MAY_TRIM it keeps its
   * space.  With BACKEND_FAST it fails with EOPNOTSUPP, and does nothing, if
   * zeroes would have to be written.  It never has BACKEND_IF_DATA, which is
   * backend_zero's.
   */
  int (*zero) (struct backend *b, uint64_t count, uint64_t offset,
               unsigned flags);

  /* The range's content is not needed any more.  That is advice: it fails only
   * with EIO, EPERM or ENOTCONN, and where BACKEND_FUA fails.  A backend that
   * cannot trim does nothing and returns 0.
   */
  int (*trim) (struct backend *b, uint64_t count, uint64_t offset,
               unsigned flags);

  int (*flush) (struct backend *b);

  /* Give the range the content that it has in another backend, without copying
   * it: both share the blocks until one is written to.  Both are files.
   * EINVAL: this range cannot be shared.  Another errno: probably no range can.
   * After a failure the range has its old content or already the new one.
   * NULL if this is never possible.
   */
  int (*share) (struct backend *b, struct backend *from, uint64_t count,
                uint64_t offset);

  /* Move data that was written with BACKEND_WRITE_BEHIND from the host's memory
   * to the device.  The writer calls this regularly, soon after its writes.  It
   * may wait for the device, which slows down a writer that is faster than the
   * device.  So the caller must hold no lock, and should own nothing that
   * others wait for.  It does not make data durable.  NULL if the flag does
   * nothing.
   */
  void (*write_behind) (struct backend *b);

  /* Append to list, which is empty, extents that begin at offset and cover at
   * least one byte and at most the range.  Parts that the backend knows nothing
   * about are data (flags 0).
   */
  int (*extents) (struct backend *b, uint64_t count, uint64_t offset,
                  unsigned flags, struct extents *list);

  /* A channel of this backend's own kind, see channel.h.  NULL if the functions
   * above never wait for a peer, so that a loop may call them.
   */
  struct channel *(*channel) (struct backend *b, struct ev_loop *loop);

  /* The number of connections that are alive.  It waits for nothing.  NULL if
   * there is no peer, which counts as one connection.
   */
  unsigned (*connections) (struct backend *b);

  /* The following functions are NULL if there is no peer.
   *
   * start: the process has forked for the last time.  From now on dead
   * connections are replaced.  -1, logged.
   */
  int (*start) (struct backend *b, const struct backend_service *service);

  /* The process is about to end: make no new connections.  Requests in flight
   * fail when no reply has come for grace milliseconds; -1: no limit.  Waits
   * for nothing.
   */
  void (*interrupt) (struct backend *b, int grace);

  /* Change the timeout of struct backend_service.  It waits for nothing.  NULL
   * if the backend has no peer.
   */
  void (*set_timeout) (struct backend *b, unsigned seconds);

  enum backend_state (*state) (struct backend *b);

  /* Put a text into buf that says why there is no connection, or why the last
   * attempt to make one failed.  It is empty if neither is the case.
   */
  void (*reason) (struct backend *b, char *buf, size_t size);
};

struct backend {
  const struct backend_ops *ops;
  const struct log *log;
  char *name; /* as the user gave it, for messages */
  uint64_t size;
  /* Writes that are not multiples of this cost a read-modify-write. */
  uint32_t minimum_block;
  bool readonly;       /* pwrite, zero, trim and flush fail with EPERM */
  bool can_zero;       /* zero may be faster than writing zeroes */
  bool can_fast_zero;  /* BACKEND_FAST succeeds at least sometimes */
  bool is_file;        /* a regular file, in a directory */
  bool knows_extents;  /* false: extents reports everything as data */
  /* The failure of a request with BACKEND_FUA may report that data of other
   * requests were lost, and the next flush does not report it again.
   */
  bool fua_takes_errors;
  struct zero_step zero_step; /* backend_zero and channels let it learn */
};

/* What to open, and how. */
struct backend_params {
  const char *role; /* "source", "destination", "metadata": for messages */
  const char *name; /* a path, or an NBD URI */
  bool readonly;
  /* Take the lock that makes this process the only owner (I11).  For files and
   * block devices; an NBD server has rules of its own.
   */
  bool lock;
  /* NBD connections in all; 1 is used where the server lacks multi-conn. */
  unsigned connections;
  /* Seconds without progress after which opening fails.  0: the default. */
  unsigned timeout;
  /* For tests: milliseconds that replace all deadlines of the NBD backend.  0:
   * the defaults.
   */
  unsigned deadline;
  /* backend_create: backend_file_publish gives the file its name later.  Until
   * then a flush makes nothing durable.
   */
  bool nameless;
};

/* Open an existing backend.  NULL, logged, on failure.  errno is ENOENT if and
 * only if a path does not exist; this alone is not logged.
 */
extern struct backend *backend_open (const struct backend_params *params,
                                     const struct log *log);

/* Create a sparse regular file of this size and open it, locked and read-write.
 * NULL, logged, on failure, for example because the path exists.  The file and
 * its name in the directory are durable on return, unless it is nameless.  (A
 * nameless file gets its name at once if the file system has no files without
 * a name, or if /proc is not mounted.)
 */
extern struct backend *backend_create (const struct backend_params *params,
                                       uint64_t size, const struct log *log);

/* Has this name the form of a URI?  Any other name is a path. */
extern bool backend_name_is_uri (const char *name);

/* Do two names mean the same file, block device or URI, or parts of one device
 * that overlap?  Different URIs of one NBD export are not recognised as the
 * same.
 */
extern bool backend_same (const char *a, const char *b);

/* Does the range hold only zeroes?  Parts whose extents do not tell are read,
 * with backend_pread_once.  1: yes.  0: no.  -1: error.
 *
 * This may take long.  progress, which may be NULL, is called after each extent
 * and each MiB that was read, with the number of bytes that are known to be
 * zero.
 */
extern int backend_is_zero (struct backend *b, uint64_t count, uint64_t offset,
                            void (*progress) (void *opaque, uint64_t done),
                            void *opaque);

/* The table's functions.  Here a count of 0 is allowed and does nothing.  On a
 * read-only backend those that write fail with EPERM.
 */
extern void backend_close (struct backend *b); /* NULL is allowed */
extern int backend_pread (struct backend *b, void *buf, size_t count,
                          uint64_t offset);
extern int backend_preadv (struct backend *b, const struct segment *seg,
                           size_t n);
extern int backend_pread_once (struct backend *b, void *buf, size_t count,
                               uint64_t offset);
extern int backend_pwrite (struct backend *b, const void *buf, size_t count,
                           uint64_t offset, unsigned flags);
extern int backend_pwritev (struct backend *b, const struct segment *seg,
                            size_t n, unsigned flags);
/* With BACKEND_IF_DATA a hole stays a hole, and allocated space that reads as
 * zeroes stays allocated: only the parts that may hold something else are
 * zeroed.  It looks at the present content, so nobody else may write to the
 * range.  Not together with BACKEND_FUA or BACKEND_FAST.
 */
extern int backend_zero (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags);
extern int backend_trim (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags);
extern int backend_flush (struct backend *b);
/* backend_share may only be called if this is true. */
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
extern void backend_set_timeout (struct backend *b, unsigned seconds);
extern void backend_interrupt (struct backend *b, int grace);
/* Has the backend a peer, that is, a server that can be lost? */
extern bool backend_has_peer (const struct backend *b);
extern enum backend_state backend_state (struct backend *b);
extern void backend_reason (struct backend *b, char *buf, size_t size);
/* Log that an operation failed: "ROLE NAME: WHAT: WHY".  WHY is errno's text
 * or, if errno is ENOTCONN, why the peer is lost.
 */
extern void backend_log_failure (struct backend *b, const char *role,
                                 const char *what);

#endif /* CLONE_BACKEND_H */
