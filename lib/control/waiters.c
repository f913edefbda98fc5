/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <poll.h>

#include <microhttpd.h>

#include "base/clock.h"
#include "base/rounding.h"
#include "control/server.h"
#include "control/status.h"
#include "control/waiters.h"

/* Milliseconds between checks. */
#define CHECK_INTERVAL 1000

void
waiters_init (struct waiters *w, const struct instance *instance)
{
  *w = (struct waiters){ .instance = instance };
  LIST_INIT (&w->list);
}

bool
waiters_add (struct request *r)
{
  struct waiters *w = &r->server->waiters;

  if (r->wait_is_over || w->closed)
    return false;
  LIST_INSERT_HEAD (&w->list, r, next_waiter);
  MHD_suspend_connection (r->connection);
  return true;
}

int64_t
waiters_timeout (const struct waiters *w)
{
  if (LIST_EMPTY (&w->list))
    return -1;
  return MAX (w->next_check - monotonic_ms (), 0);
}

/* Without this a client that went away would keep its connection until
 * hydration ends, perhaps for days.
 */
static bool
waiter_is_gone (struct request *r)
{
  const union MHD_ConnectionInfo *info =
    MHD_get_connection_info (r->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
  struct pollfd pfd = { .events = POLLRDHUP };

  if (info == NULL)
    return false;
  pfd.fd = info->connect_fd;
  return poll (&pfd, 1, 0) > 0;
}

static void
resume_waiter (struct request *r)
{
  LIST_REMOVE (r, next_waiter);
  MHD_resume_connection (r->connection);
}

void
waiters_check (struct waiters *w)
{
  struct status status;
  struct request *r, *next;
  bool ended;

  w->next_check = monotonic_ms () + CHECK_INTERVAL;
  if (LIST_EMPTY (&w->list))
    return;
  status_get (w->instance, &status);
  ended = status_ended (&status);

  for (r = LIST_FIRST (&w->list); r; r = next) {
    next = LIST_NEXT (r, next_waiter);
    r->wait_is_over = waiter_is_gone (r);
    if (ended || r->wait_is_over)
      resume_waiter (r);
  }
}

void
waiters_close (struct waiters *w)
{
  struct request *r;

  w->closed = true;
  while ((r = LIST_FIRST (&w->list)))
    resume_waiter (r);
}
