/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The committer: the thread that commits in the background, periodically and on
 * request.
 *
 * A commit waits for disks and servers, so a loop must not make one; hydration
 * asks the committer instead.  A requested commit that fails because a server
 * is lost is tried again after the next event (outage.h).
 */

#ifndef CLONE_COMMITTER_H
#define CLONE_COMMITTER_H

#include <pthread.h>
#include <stdbool.h>

struct clone;

struct committer {
  struct clone *clone;
  unsigned interval; /* seconds, 0: only when asked */
  bool running;
  pthread_t thread;

  pthread_mutex_t lock; /* protects what follows */
  pthread_cond_t changed;
  bool asked;           /* commit now */
  bool busy;            /* in a commit, or one is asked for */
  bool stopping;
};

extern void committer_init (struct committer *k, struct clone *c);
extern void committer_destroy (struct committer *k);

/* -1, logged. */
extern int committer_start (struct committer *k, unsigned interval);

/* Commit now.  Waits for nothing. */
extern void committer_ask (struct committer *k);

/* Wait until no commit is running or asked for, for at most `seconds'.  False
 * if one still is.
 */
extern bool committer_wait (struct committer *k, double seconds);

/* End the thread after the commit it is in.  Does nothing if it is not running.
 */
extern void committer_stop (struct committer *k);

#endif /* CLONE_COMMITTER_H */
