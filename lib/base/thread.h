/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Threads of the library in a server's process.
 *
 * A thread that runs an event loop never waits for a peer.  Builds with
 * CLONE_CHECKS (with a sanitizer or test points) assert this.
 */

#ifndef CLONE_THREAD_H
#define CLONE_THREAD_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>

#include "base/log.h"

/* Start a thread with all signals blocked: the server handles them.  The name,
 * of at most 15 bytes, is for debuggers.  -1, logged, on failure.
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

/* A variable of each thread, in the thread's initial memory: an access needs no
 * call, and no thread allocates it later.
 */
#define THREAD_LOCAL \
  _Thread_local __attribute__ ((tls_model ("initial-exec")))

#ifdef CLONE_CHECKS
extern THREAD_LOCAL bool thread_is_loop; /* thread.c */
#endif

/* This thread runs a loop from now on. */
static inline void
loop_thread_begin (void)
{
#ifdef CLONE_CHECKS
  thread_is_loop = true;
#endif
}

/* The code that follows may wait for a peer. */
static inline void
assert_may_wait (void)
{
#ifdef CLONE_CHECKS
  assert (!thread_is_loop);
#endif
}

#endif /* CLONE_THREAD_H */
