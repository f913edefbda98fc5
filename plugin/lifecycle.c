/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "base/log.h"
#include "base/thread.h"
#include "clone/clone.h"
#include "clone/setup.h"
#include "control/control.h"
#include "control/progress.h"
#include "hydration/hydrate.h"
#include "lifecycle.h"
#include "nbdkit-log.h"
#include "parameters.h"
#include "shutdown.h"

/* If the commit at the end takes longer than this many seconds, say so. */
#define SLOW_END 2

/* -D clone.deadline=MILLISECONDS, for tests: replaces all deadlines for NBD
 * servers.
 */
NBDKIT_DLL_PUBLIC int clone_debug_deadline;

struct instance instance;
static struct control *control;   /* NULL: none */
static struct progress *progress; /* NULL: none */

static pthread_t watcher_thread;
static bool watcher_started;

static pthread_t stopper_thread;
static bool stopping; /* the control interface's thread sets it */

/* ---- the ends ---- */

/* Waits until nbdkit shuts down.  Then nbdkit waits for its clients, for ever
 * if necessary, and clients may be waiting for a lost server.
 */
static void *
watcher (void *arg)
{
  shutdown_wait ();
  hydrate_wind_down (instance.hydrate);
  log_info (&nbdkit_log, "shutting down: making everything durable");
  clone_interrupt (instance.clone);
  if (!clone_wait_committed (instance.clone, SLOW_END))
    log_info (&nbdkit_log, "shutting down: waiting for destination %s to make "
              "data durable", clone_destination (instance.clone)->name);
  return NULL;
}

/* POST /stop.  nbdkit_shutdown would not do: nbdkit would answer requests with
 * ESHUTDOWN, an I/O error for a guest, and then wait for its clients.  Signals
 * would have the same effect, and a service manager sends one after the answer
 * to POST /stop, so they are ignored from now on.
 */
static void *
stopper (void *arg)
{
  static const int signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP };

  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; ++i)
    signal (signals[i], SIG_IGN);
  hydrate_wind_down (instance.hydrate);
  log_info (&nbdkit_log, "stopping: making everything durable");
  _exit (clone_halt (instance.clone) == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
}

/* struct instance's stop. */
static void
start_stopper (void)
{
  if (!stopping)
    stopping = thread_start (&stopper_thread, "stop", stopper, NULL,
                             &nbdkit_log) == 0;
}

/* End everything that get_ready and after_fork have started, perhaps only in
 * part.  The order matters:
 *
 *   1. Nothing waits for a lost server any more.
 *   2. The threads that use hydration and the clone end.
 *   3. The clone's own threads and those of the source's connections end.
 *   4. The clone makes its last commit and closes the destination.
 *   5. Hydration is freed.  The clone's events reach it until then.
 */
static void
end_instance (void)
{
  if (instance.clone == NULL)
    return;
  clone_interrupt (instance.clone);
  shutdown_over ();
  if (watcher_started)
    pthread_join (watcher_thread, NULL);
  if (control)
    control_stop (control);
  if (stopping)
    pthread_join (stopper_thread, NULL); /* it ends the process */
  if (progress)
    progress_stop (progress);
  hydrate_stop (instance.hydrate);
  clone_stop (instance.clone);

  progress_free (progress);
  control_free (control);
  clone_close (instance.clone);
  hydrate_free (instance.hydrate);
  progress = NULL;
  control = NULL;
  instance = (struct instance){ 0 };
}

/* ---- callbacks ---- */

/* Called on a thread that runs a client's request.  There nbdkit_nanosleep
 * fails if the client has closed the connection or the server shuts down.
 */
static bool
client_is_gone (void)
{
  return nbdkit_nanosleep (0, 1) == -1;
}

int
lifecycle_get_ready (void)
{
  const struct parameters *p = &parameters;
  struct setup setup = p->setup;

  if (p->control_address) {
    control = control_new (p->control_address, p->control_token, &instance,
                           &nbdkit_log);
    if (control == NULL)
      return -1;
  }
  if (p->progress_fd >= 0) {
    progress = progress_new (p->progress_fd, &instance, &nbdkit_log);
    if (progress == NULL)
      goto error;
  }

  instance.hydrate = hydrate_new (&p->hydration, p->hydration_paused,
                                  control ? control_wake : NULL, control,
                                  &nbdkit_log);
  if (instance.hydrate == NULL) {
    nbdkit_error ("malloc: %m");
    goto error;
  }
  setup.timeout = p->service.source_timeout;
  setup.deadline = clone_debug_deadline;
  setup.options.client_is_gone = client_is_gone;
  setup.options.timed = control != NULL;
  setup.options.events = hydrate_events (instance.hydrate);
  instance.stop = start_stopper;
  instance.clone = setup_clone (&setup, &nbdkit_log);
  if (instance.clone == NULL)
    goto error;
  return 0;

 error:
  hydrate_free (instance.hydrate);
  instance.hydrate = NULL;
  progress_free (progress);
  control_free (control);
  progress = NULL;
  control = NULL;
  return -1;
}

int
lifecycle_after_fork (void)
{
  shutdown_catch ();
  if (clone_start (instance.clone, &parameters.service) == -1 ||
      hydrate_start (instance.hydrate, instance.clone) == -1 ||
      (control && control_start (control) == -1) ||
      (progress && progress_start (progress) == -1) ||
      thread_start (&watcher_thread, "watch", watcher, NULL,
                    &nbdkit_log) == -1) {
    end_instance ();
    return -1;
  }
  watcher_started = true;
  return 0;
}

void
lifecycle_cleanup (void)
{
  end_instance ();
}
