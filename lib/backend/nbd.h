/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The backend for NBD exports. */

#ifndef CLONE_NBD_H
#define CLONE_NBD_H

#include "backend/backend.h"

/* backend_open for an NBD URI. */
extern struct backend *backend_nbd_open (const struct backend_params *params,
                                         const struct log *log);

#endif /* CLONE_NBD_H */
