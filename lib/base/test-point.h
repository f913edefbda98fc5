/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Test points: the moments between two steps at which a race is decided.
 *
 * In a build with CLONE_TEST_POINTS defined, which only tests use, a thread
 * that passes a test point calls test_point, a function of the test.  It may
 * count, sleep, or block the thread for as long as it likes.  No lock is held
 * there, except the ownership that the point's name implies.  In all other
 * builds a test point is nothing.
 */

#ifndef CLONE_TEST_POINT_H
#define CLONE_TEST_POINT_H

#define TEST_POINTS(X)                                                       \
  /* clone_pread has looked at the map, and reads from the source next */    \
  X (READ_CHOSE_SOURCE, "read-chose-source")                                 \
  /* block status has looked at the map, and asks the backends next */        \
  X (STATUS_LOOKED, "status-looked")                                         \
  /* a change of invalid regions: it has read the bytes around it and owns   \
   * nothing yet; it owns the regions and has not looked again; its bytes    \
   * are in the destination, the regions are still invalid; the regions are  \
   * valid and still owned                                                   \
   */                                                                        \
  X (CHANGE_UNOWNED, "change-unowned")                                       \
  X (CHANGE_OWNED, "change-owned")                                           \
  X (CHANGE_WRITTEN, "change-written")                                       \
  X (CHANGE_SET, "change-set")                                               \
  /* a copy for a client, by copy-on-read or a cache request: the same */    \
  X (COPY_UNOWNED, "copy-unowned")                                           \
  X (COPY_OWNED, "copy-owned")                                               \
  X (COPY_WRITTEN, "copy-written")                                           \
  X (COPY_SET, "copy-set")                                                   \
  /* a copy of hydration: the same, on a worker's loop, which looks again    \
   * before each run of regions that it writes                               \
   */                                                                        \
  X (HYDRATE_UNOWNED, "hydrate-unowned")                                     \
  X (HYDRATE_OWNED, "hydrate-owned")                                         \
  X (HYDRATE_WRITTEN, "hydrate-written")                                     \
  X (HYDRATE_SET, "hydrate-set")                                             \
  /* a commit: after steps 1, 2, 3 and 4 (commit.h) */                       \
  X (COMMIT_SNAPSHOT, "commit-snapshot")                                     \
  X (COMMIT_FLUSHED, "commit-flushed")                                       \
  X (COMMIT_WRITTEN, "commit-written")                                       \
  X (COMMIT_DURABLE, "commit-durable")                                       \
  /* the clone is complete, and closes the source next */                    \
  X (SOURCE_DROPPED, "source-dropped")

#ifdef CLONE_TEST_POINTS

#define TEST_POINT_ENUM(point, name) POINT_ ## point,
enum test_point { TEST_POINTS (TEST_POINT_ENUM) NR_TEST_POINTS };
#undef TEST_POINT_ENUM

/* May be called by many threads at once.  Preserves errno. */
extern void test_point (enum test_point point);

#define TEST_POINT(point) test_point (POINT_ ## point)

#else

#define TEST_POINT(point) ((void)0)

#endif

#endif /* CLONE_TEST_POINT_H */
