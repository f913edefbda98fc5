/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/socket-owner.h"

struct owner {
  uid_t uid;
  gid_t gid;
};

/* ---- the helper ---- */

/* Returns 0 or an errno. */
static int
give_away (const struct socket_path *s, const struct owner *owner)
{
  struct stat st;

  if (lstat (s->path, &st) == -1)
    return errno;
  if (st.st_dev != s->dev || st.st_ino != s->ino)
    return ENOENT;
  return lchown (s->path, owner->uid, owner->gid) == -1 ? errno : 0;
}

/* The helper's process.  It keeps none of the server's files open: they may
 * hold locks, or be pipes whose end is waited for.
 */
static void __attribute__ ((noreturn))
help (const struct socket_path *s, int fd)
{
  struct owner owner;
  int error;

  if (dup2 (fd, STDIN_FILENO) == STDIN_FILENO &&
      close_range (STDIN_FILENO + 1, UINT_MAX, 0) == 0 &&
      recv (STDIN_FILENO, &owner, sizeof owner, 0) == sizeof owner) {
    error = give_away (s, &owner);
    send (STDIN_FILENO, &error, sizeof error, MSG_NOSIGNAL);
  }
  _exit (EXIT_SUCCESS);
}

/* Start the helper, as a child of a child, so that nobody has to wait for it.
 * -1 with errno.
 */
static int
start_helper (const struct socket_path *s, int fd)
{
  int status;
  const pid_t pid = fork ();

  if (pid == -1)
    return -1;
  if (pid == 0) {
    switch (fork ()) {
    case -1: _exit (errno);
    case 0: help (s, fd);
    default: _exit (EXIT_SUCCESS);
    }
  }
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  errno = WIFEXITED (status) ? WEXITSTATUS (status) : ECHILD;
  return errno ? -1 : 0;
}

/* ---- the server ---- */

int
socket_owner_begin (const struct socket_path *s, int *helper)
{
  int fd[2], r;

  *helper = -1;
  if (geteuid () != 0)
    return 0;
  if (socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fd) == -1) {
    log_error (s->log, "control=%s: socketpair: %m", s->path);
    return -1;
  }
  r = start_helper (s, fd[1]);
  if (r == -1)
    log_error (s->log, "control=%s: cannot start a process: %m", s->path);
  close (fd[1]);
  if (r == 0)
    *helper = fd[0];
  else
    close (fd[0]);
  return r;
}

int
socket_owner_finish (const struct socket_path *s, int helper)
{
  const struct owner owner = { .uid = geteuid (), .gid = getegid () };
  int error = 0;

  if (helper == -1)
    return 0;
  if (owner.uid != 0 || owner.gid != 0) {
    if (send (helper, &owner, sizeof owner, MSG_NOSIGNAL) == -1)
      error = errno;
    else if (recv (helper, &error, sizeof error, 0) != sizeof error)
      error = EPIPE;
  }
  close (helper);
  if (error == 0)
    return 0;
  errno = error;
  log_error (s->log, "control=%s: cannot give the socket to user %u: %m",
             s->path, (unsigned)owner.uid);
  return -1;
}
