/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone(1): its commands, messages and arguments. */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "nbdclone.h"
#include "store/metadata.h"

static const struct command {
  const char *name;
  int (*main) (int argc, char *argv[]);
  const char *usage;
  const char *what;
} commands[] = {
  { "check", check_main, "[--all] METADATA",
    "say whether metadata is damaged, and where" },
  { "dump", dump_main, "[--json] METADATA",
    "print the content of metadata" },
  { "repair", repair_main, "[--all] [--unknown=valid|invalid] METADATA NEW",
    "write what can be saved to a new file" },
};
#define NR_COMMANDS (sizeof commands / sizeof commands[0])

/* ---- messages ---- */

__attribute__ ((format (printf, 1, 0))) static void
print_line (const char *fmt, va_list args)
{
  const int err = errno;

  /* Where both go to one place, output comes before messages. */
  fflush (stdout);
  fputs ("nbdclone: ", stderr);
  errno = err;                  /* for %m */
  vfprintf (stderr, fmt, args);
  fputc ('\n', stderr);
}

static void
ignore_line (const char *fmt, va_list args)
{
}

static bool
wants_none (enum log_topic topic)
{
  return false;
}

const struct log tool_log = {
  .error = print_line,
  .info = print_line,
  .debug = ignore_line,
  .wants = wants_none,
};

/* ---- arguments ---- */

int
next_option (int argc, char *argv[], const struct option *options)
{
  const char *option;
  char letter[] = "-?";
  int c;

  opterr = 0;
  c = getopt_long (argc, argv, ":", options, NULL);
  if (c != '?' && c != ':')
    return c;

  /* In the middle of combined letters, such as -ab, optind has not moved. */
  option = argv[optind - 1];
  letter[1] = optopt;
  if (option[0] != '-')
    option = letter;
  if (c == ':')
    log_error (&tool_log, "%s: option %s needs a value", argv[0], option);
  else
    log_error (&tool_log, "%s: there is no option %s, or not in this form; "
               "see nbdclone --help", argv[0], option);
  return '?';
}

bool
has_operands (int argc, char *argv[], int n, const char *usage)
{
  if (argc - optind == n)
    return true;
  log_error (&tool_log, "usage: nbdclone %s", usage);
  return false;
}

static int
print_help (void)
{
  printf ("nbdclone looks at the metadata of clones, which nbdkit-clone-plugin"
          "(1) makes.\n\n");
  for (size_t i = 0; i < NR_COMMANDS; ++i)
    printf ("  nbdclone %s %s\n      %s\n", commands[i].name,
            commands[i].usage, commands[i].what);
  printf ("  nbdclone --help | --version\n"
          "\n"
          "METADATA is a path or an NBD URI, and is never written to.\n"
          "\n"
          "Exit status: 0 clean, 1 damaged but repairable, 2 not repairable,\n"
          "3 usage or I/O error.  See nbdclone(1).\n");
  return EXIT_CLEAN;
}

static int
print_version (void)
{
  printf ("nbdclone %s (metadata versions %d to %d)\n", PACKAGE_VERSION,
          METADATA_VERSION_MIN, METADATA_VERSION);
  return EXIT_CLEAN;
}

static int
run_command (int argc, char *argv[])
{
  const char *name = argc > 1 ? argv[1] : NULL;

  if (name == NULL) {
    log_error (&tool_log, "a command is needed; see nbdclone --help");
    return EXIT_TROUBLE;
  }
  if (strcmp (name, "--help") == 0)
    return print_help ();
  if (strcmp (name, "--version") == 0)
    return print_version ();
  for (size_t i = 0; i < NR_COMMANDS; ++i) {
    if (strcmp (commands[i].name, name) != 0)
      continue;
    if (argc == 3 && strcmp (argv[2], "--help") == 0)
      return print_help ();
    return commands[i].main (argc - 1, argv + 1);
  }
  log_error (&tool_log, "there is no command %s; see nbdclone --help", name);
  return EXIT_TROUBLE;
}

int
main (int argc, char *argv[])
{
  int status = run_command (argc, argv);

  if (fflush (stdout) == EOF || ferror (stdout)) {
    log_error (&tool_log, "cannot write to stdout: %m");
    return EXIT_TROUBLE;
  }
  return status;
}
