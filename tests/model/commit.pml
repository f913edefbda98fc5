/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A model of the commit, of power cuts and of lost servers, for spin:
 * lib/store/commit.c, lib/store/region-map.c, lib/clone/gate.c, and the parts
 * of lib/clone and lib/hydration that use them.  clone.pml, beside this file,
 * models copies and ownership.
 *
 * WHAT IS MODELLED
 *
 * Two clients: a write, a write with FUA, a flush, in any order and on any
 * region.  Hydration of all regions, and the commit at its end.  A commit with
 * its five steps, its rounds, the waiters, and the one of them that leads the
 * next commit.  The map with its valid and durable bits and its list of dirty
 * sectors; bit and list are set in two steps under one lock.  Destination and
 * metadata, each with a volatile cache.  One fault at any time: a flush of the
 * destination, a write of the metadata or its flush fails; what it should have
 * made durable can be read and is never written, as on Linux.  Metadata that
 * has failed may be found to work again without a commit.  The names are those
 * of the code.
 *
 * A POWER CUT may come between any two steps.  What it can leave is kept as a
 * set for each sector: `dest_medium' has all values that the medium may have,
 * `meta_medium' all images.  A write adds to the set, a flush takes out what
 * was overwritten before the flush began.  Because each sector is kept or lost
 * by itself, "every subset of the caches" is every choice from these sets.
 * Recovery takes the bits from the image, reads SOURCE where the bit is 0 and
 * the destination where it is 1; I7 below says what may be read.  A cut is not
 * a step: the monitor checks every state.  A process after recovery is one more
 * start, in which each region begins as invalid or as durable.
 *
 * A CRASH OF THE PROCESS, with a local destination, may come there, too.  Both
 * devices keep their caches, and the valid bits survive (lib/store/inherit.h);
 * but after a failed flush it is the same as a power cut.  The monitor checks
 * what the next process reads.  That process is one more start, with CRASHED: a
 * region may be valid and dirty, with its bytes in the cache, or durable and
 * overwritten there.  The process flushes the metadata that it reads.
 *
 * A SERVER may be LOST between any two steps, that of the destination or that
 * of the metadata.  Its requests fail, those in flight included.  Any subset of
 * its cache survives: each sector reads as one value of its set.  Then
 *
 *   - the destination: the gate is closed until everything inside has left.
 *     Regions that are not durable become invalid.  If clients' changes are not
 *     covered by a whole commit, the loss is counted.  Only then the gate opens
 *     and a new connection is used.  Every request to the destination is inside
 *     the gate.  So is a request for a commit, also while it waits for the
 *     commit before, and a write with FUA from its first byte to the end of its
 *     commit.
 *   - the metadata: a new connection is used when no commit is between its
 *     write and its flush.
 *
 * With FULL the destination's flush fails because there is no space: then the
 * gate is closed, too, and a loss is always counted.
 *
 * A request that fails because a server was lost waits outside the gate and
 * begins again, a write with FUA with its first byte.  A client is told of a
 * loss once, by its next flush.  A client that connects later is told of a loss
 * only if no other client was told of it.
 *
 * WHAT IS CHECKED, in the process `monitor' and by assertions on the way:
 *
 *   I1  a bit that was set stays set (until the map is set back)
 *   I2  a bit is set by the owner, after the bytes are in the destination, and
 *       no other process writes to an invalid region
 *   I5  what is durable in the map is on the medium in every case
 *   I6  a flush that succeeds leaves durable what was valid when it came; I7
 *       has the data
 *   I7  after a cut each region has the last write that a flush or FUA covered,
 *       or a later one, or the source's bytes if there is none; never OLD.  A
 *       flush covers all writes that were completed before it, except for those
 *       whose loss its client was told of.
 *       After a crash of the process no completed write is lost, flushed or
 *       not.
 *   I8  no client ever reads something older than a write that was completed
 *       (and not lost since, with the loss counted), whatever failed; no bit
 *       depends on a flush that failed
 *   I10 complete only where all bits are durable
 *   no client is told twice of one loss; no process waits for ever ("invalid
 *   end state")
 *
 * ABSTRACTED AWAY: the parts of a region and how a copy is made (clone.pml);
 * that the bytes of a write come to the medium one sector at a time (all
 * regions are alike, and each is one sector here); the superblocks, torn
 * sectors and damage (unit/test-metadata); memory barriers (the bits are read
 * and set by atomic operations); errors of the destination's writes; a write to
 * a valid region that was done although its request failed; a second loss of
 * one server; a crash of the process between a flush that fails and the note of
 * it; time.
 *
 * The device says once that it has lost data, to the flush that fails, which
 * may be another client's.  So no flush succeeds after that one, until the map
 * is set back.
 *
 * TO RUN IT, AND TO SEE A COUNTEREXAMPLE
 *
 *   spin -a [-DBUG] commit.pml && gcc -O2 -DSAFETY -o pan pan.c
 *   ./pan -m100000             # "errors: 0", or commit.pml.trail is written
 *   spin -t -p -g [-DBUG] commit.pml
 *
 * ../test-model-spin.sh has the list of bugs and what else is defined.
 */

/* How many regions are in use: with 1, the other one is durable from the start
 * and not used.
 */
#ifndef REGIONS
#define REGIONS 2
#endif
#define ALL_REGIONS 3

/* Bitmap sectors: 1 has the bits of both regions, 2 have one bit each.  A
 * commit that has taken COMMIT_SECTORS has another round.
 */
#ifndef SECTORS
#define SECTORS 1
#endif
#ifndef COMMIT_SECTORS
#define COMMIT_SECTORS 2
#endif

/* How many requests the second client makes; the first one makes MORE. */
#ifndef REQUESTS
#define REQUESTS 1
#endif
#ifndef MORE
#define MORE 2
#endif
#define CLIENTS 2
#define FLUSH 2 /* a client's request that is no write */

/* How often a server is lost, 0 or 1: the destination's, the metadata's. */
#ifndef DEST_LOSSES
#define DEST_LOSSES 0
#endif
#ifndef META_LOSSES
#define META_LOSSES 0
#endif

/* Also: NO_HYDRATION, FULL and CRASHED, see above. */

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

byte dest[2];              /* what a read gives */
byte dest_medium[2];       /* what may be there after a cut: a set */
bool dest_dropped[2];      /* its last write was dropped by a failed flush */
byte flushing[2];          /* what the flush in flight takes out of the set */

byte meta[SECTORS];        /* the same: images, and sets of 1 << image */
byte meta_medium[SECTORS];
bool meta_dropped[SECTORS];

bool fault = true;         /* one thing may still fail */

/* ---- the servers of the two, and the gate ---- */

/* The gate closes in the step that loses the server: whoever enters in between
 * can do nothing but leave.
 */
bool dest_up = true;
bool meta_up = true;
bool gate_open = true;
byte inside;               /* a mask of processes */
bool meta_busy;            /* a commit is between its write and its flush */

/* ---- region-map.c ---- */

byte valid;                /* a bit for each region */
byte durable;
bool dirty_lock;
byte dirty;                /* the list of dirty sectors: a bit for each */

/* ---- ownership.c: the regions, as each request here has one ---- */

bool owned[2];

/* ---- commit.c; sets of processes are masks ---- */

bool running;
byte waiters;
byte lead;
byte done;
byte error;
bool flush_error;          /* no flush succeeds any more */
bool metadata_failed;
bool complete;
bool may_set = true;       /* the mode is rw */
#ifdef FULL
bool no_space;             /* commit_wants_set_back */
#endif
byte server_lost;          /* with error: because a server was lost */

/* Of the counts of changes it only matters which are equal. */
bool uncovered;            /* changes != covered */
bool since_upto;           /* changes != upto of the running commit */

/* ---- clone.c: who was told of the loss ---- */

bool losses;               /* how many were counted */
bool client_losses[CLIENTS]; /* how many the client was told of */
bool losses_told;          /* how many some client was told of */

/* ---- what was promised, for the checks only ---- */

byte ever_valid;
byte completed[2];         /* writes that have succeeded */
byte overwritten[2];       /* what was older than one of those, forever */
byte promised[2];          /* the same, that any flush would cover now; */
byte before_loss[2];       /* and that of a client which was told of no loss */
bool told[CLIENTS];        /* which clients were told */
byte after_cut[2];         /* what may be read after a cut now */
/* For each process: what its flush, and its write, will promise. */
byte covers[USERS * 2];
byte flush_valid[USERS];
byte before[CLIENTS];

/* ---- steps on the devices ---- */

/* In a d_step.  A request that is tried again writes the same value again, and
 * a flush in flight must not take that out of the set.
 */
inline write_dest (r, value)
{
  /* I2: nobody but the owner writes to an invalid region. */
  assert ((valid & BIT (r)) || owned[r]);
  dest[r] = value;
  dest_medium[r] = dest_medium[r] | value;
  dest_dropped[r] = false;
  flushing[r] = flushing[r] & ~value
}

inline write_dest_fua (r, value)
{
  dest[r] = value;
  dest_medium[r] = value;
  dest_dropped[r] = false;
  flushing[r] = flushing[r] & ~value
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
#ifdef COVERED_AFTER_FLUSH
  uncovered = since_upto;
#endif
  failed = false
}

inline flush_destination_fails ()
{
  d_step {
    fault && dest_up -> printf ("the flush of the destination fails\n");
#ifdef FULL
    no_space = true;
#endif
    fault = false;
    flush_fails (0);
    flush_fails (1);
    flushing[0] = 0;
    flushing[1] = 0;
    failed = true;
    flush_error = true;
    may_set = false
  }
}

/* Its server was lost: what the flush has done is not known. */
inline flush_loses_destination ()
{
  d_step {
    !dest_up ->
    flushing[0] = 0;
    flushing[1] = 0;
    failed = true;
    again = true
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
       meta_up ->
       flush_sector (0);
#if SECTORS == 2
       flush_sector (1);
#endif
       meta_busy = false;
       if
       :: metadata_failed -> metadata_failed = false; may_set = true
       :: else
       fi;
#ifdef COVERED_AFTER_ROUND
       uncovered = since_upto;
#endif
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
  :: d_step { !meta_up -> failed = true; again = true }
  fi
}

/* ---- commit.c ---- */

/* Step 1: the sectors off the list, under its lock; then their bits.  Both in
 * a d_step.
 */
inline take_dirty ()
{
#if COMMIT_SECTORS == 1
  sectors = dirty & -dirty;
#else
  sectors = dirty;
#endif
  dirty = dirty & ~sectors
}

#if COMMIT_SECTORS == 1
#define FULL_ROUND (sectors != 0)
#else
#define FULL_ROUND (sectors == 3)
#endif

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
    if
    :: !again -> metadata_failed = true; may_set = false
    :: else /* it works again when its server is back */
    fi;
#ifndef FORGET_FAILED_SECTORS
    dirty = dirty | sectors;
#endif
    meta_busy = false
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
       dest_up && (meta_up || !sectors) ->
       flush_succeeds ();
#ifdef WRITE_LIVE_BITS
       image = valid & (sectors & 1 -> BITS_OF (0) : 0);
#endif
#ifdef MARK_DURABLE_EARLY
       durable = durable | image;
#endif
       write_sector (0);
#ifdef METADATA_ON_TWO_SERVERS
       skip
#else
       meta_busy = sectors != 0
#endif
     }
#endif
  :: d_step {
       fault && sectors && dest_up && meta_up ->
       printf ("a write of the metadata fails\n");
       fault = false;
       flush_succeeds ();
       failed = true;
       not_written = true
     }
  :: flush_loses_destination ()
  :: d_step {
       sectors && dest_up && !meta_up ->
       flush_succeeds ();
       failed = true;
       again = true;
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
  :: d_step { !failed && (sectors & 2) && meta_up -> write_sector (1) }
  :: d_step {
       fault && !failed && (sectors & 2) && meta_up ->
       printf ("a write of the metadata fails\n");
       fault = false;
       failed = true;
       not_written = true
     }
  :: d_step {
       !failed && (sectors & 2) && !meta_up ->
       failed = true;
       again = true;
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
          flush_error = false;
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
  :: flush_error -> d_step { sectors = 0; failed = true }
  :: else ->
     do
     :: run_round ();
        if
        :: failed || !FULL_ROUND -> break
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
  since_upto = false;
  take_dirty ();
#ifdef LEADER_WAITS_AT_GATE
  inside = inside | BIT (id)
#else
  skip
#endif
}

#ifdef JOIN_RUNNING_COMMIT
byte joined;
#endif

/* Whoever asks for a commit enters the gate before it asks, and leaves it when
 * the commit is over.  A leader that entered later would wait at the closed
 * gate for a loss that waits for a write with FUA, which is inside and waits
 * for the leader.
 */
#if defined (COMMIT_OUTSIDE_GATE) || defined (LEADER_WAITS_AT_GATE)
#define MAY_ARRIVE(id) true
#else
#define MAY_ARRIVE(id) (gate_open || (inside & BIT (id)))
#endif
#ifdef LEADER_WAITS_AT_GATE
#define MAY_LEAD(id) (gate_open || (inside & BIT (id)))
#else
#define MAY_LEAD(id) true
#endif

/* With the lock: what it has to make durable is known when it arrives. */
inline arrive (id, is_flush)
{
#if !defined (COMMIT_OUTSIDE_GATE) && !defined (LEADER_WAITS_AT_GATE)
  inside = inside | BIT (id);
#endif
  flush_valid[id] = valid;
  covers[id * 2] = promised[0];
  covers[id * 2 + 1] = promised[1];
  if
  :: is_flush && !told[id] ->
     covers[id * 2] = covers[id * 2] | before_loss[0];
     covers[id * 2 + 1] = covers[id * 2 + 1] | before_loss[1]
  :: else
  fi;
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
  :: else ->
#ifdef COVERED_IS_CHANGES
     uncovered = false
#else
     uncovered = since_upto
#endif
  fi;
  if
  :: again -> server_lost = server_lost | batch
  :: else
  fi;
  batch = 0; sectors = 0; image = 0; failed = false; not_written = false;
  again = false; since_upto = false;
  if
  :: waiters == 0 -> running = false
  :: else -> lead = waiters & -waiters /* one of them, no matter which */
  fi
}

/* clone.c: tell_losses.  A flush that would succeed tells of a loss. */
inline tell_losses (id)
{
  if
  :: client_losses[id] != losses ->
     assert (!told[id]); /* nobody is told twice */
     told[id] = true;
     losses_told = losses;
#ifdef TELL_ONE_CLIENT
     client_losses[0] = losses;
     client_losses[1] = losses;
#endif
#ifndef TELL_AGAIN
     client_losses[id] = losses;
#endif
     ok = false
  :: else
  fi
}

/* Sets ok, again.  In a d_step. */
inline learn_result (id, is_flush)
{
  done = done & ~BIT (id);
  ok = !(error & BIT (id));
  again = (server_lost & BIT (id)) != 0;
  error = error & ~BIT (id);
  server_lost = server_lost & ~BIT (id);
  inside = inside & ~BIT (id);
  if
  :: ok && is_flush -> tell_losses (id)
  :: else
  fi;
  if
  :: ok ->
     assert (!(flush_valid[id] & ~durable)); /* I6 */
     after_cut[0] = after_cut[0] & ~covers[id * 2];
     after_cut[1] = after_cut[1] & ~covers[id * 2 + 1]
  :: else
  fi;
  flush_valid[id] = 0;
  covers[id * 2] = 0;
  covers[id * 2 + 1] = 0
}

/* All of it but learn_result. */
inline commit_flush (id, is_flush)
{
  if
#ifdef CROSSING_COMMITS
  :: d_step { !dirty_lock -> arrive (id, is_flush); lead_commit (id) }
#else
  :: d_step {
       !running && !dirty_lock && MAY_ARRIVE (id) && MAY_LEAD (id) ->
       arrive (id, is_flush);
       lead_commit (id)
     }
  :: d_step {
       running && MAY_ARRIVE (id) -> arrive (id, is_flush);
#ifdef JOIN_RUNNING_COMMIT
       waiters = waiters & ~BIT (id);
       joined = joined | BIT (id)
#endif
     }
     if
     :: d_step {
          (lead & BIT (id)) && !dirty_lock && MAY_LEAD (id) ->
          lead_commit (id)
        }
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
    assert (owned[r]); /* I2 */
    /* I2.  While the gate is closed the bytes may be lost: then the map is set
     * back next.
     */
    assert (dest[r] != OLD || !gate_open);
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
 * invalid; the end of region_map_set, the release, and the request's end; to
 * enter the gate and the first look; the last step inside it and to leave it.
 */

/* A client's change is done, and counted, inside the gate. */
inline changed ()
{
#ifdef FUA_COMMITS_AGAIN
  written = wants_commit;
#endif
#ifndef COUNTED_OUTSIDE_GATE
  if
  :: !fua || wants_commit -> uncovered = true; since_upto = running
  :: else /* the destination's FUA has made it durable */
  fi;
#endif
  ok = true
}

/* The request fails because the destination was lost. */
inline lose_request (id)
{
  d_step { !dest_up -> leave (id); again = true }
}

inline leave (id)
{
  inside = inside & ~BIT (id)
}

/* As the owner of an invalid region: the bytes, then the bit. */
inline write_invalid (id, r, value, second_look)
{
#ifdef BIT_BEFORE_DATA
  d_step { !owned[r] && may_set && second_look -> owned[r] = true };
  set_bit (r);
  d_step { write_dest (r, value) }
#else
  d_step {
    !owned[r] && may_set && dest_up && second_look ->
    inside = inside | BIT (id);
    owned[r] = true;
    write_dest (r, value);
#ifdef BIT_IN_ANOTHER_STAY
    leave (id)
#endif
  }
#ifdef BIT_IN_ANOTHER_STAY
  d_step { gate_open -> inside = inside | BIT (id) }
#endif
  set_bit (r)
#endif
}

/* Enter the gate, and the first look. */
inline enter (id)
{
  was_valid = (valid & BIT (r)) != 0;
#ifdef VALID_OUTSIDE_GATE
  if
  :: !was_valid -> inside = inside | BIT (id)
  :: else
  fi
#else
  inside = inside | BIT (id)
#endif
}

/* What is complete when it begins is older. */
inline begin_write (region, with_fua)
{
  d_step {
    gate_open ->
    r = region;
    fua = with_fua;
    before[id] = completed[r];
    after_cut[r] = after_cut[r] | WRITE (id, k);
#ifndef FUA_WITHOUT_COMMIT
    wants_commit = fua && !(durable & BIT (r));
#endif
    enter (id)
  }
}

/* It is over.  If it has succeeded, what is older can come back no more.  In a
 * d_step.
 */
inline end_write ()
{
#ifdef COUNTED_OUTSIDE_GATE
  if
  :: ok && !fua -> uncovered = true; since_upto = running
  :: else
  fi;
#endif
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
  r = 0; fua = false; was_valid = false; ok = false;
#ifdef FUA_COMMITS_AGAIN
  written = false;
#endif
  k++
}

/* The change is done.  Without a commit that is all.  In a d_step. */
inline end_change (id)
{
  changed ();
#ifndef COUNTED_OUTSIDE_GATE
  if
  :: !wants_commit -> leave (id); end_write ()
  :: else ->
#ifdef FUA_LEAVES_GATE
     leave (id)
#endif
     skip
  fi
#else
  leave (id)
#endif
}

/* commit_background: metadata that has failed is written again, with what is
 * durable anyway, and not by a commit.
 */
proctype try_metadata ()
{
end:
  do
  :: d_step {
       metadata_failed && meta_up && !meta_busy ->
       meta[0] = durable & BITS_OF (0);
       meta_medium[0] = 1 << meta[0];
       meta_dropped[0] = false;
       metadata_failed = false;
       may_set = !flush_error
     }
  od
}

proctype client (byte id; byte requests)
{
  byte k, r;
  bool fua, was_valid, wants_commit, ok, again;
#ifdef FUA_COMMITS_AGAIN
  bool written;
#endif
  byte sectors, image, batch; /* of run_commit */
  bool failed, not_written;

  do
  :: k < requests && !again ->
     if
     :: r = FLUSH
     :: begin_write (0, false)
     :: begin_write (0, true)
#if REGIONS == 2
     :: begin_write (1, false)
     :: begin_write (1, true)
#endif
     fi;
attempt:
     if
     :: r == FLUSH -> wants_commit = true
     :: r != FLUSH && was_valid ->
        if
        :: d_step {
             dest_up ->
             if
             :: fua && !wants_commit -> write_dest_fua (r, WRITE (id, k))
             :: else -> write_dest (r, WRITE (id, k))
             fi;
             end_change (id)
           }
        :: lose_request (id)
        fi
     :: r != FLUSH && !was_valid ->
        if
        :: write_invalid (id, r, WRITE (id, k), true);
           d_step {
             list_sector (r);
             owned[r] = false;
             end_change (id)
           }
        :: d_step {
             !owned[r] && !may_set && dest_up ->
             wants_commit = false;
             leave (id);
             end_write ()
           }
        :: lose_request (id)
        fi
     fi;
#ifdef COUNTED_OUTSIDE_GATE
     if
     :: ok && !wants_commit -> d_step { end_write () }
     :: else
     fi;
#endif
#ifdef FUA_COMMITS_AGAIN
commit:
#endif
     if
     :: wants_commit && !again ->
        commit_flush (id, r == FLUSH);
        d_step {
          learn_result (id, r == FLUSH);
          if
          :: again
          :: else ->
             wants_commit = false;
             if
             :: r == FLUSH -> r = 0; ok = false; k++
             :: else -> end_write ()
             fi
          fi
        }
     :: else
     fi;
#if DEST_LOSSES || META_LOSSES
  /* The top of the request: it waits for the server, and begins again. */
  :: d_step { again && r == FLUSH && gate_open && meta_up -> again = false }
     goto attempt
  :: d_step {
       again && r != FLUSH && gate_open && meta_up ->
       again = false;
       enter (id)
     }
#ifdef FUA_COMMITS_AGAIN
     if
     :: written -> goto commit
     :: else
     fi;
#endif
     goto attempt
#endif
#if DEST_LOSSES || defined (FULL)
  /* clone_client_init: the client has a new connection.  It is told of what
   * nobody was told of.
   */
  :: d_step {
#ifdef NEWCOMER_KNOWS_ALL
       !again && k < requests && client_losses[id] != losses ->
       client_losses[id] = losses
#else
       !again && k < requests && client_losses[id] != losses && losses_told ->
#ifdef NEWCOMER_KNOWS_NOTHING
       client_losses[id] = 0;
#else
       client_losses[id] = losses_told;
#endif
       told[id] = true
#endif
     }
#endif
  :: k == requests && !again -> break
  od
}

proctype hydration (byte id)
{
  byte r;
  bool ok, again;
  byte sectors, image, batch;
  bool failed, not_written;

  do
  :: r < REGIONS ->
     if
     :: valid & BIT (r)
     :: write_invalid (id, r, SOURCE, gate_open && !(valid & BIT (r)));
        d_step { list_sector (r); owned[r] = false; leave (id) }
     :: !owned[r] && !may_set
     fi;
     r++
  :: r == REGIONS && valid == ALL_REGIONS ->
     commit_flush (id, false);
     d_step {
       learn_result (id, false);
       ok = false;
       if
       :: again -> again = false; r = 0
       :: else -> r = REGIONS + 1
       fi
     }
  :: r > REGIONS || (r == REGIONS && valid != ALL_REGIONS) -> break
  od
}

/* With the gate closed.  In a d_step. */
inline set_back (is_loss)
{
#ifndef LOSS_FORGETS_NOTHING
  valid = durable;
  ever_valid = valid;
  dirty = 0;
#endif
  if
  :: is_loss ->
     losses = true;
     uncovered = false;
     /* This may be read again, until somebody writes once more. */
     overwritten[0] = overwritten[0] & ~after_cut[0];
     overwritten[1] = overwritten[1] & ~after_cut[1];
     before_loss[0] = promised[0];
     before_loss[1] = promised[1];
     promised[0] = 0;
     promised[1] = 0
  :: else
  fi;
  flush_error = false;
  may_set = !metadata_failed
}

#if DEST_LOSSES
/* Only the connection is lost; or the cache is, too, of which any subset
 * survives.
 */
inline lose_cache (r)
{
  if
  :: true
  :: survives (r, 1)
  :: survives (r, 2)
  :: survives (r, 4)
  :: survives (r, 8)
  :: survives (r, 16)
  :: survives (r, 32)
  :: survives (r, 64)
  :: survives (r, 128)
  fi
}

inline survives (r, value)
{
  dest_medium[r] & value -> dest[r] = value; dest_dropped[r] = false
}

/* The destination's server is lost, at any moment; then clone.c:
 * destination_lost, and a new connection.
 */
proctype lose_destination ()
{
  atomic {
#ifndef NEW_CONNECTION_AT_ONCE
    dest_up = false;
#endif
    gate_open = false;
    lose_cache (0);
#if REGIONS == 2
    lose_cache (1);
#endif
    printf ("the destination is lost\n")
  }
  d_step {
#ifndef LOSS_WITHOUT_GATE
    inside == 0 ->
#endif
    set_back (uncovered);
    dest_up = true;
    gate_open = true
  }
}
#endif

#ifdef FULL
/* clone.c: set_back.  The gate is closed and opened in one step: what
 * others do until all have left they may also do before it is closed.
 */
proctype set_back_if_wanted ()
{
end:
  d_step {
    no_space && inside == 0 -> set_back (true);
    no_space = false
  }
}
#endif

#if META_LOSSES
inline lose_sector (s)
{
  if
  :: meta_medium[s] & 1 -> meta[s] = 0
  :: meta_medium[s] & 2 -> meta[s] = 1
  :: meta_medium[s] & 4 -> meta[s] = 2
  :: meta_medium[s] & 8 -> meta[s] = 3
  fi;
  meta_dropped[s] = false
}

/* The same for the metadata's server. */
proctype lose_metadata ()
{
  atomic {
    meta_up = false;
    lose_sector (0);
#if SECTORS == 2
    lose_sector (1);
#endif
    printf ("the metadata is lost\n")
  }
  d_step { !meta_busy -> meta_up = true }
}
#endif

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

/* The process dies: what the next one reads.  A server may have lost more. */
#if SECTORS == 2
#define META_BITS (meta[0] | meta[1])
#else
#define META_BITS meta[0]
#endif
#ifdef CRASH_FORGETS_BITS
#define BITS_LEFT META_BITS
#else
#define BITS_LEFT (META_BITS | valid)
#endif
#define AFTER_CRASH(r) ((BITS_LEFT & BIT (r)) -> dest[r] : SOURCE)
#define CRASH (DEST_LOSSES || flush_error ||                            \
               (!(AFTER_CRASH (0) & (overwritten[0] | OLD)) &&          \
                !(AFTER_CRASH (1) & (overwritten[1] | OLD))))

/* What a client reads now. */
#define READ(r) ((valid & BIT (r)) -> dest[r] : SOURCE)
#define I8 (!gate_open ||                                               \
            (!(READ (0) & (overwritten[0] | OLD)) &&                    \
             !(READ (1) & (overwritten[1] | OLD))))

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
  :: atomic { !CRASH -> printf ("I7 is broken: a crash\n"); assert (CRASH) }
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

#ifdef CRASHED
/* The last process died: the region was valid, and its bit not in the metadata.
 * Or the metadata had been written and not flushed.
 */
inline start_taken_over (r)
{
  dest[r] = FORMER;
  dest_medium[r] = OLD | FORMER;
  completed[r] = FORMER;
  after_cut[r] = SOURCE | FORMER;
#ifdef TAKEN_OVER_AFTER_FAILED_FLUSH
  dest_dropped[r] = true;
#endif
#ifdef BIT_TAKEN_OVER_BEFORE_DATA
  dest[r] = OLD;
#endif
  valid = valid | BIT (r);
#ifdef TAKEN_OVER_AS_DURABLE
  durable = durable | BIT (r)
#else
  dirty = dirty | BIT (SECTOR_OF (r))
#endif
}

/* A write to a region that was durable has not been flushed. */
inline start_overwritten (r)
{
  start_durable (r);
  dest_medium[r] = SOURCE | FORMER;
  after_cut[r] = SOURCE | FORMER
}
#endif

init
{
  atomic {
    /* The regions are alike: invalid and durable is durable and invalid. */
    if
#if REGIONS == 2
    :: start_invalid (0); start_invalid (1)
#endif
    :: start_invalid (0); start_durable (1)
    :: start_durable (0); start_durable (1)
    fi;
    dest_medium[0] = dest[0];
    dest_medium[1] = dest[1];
    after_cut[0] = completed[0];
    after_cut[1] = completed[1];
    durable = valid;
#ifdef CRASHED
    if
    :: !(valid & BIT (0)) -> start_taken_over (0)
    :: valid & BIT (0) -> start_overwritten (0)
    fi;
#endif
    meta_medium[0] = 1 << meta[0];
#if SECTORS == 2
    meta_medium[1] = 1 << meta[1];
#endif
#ifdef NO_FLUSH_AT_START
    meta_medium[0] = meta_medium[0] | 1;
#endif
    ever_valid = valid;
    complete = durable == ALL_REGIONS;
    run monitor ();
    run try_metadata ();
    run client (0, MORE);
#if REQUESTS
    run client (1, REQUESTS);
#endif
#if DEST_LOSSES
    run lose_destination ();
#endif
#ifdef FULL
    run set_back_if_wanted ();
#endif
#if META_LOSSES
    run lose_metadata ();
#endif
#ifndef NO_HYDRATION
    run hydration (HYDRATION)
#endif
  }
}
