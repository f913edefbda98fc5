/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Names of files in an NBD URI.
 *
 * The query of a URI can name files: the server's socket, keys, certificates.
 * libnbd opens them each time that it connects.  Relative names mean other
 * files after the process has changed its directory, as a daemon does.
 */

#ifndef CLONE_URI_H
#define CLONE_URI_H

/* Return a copy of the URI in which the values of socket, tls-psk-file and
 * tls-certificates are absolute: relative ones are prefixed with cwd, an
 * absolute directory.  All other bytes stay the same, and so does a string
 * that is not a URI.  The caller frees the result.  NULL with errno ENOMEM.
 */
extern char *uri_absolute (const char *uri, const char *cwd);

#endif /* CLONE_URI_H */
