/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "shutdown.h"

/* Those that end nbdkit. */
static const int signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };
#define SIGNALS (sizeof signals / sizeof signals[0])

static struct sigaction nbdkits[SIGNALS]; /* nbdkit's own actions */
static bool caught[SIGNALS];
static sem_t over; /* posted when shutdown_wait is to return */
static bool begun; /* shutdown_catch was called */

static void
handle (int sig, siginfo_t *info, void *context)
{
  const int err = errno;

  for (size_t i = 0; i < SIGNALS; ++i) {
    if (signals[i] != sig)
      continue;
    if (nbdkits[i].sa_flags & SA_SIGINFO)
      nbdkits[i].sa_sigaction (sig, info, context);
    else
      nbdkits[i].sa_handler (sig);
  }
  sem_post (&over);
  errno = err;
}

void
shutdown_catch (void)
{
  sem_init (&over, 0, 0);
  begun = true;
  for (size_t i = 0; i < SIGNALS; ++i) {
    struct sigaction action;

    /* A signal that nbdkit does not handle does not end it in an orderly way.
     */
    if (sigaction (signals[i], NULL, &nbdkits[i]) == -1 ||
        (!(nbdkits[i].sa_flags & SA_SIGINFO) &&
         (nbdkits[i].sa_handler == SIG_DFL ||
          nbdkits[i].sa_handler == SIG_IGN)))
      continue;
    action = nbdkits[i];
    action.sa_flags |= SA_SIGINFO;
    action.sa_sigaction = handle;
    caught[i] = sigaction (signals[i], &action, NULL) == 0;
  }
}

void
shutdown_wait (void)
{
  while (sem_wait (&over) == -1 && errno == EINTR)
    ;
}

void
shutdown_over (void)
{
  if (!begun)
    return;
  for (size_t i = 0; i < SIGNALS; ++i) {
    struct sigaction now;

    /* Leave alone what somebody else has put in its place since. */
    if (caught[i] && sigaction (signals[i], NULL, &now) == 0 &&
        (now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handle)
      sigaction (signals[i], &nbdkits[i], NULL);
    caught[i] = false;
  }
  sem_post (&over);
}
