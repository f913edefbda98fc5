/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Looking ahead: the source's extents, asked for before the disk's walk of the
 * plan (plan.h) comes to them.
 *
 * What is known is one contiguous list, which begins where the walk is or
 * before.  The questions that follow it are contiguous, too.  Several are under
 * way at once, so that a sparse disk does not cost a round trip for each;
 * answers come in any order, and each joins the list when those before it have.
 * An answer may cover less than was asked for: the question then stands for the
 * rest.
 *
 * Lists hold zeroes and data only, in turn, and a hole shorter than
 * AHEAD_HOLE_MIN is data as soon as its end is known, also where it lies across
 * answers.  (The first hole of a list may be short: it may have begun before.)
 * So no list has more than two extents for each AHEAD_HOLE_MIN bytes, whatever
 * the source says, and the largest region has less than AHEAD_EXTENTS of them:
 * the walk, which may need to know a whole region, cannot be kept from it.
 *
 * How far: until so many bytes of data are known, or so many extents, where
 * each question under way is expected to bring as many as the last answer did.
 * So a disk full of data has one question at a time, but for the first two.
 * The memory is that of AHEAD_EXTENTS extents and of the answers under way.
 *
 * A question whose server was lost is asked again.  The connection may have
 * been lost because of its answer, so it is then asked while no other is under
 * way, and after AHEAD_MAX_UNANSWERED times its range counts as data.
 *
 * It does no I/O and has no lock: the user's protects it.  All offsets and
 * sizes are bytes.
 */

#ifndef CLONE_AHEAD_H
#define CLONE_AHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/extents.h"

/* A shorter hole counts as data: reading it costs less than another request. */
#define AHEAD_HOLE_MIN (UINT64_C (64) << 10)

/* Holes take no time, so they do not count. */
#define AHEAD_DATA (UINT64_C (1) << 30)
#define AHEAD_EXTENTS 65536

/* A question: nearly all that NBD allows, and a multiple of any region size. */
#define AHEAD_QUERY (UINT64_C (3) << 30)

/* As many as nbdkit serves at once for one connection. */
#define AHEAD_QUESTIONS 16

#define AHEAD_MAX_UNANSWERED 3

struct ahead_question {
  uint64_t offset, count; /* what the source is to be asked for */

  /* Below: this module's. */
  enum { AHEAD_FREE, AHEAD_TO_ASK, AHEAD_ASKED, AHEAD_STALE } state;
  uint64_t start;     /* where it began */
  struct extents got; /* the answers, up to offset, that have not joined */
  uint64_t data;      /* bytes of data in them */
  unsigned unanswered; /* times in a row */
};

struct ahead {
  uint64_t size;        /* of the disk */
  struct extents known;
  size_t passed;        /* of these the walk has passed so many */
  uint64_t data;        /* bytes of data in the others, */
  uint64_t data_passed; /* and of the first of them before the walk */
  struct ahead_question question[AHEAD_QUESTIONS];
  uint64_t last_data;   /* in the last answer */
  size_t last_extents;
  uint64_t looked_at;   /* extents, ever: tests bound the work with it */
};

extern void ahead_init (struct ahead *a, uint64_t size);
extern void ahead_destroy (struct ahead *a);

/* The walk is at pos: what lies before may be forgotten. */
extern void ahead_pass (struct ahead *a, uint64_t pos);

/* Forget everything: the walk begins somewhere else.  Answers to questions that
 * are under way will be dropped.
 */
extern void ahead_restart (struct ahead *a);

/* Where it ends, what is known from pos on, where the walk is. */
extern uint64_t ahead_end (const struct ahead *a, uint64_t pos);

/* Where the zeroes end that are known from pos on; pos if there are none. */
extern uint64_t ahead_zeroes_end (struct ahead *a, uint64_t pos);

/* The first extent that is known and ends after pos, and those that follow it;
 * *n is how many there are.
 */
extern const struct extent *ahead_from (struct ahead *a, uint64_t pos,
                                        size_t *n);

/* What to ask the source now, the walk being at pos.  NULL: enough is known or
 * being asked.  The question belongs to the module, and stays the user's until
 * ahead_answer.
 */
extern struct ahead_question *ahead_ask (struct ahead *a, uint64_t pos);

/* The source's answer, from the question's offset on.  -1 with errno ENOMEM:
 * then all is forgotten.
 */
extern int ahead_answer (struct ahead *a, struct ahead_question *q,
                         const struct extents *list);

/* Instead of ahead_answer: the server was lost. */
extern void ahead_unanswered (struct ahead *a, struct ahead_question *q);

#endif /* CLONE_AHEAD_H */
