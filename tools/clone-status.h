/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The status of a running clone, as its control interface reports it. */

#ifndef CLONE_CLONE_STATUS_H
#define CLONE_CLONE_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "screen.h"

/* Texts belong to json. */
struct clone_status {
  json_t *json;
  uint64_t size;        /* bytes, as all numbers without another unit */
  uint64_t valid;
  uint64_t durable;
  uint64_t rate;        /* a second */
  bool eta_known;
  uint64_t eta;         /* seconds */
  const char *state, *mode;
  bool is_complete, has_failed;
  struct {
    const char *name;   /* NULL: not known */
    bool connected;
    unsigned connections;
    const char *error;  /* NULL: none */
  } source;
  const char *destination; /* a name; NULL: not known */
  uint64_t bad;         /* unreadable bytes of the source */
  const json_t *settings;
};

/* Read the answer to GET /status.  -1 if it is not a status.  The caller calls
 * clone_status_free in any case.
 */
extern int clone_status_read (struct clone_status *s, json_t *json);
extern void clone_status_free (struct clone_status *s);

/* Add the health of the source to a line. */
extern void line_add_source (struct line *l, const struct clone_status *s);

/* Add one of the settings, with its value in words. */
extern void line_add_setting (struct line *l, const char *key,
                              const json_t *value);

#endif /* CLONE_CLONE_STATUS_H */
