/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Threads of our own in somebody else's process. */

#ifndef CLONE_THREAD_H
#define CLONE_THREAD_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "log.h"

/* Start a thread with all signals blocked: they are the server's business.  The
 * name, of at most 15 bytes, is for debuggers.  -1, logged, where that fails.
 */
static inline int
thread_start (pthread_t *thread, const char *name, void *(*func) (void *),
              void *arg, const struct log *log)
{
  sigset_t all, old;
  int err;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  err = pthread_create (thread, NULL, func, arg);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  if (err) {
    errno = err;
    log_error (log, "cannot create the thread \"%s\": %m", name);
    return -1;
  }
  pthread_setname_np (*thread, name);
  return 0;
}

#endif /* CLONE_THREAD_H */
