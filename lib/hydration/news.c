/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdio.h>

#include "base/rounding.h"
#include "base/text.h"
#include "hydration/news.h"

/* Ten only if everything is valid. */
static unsigned
count_tenths (const struct news *n, uint64_t valid)
{
  return valid >= n->size ? 10 : MIN ((unsigned)(10.0 * valid / n->size), 9u);
}

void
news_init (struct news *n, uint64_t size, uint64_t valid, double now)
{
  *n = (struct news){ .size = size, .then = valid, .begun = now };
  n->told = count_tenths (n, valid);
}

unsigned
news_tenth (struct news *n, uint64_t valid, double now)
{
  const unsigned tenth = count_tenths (n, valid);

  if (tenth + 1 < n->told)
    n->told = tenth;
  if (tenth <= n->told) {
    n->waiting = false;
    return 0;
  }
  if (!n->waiting) {
    n->waiting = true;
    n->reached = now;
  }
  if (now - n->reached < NEWS_DELAY)
    return 0;
  n->waiting = false;
  n->told = tenth;
  return tenth < 10 ? tenth : 0;
}

/* ---- the messages ---- */

void
news_log_begin (const struct log *log, const struct backend *source,
                struct clone *c, bool paused)
{
  const char *dest = clone_destination (c)->name;
  const uint64_t size = clone_size (c);
  const uint64_t valid = region_map_bytes_valid (clone_map (c));

  if (source == NULL)
    log_info (log, "destination %s is complete: %s; the source is not needed",
              dest, text_size (size).s);
  else
    log_info (log, "cloning %s to %s: %s, %s of it valid (%u %%), %s left%s",
              source->name, dest, text_size (size).s, text_size (valid).s,
              text_percent (valid, size), text_size (size - valid).s,
              paused ? "; hydration is paused" : "");
}

void
news_log_tenth (const struct log *log, struct clone *c, unsigned tenth,
                uint64_t valid, const struct hydrate_status *st)
{
  char speed[80] = "";

  if (st->eta_known)
    snprintf (speed, sizeof speed, ", %s, %s left", text_rate (st->rate).s,
              text_time (st->eta).s);
  log_info (log, "destination %s: %u %% is valid, %s of %s%s",
            clone_destination (c)->name, tenth * 10, text_size (valid).s,
            text_size (clone_size (c)).s, speed);
}

void
news_log_end (const struct log *log, struct clone *c, const struct news *n,
              double now)
{
  const double took = now - n->begun;
  const uint64_t bytes = n->size - n->then;
  char speed[40] = "";

  if (took > 0)
    snprintf (speed, sizeof speed, ", %s", text_rate (bytes / took).s);
  log_info (log, "hydration is complete: destination %s stands alone; %s in "
            "%s%s", clone_destination (c)->name, text_size (bytes).s,
            text_time (took).s, speed);
}
