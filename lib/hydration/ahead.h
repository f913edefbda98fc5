/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Looking ahead: the source's extents, which are asked for before the disk's
 * walk of the plan (plan.h) comes to them.
 *
 * The known extents are one contiguous list, which begins at the walk's
 * position or before.  The questions that follow it are contiguous, too.
 * Several are under way at once, so that a sparse disk does not cost a round
 * trip for each.  Answers come in any order; each joins the list when those
 * before it have.  An answer may cover less than was asked for.  Then the
 * question stands for the rest.
 *
 * Lists contain only zeroes and data, in turn.  A hole shorter than
 * AHEAD_HOLE_MIN becomes data as soon as its end is known, also where it lies
 * across answers.  (The first hole of a list may be short: it may have begun
 * before.)  So a list has at most two extents for each AHEAD_HOLE_MIN bytes,
 * whatever the source answers.  The largest region has less than AHEAD_EXTENTS
 * of them, so a walk that must know a whole region can always go on.
 *
 * How far: until AHEAD_DATA bytes of data are known, or AHEAD_EXTENTS extents.
 * Each question under way is expected to bring as many as the last answer did.
 * So a disk full of data has one question at a time, except for the first two.
 * Memory is bounded by AHEAD_EXTENTS extents and the answers under way.
 *
 * When the server was lost, a question is asked again.  Its answer may be the
 * reason for the loss, so the question is then asked while no other is under
 * way.  When it was not answered AHEAD_MAX_UNANSWERED times in a row, its range
 * counts as data.
 *
 * This module does no I/O and has no lock: the caller's protects it.  All
 * offsets and sizes are bytes.
 */

#ifndef CLONE_AHEAD_H
#define CLONE_AHEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/extents.h"

/* A shorter hole counts as data: reading it costs less than another request. */
#define AHEAD_HOLE_MIN (UINT64_C (64) << 10)

/* How far to look ahead: bytes of data, and extents.  Holes take no time, so
 * their bytes do not count.
 */
#define AHEAD_DATA (UINT64_C (1) << 30)
#define AHEAD_EXTENTS 65536

/* The size of a question: nearly the largest that NBD allows, and a multiple of
 * all region sizes.
 */
#define AHEAD_QUERY (UINT64_C (3) << 30)

/* Questions under way: as many as nbdkit serves at once for one connection. */
#define AHEAD_QUESTIONS 16

#define AHEAD_MAX_UNANSWERED 3

struct ahead_question {
  uint64_t offset, count; /* what the source is to be asked for */

  /* Private to ahead.c. */
  enum { AHEAD_FREE, AHEAD_TO_ASK, AHEAD_ASKED, AHEAD_STALE } state;
  uint64_t start;     /* its first offset, before answers */
  struct extents got; /* answers, up to offset, that have not joined */
  uint64_t data;      /* bytes of data in them */
  unsigned unanswered; /* times in a row */
};

struct ahead {
  uint64_t size;        /* of the disk */
  struct extents known;
  size_t passed;        /* number of known extents that the walk has passed */
  uint64_t data;        /* bytes of data in the other known extents */
  uint64_t data_passed; /* those of `data' that lie before the walk */
  struct ahead_question question[AHEAD_QUESTIONS];
  uint64_t last_data;   /* bytes of data in the last answer */
  size_t last_extents;
  uint64_t looked_at;   /* steps over extents, ever: tests bound the work */
};

extern void ahead_init (struct ahead *a, uint64_t size);
extern void ahead_destroy (struct ahead *a);

/* The walk is at pos, and comes to nothing before pos. */
extern void ahead_pass (struct ahead *a, uint64_t pos);

/* Forget everything: the walk begins anew somewhere else.  Answers to questions
 * that are under way will be ignored.
 */
extern void ahead_restart (struct ahead *a);

/* The walk is at pos: where do the known extents end? */
extern uint64_t ahead_end (const struct ahead *a, uint64_t pos);

/* The end of the known zeroes at pos; pos if there are none. */
extern uint64_t ahead_zeroes_end (struct ahead *a, uint64_t pos);

/* The first known extent that ends after pos, and those that follow it: *n in
 * all.
 */
extern const struct extent *ahead_from (struct ahead *a, uint64_t pos,
                                        size_t *n);

/* The walk is at pos: the next question for the source.  NULL: enough is known
 * or under way.  The caller must pass the question to ahead_answer or to
 * ahead_unanswered.  Until then its offset and count stay the same.
 */
extern struct ahead_question *ahead_ask (struct ahead *a, uint64_t pos);

/* The source's answer, which begins at the question's offset.  -1 with errno
 * ENOMEM: then everything is forgotten, as by ahead_restart.
 */
extern int ahead_answer (struct ahead *a, struct ahead_question *q,
                         const struct extents *list);

/* Instead of ahead_answer: the server was lost. */
extern void ahead_unanswered (struct ahead *a, struct ahead_question *q);

#endif /* CLONE_AHEAD_H */
