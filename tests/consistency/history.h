/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* All that clients asked and were answered, in rounds, and the judgement of it:
 * each sector is a register (register.h).
 *
 * A round is an array of requests, all of which have been answered when it is
 * checked.  Rounds are kept, so that a failure can be told with what led to it,
 * as far as HISTORY_KEPT goes.  Not to be used from several threads at once.
 */

#ifndef CONSISTENCY_HISTORY_H
#define CONSISTENCY_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "request.h"

/* Bytes of old rounds. */
#define HISTORY_KEPT (UINT64_C (256) << 20)

struct history;

struct history_counts {
  uint64_t requests;
  uint64_t reads;       /* of a sector, each checked */
  uint64_t concurrent;  /* those of them that overlapped a change of it */
  uint64_t torn;        /* those that were mixtures of old and new */
};

/* The disk from offset on, size bytes, with its initial content, which must
 * stay there for as long as the history.
 */
extern struct history *history_new (uint64_t run, uint64_t offset,
                                    uint64_t size, const uint8_t *initial);
extern void history_free (struct history *h);

/* Room for n requests, for clients to fill in.  Those that stay zeroes are not
 * there.
 */
extern struct request *history_begin_round (struct history *h, size_t n);

/* Check the round.  False if it is illegal; that is told on stderr. */
extern bool history_end_round (struct history *h);

extern struct history_counts history_counts (const struct history *h);

#endif /* CONSISTENCY_HISTORY_H */
