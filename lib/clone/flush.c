/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>

#include "clone/private.h"
#include "clone/retry.h"

void
clone_client_init (struct clone *c, struct clone_client *client)
{
  client->losses = c->losses_told;
}

/* Tell the client of losses that it does not know of, by an error. */
static int
tell_losses (struct clone *c, struct clone_client *client)
{
  const uint64_t losses = commit_setbacks (c->commit);

  if (atomic_exchange (&client->losses, losses) == losses)
    return 0;
  c->losses_told = losses;
  return clone_fail (EIO);
}

int
clone_commit (struct clone *c, bool always)
{
  struct gate_pass pass;
  int r, err;

  gate_enter (&c->gate, &pass);
  r = always ? commit_flush (c->commit) : commit_background (c->commit);
  err = errno;
  gate_leave (&c->gate, &pass);
  if (r == 0)
    source_drop_if_complete (c);
  else
    servers_set_back (c);
  errno = err;
  return r;
}

int
clone_flush (struct clone *c, struct clone_client *client)
{
  if (RETRY_WHILE_LOST (c, clone_commit (c, true)) == -1)
    return -1;
  return client ? tell_losses (c, client) : 0;
}
