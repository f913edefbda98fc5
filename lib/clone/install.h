/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Install: the one way in which regions become valid.
 *
 * To install a range is to do four things in this order (I2, I3):
 *
 *   own         nobody else owns any byte of the range until the release
 *   look again  regions that have become valid meanwhile are left alone: they
 *               hold newer data.  A look before ownership is only a hint
 *   write       write the bytes to the destination, and wait for the answer
 *   set         the regions become valid; only then is the range released
 *
 * Clients' changes, copies for clients and hydration all do this here.  The
 * rules around it:
 *
 *   - Nobody owns anything while it reads from the source.  The source does not
 *     change: read it first.
 *   - An installer owns one range at a time, so no two wait for each other.
 *   - Everything happens inside the gate, which is entered first (gate.h).
 *   - A valid region needs no owner, neither to read nor to write it (I4).
 *
 * There are two forms.  The blocking form, for clients' threads:
 *
 *   install_own
 *   while ((r = install_next) == 1)
 *     write [i->pos, i->run_end) to the destination
 *     install_set
 *   install_release
 *
 * The callback form, for a loop, which must not wait:
 *
 *   install_enter       fails while the gate is closed
 *   install_request     true: the range is owned; false: i->owned is called
 *                       when it is
 *   install_next        1: start to write the run
 *   install_set         when the run is written; then install_next again
 *   install_release, install_leave
 *
 * A change must write its bytes to regions that have become valid, too.  It
 * calls install_may_set instead of install_next, and install_set_all instead of
 * install_set.
 *
 * A piece is a part of one region.  Installing it writes its bytes and does not
 * make the region valid.  When all pieces are in the destination, the region is
 * made valid as a whole, under ownership of the whole region.
 *
 * All offsets are bytes.
 */

#ifndef CLONE_INSTALL_H
#define CLONE_INSTALL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/range-lock.h"
#include "clone/clone.h"
#include "clone/gate.h"

/* The kind of installer: for the log, and for test points. */
enum install_by { INSTALL_CHANGE, INSTALL_COPY, INSTALL_HYDRATION };

struct install {
  /* The caller sets these before it owns the range. */
  struct clone *clone;
  enum install_by by;
  uint64_t start, end;  /* whole regions; with piece, a part of one region */
  bool piece;
  void (*owned) (struct install *i); /* see install_request */
  void *opaque;

  /* Set by install_next: this run is invalid, and is to be written. */
  uint64_t pos, run_end;

  /* install.c's. */
  struct owner owner;
  struct gate_pass pass;
};

/* Own the range.  Waits until overlapping ranges that are owned, or were asked
 * for earlier, have been released.  The caller is inside the gate.
 */
extern void install_own (struct install *i);

/* Enter the gate.  False if it is closed.  Waits for nothing. */
extern bool install_enter (struct install *i);
extern void install_leave (struct install *i);

/* Own the range without waiting.  True: it is owned, and i->owned is not
 * called.  False: it is not owned yet.  The thread that releases the last range
 * in the way calls i->owned, once and with no lock held.  The caller is inside
 * the gate.
 */
extern bool install_request (struct install *i);

/* Find the next run that is still invalid.  1: it is [i->pos, i->run_end).
 * 0: there is none.  -1 with errno EIO: there is one, but no region can become
 * valid now (commit_may_set).
 */
extern int install_next (struct install *i);

/* The run has been written: make it valid, unless it is a piece, and go on
 * after it.
 */
extern void install_set (struct install *i);

/* For changes, which also write to regions that are valid by now.
 *
 * install_may_set returns -1 with errno EIO if no region can become valid now.
 * install_set_all makes all regions that [start, end) touches valid.  All bytes
 * of these regions must be in the destination, also those outside [start, end).
 */
extern int install_may_set (struct install *i);
extern void install_set_all (struct install *i, uint64_t start, uint64_t end);

extern void install_release (struct install *i);

/* For bytes that were copied from the source.  The length of the run of zeroes,
 * or of data, at the start of buf.  A run of zeroes is zeroed with the flags
 * that install_zero_flags returns: holes of the destination stay holes.
 */
extern uint64_t install_zero_run (const struct install *i, const void *buf,
                                  uint64_t count, bool *zero);
extern unsigned install_zero_flags (const struct clone *c);

#endif /* CLONE_INSTALL_H */
