/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The settings that can be changed while the clone runs, as JSON.
 *
 * Settings are an object whose members have the names of the plugin's keys.
 * To add one, see the table in settings.c.
 */

#ifndef CLONE_SETTINGS_H
#define CLONE_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "control/instance.h"
#include "hydration/hydrate.h"

struct settings {
  struct hydrate_settings hydration;
  bool copy_on_read;       /* keep what clients read from the source */
  uint64_t source_timeout; /* seconds that a request waits for a lost source
                            * before it fails with EIO; 0: for ever */
};

/* Any thread may call this. */
extern void settings_get (const struct instance *instance,
                          struct settings *settings);

/* All settings.  The caller owns the reference.  NULL if out of memory. */
extern json_t *settings_json (const struct settings *settings);

/* Change the settings that the object `patch' names.
 *
 *   a size      a number of bytes, or a string for size_parse
 *   seconds     a number, or a string of digits
 *   a switch    true or false, or one of them as a string
 *   a priority  "access" or "sequential"
 *
 * On error the result is -1 and no setting has changed.  *why then says what is
 * wrong and what would be right; the caller frees it.  *why is NULL if out of
 * memory.
 */
extern int settings_patch (const json_t *patch, struct settings *settings,
                           char **why);

/* The same for the settings of a running instance.  Only one thread may change
 * them: the control interface's.
 */
extern int settings_apply (const struct instance *instance,
                           const json_t *patch, char **why);

#endif /* CLONE_SETTINGS_H */
