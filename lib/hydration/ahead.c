/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "base/rounding.h"
#include "hydration/ahead.h"

void
ahead_init (struct ahead *a, uint64_t size)
{
  /* Until an answer has come, two questions are enough. */
  *a = (struct ahead){ .size = size, .last_data = AHEAD_DATA / 2 };
}

static void
ahead_free_question (struct ahead_question *q)
{
  extents_free (&q->got);
  *q = (struct ahead_question){ .state = AHEAD_FREE };
}

void
ahead_destroy (struct ahead *a)
{
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    ahead_free_question (&a->question[i]);
  extents_free (&a->known);
}

/* ---- the known extents ---- */

static uint64_t
ahead_data_in (const struct extent *e)
{
  return e->flags & EXTENT_ZERO ? 0 : e->length;
}

/* Append list to another list, whose extents before first have been passed, and
 * add the new bytes of data to *data.  A short hole between two extents of data
 * becomes data.
 */
static int
ahead_append (struct ahead *a, struct extents *to, size_t first,
              const struct extents *list, uint64_t *data)
{
  for (size_t i = 0; i < list->len; ++i) {
    struct extent e = list->extent[i];

    a->looked_at++;
    e.flags &= EXTENT_ZERO;
    if (!e.flags && to->len > first + 1) {
      const struct extent *last = &to->extent[to->len - 1];

      if (last->flags && last->length < AHEAD_HOLE_MIN) {
        e.offset = last->offset;
        e.length += last->length;
        to->len--;
      }
    }
    if (extents_add (to, e.offset, e.length, e.flags) == -1)
      return -1;
    *data += ahead_data_in (&e);
  }
  return 0;
}

static void
ahead_clear_got (struct ahead_question *q)
{
  extents_clear (&q->got);
  q->data = 0;
}

static void
ahead_forget_known (struct ahead *a)
{
  extents_clear (&a->known);
  a->passed = 0;
  a->data = a->data_passed = 0;
}

void
ahead_restart (struct ahead *a)
{
  ahead_forget_known (a);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];

    if (q->state == AHEAD_TO_ASK)
      ahead_free_question (q);
    else if (q->state == AHEAD_ASKED) {
      ahead_clear_got (q);
      q->state = AHEAD_STALE;
    }
  }
}

/* Passed extents are removed when they are most of the list, so that no extent
 * is moved again and again.
 */
void
ahead_pass (struct ahead *a, uint64_t pos)
{
  struct extents *known = &a->known;
  const struct extent *first;

  while (a->passed < known->len &&
         known->extent[a->passed].offset + known->extent[a->passed].length <=
         pos) {
    a->looked_at++;
    a->data -= ahead_data_in (&known->extent[a->passed++]);
  }
  if (a->passed == known->len) {
    ahead_forget_known (a);
    return;
  }
  first = &known->extent[a->passed];
  a->data_passed = pos > first->offset && ahead_data_in (first) > 0 ?
                   pos - first->offset : 0;
  if (a->passed > known->len / 2) {
    known->len -= a->passed;
    memmove (known->extent, known->extent + a->passed,
             known->len * sizeof *known->extent);
    a->passed = 0;
  }
}

uint64_t
ahead_end (const struct ahead *a, uint64_t pos)
{
  return MAX (extents_end (&a->known), pos);
}

const struct extent *
ahead_from (struct ahead *a, uint64_t pos, size_t *n)
{
  const size_t i = MAX (extents_find (&a->known, pos), a->passed);

  a->looked_at++;
  *n = a->known.len - i;
  return *n > 0 ? &a->known.extent[i] : NULL;
}

uint64_t
ahead_zeroes_end (struct ahead *a, uint64_t pos)
{
  size_t n;
  const struct extent *e = ahead_from (a, pos, &n);

  return n > 0 && e->offset <= pos && e->flags ? e->offset + e->length : pos;
}

/* ---- questions ---- */

/* Its answers will join the known list. */
static bool
ahead_stands (const struct ahead_question *q)
{
  return q->state == AHEAD_TO_ASK || q->state == AHEAD_ASKED;
}

/* The first question that stands, in the order of the disk from pos on.  NULL:
 * none.
 */
static struct ahead_question *
ahead_first_from (struct ahead *a, uint64_t pos)
{
  struct ahead_question *first = NULL;

  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];

    if (ahead_stands (q) && q->start >= pos &&
        (!first || q->start < first->start))
      first = q;
  }
  return first;
}

/* The walk is at pos, and has perhaps jumped there over valid regions: drop
 * everything before pos.  The known list then ends where the first question
 * begins, or is empty.
 */
