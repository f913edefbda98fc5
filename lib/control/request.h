/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One HTTP request, and how to answer it.
 *
 * Everything here belongs to the control interface's thread and needs no lock.
 */

#ifndef CLONE_REQUEST_H
#define CLONE_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include <jansson.h>
#include <microhttpd.h>

#include "control/instance.h"

struct endpoint;
struct server;

struct request {
  struct server *server;
  const struct instance *instance;
  struct MHD_Connection *connection;
  const struct endpoint *endpoint;
  unsigned refused;       /* 0, or the HTTP status of the refusal */
  char *body;             /* NULL: none */
  size_t body_len;        /* bytes in body */
  uint64_t body_received; /* bytes, including those that were not kept */
  bool received;          /* completely */
  bool wait_is_over;      /* GET /wait: answer now, whatever the state is */
  bool stops;             /* POST /stop: the process ends after the answer */
  LIST_ENTRY (request) next_waiter;
};

/* Each of these answers a request and returns what its handler must return to
 * libmicrohttpd: MHD_NO, which closes the connection, if out of memory.
 */

/* 200 with a JSON object.  Takes over the reference; json may be NULL, for out
 * of memory.
 */
extern enum MHD_Result request_answer (struct request *r, json_t *json);

/* 200 with this text, which is freed later. */
extern enum MHD_Result request_answer_text (struct request *r, char *text,
                                            size_t len, const char *type);

/* An HTTP error code with {"error": message}, which is UTF-8, and with one more
 * header, unless its name is NULL.
 */
extern enum MHD_Result request_fail (struct request *r, unsigned code,
                                     const char *message, const char *header,
                                     const char *value);

#endif /* CLONE_REQUEST_H */
