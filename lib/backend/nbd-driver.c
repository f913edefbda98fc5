/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The driver: the thread that polls the socket and receives the replies to all
 * requests on the connection.
 */

#include <config.h>

#include <poll.h>
#include <semaphore.h>
#include <sys/eventfd.h>

#include <libnbd.h>

#include "backend/nbd-connection-internal.h"
#include "base/thread.h"

/* The driver delivers completed requests at least once in this many turns. */
#define DELIVER_TURNS 16

static void
read_wakeup (struct nbd_connection *conn)
{
  eventfd_t ignored;

  (void)!eventfd_read (conn->wakeup, &ignored);
}

void
nbd_connection_wake_driver (struct nbd_connection *conn)
{
  /* The write fails if the counter is full, which does no harm: any counter
   * that is not 0 wakes the driver.
   */
  (void)!eventfd_write (conn->wakeup, 1);
}

/* Poll once, and notify libnbd once. */
static void
drive_once (struct nbd_connection *conn)
{
  struct pollfd fds[2] = {
    { .fd = conn->fd },
    { .fd = conn->wakeup, .events = POLLIN },
  };
  unsigned armed;

  /* Set armed to what this thread is about to poll for, until libnbd wants the
   * same.  A submitter changes what libnbd wants, and then reads armed.  So
   * either this loop sees the change, or the submitter sees that armed lacks a
   * direction and wakes this thread.
   */
  do
    conn->armed = armed = nbd_aio_get_direction (conn->nbd);
  while (armed != nbd_aio_get_direction (conn->nbd));
  fds[0].events = (armed & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                  (armed & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
  /* If there are completed requests, do not wait here: they are delivered as
   * soon as nothing more can be received.  They are not delivered earlier,
   * because waking a caller may cost this thread its processor.
   */
  poll (fds, 2, nbd_connection_has_completed () ? 0 : -1);
  conn->armed = ~0u;
  if (fds[1].revents)
    read_wakeup (conn);
  if (fds[0].revents == 0) {
    nbd_connection_deliver ();
    return;
  }
  /* Read or write, but not both: a read may change what libnbd wants to write.
   * Reading comes first: the replies are older than the requests that wait to
   * be sent.
   */
  if ((fds[0].revents & ~POLLOUT ? nbd_aio_notify_read (conn->nbd)
       : nbd_aio_notify_write (conn->nbd)) == -1)
    nbd_connection_kill (conn, nbd_connection_error ());
  if (conn->load == 0 || ++conn->turns % DELIVER_TURNS == 0)
    nbd_connection_deliver ();
}

/* Drive until nothing is pending.  If the connection was killed, drive until
 * libnbd's handle has died, which fails all requests.  The caller holds the
 * mutex `driving'; this function releases it.
 */
static void
drive_pending (struct nbd_connection *conn, const atomic_uint *pending)
{
  while (!nbd_connection_handle_died (conn) && (*pending > 0 || !conn->alive))
    drive_once (conn);
  nbd_connection_deliver ();
  conn->armed = 0;
  pthread_mutex_unlock (&conn->driving);
}

/* Wait until this thread should drive.  If the server closes the connection
 * while no request is in flight, kill it.  The eventfd is not read: the wake-up
 * may be meant for a caller that has just become the driver.
 */
static void
driver_wait_idle (struct nbd_connection *conn)
{
  struct pollfd fds[2] = {
    { .fd = conn->fd, .events = POLLRDHUP },
    { .fd = conn->wakeup, .events = POLLIN },
  };

  poll (fds, 2, -1);
  if (fds[0].revents && conn->load == 0)
    nbd_connection_kill (conn, "the server closed it");
}

void
nbd_connection_drive (struct nbd_connection *conn)
{
  while (!nbd_connection_handle_died (conn) && !conn->stop_driving) {
    if (conn->load == 0 && conn->alive)
      driver_wait_idle (conn);
    pthread_mutex_lock (&conn->driving);
    conn->armed = ~0u;
    read_wakeup (conn);
    drive_pending (conn, &conn->load);
  }
}

void
nbd_connection_stop_driving (struct nbd_connection *conn)
{
  conn->stop_driving = true;
  nbd_connection_wake_driver (conn);
}

/* ---- Callers ---- */

/* It is on the stack of the caller, which may return as soon as `done' has been
 * posted.  Do not touch it after that.
 */
struct call {
  atomic_uint pending;
  sem_t done;
};

static void
call_done (struct nbd_request *req)
{
  struct call *call = req->opaque;

  if (atomic_fetch_sub (&call->pending, 1) == 1)
    sem_post (&call->done);
}

void
nbd_connection_call (struct nbd_connection *conn, struct nbd_request *req,
                     size_t n)
{
  struct call call = { .pending = n };
  const bool drives = pthread_mutex_trylock (&conn->driving) == 0;

  assert_may_wait ();
  if (drives)
    conn->armed = ~0u;
  sem_init (&call.done, 0, 0);
  for (size_t i = 0; i < n; i++) {
    req[i].done = call_done;
    req[i].opaque = &call;
    nbd_connection_submit (conn, &req[i]);
  }
  if (drives) {
    drive_pending (conn, &call.pending);
    if (conn->load > 0 || nbd_connection_handle_died (conn))
      nbd_connection_wake_driver (conn);
  }
  while (sem_wait (&call.done) == -1)
    ;
  sem_destroy (&call.done);
}
