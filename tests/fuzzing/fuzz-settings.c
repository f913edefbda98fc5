/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A fuzzer for requests to the control interface.  The input is a body for
 * PATCH /settings, as JSON, and a size.  There is no crash and no leak.  A
 * patch that is refused changes nothing, and the reason is one line.  A patch
 * that is accepted gives settings that are the same after a conversion to JSON
 * and back. A size that is accepted has the value of its digits and its suffix.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/settings.h"
#include "control/size.h"

#define CHECK(cond)                                                     \
  do {                                                                  \
    if (!(cond)) {                                                      \
      fprintf (stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
      abort ();                                                         \
    }                                                                   \
  } while (0)

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

static void
check_patch (const char *text, size_t len)
{
  struct settings settings, before, again;
  json_t *patch = json_loadb (text, len, JSON_REJECT_DUPLICATES, NULL);
  char *why = NULL;

  if (patch == NULL)
    return;
  memset (&settings, 0, sizeof settings);
  settings.hydration.threshold = 16 << 20;
  settings.hydration.batch = 1 << 20;
  before = settings;

  if (settings_patch (patch, &settings, &why) == -1) {
    CHECK (memcmp (&before, &settings, sizeof settings) == 0);
    CHECK (why != NULL && *why != '\0');
    free (why);
  }
  else {
    json_t *json = settings_json (&settings);

    CHECK (why == NULL && json != NULL);
    again = before;
    CHECK (settings_patch (json, &again, &why) == 0);
    CHECK (memcmp (&again, &settings, sizeof settings) == 0);
    json_decref (json);
  }
  json_decref (patch);
}

static void
check_size (const char *str)
{
  static const char suffixes[] = "bskmgtpe";
  static const unsigned shift[] = { 0, 9, 10, 20, 30, 40, 50, 60 };
  const size_t digits = strspn (str, "0123456789");
  unsigned __int128 n = 0;
  uint64_t size = 12345;
  const char *suffix;
  int r;

  errno = 0;
  r = size_parse (str, &size);
  for (size_t i = 0; i < digits && n <= INT64_MAX; ++i)
    n = n * 10 + (str[i] - '0');
  suffix = strchr (suffixes, str[digits] | (str[digits] ? 0x20 : 0));

  if (digits == 0 ||
      (str[digits] && (!suffix || str[digits + 1] || str[digits] < 'A')))
    CHECK (r == -1 && errno == EINVAL && size == 12345);
  else {
    if (str[digits])
      n <<= shift[suffix - suffixes];
    if (n > INT64_MAX)
      CHECK (r == -1 && errno == ERANGE && size == 12345);
    else
      CHECK (r == 0 && size == (uint64_t)n);
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  char *text = malloc (size + 1);

  CHECK (text != NULL);
  if (size > 0)
    memcpy (text, data, size);
  text[size] = '\0';
  check_patch (text, size);
  check_size (text);
  free (text);
  return 0;
}
