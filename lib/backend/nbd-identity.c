/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Is a server that is connected to again still the same export? */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "backend/nbd-internal.h"

/* A backend whose reads use only this connection. */
static struct nbd
use_alone (const struct nbd *n, struct nbd_connection *conn)
{
  return (struct nbd){
    .b = n->b, .only = conn, .max_transfer = n->max_transfer
  };
}

/* Does the witness answer a request?  Any answer counts, also an error. */
static bool
witness_answers (struct nbd *n, struct nbd_connection *witness)
{
  struct nbd w = use_alone (n, witness);
  char c;
  const struct segment seg = { &c, 1, 0 };

  return n->b.size == 0 || nbd_backend_pread (&w.b, &seg, 1) == 0 ||
         errno != ENOTCONN;
}

/* How does this connection's export differ from the first one's?  NULL if it
 * does not, or a text that the caller frees.
 */
static char *
export_differs (struct nbd *n, struct nbd_handle *h)
{
  const int64_t size = nbd_get_size (h);
  const int64_t minimum = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  const int64_t maximum = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);
  char *text = NULL;
  int r = 0;

  if (size != (int64_t)n->b.size)
    r = asprintf (&text, "has %" PRId64 " bytes instead of %" PRIu64, size,
                  n->b.size);
  else if (minimum > (int64_t)n->b.minimum_block)
    r = asprintf (&text, "wants blocks of %" PRId64 " bytes, %" PRIu32
                  " before", minimum, n->b.minimum_block);
  else if (maximum > 0 && maximum < (int64_t)n->max_transfer)
    r = asprintf (&text, "takes %" PRId64 " bytes at once, %" PRIu64 " before",
                  maximum, n->max_transfer);
  else if (!n->b.readonly &&
           (nbd_is_read_only (h) != 0 || nbd_can_flush (h) != 1 ||
            nbd_can_fua (h) != n->can_fua ||
            nbd_can_zero (h) != n->b.can_zero ||
            nbd_can_trim (h) != n->can_trim))
    r = asprintf (&text, "does not support the same requests as before");
  return r == -1 ? NULL : text;
}

int
nbd_check_connection (void *opaque, struct nbd_connection *conn,
                      struct nbd_connection *witness, char **why)
{
  struct nbd *n = opaque;
  struct nbd a = use_alone (n, conn);
  int r = 0;

  *why = export_differs (n, conn->nbd);
  if (*why)
    return 1;
  if (n->same_disk)
    r = n->same_disk (n->same_disk_opaque, &a.b, why);
  if (r == 0 && witness && !witness_answers (n, witness)) {
    *why = strdup ("another connection died");
    r = -1;
  }
  return r;
}
