/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The latest error of the source or of the destination, as a text for people.
 * It stays when the error is over, until another one replaces it.
 *
 * Any thread may call these functions between init and destroy.  They hold the
 * lock for a moment, and take no other.
 */

#ifndef CLONE_LAST_ERROR_H
#define CLONE_LAST_ERROR_H

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>

/* Bytes of the text, with the final zero.  A longer text is cut off. */
#define LAST_ERROR_MAX 256

struct last_error {
  pthread_mutex_t lock;
  char text[LAST_ERROR_MAX]; /* empty: there was no error */
};

extern void last_error_init (struct last_error *e);
extern void last_error_destroy (struct last_error *e);

/* Preserves errno, and %m works. */
extern void last_error_set (struct last_error *e, const char *fmt,
                            va_list args)
  __attribute__ ((format (printf, 2, 0)));

extern void last_error_get (struct last_error *e, char *buf, size_t size);

#endif /* CLONE_LAST_ERROR_H */
