/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A model of the commit and of power cuts, for spin: lib/commit.c,
 * lib/region-map.c, and as much of lib/clone.c and lib/hydrate.c as they meet.
 * clone.pml, beside this file, has the copying and the ownership.
 *
 * WHAT IS MODELLED
 *
 * Two clients, one with two requests, the other with one: a write, a write with
 * FUA, a flush, in any order and on any region.  Hydration of all regions, and
 * the commit at its end.  A commit with its five steps, its rounds, those who
 * wait for it and the one of them who leads the next.  The map with its valid
 * and durable bits and its list of dirty sectors, bit and list being two steps
 * under one lock. Destination and metadata, each with a volatile cache.  One
 * fault at any time: a flush of the destination, a write of the metadata or its
 * flush fails; what it should have made durable can be read and will never be
 * written, as with Linux.  The names are those of the code.
 *
 * A POWER CUT may come between any two steps.  What it can leave is kept as a
 * set for each sector: `dest_medium' has all values that the medium may have,
 * `meta_medium' all images.  A write adds to the set, a flush takes out what
 * was overwritten before the flush began.  As sectors are kept or lost each on
 * its own, "every subset of the caches" is every choice from these sets.
 * Recovery takes the bits from the image, reads SOURCE where the bit is 0 and
 * the destination where it is 1; I7 below says what may be read.  Such a cut is
 * no step of its own: the monitor looks at every state that there is.  A life
 * after recovery is one more start: each region begins as invalid or as
 * durable.
 *
 * WHAT IS CHECKED, in the process `monitor' and by assertions on the way:
 *
 *   I1  a bit that was set stays set
 *   I2  a bit is set by the owner, after the bytes are in the destination
 *   I5  what is durable in the map is on the medium in every case
 *   I6  a flush that succeeds leaves durable what was valid when it came; I7
 *       has the data
 *   I7  after a cut each region has the last write that a flush or FUA covered,
 *       or a later one, or the source's bytes if there is none; never OLD
 *   I8  no client ever reads something older than a write that was completed,
 *       whatever failed; no bit depends on a flush that failed
 *   I10 complete only where all bits are durable
 *
 * ABSTRACTED AWAY: the parts of a region and how a copy is made (clone.pml);
 * that the bytes of a write come to the medium one sector at a time (all
 * regions are alike, and each is one sector here); the superblocks, torn
 * sectors and damage (unit/test-metadata); memory barriers (the bits are read
 * and set by atomic operations); errors of the destination's writes; time.
 *
 * The device says once that it has lost data, to the flush that fails, which may
 * be another client's.  So no flush succeeds after that one.
 *
 * TO RUN IT, AND TO SEE A COUNTEREXAMPLE
 *
 *   spin -a [-DBUG] commit.pml && gcc -O2 -DSAFETY -o pan pan.c
 *   ./pan -m100000             # "errors: 0", or commit.pml.trail is written
 *   spin -t -p -g [-DBUG] commit.pml
 *
 * ../test-model-spin.sh has the list of bugs and what else is defined.
 */

#define REGIONS 2
#define ALL_REGIONS 3

/* Bitmap sectors: 1 has the bits of both regions, 2 have one bit each.  A
 * commit with COMMIT_SECTORS has another round.
 */
#ifndef SECTORS
#define SECTORS 1
#endif
#define COMMIT_SECTORS 2

/* How many requests the second client makes; the first one makes MORE. */
#ifndef REQUESTS
#define REQUESTS 1
#endif
#ifndef MORE
#define MORE 2
#endif
#define CLIENTS 2
#define FLUSH REGIONS /* a client's request that is no write */
#define HYDRATION CLIENTS /* the number of that process */
#define USERS (CLIENTS + 1)

#define BIT(r) (1 << (r))
#define SECTOR_OF(r) ((r) % SECTORS)
#if SECTORS == 1
#define BITS_OF(s) ALL_REGIONS
#else
#define BITS_OF(s) BIT (s)
#endif

/* What a region can hold: one bit each, so that sets are masks. */
#define OLD 1    /* what the destination held before the clone */
#define SOURCE 2
#define FORMER 4 /* written and flushed in an earlier life */
#define WRITE(id, k) (8 << ((id) * MORE + (k)))

/* Sets of images, 1 << image, that have or have not a region's bit. */
#define IMAGES_WITH(r) ((r) == 0 -> 10 : 12)
#define IMAGES_WITHOUT(r) ((r) == 0 -> 5 : 3)

/* ---- the two devices ---- */

byte dest[REGIONS];        /* what a read gives */
byte dest_medium[REGIONS]; /* what may be there after a cut: a set */
bool dest_dropped[REGIONS];  /* its last write was dropped by a failed flush */

byte meta[SECTORS];        /* the same: images, and sets of 1 << image */
byte meta_medium[SECTORS];
bool meta_dropped[SECTORS];

bool fault = true;         /* one thing may still fail */

/* ---- region-map.c ---- */

byte valid;                /* a bit for each region */
byte durable;
bool dirty_lock;
byte dirty;                /* the list of dirty sectors: a bit for each */

/* ---- ownership.c: the regions, as each request here has one ---- */

bool owned[REGIONS];

/* ---- commit.c; sets of processes are masks ---- */

bool running;
byte waiters;
byte lead;
byte done;
byte error;
bool lost;
bool metadata_failed;
bool complete;
bool may_set = true;       /* the mode is rw */

/* ---- what was promised, for the checks only ---- */

byte ever_valid;
byte completed[REGIONS];   /* writes that have succeeded */
byte overwritten[REGIONS]; /* what was older than one of those, forever */
byte promised[REGIONS];    /* the same, that a flush would cover now */
byte after_cut[REGIONS];   /* what may be read after a cut now */
/* For each process: what its flush, and its write, will promise. */
byte covers[USERS * REGIONS];
byte flush_valid[USERS];
byte before[CLIENTS];

byte target[CLIENTS];      /* the region that a client writes to */

/* ---- steps on the devices ---- */

/* In a d_step. */
inline write_dest (r, value)
{
  /* I2: nobody but the owner writes to an invalid region. */
  assert ((valid & BIT (r)) || owned[r]);
  dest[r] = value;
  dest_medium[r] = dest_medium[r] | value;
  dest_dropped[r] = false
}

inline write_dest_fua (r, value)
{
  dest[r] = value;
  dest_medium[r] = value;
  dest_dropped[r] = false
}

/* What a flush that begins now makes impossible when it succeeds. */
inline flush_begins (r)
{
  if
  :: dest_dropped[r] -> flushing[r] = 0
  :: else -> flushing[r] = dest_medium[r] & ~dest[r]
  fi
}

inline flush_fails (r)
{
  if
  :: dest_medium[r] != dest[r] -> dest_dropped[r] = true
  :: else
  fi
}

/* Step 2.  Sets failed.  In a d_step, both of them. */
inline flush_starts ()
{
  flush_begins (0);
  flush_begins (1)
}

inline flush_succeeds ()
{
  dest_medium[0] = dest_medium[0] & ~flushing[0];
  dest_medium[1] = dest_medium[1] & ~flushing[1];
  flushing[0] = 0;
  flushing[1] = 0;
  failed = false
}

inline flush_destination_fails ()
{
  d_step {
    fault -> printf ("the flush of the destination fails\n");
    fault = false;
    flush_fails (0);
    flush_fails (1);
    flushing[0] = 0;
    flushing[1] = 0;
    failed = true;
    lost = true;
    may_set = false
  }
}

inline write_sector (s)
{
  if
  :: sectors & BIT (s) ->
     meta[s] = image & BITS_OF (s);
     meta_medium[s] = meta_medium[s] | (1 << meta[s]);
     meta_dropped[s] = false
  :: else
  fi
}

inline flush_sector (s)
{
  if
  :: !meta_dropped[s] -> meta_medium[s] = 1 << meta[s]
  :: else
  fi
}

inline drop_sector (s)
{
  if
  :: meta_medium[s] != 1 << meta[s] -> meta_dropped[s] = true
  :: else
  fi
}

/* Steps 4 and 5. */
inline flush_metadata ()
{
  if
  :: d_step {
       skip;
       flush_sector (0);
#if SECTORS == 2
       flush_sector (1);
#endif
       if
       :: metadata_failed -> metadata_failed = false; may_set = true
       :: else
       fi;
       durable = durable | image
     }
  :: d_step {
       fault -> printf ("the flush of the metadata fails\n");
       fault = false;
       failed = true;
       drop_sector (0);
#if SECTORS == 2
       drop_sector (1);
#endif
       skip
     }
  fi
}

/* ---- commit.c ---- */

/* Step 1: the sectors off the list, under its lock; then their bits.  Both in
 * a d_step.
 */
inline take_dirty ()
{
  sectors = dirty;
  dirty = 0
}

inline copy_bits ()
{
  image = 0;
  if
  :: sectors & 1 -> image = valid & BITS_OF (0)
  :: else
  fi;
  if
  :: sectors & 2 -> image = image | (valid & BITS_OF (1))
  :: else
  fi
}

inline metadata_has_failed ()
{
#ifdef REVERT_ON_FAILED_COMMIT
  d_step { valid = durable; skip };
#endif
  d_step {
    !dirty_lock ->
    metadata_failed = true;
    may_set = false;
#ifndef FORGET_FAILED_SECTORS
    dirty = dirty | sectors;
#endif
    skip
  }
}

/* Steps 1 and 2, and the first sector of step 3.  The dirty sectors are taken.
 * What is written between the copy of the bits and the flush is flushed, too:
 * that they are one step is the stricter case, and so it is with the end of
 * the flush and the first write.
 */
inline flush_and_write ()
{
#if defined (SNAPSHOT_AFTER_FLUSH)
  d_step { flush_starts () };
  if
  :: flush_destination_fails ()
  :: d_step { flush_succeeds (); copy_bits (); write_sector (0) }
#elif defined (COMMIT_BEFORE_FLUSH)
  d_step { copy_bits (); write_sector (0) };
  d_step { flush_sector (0); flush_starts () };
  if
  :: flush_destination_fails ()
  :: d_step { flush_succeeds () }
#else
  d_step { copy_bits (); flush_starts () };
  if
  :: flush_destination_fails ()
  :: d_step {
       flush_succeeds ();
#ifdef WRITE_LIVE_BITS
       image = valid & (sectors & 1 -> BITS_OF (0) : 0);
#endif
#ifdef MARK_DURABLE_EARLY
       durable = durable | image;
#endif
       write_sector (0)
     }
#endif
  :: d_step {
       fault && sectors -> printf ("a write of the metadata fails\n");
       fault = false;
       flush_succeeds ();
       failed = true;
       not_written = true
     }
  fi
}

/* The second sector of step 3, if there is one, which may fail. */
inline write_second_sector ()
{
#if SECTORS == 2
  if
  :: failed || !(sectors & 2)
  :: d_step { !failed && (sectors & 2) -> write_sector (1) }
  :: d_step {
       fault && !failed && (sectors & 2) ->
       printf ("a write of the metadata fails\n");
       fault = false;
       failed = true;
       not_written = true
     }
  fi
#else
  skip
#endif
}

/* Sets failed. */
inline run_round ()
{
  flush_and_write ();
  if
  :: sectors && (!failed || not_written) ->
     write_second_sector ();
     if
     :: !failed -> flush_metadata ()
     :: else
     fi;
     if
     :: failed -> metadata_has_failed ()
     :: else
     fi
  :: else ->
#ifdef RETRY_AFTER_LOST_FLUSH
     if
     :: failed ->
        d_step {
          !dirty_lock ->
          dirty = dirty | sectors;
          lost = false;
          may_set = true
        }
     :: else
     fi
#else
     skip
#endif
  fi
}

/* The sectors of the first round are taken. */
inline run_commit ()
{
  if
  :: lost -> d_step { sectors = 0; failed = true }
  :: else ->
     do
     :: run_round ();
        if
        :: failed || sectors != BIT (COMMIT_SECTORS) - 1 -> break
        :: else -> d_step { !dirty_lock -> take_dirty () }
        fi
     od;
     skip
  fi
}

/* Take the lead, and the dirty sectors.  In a d_step. */
inline lead_commit (id)
{
  running = true;
  lead = lead & ~BIT (id);
  batch = waiters;
  waiters = 0;
  take_dirty ()
}

#ifdef JOIN_RUNNING_COMMIT
byte joined;
#endif

/* With the lock: what it has to make durable is known when it arrives. */
inline arrive (id)
{
  flush_valid[id] = valid;
  covers[id * REGIONS] = promised[0];
  covers[id * REGIONS + 1] = promised[1];
  waiters = waiters | BIT (id)
}

inline finish_commit ()
{
  complete = complete || (!failed && durable == ALL_REGIONS);
#ifdef JOIN_RUNNING_COMMIT
  batch = batch | joined;
  joined = 0;
#endif
  done = done | batch;
  if
  :: failed -> error = error | batch
  :: else
  fi;
  batch = 0; sectors = 0; image = 0; failed = false; not_written = false;
  if
  :: waiters == 0 -> running = false
  :: else -> lead = waiters & -waiters /* one of them, no matter which */
  fi
}

/* Sets ok.  In a d_step. */
inline learn_result (id)
{
  done = done & ~BIT (id);
  ok = !(error & BIT (id));
  error = error & ~BIT (id);
  if
  :: ok ->
     assert (!(flush_valid[id] & ~durable)); /* I6 */
     after_cut[0] = after_cut[0] & ~covers[id * REGIONS];
     after_cut[1] = after_cut[1] & ~covers[id * REGIONS + 1]
  :: else
  fi;
  flush_valid[id] = 0;
  covers[id * REGIONS] = 0;
  covers[id * REGIONS + 1] = 0
}

/* All of it but learn_result. */
inline commit_flush (id)
{
  if
#ifdef CROSSING_COMMITS
  :: d_step { !dirty_lock -> arrive (id); lead_commit (id) }
#else
  :: d_step { !running && !dirty_lock -> arrive (id); lead_commit (id) }
  :: d_step {
       running -> arrive (id);
#ifdef JOIN_RUNNING_COMMIT
       waiters = waiters & ~BIT (id);
       joined = joined | BIT (id)
#endif
     }
     if
     :: d_step { (lead & BIT (id)) && !dirty_lock -> lead_commit (id) }
     :: done & BIT (id)
     fi
#endif
  fi;
  if
  :: done & BIT (id)
  :: else ->
     run_commit ();
     d_step { finish_commit () }
  fi
}

/* ---- region-map.c: region_map_set ---- */

/* The bit becomes visible, under the lock of the list. */
inline set_bit (r)
{
  d_step {
#ifndef SET_BEFORE_LISTED
    !dirty_lock -> dirty_lock = true;
#endif
    assert (owned[r]);       /* I2 */
    assert (dest[r] != OLD); /* I2 */
    valid = valid | BIT (r);
    ever_valid = ever_valid | BIT (r)
  }
}

/* The sector is on the list, and the lock is given up.  In a d_step. */
inline list_sector (r)
{
  dirty = dirty | BIT (SECTOR_OF (r));
  dirty_lock = false
}

/* ---- clone.c, hydrate.c ---- */

/* Steps that nobody can tell apart are one: to take ownership, and the look
 * after that, which only an owner can outdate, and the write to what is still
 * invalid; the end of region_map_set, the release, and the request's end.
 */

/* As the owner of an invalid region: the bytes, then the bit. */
inline write_invalid (r, value, second_look)
{
#ifdef BIT_BEFORE_DATA
  d_step { !owned[r] && may_set && second_look -> owned[r] = true };
  set_bit (r);
  d_step { write_dest (r, value) }
#else
  d_step {
    !owned[r] && may_set && second_look -> owned[r] = true;
    write_dest (r, value)
  }
  set_bit (r)
#endif
}

/* What is complete when it begins is older.  The first look is here too. */
inline begin_write (region, with_fua)
{
  d_step {
    skip;
    r = region;
    fua = with_fua;
    target[id] = r;
    before[id] = completed[r];
    after_cut[r] = after_cut[r] | WRITE (id, k);
    was_valid = (valid & BIT (r)) != 0;
#ifndef FUA_WITHOUT_COMMIT
    wants_commit = fua && !(durable & BIT (r))
#endif
  }
}

/* It is over.  If it has succeeded, what is older can come back no more.  In a
 * d_step.
 */
inline end_write ()
{
  if
  :: ok ->
     completed[r] = completed[r] | WRITE (id, k);
     overwritten[r] = overwritten[r] | before[id];
     promised[r] = promised[r] | before[id];
     if
     :: fua -> after_cut[r] = after_cut[r] & ~before[id]
     :: else
     fi
  :: else
  fi;
  before[id] = 0;
  target[id] = 0;
  r = 0; fua = false; was_valid = false; ok = false;
  k++
}

proctype client (byte id; byte requests)
{
  byte k, r;
  bool fua, was_valid, wants_commit, ok;
  byte flushing[REGIONS], sectors, image, batch; /* of run_commit */
  bool failed, not_written;

  do
  :: k < requests ->
     if
     :: r = FLUSH
     :: begin_write (0, false)
     :: begin_write (0, true)
     :: begin_write (1, false)
     :: begin_write (1, true)
     fi;
     if
     :: r == FLUSH -> wants_commit = true
     :: r != FLUSH && was_valid ->
        d_step {
          if
          :: fua && !wants_commit -> write_dest_fua (r, WRITE (id, k))
          :: else -> write_dest (r, WRITE (id, k))
          fi;
          ok = true;
          if
          :: !wants_commit -> end_write ()
          :: else
          fi
        }
     :: r != FLUSH && !was_valid ->
        if
        :: write_invalid (r, WRITE (id, k), true);
           d_step {
             list_sector (r);
             owned[r] = false;
             ok = true;
             if
             :: !wants_commit -> end_write ()
             :: else
             fi
           }
        :: d_step {
             !owned[r] && !may_set -> wants_commit = false;
             end_write ()
           }
        fi
     fi;
     if
     :: wants_commit ->
        commit_flush (id);
        d_step {
          learn_result (id);
          wants_commit = false;
          if
          :: r == FLUSH -> r = 0; ok = false; k++
          :: else -> end_write ()
          fi
        }
     :: else
     fi
  :: else -> break
  od
}

proctype hydration (byte id)
{
  byte r;
  bool ok;
  byte flushing[REGIONS], sectors, image, batch;
  bool failed, not_written;

  do
  :: r < REGIONS ->
     if
     :: valid & BIT (r)
     :: write_invalid (r, SOURCE, !(valid & BIT (r)));
        d_step { list_sector (r); owned[r] = false }
     :: !owned[r] && !may_set
     fi;
     r++
  :: else -> break
  od;
  if
  :: valid == ALL_REGIONS ->
     commit_flush (id);
     d_step { learn_result (id); ok = false }
  :: else
  fi
}

/* ---- what must be true in every state ---- */

#define I1 ((valid & ever_valid) == ever_valid)

#define ON_MEDIUM(r)                                                    \
  (!(durable & BIT (r)) ||                                              \
   !(meta_medium[SECTOR_OF (r)] & IMAGES_WITHOUT (r)))
#define I5 (!(durable & ~valid) && ON_MEDIUM (0) && ON_MEDIUM (1))

/* Cut the power, recover, read: with the bit and without it. */
#define READ_BACK(r)                                                    \
  ((!(meta_medium[SECTOR_OF (r)] & IMAGES_WITH (r)) ||                  \
    !(dest_medium[r] & ~after_cut[r])) &&                               \
   (!(meta_medium[SECTOR_OF (r)] & IMAGES_WITHOUT (r)) ||               \
    (after_cut[r] & SOURCE)))
#define I7 (READ_BACK (0) && READ_BACK (1))

/* What a client reads now. */
#define READ(r) ((valid & BIT (r)) -> dest[r] : SOURCE)
#define I8 (!(READ (0) & (overwritten[0] | OLD)) &&                     \
            !(READ (1) & (overwritten[1] | OLD)))

#define I10 (!complete || durable == ALL_REGIONS)

proctype monitor ()
{
end:
  if
  :: atomic { !I1 -> printf ("I1 is broken\n"); assert (I1) }
  :: atomic { !I5 -> printf ("I5 is broken\n"); assert (I5) }
  :: atomic {
       !I7 ->
       printf ("I7 is broken: the power is cut\n");
       printf ("region 0: on the medium %d of %d\n",
               dest_medium[0], after_cut[0]);
       printf ("region 1: on the medium %d of %d\n",
               dest_medium[1], after_cut[1]);
       assert (I7)
     }
  :: atomic { !I8 -> printf ("I8 is broken\n"); assert (I8) }
  :: atomic { !I10 -> printf ("I10 is broken\n"); assert (I10) }
  fi
}

/* One region at the start of a life. */
inline start_invalid (r)
{
  dest[r] = OLD;
  completed[r] = SOURCE
}

inline start_durable (r)
{
  dest[r] = FORMER;
  completed[r] = FORMER;
  valid = valid | BIT (r);
  meta[SECTOR_OF (r)] = meta[SECTOR_OF (r)] | BIT (r)
}

init
{
  atomic {
    /* The regions are alike: invalid and durable is durable and invalid. */
    if
    :: start_invalid (0); start_invalid (1)
    :: start_invalid (0); start_durable (1)
    :: start_durable (0); start_durable (1)
    fi;
    dest_medium[0] = dest[0];
    dest_medium[1] = dest[1];
    after_cut[0] = completed[0];
    after_cut[1] = completed[1];
    meta_medium[0] = 1 << meta[0];
#if SECTORS == 2
    meta_medium[1] = 1 << meta[1];
#endif
    durable = valid;
    ever_valid = valid;
    complete = valid == ALL_REGIONS;
    run monitor ();
    run client (0, MORE);
    run client (1, REQUESTS);
    run hydration (HYDRATION)
  }
}
