/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <curl/curl.h>

#include "base/cleanup.h"
#include "base/rounding.h"
#include "client.h"
#include "control/token.h"
#include "nbdclone.h"

/* No answer of a clone is longer.  Bytes. */
#define ANSWER_MAX ((size_t)16 << 20)

#define SECONDS_MAX (366.0 * 24 * 3600)

static const char scheme[] = "http://";

struct clients {
  CURLM *multi;
  struct curl_slist *headers;
  double answer_timeout;
  LIST_HEAD (, client) list;
};

struct client {
  struct clients *all;
  LIST_ENTRY (client) next;
  const char *control;
  char *base; /* a URL without a path; NULL: control is a unix socket */
  CURL *easy;

  /* The current request. */
  client_done *done;
  void *opaque;
  char error[CURL_ERROR_SIZE];
  char *text;
  size_t len;
  bool too_long;
};

/* ---- options ---- */

int
parse_seconds (const char *option, const char *value, double *seconds)
{
  char *end;
  const double v = strtod (value, &end);

  if (end == value || *end || !(v >= 0 && v <= SECONDS_MAX)) {
    log_error (&tool_log, "%s=%s: must be a number of seconds", option, value);
    return -1;
  }
  *seconds = v;
  return 0;
}

int
client_option (int c, struct client_options *options)
{
  switch (c) {
  case 'T':
    options->token_file = optarg;
    return 0;
  case 'A':
    if (parse_seconds ("--answer-timeout", optarg,
                       &options->answer_timeout) == -1)
      return -1;
    if (options->answer_timeout > 0)
      return 0;
    log_error (&tool_log, "--answer-timeout=%s: must be more than 0", optarg);
    return -1;
  default:
    return -1; /* next_option has logged it */
  }
}

/* ---- answers ---- */

/* Why there is no HTTP answer. */
static void
explain_failure (struct client *c, CURLcode code, struct answer *a)
{
  long err = 0;

  curl_easy_getinfo (c->easy, CURLINFO_OS_ERRNO, &err);
  if (c->too_long)
    answer_set_message (a, ANSWER_NONE, "the answer is too long for a clone's");
  else if (code == CURLE_OPERATION_TIMEDOUT)
    answer_set_message (a, ANSWER_LATE, "no answer within %g seconds",
                        c->all->answer_timeout);
  else if (code == CURLE_COULDNT_CONNECT && err)
    answer_set_message (a, ANSWER_NONE, "cannot connect: %s%s",
                        strerror ((int)err),
                        err == ECONNREFUSED ? "; nbdkit does not run" : "");
  else if ((code == CURLE_COULDNT_CONNECT && c->base == NULL) ||
           code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR ||
           code == CURLE_SEND_ERROR || code == CURLE_PARTIAL_FILE)
    /* A unix socket is connected at once, and its peer may have gone since. */
    answer_set_message (a, ANSWER_NONE,
                        "the connection has ended without an answer");
  else if (code == CURLE_UNSUPPORTED_PROTOCOL ||
           code == CURLE_WEIRD_SERVER_REPLY)
    answer_set_message (a, ANSWER_NONE, "the answer is not HTTP: this is not "
                        "the control interface of a clone");
  else
    answer_set_message (a, ANSWER_NONE, "%s", c->error[0] ? c->error
                        : curl_easy_strerror (code));
}

/* ---- requests ---- */

static size_t
take_body (char *data, size_t size, size_t n, void *opaque)
{
  struct client *c = opaque;
  char *text;

  n *= size;
  c->too_long = n > ANSWER_MAX - c->len;
  if (c->too_long)
    return 0;
  text = realloc (c->text, c->len + n + 1);
  if (text == NULL)
    out_of_memory ();
  memcpy (text + c->len, data, n);
  c->text = text;
  c->len += n;
  text[c->len] = '\0';
  return n;
}

static void
forget_request (struct client *c)
{
  free (c->text);
  c->text = NULL;
  c->len = 0;
  c->too_long = false;
  c->error[0] = '\0';
}

