/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The token: the password of the control interface, which a request carries in
 * the header "Authorization: Bearer TOKEN" (RFC 6750).
 */

#ifndef CLONE_TOKEN_H
#define CLONE_TOKEN_H

#include <stdbool.h>

/* Bytes of a token. */
#define TOKEN_MAX 4096

/* Can a header carry this token?  It can if the token is 1 to TOKEN_MAX
 * printable ASCII characters without blanks.
 */
extern bool token_is_valid (const char *token);

/* Does the value of a request's Authorization header carry this token?  value
 * is NULL if the request has no such header.  The time that this takes does not
 * depend on where a wrong token differs.
 */
extern bool token_matches (const char *token, const char *value);

/* Read a token from a file: its first line, without the newline.  Returns NULL
 * if the file cannot be read, is empty, contains a NUL byte, or is longer than
 * TOKEN_MAX bytes and a newline.  *why then says so; it is NULL if out of
 * memory.  The caller frees both.
 */
extern char *token_read (const char *file, char **why);

#endif /* CLONE_TOKEN_H */
