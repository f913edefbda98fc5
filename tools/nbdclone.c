/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdclone(1): its commands, messages and arguments. */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdclone.h"
#include "store/metadata.h"

#define CONTROL_HELP                                                    \
  "  --token=FILE              the control interface's token is in FILE\n"  \
  "  --answer-timeout=SECONDS  wait so long for an answer (default: 10)\n"  \
  "\n"                                                                  \
  "CONTROL is the path of a unix socket, or http://ADDRESS:PORT.\n"

#define TELL_STATUS                                                     \
  "Exit status: 0 done, 1 refused, 2 usage, 4 CONTROL cannot be reached.\n"

#define METADATA_HELP                                                   \
  "METADATA is a path or an NBD URI, and is never written to.\n"        \
  "\n"                                                                  \
  "Exit status: 0 clean, 1 damaged but repairable, 2 not repairable,\n" \
  "3 usage or I/O error.\n"

static const struct command {
  const char *name;
  int (*main) (int argc, char *argv[]);
  const char *usage;
  const char *what;
  const char *help;
  int trouble; /* the exit status if stdout cannot be written */
} commands[] = {
  { "status", status_main, "[--json] CONTROL",
    "show the status of a running clone",
    "  --json                    print what the clone says\n"
    CONTROL_HELP
    "\n"
    TELL_STATUS, EXIT_UNREACHABLE },
  { "watch", watch_main, "[--interval=SECONDS] CONTROL...",
    "show the progress of running clones until they are complete",
    "  --interval=SECONDS        ask so often (default: 1)\n"
    CONTROL_HELP
    "\n"
    "Exit status: 0 all are complete, 1 one has failed, 2 usage,\n"
    "4 one could not be reached.\n",
    EXIT_UNREACHABLE },
  { "wait", wait_main, "[--timeout=SECONDS] CONTROL...",
    "wait until running clones are complete",
    "  --timeout=SECONDS         give up after this time\n"
    CONTROL_HELP
    "\n"
    "Exit status: 0 all are complete, 1 one has failed, 2 usage, 3 timeout,\n"
    "4 one cannot be reached.\n",
    EXIT_UNREACHABLE },
  { "pause", pause_main, "CONTROL",
    "pause hydration",
    CONTROL_HELP "\n" TELL_STATUS, EXIT_UNREACHABLE },
  { "resume", resume_main, "CONTROL",
    "resume hydration, also after it has failed",
    CONTROL_HELP "\n" TELL_STATUS, EXIT_UNREACHABLE },
  { "stop", stop_main, "[--timeout=SECONDS] CONTROL",
    "make everything durable, and end nbdkit",
    "  --timeout=SECONDS         do not wait longer for the end\n"
    CONTROL_HELP
    "\n"
    "Exit status: 0 nbdkit has ended, 1 refused, 2 usage, 3 timeout,\n"
    "4 CONTROL cannot be reached.\n",
    EXIT_UNREACHABLE },
  { "set", set_main, "CONTROL KEY=VALUE...",
    "change settings, all or none of them",
    CONTROL_HELP
    "\n"
    "KEY=VALUE is as on nbdkit's command line, such as hydration-rate=20M.\n"
    "\n"
    TELL_STATUS, EXIT_UNREACHABLE },
  { "map", map_main, "[--svg=FILE] CONTROL|METADATA",
    "show which parts of a disk are valid",
    "  --svg=FILE                write a picture to FILE\n"
    CONTROL_HELP
    "METADATA is a path or an NBD URI, and is never written to.\n"
    "\n"
    "Exit status: 0 done, 1 the clone has no maps, 2 usage, 4 CONTROL cannot "
    "be\nreached, or METADATA cannot be read.\n",
    EXIT_UNREACHABLE },
  { "check", check_main, "[--all] METADATA",
    "say whether metadata is damaged, and where",
    "  --all  list all faults\n"
    "\n"
    METADATA_HELP, EXIT_TROUBLE },
  { "dump", dump_main, "[--json] METADATA",
    "print the content of metadata",
    "  --json  print one JSON object\n"
    "\n"
    METADATA_HELP, EXIT_TROUBLE },
  { "repair", repair_main, "[--all] [--unknown=valid|invalid] METADATA NEW",
    "write what can be saved to a new file",
    "  --all              list all faults\n"
    "  --unknown=valid    what regions become whose state is unknown: read\n"
    "  --unknown=invalid  nbdclone(1) before you choose\n"
    "\n"
    METADATA_HELP, EXIT_TROUBLE },
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

void
out_of_memory (void)
{
  log_error (&tool_log, "out of memory");
  exit (EXIT_UNREACHABLE);
}

static int
print_help (void)
{
  printf ("nbdclone controls clones that nbdkit-clone-plugin(1) serves, and "
          "looks at their\nmetadata.\n\n");
  for (size_t i = 0; i < NR_COMMANDS; ++i)
    printf ("  nbdclone %s %s\n      %s\n", commands[i].name,
            commands[i].usage, commands[i].what);
  printf ("  nbdclone COMMAND --help\n"
          "  nbdclone --help | --version\n"
          "\n"
          "CONTROL is a running clone's control interface: the path of a unix "
          "socket, or\nhttp://ADDRESS:PORT.  METADATA is a path or an NBD URI, "
          "and is never written to.\nSee nbdclone(1).\n");
  return EXIT_CLEAN;
}

static int
print_command_help (const struct command *command)
{
  printf ("nbdclone %s %s\n\n%s%s.\n\n%s", command->name, command->usage,
          (char[]){ (char)toupper (command->what[0]), '\0' },
          command->what + 1, command->help);
  return EXIT_CLEAN;
}

static int
print_version (void)
{
  printf ("nbdclone %s (metadata versions %d to %d)\n", PACKAGE_VERSION,
          METADATA_VERSION_MIN, METADATA_VERSION);
  return EXIT_CLEAN;
}

static bool
wants_help (int argc, char *argv[])
{
  for (int i = 2; i < argc && strcmp (argv[i], "--") != 0; ++i)
    if (strcmp (argv[i], "--help") == 0)
      return true;
  return false;
}

/* *trouble is the exit status if stdout cannot be written. */
static int
run_command (int argc, char *argv[], int *trouble)
{
  const char *name = argc > 1 ? argv[1] : NULL;

  *trouble = EXIT_TROUBLE;
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
    *trouble = commands[i].trouble;
    if (wants_help (argc, argv))
      return print_command_help (&commands[i]);
    return commands[i].main (argc - 1, argv + 1);
  }
  log_error (&tool_log, "there is no command %s; see nbdclone --help", name);
  return EXIT_TROUBLE;
}

int
main (int argc, char *argv[])
{
  int trouble;
  int status = run_command (argc, argv, &trouble);

  if (fflush (stdout) == EOF || ferror (stdout)) {
    log_error (&tool_log, "cannot write to stdout: %m");
    return trouble;
  }
  return status;
}
