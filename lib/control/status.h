/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The status of an instance: one look at it, and the same as JSON.
 *
 * Looking changes nothing and waits for no I/O.
 *
 * Units: sizes in bytes, rates in bytes a second, times in seconds, counts in
 * regions.
 */

#ifndef CLONE_STATUS_H
#define CLONE_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "clone/clone.h"
#include "control/instance.h"
#include "control/settings.h"
#include "hydration/hydrate.h"

/* Bytes of source_error, with the final zero.  A longer error is cut off.  JSON
 * can need six bytes for one, and a progress line must not be longer than
 * PIPE_BUF.
 */
#define STATUS_ERROR_MAX 256

/* The numbers are read one after the other, in an order that ensures
 * durable <= hydrated, and durable == hydrated == regions if the state is
 * complete.
 */
struct status {
  uint64_t size, region_size, regions;
  uint64_t durable, hydrated; /* regions */
  uint64_t bytes_hydrated;
  enum clone_mode mode;
  /* Why the source is lost or refused.  Empty while it is connected, and after
   * it was closed.
   */
  char source_error[STATUS_ERROR_MAX];
  struct hydrate_status hydration;
  struct settings settings;
  struct clone_counters counters;
  /* The latest error of each side since the start; empty: there was none. */
  char last_error[CLONE_SIDES][STATUS_ERROR_MAX];
};

/* Names, by enum hydrate_state and enum clone_mode. */
#define STATUS_STATES (HYDRATE_FAILED + 1)
#define STATUS_MODES (MODE_FAIL + 1)
extern const char *const status_state_names[STATUS_STATES];
extern const char *const status_mode_names[STATUS_MODES];

/* What requests are called, and whether it is counted which sides they use. */
extern const char *const status_request_names[COUNTED_REQUESTS];
extern bool status_request_has_sides (enum counted_request request);

/* Any thread may call this. */
extern void status_get (const struct instance *instance,
                        struct status *status);

/* Is the state complete or failed?  GET /wait waits for this. */
extern bool status_ended (const struct status *status);

/* The object of a progress line, which must not be longer than PIPE_BUF; and
 * the same with the counters and the latest errors.  The caller owns the
 * reference.  NULL if out of memory.
 */
extern json_t *status_line_json (const struct status *status);
extern json_t *status_json (const struct status *status);

/* The object that GET /status answers with: that of status_json, and the names
 * of source and destination.
 */
extern json_t *status_json_named (const struct instance *instance,
                                  const struct status *status);

#endif /* CLONE_STATUS_H */
