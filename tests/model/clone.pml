/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A model of requests, copies and ownership, for spin: lib/clone and
 * lib/hydration.  commit.pml, beside this file, models the commit and power
 * cuts, and says how to run both and how to see a counterexample.
 *
 * WHAT IS MODELLED
 *
 * Two regions of two sectors each.  Two clients, each of which writes (parts of
 * regions, whole regions, across both; zeroing is the same) or trims, and
 * hydration of both regions as one range.  With -DREADS one client writes or
 * trims, one reads, and there are hydration and a copy of one region at the
 * same time (copy-on-read, or a cache request).  Each look at a bit, read of
 * the source, taking of ownership, write of a sector to the destination,
 * setting of bits and release is a step of its own.  The source is closed when
 * all regions are valid and nothing uses it.
 *
 * WHAT IS CHECKED
 *
 *   I1  a bit that was set stays set
 *   I2  an invalid region is written by its owner only; a bit is set by the
 *       owner, when no byte of the destination's old content is left
 *   I3  the source is not read by an owner, nor after it was closed
 *   I4  a read without ownership never returns older data than that of a write
 *       that was completed before it: no write is lost, and no old copy
 *       overwrites newer data
 *   I9  OLD never reaches a client, trimmed or not
 *
 * ABSTRACTED AWAY: that ownership is granted in the order of arrival (every
 * order is tried); errors; the commit ("all regions are valid" stands for
 * "complete"); regions that are too large to be copied in one piece; segments
 * that are in flight together (they are written one after the other, those of
 * two requests in every mix).
 */

#define REGION(s) ((s) / 2)
#define ALL_REGIONS 3
#define BIT(r) (1 << (r))

#define OLD 1    /* the destination's content before the clone */
#define SOURCE 2
#define WRITE(id) (4 << (id))

byte dest[4] = OLD;        /* by sectors */
byte valid;                /* a bit for each region */
byte owner[2];             /* of each region: a process, or 0 */

bool source_closed;
byte source_users = 1;     /* the clone itself */
bool source_dropped;

/* For the checks. */
byte ever_valid;
byte completed[4] = SOURCE;
byte overwritten[4];

/* ---- the source ---- */

inline source_get (got)
{
  d_step {
    got = !source_closed;
    source_users = source_users + got
  }
}

inline source_put ()
{
  d_step {
    source_users--;
    source_closed = source_closed || source_users == 0
  }
}

inline read_source ()
{
  d_step {
    assert (!source_closed);
    assert (owner[0] != _pid && owner[1] != _pid) /* I3 */
  }
}

/* ---- ownership of regions [first, last] ---- */

#define FREE(first, last)                                               \
  (owner[first] == 0 && owner[last] == 0)

inline ownership_acquire (first, last)
{
  d_step {
    FREE (first, last) ->
    owner[first] = _pid;
    owner[last] = _pid
  }
}

inline ownership_release (first, last)
{
  d_step {
    owner[first] = 0;
    owner[last] = 0
  }
}

/* ---- steps ---- */

/* May this process write to this sector? */
#define MAY_WRITE(s) ((valid & BIT (REGION (s))) || owner[REGION (s)] == _pid)

inline write_dest (s, value)
{
  d_step {
#ifndef TRIM_WITHOUT_OWNERSHIP
    assert (MAY_WRITE (s)); /* I2 */
#endif
    dest[s] = value
  }
}

inline region_map_set (first, last)
{
  d_step {
#ifndef TRIM_WITHOUT_OWNERSHIP
    assert (owner[first] == _pid && owner[last] == _pid); /* I2 */
#endif
    valid = valid | BIT (first) | BIT (last);
    ever_valid = ever_valid | valid
  }
}

/* ---- clients ---- */

inline choose (from, to, is_trim)
{
  d_step {
    skip;
    start = from;
    end = to;
    trim = is_trim;
    before[0] = completed[0];
    before[1] = completed[1];
    before[2] = completed[2];
    before[3] = completed[3]
  }
}

inline end_request ()
{
  d_step {
    s = start;
    do
    :: s < end ->
       completed[s] = completed[s] | WRITE (id);
       if
       :: trim -> skip /* any older content may be read, too */
       :: else -> overwritten[s] = overwritten[s] | before[s]
       fi;
       s++
    :: else -> break
    od
  }
}

/* The valid sectors [pos, stop): no owner is needed. */
inline change_valid ()
{
  do
  :: pos < stop ->
     if
     :: write_dest (pos, WRITE (id))
     :: trim -> skip /* a trim may do nothing */
     fi;
     pos++
  :: else -> break
  od
}

/* The sectors [pos, stop) of regions that were invalid a moment ago. */
inline change_invalid ()
{
  first = REGION (pos);
  last = REGION (stop - 1);
  head = pos % 2 == 1;
  tail = stop % 2 == 1;

  /* read_edges: without ownership */
#ifdef OWN_ACROSS_SOURCE_READ
  ownership_acquire (first, last);
#endif
  if
  :: head || tail ->
     source_get (got);
     if
     :: got -> read_source (); source_put ()
     :: else -> head = false; tail = false
     fi;
     got = false
  :: else
  fi;

#ifndef OWN_ACROSS_SOURCE_READ
#ifdef TRIM_WITHOUT_OWNERSHIP
  if
  :: trim
  :: else -> ownership_acquire (first, last)
  fi;
#else
  ownership_acquire (first, last);
#endif
#endif

#ifndef NO_SECOND_LOOK_AT_EDGES
  /* Look again: what is around the change may be newer than the source. */
  d_step {
    head = head && !(valid & BIT (first));
    tail = tail && !(valid & BIT (last))
  }
#endif
#ifdef BIT_BEFORE_DATA
  region_map_set (first, last);
#endif
#ifdef RELEASE_BEFORE_BIT
  ownership_release (first, last);
#endif
  if
  :: head -> write_dest (pos - 1, SOURCE)
  :: else
  fi;
  s = pos;
  do
  :: s < stop ->
     if
#ifdef TRIM_SHOWS_OLD
     :: trim -> skip
#endif
     :: !trim || !(valid & BIT (REGION (s))) -> write_dest (s, WRITE (id))
     :: trim && (valid & BIT (REGION (s))) ->
        if
        :: write_dest (s, WRITE (id))
        :: skip
        fi
     fi;
     s++
  :: else -> break
  od;
  if
  :: tail -> write_dest (stop, SOURCE)
  :: else
  fi;
#ifndef BIT_BEFORE_DATA
  region_map_set (first, last);
#endif
#ifdef TRIM_WITHOUT_OWNERSHIP
  if
  :: trim
  :: else -> ownership_release (first, last)
  fi;
#else
  ownership_release (first, last);
#endif
  d_step { pos = stop; s = 0; head = false; tail = false; first = 0; last = 0 }
}