static void
set_url (struct client *c, const char *path)
{
  CLEANUP_FREE char *url = NULL;

  if (asprintf (&url, "%s%s", c->base ? c->base : "http://localhost",
                path) == -1) {
    url = NULL;
    out_of_memory ();
  }
  if (curl_easy_setopt (c->easy, CURLOPT_URL, url) != CURLE_OK ||
      (c->base == NULL &&
       curl_easy_setopt (c->easy, CURLOPT_UNIX_SOCKET_PATH, c->control) !=
       CURLE_OK))
    out_of_memory ();
}

void
client_send (struct client *c, const struct request *request,
             client_done *done, void *opaque)
{
  CURL *easy = c->easy;

  forget_request (c);
  c->done = done;
  c->opaque = opaque;

  curl_easy_reset (easy);
  set_url (c, request->path);
  if (strcmp (request->method, "GET") != 0) {
    curl_easy_setopt (easy, CURLOPT_COPYPOSTFIELDS,
                      request->body ? request->body : "");
    curl_easy_setopt (easy, CURLOPT_CUSTOMREQUEST, request->method);
  }
  curl_easy_setopt (easy, CURLOPT_HTTPHEADER, c->all->headers);
  curl_easy_setopt (easy, CURLOPT_NOPROXY, "*");
  curl_easy_setopt (easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt (easy, CURLOPT_TIMEOUT_MS,
                    MAX ((long)(c->all->answer_timeout * 1000), 1L));
  curl_easy_setopt (easy, CURLOPT_ERRORBUFFER, c->error);
  curl_easy_setopt (easy, CURLOPT_PRIVATE, c);
  curl_easy_setopt (easy, CURLOPT_WRITEFUNCTION, take_body);
  curl_easy_setopt (easy, CURLOPT_WRITEDATA, c);
  if (curl_multi_add_handle (c->all->multi, easy) != CURLM_OK)
    out_of_memory ();
}

static long
http_status (struct client *c)
{
  long code = 0;

  curl_easy_getinfo (c->easy, CURLINFO_RESPONSE_CODE, &code);
  return code;
}

static void
end_request (struct client *c, CURLcode code)
{
  struct answer a = { 0 };

  curl_multi_remove_handle (c->all->multi, c->easy);
  if (code == CURLE_OK)
    answer_read (&a, http_status (c), c->text, c->len, c->all->headers != NULL);
  else
    explain_failure (c, code, &a);
  a.text = c->text;
  c->text = NULL;
  c->done (c->opaque, c, &a);
  answer_free (&a);
}

/* Go on with all requests, without waiting.  Returns how many have ended. */
static int
make_progress (struct clients *s)
{
  int running, left, ended = 0;
  CURLMsg *msg;

  curl_multi_perform (s->multi, &running);
  while ((msg = curl_multi_info_read (s->multi, &left)) != NULL) {
    const CURLcode code = msg->data.result;
    struct client *c = NULL;

    if (msg->msg != CURLMSG_DONE)
      continue;
    curl_easy_getinfo (msg->easy_handle, CURLINFO_PRIVATE, (char **)&c);
    end_request (c, code);
    ended++;
  }
  return ended;
}

void
clients_run (struct clients *s, int fd, double seconds)
{
  struct curl_waitfd wait = { .fd = fd, .events = CURL_WAIT_POLLIN };

  if (make_progress (s) > 0)
    return;
  curl_multi_poll (s->multi, &wait, fd >= 0,
                   (int)(MIN (seconds, 3600.0) * 1000) + 1, NULL);
  make_progress (s);
}

static void
take_answer (void *opaque, struct client *c, struct answer *a)
{
  struct answer **to = opaque;

  **to = *a;
  *a = (struct answer){ 0 };
  *to = NULL;
}

void
client_ask (struct client *c, const struct request *request,
            struct answer *answer)
{
  struct answer *to = answer;

  client_send (c, request, take_answer, &to);
  while (to)
    clients_run (c->all, -1, 1);
}

bool
client_has_reconnected (struct client *c)
{
  long n = 0;

  curl_easy_getinfo (c->easy, CURLINFO_NUM_CONNECTS, &n);
  return n > 0;
}

/* ---- clients ---- */

static int
add_header (struct clients *s, const char *header)
{
  struct curl_slist *list = curl_slist_append (s->headers, header);

  if (list == NULL)
    out_of_memory ();
  s->headers = list;
  return 0;
}

/* The token in the file; the caller frees it.  NULL, logged, on failure. */
static char *
read_token (const char *file)
{
  CLEANUP_FREE char *why = NULL;
  char *token = token_read (file, &why);

  if (token == NULL && why == NULL)
    out_of_memory ();
  if (token == NULL) {
    log_error (&tool_log, "token file %s: %s", file, why);
    return NULL;
  }
  token[strcspn (token, "\r")] = '\0'; /* the line may end in "\r\n" */
  if (token_is_valid (token))
    return token;
  log_error (&tool_log, "token file %s: the first line must be the token: 1 to "
             "%d printable ASCII characters without blanks", file, TOKEN_MAX);
  free (token);
  return NULL;
}

static int
add_token (struct clients *s, const char *file)
{
  CLEANUP_FREE char *token = NULL, *header = NULL;

  if (file == NULL)
    file = getenv ("NBDCLONE_TOKEN_FILE");
  if (file == NULL || *file == '\0')
    return 0;
  token = read_token (file);
  if (token == NULL)
    return -1;
  if (asprintf (&header, "Authorization: Bearer %s", token) == -1) {
    header = NULL;
    out_of_memory ();
  }
  return add_header (s, header);
}

struct clients *
clients_new (const struct client_options *options)
{
  struct clients *s = calloc (1, sizeof *s);

  if (s == NULL || curl_global_init (CURL_GLOBAL_DEFAULT) != CURLE_OK)
    out_of_memory ();
  LIST_INIT (&s->list);
  s->answer_timeout = options->answer_timeout;
  s->multi = curl_multi_init ();
  if (s->multi == NULL)
    out_of_memory ();
  if (add_token (s, options->token_file) == -1) {
    clients_free (s);
    return NULL;
  }
  return s;
}

void
clients_free (struct clients *s)
{
  struct client *c;

  if (s == NULL)
    return;
  while ((c = LIST_FIRST (&s->list)) != NULL) {
    LIST_REMOVE (c, next);
    curl_multi_remove_handle (s->multi, c->easy);
    curl_easy_cleanup (c->easy);
    free (c->text);
    free (c->base);
    free (c);
  }
  curl_multi_cleanup (s->multi);
  curl_slist_free_all (s->headers);
  curl_global_cleanup ();
  free (s);
}

/* http://ADDRESS:PORT, and perhaps a slash.  Print it without the slash. */
static char *
parse_url (const char *control)
{
  const char *address = control + strlen (scheme);
  const size_t len = strcspn (address, "/?#@ ");
  char *base;

  if (len == 0 || (address[len] && strcmp (address + len, "/") != 0)) {
    log_error (&tool_log, "%s: must have the form http://ADDRESS:PORT",
               control);
    return NULL;
  }
  base = strndup (control, strlen (scheme) + len);
  if (base == NULL)
    out_of_memory ();
  return base;
}

static bool
is_url (const char *name)
{
  return strncmp (name, scheme, strlen (scheme)) == 0;
}

bool
client_is_control (const char *name)
{
  struct stat st;

  return is_url (name) || (stat (name, &st) == 0 && S_ISSOCK (st.st_mode));
}

static int
check_path (const char *path)
{
  if (strstr (path, "://")) {
    log_error (&tool_log, "%s: must be the path of a unix socket, or have the "
               "form http://ADDRESS:PORT", path);
    return -1;
  }
  if (path[0] == '\0' ||
      strlen (path) >= sizeof ((struct sockaddr_un *)NULL)->sun_path) {
    log_error (&tool_log, "%s: the path of a unix socket has from 1 to %zu "
               "bytes", path,
               sizeof ((struct sockaddr_un *)NULL)->sun_path - 1);
    return -1;
  }
  return 0;
}

struct client *
client_new (struct clients *s, const char *control)
{
  char *base = NULL;
  struct client *c;

  if (is_url (control) ? (base = parse_url (control)) == NULL
      : check_path (control) == -1)
    return NULL;
  c = calloc (1, sizeof *c);
  if (c == NULL)
    out_of_memory ();
  c->all = s;
  c->control = control;
  c->base = base;
  c->easy = curl_easy_init ();
  if (c->easy == NULL)
    out_of_memory ();
  LIST_INSERT_HEAD (&s->list, c, next);
  return c;
}

const char *
client_control (const struct client *c)
{
  return c->control;
}
