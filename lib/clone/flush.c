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
  client->setbacks = c->setbacks_told;
}

/* Fail with EIO if there were setbacks that this client does not know of. */
static int
flush_report_setbacks (struct clone *c, struct clone_client *client)
{
  const uint64_t setbacks = commit_setbacks (c->commit);

  if (atomic_exchange (&client->setbacks, setbacks) == setbacks)
    return 0;
  c->setbacks_told = setbacks;
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
  else {
    clone_note_commit (c);
    servers_set_back (c);
  }
  errno = err;
  return r;
}

int
clone_flush (struct clone *c, struct clone_client *client)
{
  const int r = RETRY_WHILE_LOST (c, clone_commit (c, true));

  counters_count (&c->counters, COUNTED_FLUSH, COUNTED_ALL);
  if (r == -1)
    return -1;
  return client ? flush_report_setbacks (c, client) : 0;
}
