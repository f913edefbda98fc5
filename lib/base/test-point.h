/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Test points: the moments between two steps at which a race is decided.
 *
 * In a build with CLONE_TEST_POINTS defined, which only tests are made of,
 * whoever passes such a moment calls test_point, a function of the test's.  It
 * may count, sleep, or hold the thread for as long as it likes; no lock is held
 * but the ownership that the name of the point tells.  In every other build
 * there is nothing at these places.
 */

#ifndef CLONE_TEST_POINT_H
#define CLONE_TEST_POINT_H

#define TEST_POINTS(X)                                                       \
  /* clone_pread has looked, and goes to the source */                       \
  X (READ_CHOSE_SOURCE, "read-chose-source")                                 \
  /* a change of invalid regions: it has the bytes around it and owns nothing\
   * yet; it owns them and has not looked again; its bytes are in the        \
   * destination and the regions invalid; they are valid and still owned     \
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
  /* a copy of hydration: the same, on the loop of a worker, which looks     \
   * before each run that it writes                                          \
   */                                                                        \
  X (HYDRATE_UNOWNED, "hydrate-unowned")                                     \
  X (HYDRATE_OWNED, "hydrate-owned")                                         \
  X (HYDRATE_WRITTEN, "hydrate-written")                                     \
  X (HYDRATE_SET, "hydrate-set")                                             \
  /* a commit: after its step 1, 2, 3 and 4 (commit.h) */                    \
  X (COMMIT_SNAPSHOT, "commit-snapshot")                                     \
  X (COMMIT_FLUSHED, "commit-flushed")                                       \
  X (COMMIT_WRITTEN, "commit-written")                                       \
  X (COMMIT_DURABLE, "commit-durable")                                       \
  /* the clone is complete, and about to let the source go */                \
  X (SOURCE_DROPPED, "source-dropped")

#ifdef CLONE_TEST_POINTS

#define TEST_POINT_ENUM(point, name) POINT_ ## point,
enum test_point { TEST_POINTS (TEST_POINT_ENUM) NR_TEST_POINTS };
#undef TEST_POINT_ENUM

/* Called on any thread, perhaps on many at once.  Keeps errno. */
extern void test_point (enum test_point point);

#define TEST_POINT(point) test_point (POINT_ ## point)

#else

#define TEST_POINT(point) ((void)0)

#endif

#endif /* CLONE_TEST_POINT_H */
