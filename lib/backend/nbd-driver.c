/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The driver: the thread that polls the socket and receives for all. */

#include <config.h>

#include <poll.h>
#include <semaphore.h>
#include <sys/eventfd.h>

#include <libnbd.h>

#include "backend/nbd-connection-internal.h"
#include "base/thread.h"

/* Callers are woken after at most so many turns of the driver. */
#define BATCH_MAX 16

static void
read_wakeup (struct nbd_connection *conn)
{
  eventfd_t ignored;

  (void)!eventfd_read (conn->wakeup, &ignored);
}

void
nbd_connection_wake_driver (struct nbd_connection *conn)
{
  /* A counter that is full wakes as well as one that was written to. */
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

  /* A submitter changes the direction before it reads armed. */
  do
    conn->armed = armed = nbd_aio_get_direction (conn->nbd);
  while (armed != nbd_aio_get_direction (conn->nbd));
  fds[0].events = (armed & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                  (armed & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
  /* Wake callers when nothing more can be received for now, because each
   * wake-up may cost this thread its processor.
   */
  poll (fds, 2, nbd_connection_has_completed () ? 0 : -1);
  conn->armed = ~0u;
  if (fds[1].revents)
    read_wakeup (conn);
  if (fds[0].revents == 0) {
    nbd_connection_deliver ();
    return;
  }
  /* Reading may change what there is to write, so do one of them at a time.
   * The replies come first: they are older than the requests that wait to be
   * sent.
   */
  if ((fds[0].revents & ~POLLOUT ? nbd_aio_notify_read (conn->nbd)
       : nbd_aio_notify_write (conn->nbd)) == -1)
    nbd_connection_kill (conn, nbd_connection_error ());
  if (conn->load == 0 || ++conn->turns % BATCH_MAX == 0)
    nbd_connection_deliver ();
}

/* Drive until nothing is pending or the connection is dead.  The caller holds
 * the mutex `driving', which is released.
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

/* Wait until the thread should drive, or the connection ends.  The wake-up is
 * not consumed: it may be meant for a caller that has just begun to drive.
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
  while (!nbd_connection_handle_died (conn) && !conn->leaving) {
    if (conn->load == 0 && conn->alive)
      driver_wait_idle (conn);
    pthread_mutex_lock (&conn->driving);
    conn->armed = ~0u;
    read_wakeup (conn);
    drive_pending (conn, &conn->load);
  }
}

void
nbd_connection_leave (struct nbd_connection *conn)
{
  conn->leaving = true;
  nbd_connection_wake_driver (conn);
}

/* ---- Callers ---- */

/* On the caller's stack: gone once its semaphore has been posted. */
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
