/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Text from outside as JSON, which is UTF-8: a message can contain a file's
 * name, a server's error, or a piece of a request.
 */

#ifndef CLONE_JSON_TEXT_H
#define CLONE_JSON_TEXT_H

#include <jansson.h>

/* The text as a JSON string.  If it is not UTF-8, question marks replace all
 * bytes that are not ASCII.  NULL if out of memory.
 */
extern json_t *text_json (const char *text);

#endif /* CLONE_JSON_TEXT_H */
