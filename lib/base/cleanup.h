/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Resources that are released at the end of their scope, so that each function
 * has one way out.
 */

#ifndef CLONE_CLEANUP_H
#define CLONE_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void
cleanup_free (void *ptr)
{
  free (*(void **)ptr);
}
#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))

/* -1: not open. */
static inline void
cleanup_close (int *fd)
{
  if (*fd >= 0)
    close (*fd);
}
#define CLEANUP_CLOSE __attribute__ ((cleanup (cleanup_close)))

static inline pthread_mutex_t *
cleanup_lock (pthread_mutex_t *lock)
{
  pthread_mutex_lock (lock);
  return lock;
}

static inline void
cleanup_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

/* Hold a mutex until the end of the enclosing block. */
#define LOCK_FOR_SCOPE(mutex)                                           \
  __attribute__ ((cleanup (cleanup_unlock), unused)) pthread_mutex_t    \
  *scope_lock_ = cleanup_lock (mutex)

#endif /* CLONE_CLEANUP_H */
