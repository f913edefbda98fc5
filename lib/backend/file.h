/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What backends that are files or block devices have beyond backend.h: a name
 * that can be given and taken away, and an identity.
 */

#ifndef CLONE_FILE_H
#define CLONE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"

/* backend_open and backend_create for a path. */
extern struct backend *backend_file_open (const struct backend_params *params,
                                          const struct log *log);
extern struct backend *backend_file_create (const struct backend_params *params,
                                            uint64_t size,
                                            const struct log *log);

/* Give a nameless file its name, durably.  -1, logged, on failure, for example
 * because the name exists by now.
 */
extern int backend_file_publish (struct backend *b);

/* Remove the name of a file that backend_create made, for a caller whose later
 * steps failed.  The backend stays open.
 */
extern void backend_file_unlink (struct backend *b);

/* Do two paths lead to the same file or block device, or to parts of one that
 * overlap?  Partitions and loop devices are looked through (file-same.c).
 */
extern bool backend_file_same (const char *a, const char *b);

/* Identifies a file for good: another file under the same name has another
 * identity.  All zeroes: not known, as for block devices and NBD exports.
 */
struct backend_identity {
  uint64_t inode;
  int64_t birth_sec; /* since 1970; both are 0 where this is not known */
  uint32_t birth_nsec;
};
extern void backend_file_identity (struct backend *b,
                                   struct backend_identity *id);

/* Identifies a file or block device on this machine until the next boot. */
struct backend_place {
  uint64_t device; /* number of the block device or the file's file system */
  uint64_t disk;   /* the kernel's sequence number of the disk that now has
                    * that device number; a disk that is attached again gets a
                    * new one; 0: not known */
  uint64_t inode;  /* of a file */
  uint64_t size;   /* of a block device */
};

/* -1 where b is neither. */
extern int backend_file_place (struct backend *b, struct backend_place *place);

#endif /* CLONE_FILE_H */
