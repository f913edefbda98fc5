/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The endpoints: which paths and methods there are, and what each one does.
 *
 * A new endpoint is a handler and a line in the table at the end of
 * endpoints.c.
 */

#ifndef CLONE_ENDPOINTS_H
#define CLONE_ENDPOINTS_H

#include <microhttpd.h>

struct request;

struct endpoint {
  const char *path, *method;

  /* Answer the request, whose body is complete, or suspend it: then the handler
   * is called again when the connection is resumed.  Runs on the control
   * interface's thread, so it must not wait for I/O.  MHD_NO closes the
   * connection.
   */
  enum MHD_Result (*handle) (struct request *r);
};

/* Find an endpoint.  0, or the HTTP status of the refusal: 404 if there is no
 * such path, 405 if the path has no such method.  HEAD finds what GET finds.
 */
extern unsigned endpoints_find (const char *path, const char *method,
                                const struct endpoint **endpoint);

/* Answer a request that endpoints_find has refused with 404 or 405. */
extern enum MHD_Result endpoints_refuse_path (struct request *r);
extern enum MHD_Result endpoints_refuse_method (struct request *r,
                                                const char *path);

#endif /* CLONE_ENDPOINTS_H */
