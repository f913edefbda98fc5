/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A request of a client, from its choice to its answer. */

#ifndef CONSISTENCY_REQUEST_H
#define CONSISTENCY_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "sector.h"

enum request_type {
  REQUEST_READ, REQUEST_WRITE, REQUEST_ZERO, REQUEST_TRIM, REQUEST_FLUSH,
  REQUEST_CACHE, REQUEST_EXTENTS,
};
#define REQUEST_TYPES 7

/* A sector that was read and whose value is VALUE_OTHER. */
struct other {
  uint64_t index; /* in the request */
  struct other *next;
  uint8_t bytes[SECTOR];
};

struct request {
  enum request_type type;
  unsigned connection;
  uint32_t flags;        /* LIBNBD_CMD_FLAG_* */
  uint32_t count;        /* bytes, 0 for a flush */
  uint64_t offset;       /* bytes; both are multiples of SECTOR */
  uint64_t start, end;   /* nanoseconds since the beginning */
  bool refused;          /* a fast zero request that would not be fast */

  value_t value;         /* REQUEST_WRITE */
  /* What was read, sector by sector: REQUEST_READ, and REQUEST_EXTENTS, where
   * it is VALUE_ZERO or VALUE_NONE.
   */
  value_t *seen;
  struct other *other;
};

static inline uint64_t
request_first (const struct request *r)
{
  return r->offset / SECTOR;
}

static inline uint64_t
request_sectors (const struct request *r)
{
  return r->count / SECTOR;
}

extern void request_free (struct request *r);

/* The bytes of a sector whose value is VALUE_OTHER. */
extern const uint8_t *request_bytes (const struct request *r,
                                     uint64_t sector);

/* One line, with what it has to do with this sector. */
extern void request_print (FILE *fp, const struct request *r,
                           uint64_t sector);

#endif /* CONSISTENCY_REQUEST_H */
