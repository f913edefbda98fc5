/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What happens to the clone when a server is lost or comes back. */

#include <config.h>

#include <errno.h>
#include <stdio.h>

#include "clone/private.h"
#include "store/fingerprint.h"

const char *
servers_tell_mode (void *opaque)
{
  switch (clone_mode (opaque)) {
  case MODE_RW: return "; the mode is rw";
  case MODE_RO: return "; the mode is ro";
  case MODE_FAIL: return "; the mode is fail";
  }
  return "";
}

/* Note why a server is lost, if it is. */
static void
servers_note_loss (struct clone *c)
{
  char why[LAST_ERROR_MAX];

  clone_source_reason (c, why, sizeof why);
  if (why[0])
    clone_note_error (c, CLONE_SOURCE, "lost: %s", why);
  if (backend_state (c->dest) != BACKEND_UP) {
    backend_reason (c->dest, why, sizeof why);
    if (why[0])
      clone_note_error (c, CLONE_DESTINATION, "lost: %s", why);
  }
}

void
servers_changed (void *opaque)
{
  struct clone *c = opaque;

  servers_note_loss (c);
  outage_happened (&c->outage);
  TELL (c, servers_changed);
}

void
servers_lost_metadata (void *opaque)
{
  struct clone *c = opaque;

  commit_metadata_lost (c->commit);
}

/* Set the map back; with always false, only if a commit has failed and nobody
 * else has set it back since.
 */
static void
servers_set_map_back (struct clone *c, bool always)
{
  gate_close (&c->gate);
  if (always || commit_wants_set_back (c->commit)) {
    commit_set_back (c->commit);
    TELL (c, set_back);
    if (!always)
      log_info (c->log, "destination %s: flushes can succeed again%s",
                c->dest->name, servers_tell_mode (c));
  }
  gate_open (&c->gate);
  servers_changed (c);
}

void
servers_set_back (struct clone *c)
{
  if (commit_wants_set_back (c->commit))
    servers_set_map_back (c, false);
}

void
servers_lost_destination (void *opaque)
{
  servers_set_map_back (opaque, true);
}

int
servers_same_source (void *opaque, struct backend *source, char **why)
{
  struct clone *c = opaque;
  int r;

  *why = NULL;
  r = fingerprint_check (source, &c->metadata->sb.fingerprint, why);
  if (r == -1 && *why == NULL &&
      asprintf (why, "its fingerprint cannot be read: %m") == -1)
    *why = NULL;
  return r;
}

int
clone_check_not_set_back (struct clone *c, uint64_t closings)
{
  return gate_closings (&c->gate) == closings ? 0 : clone_fail (ENOTCONN);
}
