/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* All requests of the clients with their answers, in rounds, and the judgement
 * whether they are legal: each sector is a register (register.h).
 *
 * A round is an array of requests, all of which have been answered when it is
 * checked.  Rounds are kept, up to HISTORY_KEPT, so that a failure is printed
 * with the requests that led to it.  Not thread-safe.
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

/* A history of `size' bytes of the disk from `offset' on.  The initial content
 * must stay in memory until the history is freed.
 */
extern struct history *history_new (uint64_t run, uint64_t offset,
                                    uint64_t size, const uint8_t *initial);
extern void history_free (struct history *h);

/* An array of n requests, for clients to fill in.  Requests that stay zero are
 * ignored.
 */
extern struct request *history_begin_round (struct history *h, size_t n);

/* Check the round.  False if it is illegal, with a message on stderr. */
extern bool history_end_round (struct history *h);

extern struct history_counts history_counts (const struct history *h);

#endif /* CONSISTENCY_HISTORY_H */
