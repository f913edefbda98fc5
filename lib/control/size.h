/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Sizes as text, such as "16M". */

#ifndef CLONE_SIZE_H
#define CLONE_SIZE_H

#include <stdint.h>

/* Parse a size in bytes: decimal digits, then at most one suffix in upper or
 * lower case: b (1), s (512), k, m, g, t, p or e (powers of 1024).  Signs and
 * blanks are not allowed.  -1 with errno EINVAL if str is not a size, or ERANGE
 * if the size is above INT64_MAX; *size is then unchanged.
 */
extern int size_parse (const char *str, uint64_t *size);

#endif /* CLONE_SIZE_H */
