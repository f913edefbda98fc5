/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* GET /metrics: the status and the counters for Prometheus, in its text format,
 * version 0.0.4.
 *
 * Looking changes nothing and waits for no I/O.
 */

#ifndef CLONE_METRICS_H
#define CLONE_METRICS_H

#include <stdio.h>

#include <microhttpd.h>

#include "control/status.h"

struct request;

/* The endpoint's handler (endpoints.h). */
extern enum MHD_Result metrics_handle (struct request *r);

/* Write all metrics. */
extern void metrics_print (FILE *fp, const struct status *status);

#endif /* CLONE_METRICS_H */
