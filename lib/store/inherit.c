/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <uuid/uuid.h>

#include "backend/file.h"
#include "base/cleanup.h"
#include "base/rounding.h"
#include "store/inherit.h"
#include "store/superblock.h"

/* The object has this header, and from HEADER_SIZE on the words of the map, in
 * the machine's byte order.
 */
#define HEADER_SIZE 4096
#define MAGIC "NBDCLSHM"

/* The bits are taken over only if these are the same. */
struct circumstances {
  char boot[37];          /* the kernel's boot id */
  uint8_t uuid[METADATA_UUID_SIZE];
  struct backend_place place;
  uint64_t region_size, regions;
};

struct header {
  char magic[8];          /* written last; without it the object is void */
  struct circumstances circumstances;
  /* The metadata has the first; or, while that is changed, either of them. */
  _Atomic uint64_t generation, next_generation;
  atomic_bool spoilt;
};
_Static_assert (sizeof (struct header) <= HEADER_SIZE, "the header is a page");

struct inheritance {
  const struct log *log;
  char name[64];
  bool named;             /* the name exists, and is ours */
  int fd;                 /* of the object; holds the lock */
  struct header *header;
  size_t size;            /* of the whole object, bytes */
};

static size_t
object_size (const struct region_map *map)
{
  return round_up (HEADER_SIZE + region_map_words_size (map), HEADER_SIZE);
}

/* False if it is unknown. */
static bool
get_boot_id (char boot[37])
{
  CLEANUP_CLOSE int fd = open ("/proc/sys/kernel/random/boot_id",
                               O_RDONLY | O_CLOEXEC);

  memset (boot, 0, 37);
  return fd >= 0 && read (fd, boot, 36) == 36;
}

static bool
get_circumstances (struct circumstances *now, struct backend *dest,
                   const struct metadata *md, const struct region_map *map)
{
  memset (now, 0, sizeof *now);
  memcpy (now->uuid, md->sb.uuid, sizeof now->uuid);
  now->region_size = region_map_region_size (map);
  now->regions = region_map_regions (map);
  return get_boot_id (now->boot) &&
    backend_file_place (dest, &now->place) == 0;
}

/* ---- the last process's object ---- */

/* The object is locked as long as its process lives.  A copy of a clone has the
 * same UUID, and must not take away the object of the other one.
 */
static bool
lock_object (int fd)
{
  struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

  return fcntl (fd, F_OFD_SETLK, &lock) == 0;
}

static int
map_object (struct inheritance *i)
{
  /* MAP_POPULATE, because the hydration of a sparse disk touches all pages at
   * once.
   */
  void *p = mmap (NULL, i->size, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_POPULATE, i->fd, 0);

  if (p == MAP_FAILED)
    return -1;
  i->header = p;
  return 0;
}

/* Close the object, and keep its name. */
static void
close_object (struct inheritance *i)
{
  if (i->header)
    munmap (i->header, i->size);
  if (i->fd >= 0)
    close (i->fd);
  i->header = NULL;
  i->fd = -1;
}

/* Open and map the object.  -1 if another process uses it.  On return i->fd is
 * -1 if there is none.  If *why is set, it says why this is not an object of
 * the last process, and the object is not mapped.
 */
static int
open_object (struct inheritance *i, const char **why)
{
  struct stat st;

  i->fd = shm_open (i->name, O_RDWR, 0);
  if (i->fd == -1) {
    if (errno != ENOENT)
      *why = "the shared memory cannot be opened";
    return 0;
  }
  if (!lock_object (i->fd))
    return -1;
  if (fstat (i->fd, &st) == -1 || st.st_nlink == 0) {
    /* Another process has just removed it. */
    close_object (i);
    return 0;
  }
  if (st.st_uid != geteuid () || !S_ISREG (st.st_mode) ||
      (st.st_mode & 077) != 0)
    *why = "the shared memory has another owner or mode";
  else if (st.st_size != (off_t)i->size)
    *why = "the shared memory has another size";
  else if (map_object (i) == -1)
    *why = "the shared memory cannot be mapped";
  return 0;
}

/* Why the bits must not be taken over, or NULL. */
static const char *
inheritance_refusal (const struct header *h, const struct circumstances *now,
                     uint64_t generation)
{
  const struct circumstances *then = &h->circumstances;

  if (memcmp (h->magic, MAGIC, sizeof h->magic) != 0)
    return "the last process ended before it served the clone";
  if (strcmp (then->boot, now->boot) != 0)
    return "the machine was rebooted since";
  if (memcmp (then, now, sizeof *now) != 0)
    return "they belong to another destination";
  if (generation != h->generation && generation != h->next_generation)
    return "another process has served the clone since";
  if (h->spoilt)
    return "a flush of the destination had failed";
  return NULL;
}

static void
inheritance_refuse (const struct inheritance *i, const char *why)
{
  log_info (i->log, "regions that the last process has not made durable are "
            "not taken over: %s", why);
}

/* ---- a new object ---- */

/* Create an object of zeroes, with memory behind every page: without it, the
 * process would be killed when it touches a page for which there is no room.
 */