static void
ahead_drop_passed (struct ahead *a, uint64_t pos)
{
  ahead_pass (a, pos);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];
    const uint64_t end = q->offset + q->count;

    if (!ahead_stands (q) || q->offset >= pos)
      continue;
    if (q->state == AHEAD_TO_ASK) {
      ahead_clear_got (q);
      q->offset = MIN (pos, end);
      q->count = end - q->offset;
      if (q->count == 0)
        ahead_free_question (q);
    }
    else if (end <= pos)
      q->state = AHEAD_STALE;
  }
}

/* Let answers that follow the known list join it. */
static int
ahead_join (struct ahead *a)
{
  struct ahead_question *q;

  while ((q = ahead_first_from (a, 0)) != NULL) {
    if (ahead_append (a, &a->known, a->passed, &q->got, &a->data) == -1)
      return -1;
    ahead_clear_got (q);
    if (q->count > 0)
      break;
    ahead_free_question (q);
  }
  return 0;
}

static bool
ahead_is_far (const struct ahead *a, uint64_t more_data, size_t more_extents)
{
  return a->data - a->data_passed + more_data >= AHEAD_DATA ||
         a->known.len - a->passed + more_extents >= AHEAD_EXTENTS;
}

/* Is enough known when all questions under way have been answered? */
static bool
ahead_is_enough (const struct ahead *a)
{
  uint64_t data = 0;
  size_t extents = 0;

  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    const struct ahead_question *q = &a->question[i];

    if (q->state == AHEAD_FREE)
      continue;
    data += q->data;
    extents += q->got.len;
    if (q->state != AHEAD_TO_ASK) {
      data += a->last_data;
      extents += a->last_extents;
    }
  }
  return ahead_is_far (a, data, extents);
}

static struct ahead_question *
ahead_free_slot (struct ahead *a)
{
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    if (a->question[i].state == AHEAD_FREE)
      return &a->question[i];
  return NULL;
}

/* A question about a range that no other asks for.  NULL: no slot is free, or
 * the disk ends.
 */
static struct ahead_question *
ahead_new_question (struct ahead *a, uint64_t offset)
{
  struct ahead_question *q = offset < a->size ? ahead_free_slot (a) : NULL;

  if (q) {
    q->start = q->offset = offset;
    q->count = MIN (a->size - offset, AHEAD_QUERY);
    q->state = AHEAD_ASKED;
  }
  return q;
}

/* How many questions are under way that were unanswered at least `unanswered'
 * times?
 */
static unsigned
ahead_under_way (const struct ahead *a, unsigned unanswered)
{
  unsigned n = 0;

  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    const struct ahead_question *q = &a->question[i];

    n += (q->state == AHEAD_ASKED || q->state == AHEAD_STALE) &&
         q->unanswered >= unanswered;
  }
  return n;
}

struct ahead_question *
ahead_ask (struct ahead *a, uint64_t pos)
{
  struct ahead_question *q;
  uint64_t end;

  ahead_drop_passed (a, pos);
  if (ahead_join (a) == -1)
    ahead_restart (a);

  /* The walk waits for the first question, which therefore must not depend on
   * answers to the others.
   */
  q = ahead_first_from (a, 0);
  if (ahead_under_way (a, 1) > 0)
    return NULL;
  if (q && q->state == AHEAD_TO_ASK ? ahead_is_far (a, 0, 0)
                                    : ahead_is_enough (a))
    return NULL;

  for (end = ahead_end (a, pos); q; q = ahead_first_from (a, end)) {
    if (q->state == AHEAD_TO_ASK && q->count > 0) {
      if (q->unanswered > 0 && ahead_under_way (a, 0) > 0)
        return NULL;
      q->state = AHEAD_ASKED;
      return q;
    }
    end = q->offset + q->count;
  }
  return ahead_new_question (a, end);
}

int
ahead_answer (struct ahead *a, struct ahead_question *q,
              const struct extents *list)
{
  const uint64_t end = q->offset + q->count, data = q->data;
  const size_t len = q->got.len;

  if (q->state == AHEAD_STALE) {
    ahead_free_question (q);
    return 0;
  }

  q->state = AHEAD_TO_ASK;
  q->unanswered = 0;
  if (ahead_append (a, &q->got, 0, list, &q->data) == 0) {
    a->last_data = q->data - data;
    a->last_extents = q->got.len > len ? q->got.len - len : 0;
    if (list->len > 0)
      q->offset = MIN (extents_end (list), end);
    q->count = end - q->offset;
    if (ahead_join (a) == 0)
      return 0;
  }
  ahead_restart (a);
  return -1;
}

void
ahead_unanswered (struct ahead *a, struct ahead_question *q)
{
  struct extent all = { .offset = q->offset, .length = q->count };
  const struct extents data = { .extent = &all, .len = 1 };

  if (q->state == AHEAD_ASKED && ++q->unanswered < AHEAD_MAX_UNANSWERED)
    q->state = AHEAD_TO_ASK;
  else
    ahead_answer (a, q, &data);
}
