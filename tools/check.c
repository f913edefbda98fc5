/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone check: print the damage of a store, and what to do about it. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "findings.h"
#include "nbdclone.h"
#include "store.h"

static void
print_verdict (const struct store *store)
{
  const char *name = store->backend->name;

  if (store_is_clean (store))
    printf ("%s: clean: %" PRIu64 " of %" PRIu64 " regions are valid%s\n",
            name, store->valid, store->regions,
            store->sb->flags & METADATA_COMPLETE ? ", complete" : "");
  else if (store->unknown > 0)
    printf ("%s: damaged: the state of %" PRIu64 " of %" PRIu64 " regions is "
            "unknown; nbdclone repair writes a new store when you have decided "
            "about them\n", name, store->unknown, store->regions);
  else
    printf ("%s: damaged, but the state of every region is known; "
            "nbdclone repair writes a new store without any loss\n", name);
}

static int
check (struct store *store, bool all)
{
  if (findings_print (store, all) == -1 ||
      findings_print_notes (store) == -1)
    return EXIT_TROUBLE;
  print_verdict (store);
  return store_is_clean (store) ? EXIT_CLEAN : EXIT_DAMAGED;
}

int
check_main (int argc, char *argv[])
{
  static const struct option options[] = {
    { "all", no_argument, NULL, 'a' },
    { 0 }
  };
  struct store store;
  bool all = false;
  int c, status;

  while ((c = next_option (argc, argv, options)) != -1) {
    if (c == '?')
      return EXIT_TROUBLE;
    all = true;
  }
  if (!has_operands (argc, argv, 1, "check [--all] METADATA"))
    return EXIT_TROUBLE;

  status = store_open (&store, argv[optind]);
  if (status == EXIT_CLEAN)
    status = check (&store, all);
  store_close (&store);
  return status;
}
