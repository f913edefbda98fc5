/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a power cut may leave on one device, from the recording of its calls.
 * The rules are in lab.c.
 */

#ifndef CRASH_IMAGE_H
#define CRASH_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "mock-backend.h"

struct device;

/* All changes of m since its content was `before'.  The object keeps references
 * to `before' and to the log.  trims: a trim writes zeroes.
 */
extern struct device *device_new (struct mock_log *log, const struct mock *m,
                                  uint64_t size, const uint8_t *before,
                                  bool trims);
extern void device_free (struct device *dev);

/* Which of the legal versions each sector gets. */
enum keep {
  KEEP_NOTHING,   /* the oldest: everything that may be lost is lost */
  KEEP_ALL,       /* the newest, also of what was in flight */
  KEEP_RETURNED,  /* what had taken effect: a cut of the program, not power */
  KEEP_SOME,      /* mostly old, a few others */
  KEEP_MOST,      /* mostly new */
  KEEP_ANY,       /* any of them */
  KEEPS
};
extern const char *const keep_names[KEEPS];

/* Make the image after a cut just after tick `cut', of `before' or of another
 * image of this device.  False if there is no other.
 */
extern bool device_image (const struct device *dev, uint64_t cut,
                          enum keep keep, uint64_t *seed, uint8_t *image);

#endif /* CRASH_IMAGE_H */
