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

#include <jansson.h>

#include "control/instance.h"
#include "hydration/hydrate.h"

/* All settings.  The caller owns the reference.  NULL if out of memory. */
extern json_t *settings_json (const struct hydrate_settings *settings);

/* Change the settings that the object `patch' names.  A value is a number of
 * bytes, or a string for size_parse.
 *
 * On error the result is -1 and no setting has changed.  *why then says what is
 * wrong and what would be right; the caller frees it.  *why is NULL if out of
 * memory.
 */
extern int settings_patch (const json_t *patch,
                           struct hydrate_settings *settings, char **why);

/* The same for the settings of a running instance.  Only one thread may change
 * them: the control interface's.
 */
extern int settings_apply (const struct instance *instance,
                           const json_t *patch, char **why);

#endif /* CLONE_SETTINGS_H */
