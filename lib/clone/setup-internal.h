/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files setup*.c share. */

#ifndef CLONE_SETUP_INTERNAL_H
#define CLONE_SETUP_INTERNAL_H

#include "clone/setup.h"
#include "store/superblock.h"

/* What is open so far, and what must be undone if the rest fails. */
struct setup_work {
  const struct setup *s;
  const struct log *log;
  char *metadata_name;
  struct backend *source, *dest, *meta;
  struct metadata *md;
  struct region_map *map;
  bool created_dest, created_meta;
  bool moved_dest; /* another file than before */
};

/* All functions return -1 on failure, which has been logged. */

/* The source must be there. */
extern int setup_open_source (struct setup_work *w);

/* Is the destination, if it is open, large enough? */
extern int setup_check_destination_size (struct setup_work *w, uint64_t size);

/* Is the region size a multiple of a server's minimum block size?  b may be
 * NULL.
 */
extern int setup_check_block_size (struct setup_work *w,
                                   const struct backend *b, const char *role,
                                   uint64_t region_size);

/* Make w->map, in which no region is valid, for w->md. */
extern int setup_new_map (struct setup_work *w);

/* setup-reuse.c: go on with the clone whose metadata is in w->meta. */
extern int setup_reuse (struct setup_work *w);

/* setup-create.c: make a new clone. */
extern int setup_create (struct setup_work *w,
                         enum metadata_presence presence);

#endif /* CLONE_SETUP_INTERNAL_H */
