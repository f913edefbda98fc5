/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the clone tells about itself, and which of its settings can be changed
 * while it runs.  The control interface and the progress lines are made of
 * this.
 *
 * Looking at the status changes nothing and waits for no I/O.
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
#include "hydration/hydrate.h"
#include "store/commit.h"

/* Bytes of source_error, with its end.  Longer ones are cut off: a progress
 * line, in which each byte can become six, must not exceed PIPE_BUF.
 */
#define STATUS_ERROR_MAX 256

/* What is looked at and controlled.  Nothing in it is owned.  Those who are
 * given one keep the pointer: it is filled in before they are started, and does
 * not change until they are stopped.
 */
struct service {
  struct clone *clone;
  struct hydrate *hydrate;
  /* End the process as POST /stop does.  Returns at once. */
  void (*stop) (void);
};

/* One look at it.  The numbers are taken one after the other, in an order in
 * which durable <= hydrated, and both are regions when the state is complete.
 */
struct status {
  uint64_t size, region_size, regions;
  uint64_t durable, hydrated; /* regions */
  uint64_t bytes_hydrated;
  enum clone_mode mode;
  /* Why the source is not there, empty while it is or after it was closed. */
  char source_error[STATUS_ERROR_MAX];
  struct hydrate_status hydration;
  struct hydrate_settings settings;
};

/* Any thread may call this. */
extern void status_get (const struct service *service, struct status *status);

/* Is there nothing left to wait for, be it success or failure? */
extern bool status_ended (const struct status *status);

/* The object that GET /status answers with, and the one of the settings, whose
 * names are those of the plugin's keys.  The caller owns the reference.  NULL
 * where memory is short.
 */
extern json_t *status_json (const struct status *status);
extern json_t *settings_json (const struct hydrate_settings *settings);

/* Change the settings that an object names.  A value is a number of bytes or a
 * string for size_parse.  On any error -1, and the settings are as before;
 * *why then says what is wrong and what would be right, and is to be freed, or
 * is NULL where memory is short.
 */
extern int settings_patch (const json_t *patch,
                           struct hydrate_settings *settings, char **why);

/* Read a size: decimal digits and at most one suffix, in either case: b (1), s
 * (512), k, m, g, t, p or e (powers of 1024), and nothing else, no sign and no
 * blank.  -1 with errno EINVAL where it is no size, or ERANGE above INT64_MAX.
 */
extern int size_parse (const char *str, uint64_t *size);

#endif /* CLONE_STATUS_H */
