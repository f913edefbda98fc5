/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The plugin's parameters: KEY=VALUE on nbdkit's command line. */

#ifndef CLONE_PARAMETERS_H
#define CLONE_PARAMETERS_H

#include <stdbool.h>

#include "clone/clone.h"
#include "clone/setup.h"
#include "hydration/hydrate.h"

struct parameters {
  struct setup setup; /* source, destination, metadata, and how to open them */
  struct clone_service service;      /* how the clone runs */
  struct hydrate_settings hydration;
  bool hydration_paused;             /* at the start */
  char *control_address;             /* NULL: no control interface */
  char *control_token;               /* NULL: none is needed */
  int progress_fd;                   /* -1: no progress lines */
};

/* The defaults, then what the user asked for. */
extern struct parameters parameters;

/* nbdkit's callbacks of these names. */
extern int parameters_config (const char *key, const char *value);
extern int parameters_config_complete (void);
extern void parameters_unload (void);

/* nbdkit's .config_help.  A default is in brackets. */
#define PARAMETERS_HELP                                                      \
  "[source=]<SOURCE>                Path or NBD URI to clone.\n"             \
  "destination=<DEST>    (required) Path or NBD URI of the copy.\n"          \
  "metadata=<META>                  Where to keep the state [DEST.clone].\n"   \
  "create=auto|always|never         When to create metadata [auto].\n"       \
  "region-size=<SIZE>               4K to 1G, a power of two [auto].\n"      \
  "hydration=on|off                 Copy in the background [on].\n"          \
  "hydration-threshold=<SIZE>       Most bytes being copied at once [16M].\n" \
  "hydration-batch-size=<SIZE>      Largest single copy [auto].\n"           \
  "hydration-rate=<SIZE>            Bytes a second, 0 for no limit [0].\n"   \
  "hydration-priority=access|sequential  What is copied first [access].\n"   \
  "copy-on-read=true|false          Keep what clients read [false].\n"       \
  "discard-passdown=true|false      Trim the destination [true].\n"          \
  "commit-interval=<SECONDS>        Between background commits [1].\n"       \
  "source-connections=<N>           To an NBD source [4].\n"                 \
  "destination-connections=<N>      To an NBD destination [4].\n"            \
  "source-timeout=<SECONDS>         Wait for a lost source [0, for ever].\n" \
  "source-check=true|false          Is it the same source? [true].\n"         \
  "control=<PATH>|<ADDRESS>:<PORT>  Where the control interface listens.\n"  \
  "control-token=+<FILE>            Password for it.\n"                      \
  "progress=stderr|<FD>             Where to write progress lines."

#endif /* CLONE_PARAMETERS_H */
