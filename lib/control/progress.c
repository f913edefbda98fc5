/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "control/progress.h"
#include "control/status.h"

struct progress {
  const struct instance *instance;
  const struct log *log;
  pthread_t thread;
  bool started;

  pthread_mutex_t lock;
  pthread_cond_t cond; /* on CLOCK_MONOTONIC: stop has become true */
  bool stop;           /* protected by lock */

  /* The members below belong to the thread. */
  int fd;
  bool is_socket;
  char *line;          /* the current line; NULL: none */
  size_t len, written; /* its bytes, and those already written */
  bool line_is_last;   /* its state is "complete" */
};

/* ---- one line ---- */

/* Write without waiting.  -1 with errno EAGAIN if that is not possible. */
static ssize_t
write_now (struct progress *p, const char *buf, size_t len)
{
  struct pollfd pfd = { .fd = p->fd, .events = POLLOUT };

  if (p->is_socket)
    return send (p->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);

  /* The descriptor may be a blocking one, see open_own.  A pipe that polls as
   * writable has room for PIPE_BUF bytes, and a line is not longer.
   */
  if (poll (&pfd, 1, 0) == -1)
    return -1;
  if ((pfd.revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL)) == 0) {
    errno = EAGAIN;
    return -1;
  }
  return write (p->fd, buf, len);
}

static void
forget_line (struct progress *p)
{
  free (p->line);
  p->line = NULL;
}

/* Write the rest of the current line.  If there is no room, a line that has not
 * been begun is dropped, and a line that has been begun stays current.  Returns
 * 1 if the line is written, 0 if it was dropped or stays, and -1 on error.
 */
static int
write_line (struct progress *p)
{
  while (p->written < p->len) {
    const ssize_t n = write_now (p, p->line + p->written, p->len - p->written);

    if (n >= 0)
      p->written += n;
    else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (p->written == 0)
        forget_line (p);
      return 0;
    }
    else if (errno != EINTR)
      return -1;
  }
  forget_line (p);
  return 1;
}

/* Make a new current line.  -1 if out of memory. */
static int
make_line (struct progress *p)
{
  struct status status;
  json_t *json;
  CLEANUP_FREE char *text = NULL;

  status_get (p->instance, &status);
  json = status_line_json (&status);
  if (json)
    text = json_dumps (json, JSON_COMPACT);
  json_decref (json);
  if (text == NULL)
    return -1;
  if (asprintf (&p->line, "%s\n", text) == -1) {
    p->line = NULL;
    return -1;
  }
  p->len = strlen (p->line);
  p->written = 0;
  p->line_is_last = status.hydration.state == HYDRATE_COMPLETE;
  return 0;
}

/* Finish the current line, then write a new one.  False if that was the last
 * step.
 */
static bool
progress_step (struct progress *p)
{
  int r = 1;

  if (p->line)
    r = write_line (p);
  if (r == 1 && !p->line_is_last) {
    if (make_line (p) == -1)
      return true; /* try again in a second */
    r = write_line (p);
  }
  if (r == 0 && p->line == NULL)
    p->line_is_last = false; /* it was dropped: make it again */
  return r == 0 || (r == 1 && !p->line_is_last);
}

/* ---- the thread ---- */

/* False if progress_stop was called. */
static bool
wait_a_second (struct progress *p)
{
  struct timespec until;
  int err = 0;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec++;

  LOCK_FOR_SCOPE (&p->lock);
  while (!p->stop && err == 0)
    err = pthread_cond_timedwait (&p->cond, &p->lock, &until);
  return !p->stop;
}

static void *
progress_thread (void *opaque)
{
  struct progress *p = opaque;

  while (progress_step (p)) {
    if (!wait_a_second (p)) {
      progress_step (p);
      break;
    }
  }

  /* The reader sees the end of the file before the process ends. */
  close (p->fd);
  p->fd = -1;
  return NULL;
}

int
progress_start (struct progress *p)
{
  if (thread_start (&p->thread, "progress", progress_thread, p, p->log) == -1)
    return -1;
  p->started = true;
  return 0;
}

void
progress_stop (struct progress *p)
{
  if (!p->started)
    return;
  {
    LOCK_FOR_SCOPE (&p->lock);
    p->stop = true;
    pthread_cond_signal (&p->cond);
  }
  pthread_join (p->thread, NULL);
  p->started = false;
}

/* ---- creation ---- */

/* A descriptor for the same file as fd.
 *
 * O_NONBLOCK belongs to the open file description, which other processes share,
 * perhaps the shell that started nbdkit.  So pipes and terminals are opened
 * again, if that is possible.  Regular files are not: they must keep the shared
 * file position.  Sockets need not be: send has a flag instead.
 */
static int
open_own (int fd, mode_t type)
{
  char path[32];
  int own = -1;

  if (S_ISFIFO (type) || S_ISCHR (type)) {
    snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
    own = open (path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  }
  if (own == -1)
    own = fcntl (fd, F_DUPFD_CLOEXEC, 3);
  return own;
}

static int
check_fd (int fd, const struct log *log)
{
  const int flags = fcntl (fd, F_GETFL);

  if (flags == -1) {
    log_error (log, "progress: file descriptor %d is not open", fd);
    return -1;
  }
  if ((flags & O_PATH) || (flags & O_ACCMODE) == O_RDONLY) {
    log_error (log, "progress: file descriptor %d is not open for writing", fd);
    return -1;
  }
  return 0;
}

struct progress *
progress_new (int fd, const struct instance *instance,
              const struct log *log)
{
  struct progress *p;
  struct stat st;
  pthread_condattr_t attr;

  if (check_fd (fd, log) == -1)
    return NULL;
  p = calloc (1, sizeof *p);
  if (p == NULL) {
    log_error (log, "progress: %m");
    return NULL;
  }
  p->fd = -1;
  if (fstat (fd, &st) == -1 || (p->fd = open_own (fd, st.st_mode)) == -1) {
    log_error (log, "progress: cannot duplicate file descriptor %d: %m", fd);
    free (p);
    return NULL;
  }
  p->is_socket = S_ISSOCK (st.st_mode);
  p->instance = instance;
  p->log = log;
  pthread_mutex_init (&p->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&p->cond, &attr);
  pthread_condattr_destroy (&attr);
  return p;
}

void
progress_free (struct progress *p)
{
  if (p == NULL)
    return;
  if (p->fd >= 0)
    close (p->fd);
  forget_line (p);
  pthread_cond_destroy (&p->cond);
  pthread_mutex_destroy (&p->lock);
  free (p);
}
