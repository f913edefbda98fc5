/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the files of the backend for regular files and block devices share.
 * Nothing else includes this.
 */

#ifndef CLONE_FILE_INTERNAL_H
#define CLONE_FILE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "backend/backend.h"
#include "backend/write-behind.h"

struct file {
  struct backend b;
  int fd;
  int fua_fd;        /* opened O_DSYNC, see file.c; -1 if read-only */
  int once_fd;       /* opened O_DIRECT, for file_pread_once; -1: none */
  struct write_behind write_behind; /* with a descriptor of its own */
  bool named;        /* false: only backend_file_publish gives it its name */
  bool is_block;     /* a block device */
  dev_t dev;         /* a file's device and inode, or a block device's number */
  ino_t ino;
  uint32_t block_size; /* the alignment that fallocate needs; 1 for a file */

  /* Set when the file system or device turns out not to support it. */
  _Atomic bool no_punch;
  _Atomic bool no_zero_range;
  _Atomic bool no_allocate;
  _Atomic bool no_direct;

  /* See file-extents.c. */
  pthread_mutex_t data_lock;      /* protects: */
  uint64_t data_start, data_end;  /* the last run of data that was found */
  uint64_t holes_made;            /* calls of file_forget_data */
};

static inline struct file *
to_file (struct backend *b)
{
  return (struct file *)b;
}

/* file.c */

/* A new object for params->name, with nothing open.  NULL, logged. */
extern struct file *file_new (const struct backend_params *params,
                              const struct log *log);
extern void file_close (struct backend *b);

/* Learn from the open descriptor what the file is, and how large.  -1 on
 * failure: *reason says why, or is NULL, and then errno does.
 */
extern int file_identify (struct file *f, const char **reason);

/* Open the other descriptors. */
extern int file_open_others (struct file *f);

/* The name of an open file in /proc.  It does not exist where /proc is not
 * mounted.
 */
#define FILE_PROC_NAME_SIZE (sizeof "/proc/self/fd/" + 3 * sizeof (int))
extern void file_proc_name (const struct file *f,
                            char name[FILE_PROC_NAME_SIZE]);

/* Log that opening or creating failed: for this reason, or, if that is NULL,
 * with errno's text.  errno ENOENT becomes EIO, because backend_open's callers
 * take ENOENT to mean that the path does not exist.
 */
extern void file_log_failure (const char *verb,
                              const struct backend_params *params,
                              const struct log *log, const char *reason);

extern bool file_is_same (const struct file *f, const struct stat *st);

/* file-identity.c: the first line of a file that /sys has about a block device.
 * False if there is none.
 */
extern bool file_read_sys (dev_t dev, const char *name, char *text,
                           size_t size);

/* Is b a struct file? */
extern bool is_file_backend (const struct backend *b);

/* file-lock.c */

/* Own the file.  -1, logged; errno is EBUSY if another process owns it. */
extern int file_lock (struct file *f, const char *role);

/* Check, for a reader that takes no lock, that QEMU does not write to the
 * file.  -1, logged; errno is EBUSY if it does.
 */
extern int file_check_writer (struct file *f, const char *role);

/* file-transfer.c */

extern int file_pread (struct backend *b, const struct segment *seg, size_t n);
extern int file_pwrite (struct backend *b, const struct segment *seg, size_t n,
                        unsigned flags);
extern int file_flush (struct backend *b);
extern int file_share (struct backend *b, struct backend *from, uint64_t count,
                       uint64_t offset);
extern void file_write_behind (struct backend *b);

/* Replace errno by one that backend.h allows.  Returns -1. */
extern int file_failed (void);

/* Write or sync with all errors handled.  -1 with an errno of backend.h's. */
extern int file_write_all (int fd, const char *buf, size_t count,
                           uint64_t offset);
extern int file_sync (int fd);

/* Read all bytes.  -1 with an errno of backend.h's. */
extern int file_read_all (int fd, char *buf, size_t count, uint64_t offset);

/* file-read-once.c */

extern int file_pread_once (struct backend *b, void *buf, size_t count,
                            uint64_t offset);

/* file-zero.c */

extern int file_zero (struct backend *b, uint64_t count, uint64_t offset,
                      unsigned flags);
extern int file_trim (struct backend *b, uint64_t count, uint64_t offset,
                      unsigned flags);

/* file-extents.c */

extern int file_extents (struct backend *b, uint64_t count, uint64_t offset,
                         unsigned flags, struct extents *list);

/* Data may have become a hole, just now. */
extern void file_forget_data (struct file *f);

#endif /* CLONE_FILE_INTERNAL_H */
