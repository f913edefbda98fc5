/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The answer of a control interface, or the reason why there is none. */

#ifndef CLONE_ANSWER_H
#define CLONE_ANSWER_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

enum answer_kind {
  ANSWER_GOOD,        /* json is the object */
  ANSWER_REFUSED,     /* the clone says why */
  ANSWER_NO_PATH,     /* this clone does not know the path */
  ANSWER_LATE,        /* no answer in time */
  ANSWER_NONE,        /* no connection, no access, or no clone */
};

struct answer {
  enum answer_kind kind;
  char *text;    /* the body, with a zero after it, or NULL */
  json_t *json;  /* NULL unless ANSWER_GOOD */
  char *message; /* for humans, unless ANSWER_GOOD; never NULL then */
};

extern void answer_free (struct answer *a);

/* Read an HTTP answer with this status code.  has_token: the request had a
 * token.  text may be NULL; it is only read.
 */
extern void answer_read (struct answer *a, long code, const char *text,
                         size_t len, bool has_token);

/* There is no answer that a clone gives.  Control characters in the message are
 * replaced.
 */
extern void answer_set_message (struct answer *a, enum answer_kind kind,
                                const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* Log that the answer is not ANSWER_GOOD.  Returns the exit status. */
extern int answer_fail (const struct answer *a, const char *control);

/* The same for an object that is not what was asked for. */
extern int answer_fail_wrong (const char *control);

#endif /* CLONE_ANSWER_H */
