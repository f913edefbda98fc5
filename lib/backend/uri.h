/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The names of files in an NBD URI.
 *
 * A URI can name files in its query: the server's socket, keys, certificates.
 * libnbd looks them up each time that it connects, and relative names mean
 * other files once the process has changed its directory, as a daemon does.
 */

#ifndef CLONE_URI_H
#define CLONE_URI_H

/* Return a copy of the URI in which the values of socket, tls-psk-file and
 * tls-certificates are absolute: the directory cwd, which is absolute, is put
 * before those that are not.  Everything else stays byte for byte, and so does
 * what is no URI.  The caller frees the result.  NULL with errno ENOMEM.
 */
extern char *uri_absolute (const char *uri, const char *cwd);

#endif /* CLONE_URI_H */
