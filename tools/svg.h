/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map of a disk as a picture in SVG. */

#ifndef CLONE_SVG_H
#define CLONE_SVG_H

#include "cells.h"

/* Write the picture to a file, which is replaced if it exists.  title is the
 * name of the clone.  -1 on failure, which is logged.
 */
extern int svg_write (const char *file, const struct cells *cells,
                      const char *title);

#endif /* CLONE_SVG_H */
