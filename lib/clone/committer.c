/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "clone/committer.h"
#include "clone/private.h"

void
committer_init (struct committer *k, struct clone *c)
{
  *k = (struct committer){ .clone = c };
  pthread_mutex_init (&k->lock, NULL);
  cond_init_monotonic (&k->changed);
}

void
committer_destroy (struct committer *k)
{
  pthread_mutex_destroy (&k->lock);
  pthread_cond_destroy (&k->changed);
}

/* Sleep until it is time for a commit, *asked or not.  False at the end. */
static bool
wait_for_work (struct committer *k, double pause, bool *asked)
{
  const struct timespec until = monotonic_after (pause);
  LOCK_FOR_SCOPE (&k->lock);

  k->busy = k->asked;
  pthread_cond_broadcast (&k->changed);
  while (!k->asked && !k->stopping) {
    if (k->interval == 0)
      pthread_cond_wait (&k->changed, &k->lock);
    else if (pthread_cond_timedwait (&k->changed, &k->lock, &until) ==
             ETIMEDOUT)
      break;
  }
  *asked = k->asked;
  k->asked = false;
  k->busy = true;
  return *asked || !k->stopping;
}

/* A commit that somebody waits for: again, while a server is lost. */
static void
commit_for_others (struct clone *c)
{
  uint64_t events;
  int error;

  for (;;) {
    events = outage_events (&c->outage);
    error = clone_commit (c, true) == -1 ? errno : 0;
    if (error != ENOTCONN || outage_waiting_has_ended (&c->outage))
      break;
    outage_wait (&c->outage, events, 1000);
  }
  TELL (c, committed, error);
}

static void *
committer_thread (void *arg)
{
  struct committer *k = arg;
  double pause = commit_pause (k->interval, COMMIT_FIRST), began;
  bool asked;

  while (wait_for_work (k, pause, &asked)) {
    began = monotonic_seconds ();
    if (asked)
      commit_for_others (k->clone);
    else
      clone_commit (k->clone, false);
    pause = commit_pause (k->interval, monotonic_seconds () - began);
  }

  LOCK_FOR_SCOPE (&k->lock);
  k->busy = false;
  pthread_cond_broadcast (&k->changed);
  return NULL;
}

int
committer_start (struct committer *k, unsigned interval)
{
  k->interval = interval;
  if (thread_start (&k->thread, "commit", committer_thread, k,
                    k->clone->log) == -1)
    return -1;
  k->running = true;
  return 0;
}

void
committer_ask (struct committer *k)
{
  LOCK_FOR_SCOPE (&k->lock);

  k->asked = k->busy = true;
  pthread_cond_broadcast (&k->changed);
}

bool
committer_wait (struct committer *k, double seconds)
{
  const struct timespec until = monotonic_after (seconds);
  LOCK_FOR_SCOPE (&k->lock);

  while (k->running && k->busy &&
         pthread_cond_timedwait (&k->changed, &k->lock, &until) != ETIMEDOUT)
    ;
  return !k->running || !k->busy;
}

void
committer_stop (struct committer *k)
{
  if (!k->running)
    return;
  {
    LOCK_FOR_SCOPE (&k->lock);
    k->stopping = true;
    pthread_cond_broadcast (&k->changed);
  }
  pthread_join (k->thread, NULL);
  k->running = false;
}
