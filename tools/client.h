/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A client of the control interfaces of running clones: HTTP by libcurl, JSON
 * by jansson.
 *
 * Any number of interfaces can be asked at the same time, one request each.
 * Everything runs on one thread, inside clients_run and client_ask.
 *
 * No proxy is used and no redirection is followed, so a token goes to the named
 * address only.
 */

#ifndef CLONE_CLIENT_H
#define CLONE_CLIENT_H

#include <stdbool.h>

#include "answer.h"

/* Options that all commands for running clones have. */
struct client_options {
  const char *token_file; /* NULL: $NBDCLONE_TOKEN_FILE, or no token */
  double answer_timeout;  /* seconds */
};

#define CLIENT_OPTIONS_INIT { .answer_timeout = 10 }

/* The same for getopt_long, and what to do with an option that it returns: -1,
 * logged, if the value is wrong.
 */
#define CLIENT_LONG_OPTIONS                             \
  { "token", required_argument, NULL, 'T' },            \
  { "answer-timeout", required_argument, NULL, 'A' }

extern int client_option (int c, struct client_options *options);

/* Parse a number of seconds, with decimals, from 0 to a year.  -1, logged, if
 * it is wrong.
 */
extern int parse_seconds (const char *option, const char *value,
                          double *seconds);

struct clients;
struct client;

/* NULL on failure, which is logged, for example if there is no token file. */
extern struct clients *clients_new (const struct client_options *options);

/* Also frees all clients.  NULL is allowed. */
extern void clients_free (struct clients *s);

/* A control interface: the path of a unix socket, or http://ADDRESS:PORT.
 * Nothing is connected yet.  NULL on failure, which is logged.  control is not
 * copied.
 */
extern struct client *client_new (struct clients *s, const char *control);

/* Is this a control interface, and not metadata?  A URL or a socket is. */
extern bool client_is_control (const char *name);

extern const char *client_control (const struct client *c);

struct request {
  const char *method, *path;
  const char *body; /* JSON, or NULL */
};

/* Called when a request has ended.  It may send the next one.  The answer may
 * be emptied by taking its members; the rest is freed.
 */
typedef void client_done (void *opaque, struct client *c,
                          struct answer *answer);

/* Send a request.  The client must have none under way.  The request and its
 * body are copied.
 */
extern void client_send (struct client *c, const struct request *request,
                         client_done *done, void *opaque);

/* Go on with all requests, and wait for at most `seconds', or until a request
 * has ended or fd, unless it is -1, is readable.
 */
extern void clients_run (struct clients *s, int fd, double seconds);

/* Send a request and wait for its answer, which the caller frees. */
extern void client_ask (struct client *c, const struct request *request,
                        struct answer *answer);

/* Has the last request needed a new connection? */
extern bool client_has_reconnected (struct client *c);

#endif /* CLONE_CLIENT_H */
