/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The source, as long as it is needed. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/test-point.h"
#include "clone/private.h"

struct backend *
clone_source_get (struct clone *c)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  if (c->source)
    c->source_users++;
  return c->source;
}

void
clone_source_put (struct clone *c)
{
  struct backend *last = NULL;

  {
    LOCK_FOR_SCOPE (&c->source_lock);
    if (--c->source_users == 0) {
      last = c->source;
      c->source = NULL;
    }
  }
  backend_close (last);
}

void
source_drop_if_complete (struct clone *c)
{
  if (!commit_is_complete (c->commit) ||
      atomic_exchange (&c->source_dropped, true))
    return;
  TEST_POINT (SOURCE_DROPPED);
  source_remove_gate (c);
  kept_forget (&c->kept);
  clone_source_put (c);
  TELL (c, complete);
}

void
source_remove_gate (struct clone *c)
{
  if (!backend_has_peer (c->dest))
    gate_remove (&c->gate);
}

/* A loss is noted in servers.c. */
int
source_read (struct clone *c, struct backend *source,
             const struct segment *seg, size_t n)
{
  const int r = backend_preadv (source, seg, n);
  uint64_t bytes = 0;

  for (size_t i = 0; i < n; ++i)
    bytes += seg[i].count;
  if (r == 0)
    counters_source_read (&c->counters, COUNTED_CLIENTS, bytes);
  else if (errno != ENOTCONN)
    clone_note_error (c, CLONE_SOURCE, "cannot read %" PRIu64
                      " bytes at offset %" PRIu64 ": %m", bytes,
                      seg[0].offset);
  return r;
}

enum backend_state
clone_source_status (struct clone *c, unsigned *connections)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  *connections = c->source ? backend_connections (c->source) : 0;
  return c->source ? backend_state (c->source) : BACKEND_LOST;
}

void
clone_source_reason (struct clone *c, char *buf, size_t size)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  buf[0] = '\0';
  if (c->source && backend_state (c->source) != BACKEND_UP)
    backend_reason (c->source, buf, size);
}

char *
clone_source_name (struct clone *c)
{
  LOCK_FOR_SCOPE (&c->source_lock);

  return c->source ? strdup (c->source->name) : NULL;
}
