/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "control/socket-path.h"

/* ---- the lock ---- */

/* Does the name still lead to the open file? */
static bool
is_file_of (int fd, const char *name)
{
  struct stat of_fd, of_name;

  return fstat (fd, &of_fd) == 0 && lstat (name, &of_name) == 0 &&
         of_fd.st_dev == of_name.st_dev && of_fd.st_ino == of_name.st_ino;
}

/* Returns a descriptor that holds the lock, or -1 with errno. */
static int
lock_name (const char *name)
{
  int fd, r;

  for (;;) {
    fd = open (name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd == -1)
      return -1;
    do
      r = flock (fd, LOCK_EX);
    while (r == -1 && errno == EINTR);
    if (r == 0 && is_file_of (fd, name))
      return fd;
    close (fd);
    if (r == -1)
      return -1;
    /* The last holder has removed this file: take the next one. */
  }
}

static void
unlock_name (int fd, const char *name)
{
  unlink (name);
  close (fd);
}

/* ---- with the lock ---- */

/* The path exists.  Remove it if it is a socket on which no process listens. */
static int
remove_stale (const struct socket_path *s, const struct sockaddr_un *addr)
{
  CLEANUP_CLOSE int fd = -1;
  struct stat st;

  if (lstat (s->path, &st) == 0 && !S_ISSOCK (st.st_mode)) {
    log_error (s->log, "control=%s: this file exists and is not a socket; "
               "remove it or choose another name", s->path);
    return -1;
  }

  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd == -1) {
    log_error (s->log, "control=%s: cannot create a socket: %m", s->path);
    return -1;
  }
  if (connect (fd, (const struct sockaddr *)addr, sizeof *addr) == 0 ||
      errno == EAGAIN) {
    log_error (s->log, "control=%s: another process listens on this "
               "socket; choose another name", s->path);
    return -1;
  }
  if (errno == ENOENT)
    return 0;
  if (errno != ECONNREFUSED) {
    log_error (s->log, "control=%s: this socket exists, and it is not "
               "known whether another process uses it: %m", s->path);
    return -1;
  }
  if (unlink (s->path) == -1 && errno != ENOENT) {
    log_error (s->log, "control=%s: cannot remove the socket that another "
               "server has left behind: %m", s->path);
    return -1;
  }
  return 0;
}

static int
bind_and_listen (struct socket_path *s, int fd)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;
  int r;

  strcpy (addr.sun_path, s->path);
  r = bind (fd, (struct sockaddr *)&addr, sizeof addr);
  if (r == -1 && errno == EADDRINUSE) {
    if (remove_stale (s, &addr) == -1)
      return -1;
    r = bind (fd, (struct sockaddr *)&addr, sizeof addr);
  }
  if (r == -1 || lstat (s->path, &st) == -1) {
    log_error (s->log, "control=%s: cannot create the socket: %m", s->path);
    return -1;
  }
  s->dev = st.st_dev;
  s->ino = st.st_ino;
  if (listen (fd, SOMAXCONN) == -1) {
    log_error (s->log, "control=%s: cannot listen: %m", s->path);
    unlink (s->path);
    return -1;
  }
  return 0;
}

/* ---- all together ---- */

static int
open_locked (struct socket_path *s)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                         0);

  /* On Linux the file gets the socket's mode, so there is no moment at which
   * another user could connect.
   */
  if (fd == -1 || fchmod (fd, 0600) == -1)
    log_error (s->log, "control=%s: cannot create a socket: %m", s->path);
  else if (bind_and_listen (s, fd) == 0)
    return fd;
  if (fd >= 0)
    close (fd);
  return -1;
}

int
socket_path_open (struct socket_path *s, const char *path,
                  const struct log *log)
{
  const size_t max = sizeof ((struct sockaddr_un *)NULL)->sun_path - 1;
  CLEANUP_FREE char *name = NULL;
  int lock, fd;

  *s = (struct socket_path){ .path = path, .log = log };
  if (strlen (path) > max) {
    log_error (log, "control=%s: the path of a socket has at most %zu bytes",
               path, max);
    return -1;
  }
  if (asprintf (&name, "%s.lock", path) == -1) {
    name = NULL;
    log_error (log, "control=%s: %m", path);
    return -1;
  }
  lock = lock_name (name);
  if (lock == -1) {
    log_error (log, "control=%s: cannot create and lock %s: %m", path, name);
    return -1;
  }
  fd = open_locked (s);
  unlock_name (lock, name);
  return fd;
}

void
socket_path_remove (const struct socket_path *s)
{
  struct stat st;

  if (lstat (s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
    unlink (s->path);
}