static int
create_object (struct inheritance *i)
{
  struct stat st;
  int err;

  i->fd = shm_open (i->name, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (i->fd == -1)
    return -1;
  /* Another process may have removed it before it was locked. */
  if (!lock_object (i->fd) || fstat (i->fd, &st) == -1)
    goto error;
  if (st.st_nlink == 0) {
    errno = EBUSY;
    goto error;
  }
  i->named = true;
  err = posix_fallocate (i->fd, 0, i->size);
  if (err != 0) {
    errno = err;
    goto error;
  }
  if (map_object (i) == -1)
    goto error;
  /* Advice: the result does not matter. */
  madvise (i->header, i->size, MADV_HUGEPAGE);
  return 0;

 error:
  err = errno;
  inheritance_remove (i);
  close_object (i);
  errno = err;
  return -1;
}

/* Give the metadata a generation that no other process has given it. */
static int
begin_generation (struct inheritance *i, struct metadata *md)
{
  uint32_t step;
  uint8_t random[16];

  uuid_generate (random);
  memcpy (&step, random, sizeof step);
  i->header->next_generation = md->sb.generation + 1 + step;
  if (metadata_set_generation (md, i->header->next_generation) == -1)
    return -1;
  i->header->generation = i->header->next_generation;
  return 0;
}

/* Keep the map's bits in the object.  If `bits' is true, the object has bits of
 * the last process.
 */
static void
move_map (struct inheritance *i, struct region_map *map, bool bits)
{
  void *words = (char *)i->header + HEADER_SIZE;
  uint64_t regions;

  if (bits && region_map_move (map, words, &regions) == -1) {
    inheritance_refuse (i, "they are damaged");
    memset (words, 0, i->size - HEADER_SIZE);
    bits = false;
  }
  if (!bits)
    region_map_move (map, words, &regions);
  if (regions > 0)
    log_info (i->log, "the last process has crashed: %" PRIu64 " regions that "
              "were valid and not durable are taken over", regions);
}

#define LIKE_A_POWER_CUT "a crash of this process is like a power cut: what " \
  "clients have not flushed may be lost"

/* Get the last process's object, if *bits, or a new one.  -1, which is logged.
 */
static int
get_object (struct inheritance *i, const struct circumstances *now,
            const struct metadata *md, bool *bits)
{
  const char *why = NULL;

  if (open_object (i, &why) == -1) {
    log_info (i->log, "another process serves a clone with this UUID, a copy "
              "perhaps, and has the shared memory %s; " LIKE_A_POWER_CUT,
              i->name);
    return -1;
  }
  i->named = i->fd >= 0;
  if (i->header)
    why = inheritance_refusal (i->header, now, md->sb.generation);
  if (why)
    inheritance_refuse (i, why);
  *bits = i->header && why == NULL;
  if (*bits)
    return 0;

  inheritance_remove (i);
  close_object (i);
  if (create_object (i) == -1) {
    log_info (i->log, "no shared memory of %zu bytes: %m; " LIKE_A_POWER_CUT,
              i->size);
    return -1;
  }
  i->header->circumstances = *now;
  i->header->generation = md->sb.generation;
  return 0;
}

/* The clone is complete.  Remove the object of a process that crashed before it
 * could do that.
 */
static void
remove_leftover (struct inheritance *i)
{
  const char *why = NULL;

  i->named = open_object (i, &why) == 0 && i->fd >= 0;
  inheritance_remove (i);
}

void
inheritance_open (struct inheritance **inheritance, struct backend *dest,
                  struct metadata *md, struct region_map *map,
                  const struct log *log)
{
  struct inheritance *i = calloc (1, sizeof *i);
  struct circumstances now;
  char uuid[37];
  bool bits;

  *inheritance = NULL;
  if (i == NULL)
    return;
  i->log = log;
  i->fd = -1;
  i->size = object_size (map);
  if (!get_circumstances (&now, dest, md, map))
    goto without;
  uuid_unparse_lower (md->sb.uuid, uuid);
  snprintf (i->name, sizeof i->name, "/nbdkit-clone-%s", uuid);

  if (md->sb.flags & METADATA_COMPLETE) {
    remove_leftover (i);
    goto without;
  }
  if (get_object (i, &now, md, &bits) == -1)
    goto without;
  if (begin_generation (i, md) == -1) {
    /* The last process's bits are taken over all the same. */
    log_info (log, "metadata %s: cannot begin a new generation: %m; "
              LIKE_A_POWER_CUT, md->backend->name);
    inheritance_remove (i);
  }
  move_map (i, map, bits);
  memcpy (i->header->magic, MAGIC, sizeof i->header->magic);
  *inheritance = i;
  return;

 without:
  inheritance_close (i);
}

void
inheritance_spoil (struct inheritance *i, bool spoilt)
{
  if (i)
    i->header->spoilt = spoilt;
}

void
inheritance_remove (struct inheritance *i)
{
  if (i == NULL || !i->named)
    return;
  shm_unlink (i->name);
  i->named = false;
}

void
inheritance_close (struct inheritance *i)
{
  if (i == NULL)
    return;
  close_object (i);
  free (i);
}
