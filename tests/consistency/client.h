/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One connection to the server, with several requests under way.
 *
 * A client is used by one thread at a time.  An error of the server, of the
 * connection or of this program ends the program, with a message and status 3.
 */

#ifndef CONSISTENCY_CLIENT_H
#define CONSISTENCY_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "choose.h"
#include "request.h"

#define STATUS_ERROR 3

struct client;

/* Constants that all clients share. */
struct world {
  const char *uri;
  uint64_t run;
  uint64_t began;          /* client_now () then */
  const struct area *area;
  const uint8_t *initial;  /* the area's content at the beginning */
};

extern struct client *client_connect (const struct world *world,
                                      unsigned number);
extern void client_close (struct client *c);

/* Properties of the server, through any connection. */
extern uint64_t client_export_size (struct client *c);
extern bool client_can_multi_conn (struct client *c);
/* Sets what the server can do, and its block sizes. */
extern void client_look (struct client *c, struct area *area);

/* Send these requests, whose type, flags, offset and count are set, in their
 * order, with at most in_flight under way, and wait for all answers.
 */
extern void client_run (struct client *c, struct request *request, size_t n,
                        unsigned in_flight);

/* One request, and wait for its answer. */
extern void client_read (struct client *c, void *buf, uint64_t count,
                         uint64_t offset);
extern void client_flush (struct client *c);

/* Nanoseconds of a clock that is the same for all threads. */
extern uint64_t client_now (void);

/* Print a message, made of a format and so on, and end with status 3. */
extern void die (const char *fmt, ...)
  __attribute__ ((noreturn, format (printf, 1, 2)));

#endif /* CONSISTENCY_CLIENT_H */
