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

#include "cleanup.h"
#include "inherit.h"
#include "rounding.h"

/* The object: this header, and from HEADER_SIZE on the words of the map.  It is
 * this machine's, so nothing is converted.
 */
#define HEADER_SIZE 4096
#define MAGIC "NBDCLSHM"

/* What must be the same for the bits to be taken over. */
struct circumstances {
  char boot[37];          /* the kernel's boot id */
  uint8_t uuid[METADATA_UUID_SIZE];
  uint64_t device, inode;
  uint64_t size;          /* of a block device */
  uint64_t region_size, regions;
};

struct header {
  char magic[8];          /* written last: before, there is nothing here */
  struct circumstances circumstances;
  /* The metadata has the first, or, while it is changed, perhaps the second. */
  _Atomic uint64_t generation, next_generation;
  atomic_bool spoilt;
};
_Static_assert (sizeof (struct header) <= HEADER_SIZE, "the header is a page");

struct inheritance {
  char name[64];
  struct header *header;
  size_t size;            /* of the whole object, bytes */
};

static size_t
object_size (const struct region_map *map)
{
  return round_up (HEADER_SIZE + region_map_words_size (map), HEADER_SIZE);
}

/* False where it cannot be known. */
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
    backend_file_place (dest, &now->device, &now->inode, &now->size) == 0;
}

/* ---- what the last process left ---- */

/* Map the object with this name, if it can be ours.  NULL if there is none. */
static struct header *
open_object (const char *name, size_t size)
{
  CLEANUP_CLOSE int fd = shm_open (name, O_RDWR, 0);
  struct stat st;
  void *p;

  if (fd == -1 || fstat (fd, &st) == -1 || st.st_uid != geteuid () ||
      !S_ISREG (st.st_mode) || (st.st_mode & 077) != 0 ||
      st.st_size != (off_t)size)
    return NULL;
  p = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return p == MAP_FAILED ? NULL : p;
}

/* Why the bits are not to be taken over, or NULL. */
static const char *
refusal (const struct header *h, const struct circumstances *now,
         uint64_t generation)
{
  const struct circumstances *then = &h->circumstances;

  if (memcmp (h->magic, MAGIC, sizeof h->magic) != 0)
    return "the last process had not got to serve it";
  if (strcmp (then->boot, now->boot) != 0)
    return "the machine was started since";
  if (memcmp (then, now, sizeof *now) != 0)
    return "they belong to another destination";
  if (generation != h->generation && generation != h->next_generation)
    return "another process has served the clone since";
  if (h->spoilt)
    return "a flush of the destination had failed";
  return NULL;
}

static void
refuse (const struct log *log, const char *why)
{
  log_info (log, "regions that the last process has not made durable are not "
            "taken over: %s", why);
}

/* ---- a new object ---- */

/* All zeroes, with memory behind every page: who touches a page for which there
 * is no room would be killed.
 */
static struct header *
create_object (const char *name, size_t size)
{
  CLEANUP_CLOSE int fd = shm_open (name, O_RDWR | O_CREAT | O_EXCL, 0600);
  void *p = MAP_FAILED;
  int err;

  if (fd == -1)
    return NULL;
  err = posix_fallocate (fd, 0, size);
  if (err == 0) {
    p = mmap (NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    err = errno;
  }
  if (p != MAP_FAILED) {
    /* Advice: it does not matter whether it is taken. */
    madvise (p, size, MADV_HUGEPAGE);
    return p;
  }
  shm_unlink (name);
  errno = err;
  return NULL;
}

/* Give the metadata a generation that no other process can have given it. */
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

/* Let the map's bits live in the object.  bits: what it holds are bits of the
 * last process.
 */
static void
move_map (struct inheritance *i, struct region_map *map, bool bits,
          const struct log *log)
{
  void *words = (char *)i->header + HEADER_SIZE;
  uint64_t regions;

  if (bits && region_map_move (map, words, &regions) == -1) {
    refuse (log, "they are damaged");
    bits = false;
  }
  if (!bits) {
    memset (words, 0, i->size - HEADER_SIZE);
    region_map_move (map, words, &regions);
  }
  if (regions > 0)
    log_info (log, "the last process has crashed: %" PRIu64 " regions that were "
              "valid and not durable are taken over", regions);
}

void
inheritance_open (struct inheritance **inheritance, struct backend *dest,
                  struct metadata *md, struct region_map *map,
                  const struct log *log)
{
  struct inheritance *i = calloc (1, sizeof *i);
  struct circumstances now;
  char uuid[37];
  const char *why = NULL;
  bool bits;

  *inheritance = NULL;
  if (i == NULL)
    return;
  if (!get_circumstances (&now, dest, md, map))
    goto without;
  uuid_unparse_lower (md->sb.uuid, uuid);
  snprintf (i->name, sizeof i->name, "/nbdkit-clone-%s", uuid);
  i->size = object_size (map);

  i->header = open_object (i->name, i->size);
  why = i->header ? refusal (i->header, &now, md->sb.generation) : NULL;
  bits = i->header && why == NULL;
  if (why)
    refuse (log, why);
  if (!bits) {
    inheritance_remove (i);
    if (i->header)
      munmap (i->header, i->size);
    i->header = create_object (i->name, i->size);
    if (i->header == NULL) {
      log_info (log, "no shared memory of %zu bytes: %m; a crash of this process "
                "is like a power cut: what clients have not flushed may be lost",
                i->size);
      goto without;
    }
    i->header->circumstances = now;
    i->header->generation = md->sb.generation;
  }
  if (begin_generation (i, md) == -1) {
    log_info (log, "metadata %s: cannot begin a new generation: %m; a crash of "
              "this process is like a power cut: what clients have not flushed "
              "may be lost", md->backend->name);
    inheritance_remove (i);
    goto without;
  }
  move_map (i, map, bits, log);
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
  if (i)
    shm_unlink (i->name);
}

void
inheritance_close (struct inheritance *i)
{
  if (i == NULL)
    return;
  if (i->header)
    munmap (i->header, i->size);
  free (i);
}
