/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files that nbd-connection.h lists share.  Nothing else includes
 * this.
 */

#ifndef CLONE_NBD_CONNECTION_INTERNAL_H
#define CLONE_NBD_CONNECTION_INTERNAL_H

#include <stdbool.h>

#include "backend/nbd-connection.h"

/* libnbd's last error on this thread, without the name of its function. */
extern const char *nbd_connection_error (void);

/* Has libnbd's handle died, or been closed? */
extern bool nbd_connection_handle_died (const struct nbd_connection *conn);

/* Make the driver look again; where there is none, the connection's thread
 * becomes it.
 */
extern void nbd_connection_wake_driver (struct nbd_connection *conn);

/* Call done of the requests that were completed on this thread.  To be called
 * after each call of libnbd that may complete some.
 */
extern void nbd_connection_deliver (void);

/* Is there any? */
extern bool nbd_connection_has_completed (void);

#endif /* CLONE_NBD_CONNECTION_INTERNAL_H */
