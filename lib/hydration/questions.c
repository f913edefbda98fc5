/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Questions about the source's extents.  The plan decides what to ask
 * (ahead.h).  Any worker asks, on its own channel.
 */

#include <config.h>

#include <errno.h>

#include "backend/channel.h"
#include "base/cleanup.h"
#include "base/extents.h"
#include "hydration/plan.h"
#include "hydration/private.h"

static void
question_answered (struct io *io)
{
  struct question *question = io->opaque;
  struct worker *w = question->w;
  struct hydrate *h = w->h;

  /* A range whose extents are unknown is data. */
  if (io->error) {
    extents_clear (&question->answer);
    extents_add (&question->answer, io->offset, io->count, 0);
  }
  w->questions--;
  {
    LOCK_FOR_SCOPE (&h->lock);
    if (io->error == ENOTCONN)
      plan_unanswered (&h->plan, question->question);
    else
      plan_answer (&h->plan, question->question, &question->answer);
    extents_free (&question->answer);
    question->question = NULL;
    h->questions--;
  }
  hydrate_wake (h);
}

/* NULL: there is nothing to ask now. */
static struct question *
question_next (struct worker *w)
{
  struct hydrate *h = w->h;
  struct question *question = h->question;
  struct ahead_question *q;
  LOCK_FOR_SCOPE (&h->lock);

  if (!admission_is_open (w) || (q = plan_ask (&h->plan)) == NULL)
    return NULL;
  /* There is a free slot: the plan has no more questions than that. */
  while (question->question)
    question++;
  *question = (struct question){
    .question = q, .w = w,
    .io = {
      .type = IO_EXTENTS, .offset = q->offset, .count = q->count,
      .extents = &question->answer, .done = question_answered,
      .opaque = question,
    },
  };
  h->questions++;
  return question;
}

void
questions_ask (struct worker *w)
{
  struct question *question;

  while ((question = question_next (w)) != NULL) {
    w->questions++;
    channel_submit (w->from, &question->io);
  }
}
