/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>

#include "base/clock.h"
#include "base/rounding.h"
#include "clone/retry.h"

/* Milliseconds between two looks whether a client that waits is still there. */
#define WAIT_TICK 1000

/* Is it in vain to wait for the source?  Only if nothing else is waited for. */
static bool
retry_is_in_vain (struct clone *c, double since)
{
  unsigned connections;
  const enum backend_state state = clone_source_status (c, &connections);
  const unsigned timeout = clone_source_timeout (c);

  if (state == BACKEND_UP || backend_state (c->dest) != BACKEND_UP)
    return false;
  return state == BACKEND_REFUSED ||
         (timeout && monotonic_seconds () - since >= timeout);
}

bool
retry_client_is_gone (const struct clone *c)
{
  return c->options.client_is_gone && c->options.client_is_gone ();
}

int
retry_wait (struct clone *c, struct retry *retry)
{
  uint64_t events;
  unsigned timeout;
  int wait;

  if (errno != ENOTCONN)
    return -1;
  if (retry->lost == 0)
    retry->lost = monotonic_seconds ();
  for (;;) {
    events = outage_events (&c->outage);
    if (outage_waiting_has_ended (&c->outage) || retry_client_is_gone (c))
      return clone_fail (ESHUTDOWN);
    if (events != retry->events) {
      retry->events = events;
      return 0;
    }
    if (retry_is_in_vain (c, retry->lost))
      return clone_fail (EIO);
    wait = WAIT_TICK;
    timeout = clone_source_timeout (c);
    if (timeout)
      wait = MIN (wait, (int)((retry->lost + timeout -
                               monotonic_seconds ()) * 1000) + 1);
    outage_wait (&c->outage, events, MAX (wait, 1));
  }
}
