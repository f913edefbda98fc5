/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <string.h>

#include "ahead.h"
#include "rounding.h"

void
ahead_init (struct ahead *a, uint64_t size)
{
  /* Until an answer has come, two questions are enough. */
  *a = (struct ahead){ .size = size, .last_data = AHEAD_DATA / 2 };
}

static void
free_question (struct ahead_question *q)
{
  extents_free (&q->got);
  q->state = AHEAD_FREE;
}

void
ahead_destroy (struct ahead *a)
{
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    free_question (&a->question[i]);
  extents_free (&a->known);
}

/* ---- what is known ---- */

static uint64_t
data_in (const struct extent *e)
{
  return e->flags & EXTENT_ZERO ? 0 : e->length;
}

static uint64_t
data_in_all (const struct extents *list)
{
  uint64_t data = 0;

  for (size_t i = 0; i < list->len; ++i)
    data += data_in (&list->extent[i]);
  return data;
}

static int
append (struct extents *to, const struct extents *list)
{
  for (size_t i = 0; i < list->len; ++i) {
    const struct extent *e = &list->extent[i];

    if (extents_add (to, e->offset, e->length, e->flags) == -1)
      return -1;
  }
  return 0;
}

static void
forget_known (struct ahead *a)
{
  extents_clear (&a->known);
  a->passed = 0;
  a->data = a->data_passed = 0;
}

void
ahead_restart (struct ahead *a)
{
  forget_known (a);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];

    extents_free (&q->got);
    if (q->state == AHEAD_TO_ASK)
      q->state = AHEAD_FREE;
    else if (q->state == AHEAD_ASKED)
      q->state = AHEAD_STALE;
  }
}

/* What has been passed is dropped when it is most of the list, so that an
 * extent is not moved again and again.
 */
void
ahead_pass (struct ahead *a, uint64_t pos)
{
  struct extents *known = &a->known;
  const struct extent *first;

  while (a->passed < known->len &&
         known->extent[a->passed].offset + known->extent[a->passed].length <=
         pos)
    a->data -= data_in (&known->extent[a->passed++]);
  if (a->passed == known->len) {
    forget_known (a);
    return;
  }
  first = &known->extent[a->passed];
  a->data_passed = pos > first->offset && data_in (first) > 0 ?
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
ahead_from (const struct ahead *a, uint64_t pos, size_t *n)
{
  const struct extents *known = &a->known;
  size_t i = a->passed;

  while (i < known->len &&
         known->extent[i].offset + known->extent[i].length <= pos)
    i++;
  *n = known->len - i;
  return *n > 0 ? &known->extent[i] : NULL;
}

uint64_t
ahead_zeroes_end (const struct ahead *a, uint64_t pos)
{
  size_t n;
  const struct extent *e = ahead_from (a, pos, &n);

  for (; n > 0 && e->offset <= pos && (e->flags & EXTENT_ZERO); ++e, --n)
    pos = e->offset + e->length;
  return pos;
}

/* ---- questions ---- */

static bool
stands (const struct ahead_question *q)
{
  return q->state == AHEAD_TO_ASK || q->state == AHEAD_ASKED;
}

/* Of those that stand, the first on the disk from pos on.  NULL: none. */
static struct ahead_question *
first_from (struct ahead *a, uint64_t pos)
{
  struct ahead_question *first = NULL;

  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];

    if (stands (q) && q->start >= pos && (!first || q->start < first->start))
      first = q;
  }
  return first;
}

/* The walk is at pos, perhaps because regions before it became valid: drop what
 * lies before.  What is known then ends where the first question begins, or is
 * nothing at all.
 */
static void
drop_passed (struct ahead *a, uint64_t pos)
{
  ahead_pass (a, pos);
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    struct ahead_question *q = &a->question[i];
    const uint64_t end = q->offset + q->count;

    if (!stands (q) || q->offset >= pos)
      continue;
    if (q->state == AHEAD_TO_ASK) {
      extents_clear (&q->got);
      q->offset = MIN (pos, end);
      q->count = end - q->offset;
      if (q->count == 0)
        free_question (q);
    }
    else if (end <= pos)
      q->state = AHEAD_STALE;
  }
}

/* Take over the answers that follow what is known. */
static int
join (struct ahead *a)
{
  struct ahead_question *q;

  while ((q = first_from (a, 0)) != NULL) {
    if (append (&a->known, &q->got) == -1)
      return -1;
    a->data += data_in_all (&q->got);
    extents_clear (&q->got);
    if (q->count > 0)
      break;
    free_question (q);
  }
  return 0;
}

static bool
is_far (const struct ahead *a, uint64_t more_data, size_t more_extents)
{
  return a->data - a->data_passed + more_data >= AHEAD_DATA ||
         a->known.len - a->passed + more_extents >= AHEAD_EXTENTS;
}

/* Is enough known, when all that is under way has been answered? */
static bool
is_enough (const struct ahead *a)
{
  uint64_t data = 0;
  size_t extents = 0;

  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i) {
    const struct ahead_question *q = &a->question[i];

    if (q->state == AHEAD_FREE)
      continue;
    data += data_in_all (&q->got);
    extents += q->got.len;
    if (q->state != AHEAD_TO_ASK) {
      data += a->last_data;
      extents += a->last_extents;
    }
  }
  return is_far (a, data, extents);
}

static struct ahead_question *
free_slot (struct ahead *a)
{
  for (unsigned i = 0; i < AHEAD_QUESTIONS; ++i)
    if (a->question[i].state == AHEAD_FREE)
      return &a->question[i];
  return NULL;
}

/* A question about what no other asks for. */
static struct ahead_question *
new_question (struct ahead *a, uint64_t offset)
{
  struct ahead_question *q = offset < a->size ? free_slot (a) : NULL;

  if (q) {
    q->start = q->offset = offset;
    q->count = MIN (a->size - offset, AHEAD_QUERY);
    q->state = AHEAD_ASKED;
  }
  return q;
}

struct ahead_question *
ahead_ask (struct ahead *a, uint64_t pos)
{
  struct ahead_question *q;
  uint64_t end;

  drop_passed (a, pos);
  if (join (a) == -1)
    ahead_restart (a);

  /* The walk waits for the first: it must not depend on what is known of the
   * others.
   */
  q = first_from (a, 0);
  if (q && q->state == AHEAD_TO_ASK ? is_far (a, 0, 0) : is_enough (a))
    return NULL;

  for (end = ahead_end (a, pos); q; q = first_from (a, end)) {
    if (q->state == AHEAD_TO_ASK && q->count > 0) {
      q->state = AHEAD_ASKED;
      return q;
    }
    end = q->offset + q->count;
  }
  return new_question (a, end);
}

int
ahead_answer (struct ahead *a, struct ahead_question *q,
              const struct extents *list)
{
  const uint64_t end = q->offset + q->count;

  if (q->state == AHEAD_STALE) {
    free_question (q);
    return 0;
  }

  q->state = AHEAD_TO_ASK;
  a->last_data = data_in_all (list);
  a->last_extents = list->len;
  if (append (&q->got, list) == 0) {
    if (list->len > 0)
      q->offset = MIN (extents_end (list), end);
    q->count = end - q->offset;
    if (join (a) == 0)
      return 0;
  }
  ahead_restart (a);
  return -1;
}
