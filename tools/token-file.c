/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "control/token.h"
#include "nbdclone.h"
#include "token-file.h"

/* fgets keeps a line's end, and the line may have "\r\n". */
#define LINE_MAX_BYTES (TOKEN_FILE_MAX + 2)

int
token_file_read (const char *file, char token[TOKEN_FILE_MAX])
{
  char line[LINE_MAX_BYTES];
  FILE *f = fopen (file, "re");
  const char *got;

  if (f == NULL) {
    log_error (&tool_log, "token file %s: %m", file);
    return -1;
  }
  got = fgets (line, sizeof line, f);
  if (ferror (f)) {
    log_error (&tool_log, "token file %s: %m", file);
    fclose (f);
    return -1;
  }
  fclose (f);
  if (got)
    line[strcspn (line, "\r\n")] = '\0';
  if (got == NULL || strlen (line) >= TOKEN_FILE_MAX ||
      !token_is_valid (line)) {
    log_error (&tool_log, "token file %s: the first line must be the token: "
               "1 to %d printable ASCII characters without blanks", file,
               TOKEN_FILE_MAX - 1);
    return -1;
  }
  strcpy (token, line);
  return 0;
}
