/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Could this history of one sector be that of a linearizable register?
 *
 * A sector is a register: requests write it, read it, zero it and trim it, many
 * at once.  Each of them is known by the moments before which it cannot have
 * taken effect (start: it had not been sent) and after which it cannot (end: it
 * had been answered).  The history is legal if each request can be given one
 * moment within its interval such that each read returns what the last change
 * before it left.
 *
 * Gibbons and Korach ("Testing Shared Memories", SIAM Journal on Computing 26,
 * 1997) show how to decide this in polynomial time if no value is written
 * twice. A cluster is a write and the reads that returned its value.  With
 *
 *   first_end   the earliest end of all requests in a cluster,
 *   last_start  the latest start,
 *
 * cluster X must come before cluster Y, as a whole, if X.first_end <
 * Y.last_start: some request of X was over before some request of Y began, and
 * a value that is gone does not come back.  The history is legal if and only if
 * no read ended before the write of its value began, and no two clusters must
 * each come before the other.  (In their words: no two forward zones overlap,
 * and no forward zone contains a backward zone.)  That finds stale reads, lost
 * writes, and reads that go from a new value back to an old one.
 *
 * Zeroes are the only value that is written more than once.  A zero request is
 * a cluster, whichever reads return zeroes.  A trim zeroes a sector or does
 * nothing: it is a cluster only if a read proves it.  A read of zeroes belongs
 * to the cluster of some zero request, trim, or initial content.  If that is
 * possible for no cluster, the history is not legal; if for only one, it is
 * that one's; if for several, nothing more is concluded.  So there is no false
 * alarm here either, but where many zero requests overlap, some illegal
 * histories are not found.
 *
 * Torn reads.  No protocol promises that reading a sector while it is written
 * returns the old content or the new one; Linux's page cache does not, and an
 * interrupt may come between any two bytes of its copying.  So a read may be a
 * mixture, byte by byte, of values each of which it could have returned, and
 * all but one of which were being written at that time.
 *
 * Histories are checked in rounds: at the end of a round no request is under
 * way.  Only the clusters whose value may still be there are kept for the next
 * round.  That loses nothing: if a later read returned another value, its
 * cluster and one in between would each have to come before the other.
 *
 * Times are in any unit; the end of one request equal to the start of another
 * counts as concurrent.
 */

#ifndef CONSISTENCY_REGISTER_H
#define CONSISTENCY_REGISTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sector.h"

enum access_type { ACCESS_READ, ACCESS_WRITE, ACCESS_ZERO, ACCESS_TRIM };

/* The access of one request to the sector. */
struct access {
  enum access_type type;
  value_t value;         /* what was read or written */
  const uint8_t *bytes;  /* if that is VALUE_OTHER */
  uint64_t start, end;
  const void *opaque;    /* the user's */
};

struct cluster {
  value_t value;
  bool certain;          /* not a trim that may have done nothing */
  uint64_t start, end;   /* of the change */
  uint64_t first_end, last_start; /* of the change and its reads */
};

/* A register between two rounds. */
struct reg {
  struct cluster *cluster; /* what may be there */
  size_t n;
};

/* The place of a register. */
struct place {
  uint64_t run, sector;
  const uint8_t *initial; /* its first content */
};

struct reg_verdict {
  bool legal;
  size_t torn;           /* reads that were mixtures */

  /* If it is not legal: */
  size_t read;           /* the earliest read that cannot be, by its end */
  value_t *allowed;      /* what it might have returned; to be freed */
  size_t nr_allowed;
};

/* A register that was not changed yet. */
extern void reg_init (struct reg *reg, const struct place *place);
extern void reg_free (struct reg *reg);

/* Check a round.  access is sorted by start.  If it is legal, reg becomes the
 * register's state after it, else it stays as it is.
 */
extern void reg_check (struct reg *reg, const struct place *place,
                       const struct access *access, size_t n,
                       struct reg_verdict *verdict);

#endif /* CONSISTENCY_REGISTER_H */
