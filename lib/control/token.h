/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The token: the password of the control interface, which a request carries in
 * the header "Authorization: Bearer TOKEN" (RFC 6750).
 */

#ifndef CLONE_TOKEN_H
#define CLONE_TOKEN_H

#include <stdbool.h>

/* Can a header carry this token?  It can if the token is one or more printable
 * ASCII characters without blanks.
 */
extern bool token_is_valid (const char *token);

/* Does the value of a request's Authorization header carry this token?  value
 * is NULL if the request has no such header.  The time that this takes does not
 * depend on where a wrong token differs.
 */
extern bool token_matches (const char *token, const char *value);

#endif /* CLONE_TOKEN_H */
