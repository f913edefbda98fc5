/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Sizes, rates and times as people read them, for messages.
 *
 * The functions return the text by value, so that it can be an argument of a
 * message: log_info (log, "%s left", text_size (n).s).
 */

#ifndef CLONE_TEXT_H
#define CLONE_TEXT_H

#include <stdint.h>

struct text {
  char s[32];
};

/* Bytes, in binary units: "0 bytes", "512 bytes", "4 KiB", "12.5 GiB". */
extern struct text text_size (uint64_t bytes);

/* Bytes a second: "95.2 MiB/s". */
extern struct text text_rate (double rate);

/* Seconds: "300 ms", "85 s", "12 min 5 s", "5 h 20 min", "3 d 4 h". */
extern struct text text_time (double seconds);

/* How many percent of `whole' are in `part', rounded down: 100 only if it is
 * everything.  part <= whole, and whole is not 0.
 */
extern unsigned text_percent (uint64_t part, uint64_t whole);

#endif /* CLONE_TEXT_H */
