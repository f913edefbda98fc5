/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Try a client's request again while a server is lost.
 *
 * This is the only place where a client's request waits for a server to return
 * (hydration's plan is where hydration waits).  A try of a request that needs a
 * lost server fails with ENOTCONN at once; the whole request is tried again
 * after the next event (outage.h).  It ends with EIO when the source stays away
 * for longer than source-timeout or comes back as another disk, and with
 * ESHUTDOWN when the process ends or the client is gone.
 */

#ifndef CLONE_RETRY_H
#define CLONE_RETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "clone/clone.h"
#include "clone/outage.h"
#include "clone/private.h"

struct retry {
  uint64_t events; /* outage_events before this try */
  double lost;     /* when the first try failed, 0: none has */
};

/* A try has failed, with errno set.  Wait until the request may succeed.  -1,
 * with errno set, where it has failed for good.
 */
extern int retry_wait (struct clone *c, struct retry *retry);

/* This thread runs a client's request: has the client gone? */
extern bool retry_client_is_gone (const struct clone *c);

/* Evaluate `once', a try of the request, which returns 0 or -1, until it
 * succeeds or has failed for good; the value is what it returned last.
 */
#define RETRY_WHILE_LOST(c, once)                                       \
  ({                                                                    \
    struct retry retry_ = { .events = outage_events (&(c)->outage) };   \
    int r_;                                                             \
                                                                        \
    do                                                                  \
      r_ = (once);                                                      \
    while (r_ == -1 && retry_wait (c, &retry_) == 0);                   \
    r_;                                                                 \
  })

#endif /* CLONE_RETRY_H */