proctype client (byte id)
{
  byte start, end, pos, stop, s, first, last;
  bool trim, head, tail, got;
  byte before[4];

  if
  :: choose (0, 2, false) /* a region */
  :: choose (1, 2, false) /* its end */
  :: choose (2, 3, false) /* the other one's start */
  :: choose (1, 3, false) /* across */
  :: choose (0, 4, false) /* both */
  :: choose (0, 2, true)
  :: choose (0, 4, true)
  fi;

  pos = start;
  do
  :: pos < end ->
     /* The next run of regions in one state. */
     if
     :: d_step {
          valid & BIT (REGION (pos)) ->
          stop = (pos >= 2 || (valid & 2) -> end : (end < 2 -> end : 2))
        }
        change_valid ()
     :: d_step {
          !(valid & BIT (REGION (pos))) ->
          stop = (pos >= 2 || !(valid & 2) -> end : (end < 2 -> end : 2))
        }
        change_invalid ()
     fi
  :: else -> break
  od;
  end_request ()
}

/* Reads one sector. */
proctype reader ()
{
  byte s, value, older;
  bool got;

  if
  :: s = 0
  :: s = 1
  :: s = 3
  fi;
  d_step { value = 0; older = overwritten[s] }
  if
  :: valid & BIT (REGION (s))
  :: else ->
     source_get (got);
     if
     :: got ->
        read_source ();
        source_put ();
        /* Look again, and let the destination win. */
        if
        :: valid & BIT (REGION (s))
        :: else -> value = SOURCE
        fi
     :: else
     fi
  fi;
  if
  :: value == 0 -> value = dest[s]
  :: else
  fi;
  assert (!(value & (older | OLD))) /* I4, I9 */
}

/* ---- hydration, and other copies ---- */

/* Regions [from, to]. */
proctype copy (byte from; byte to)
{
  byte s = from * 2;
  bool got;

  source_get (got);
  if
  :: got ->
     /* The plan's look. */
     if
     :: (valid & BIT (from)) && (valid & BIT (to))
     :: else ->
#ifdef OWN_ACROSS_SOURCE_READ
        ownership_acquire (from, to);
        read_source ();
#else
        read_source ();
        ownership_acquire (from, to);
#endif
        do
        :: s < to * 2 + 2 ->
           if
#ifndef NO_SECOND_LOOK
           /* Look again: a client's write that came in between wins. */
           :: valid & BIT (REGION (s)) -> s = s + 2
           :: !(valid & BIT (REGION (s))) ->
#else
           :: true ->
#endif
#ifdef BIT_BEFORE_DATA
              region_map_set (REGION (s), REGION (s));
#endif
#ifdef CANCELLED_IS_DONE
              /* Cancelled: it owns nothing, but its write is in flight. */
              if
              :: ownership_release (from, to)
              :: true
              fi;
#endif
              write_dest (s, SOURCE);
              write_dest (s + 1, SOURCE);
#ifndef BIT_BEFORE_DATA
              region_map_set (REGION (s), REGION (s));
#endif
              s = s + 2
           fi
        :: else -> break
        od;
        ownership_release (from, to)
     fi;
     source_put ()
  :: else
  fi
}

/* After a commit that made the clone complete. */
proctype drop_source ()
{
end:
  valid == ALL_REGIONS;
#ifdef CLOSE_SOURCE_AT_ONCE
  source_closed = true
#else
  source_put ()
#endif
}

/* ---- conditions that hold in every state ---- */

#define I1 ((valid & ever_valid) == ever_valid)

#define I2_OF(r)                                                        \
  (!(valid & BIT (r)) ||                                                \
   !((dest[2 * (r)] | dest[2 * (r) + 1]) & OLD))
#define I2 (I2_OF (0) && I2_OF (1))

/* The content that a client reads now. */
#define READ(s) ((valid & BIT (REGION (s))) -> dest[s] : SOURCE)
#define I4 (!(READ (0) & overwritten[0]) && !(READ (1) & overwritten[1]) && \
            !(READ (2) & overwritten[2]) && !(READ (3) & overwritten[3]))

proctype monitor ()
{
end:
  if
  :: atomic { !I1 -> printf ("I1 is broken\n"); assert (I1) }
  :: atomic { !I2 -> printf ("I2 is broken\n"); assert (I2) }
  :: atomic { !I4 -> printf ("I4 is broken: a write is lost\n"); assert (I4) }
  fi
}

init
{
  atomic {
    run monitor ();
    run client (0);
    run copy (0, 1);
#ifdef READS
    run reader ();
    run copy (0, 0);
#else
    run client (1);
#endif
    run drop_source ()
  }
}
