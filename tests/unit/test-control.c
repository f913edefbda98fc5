/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Proves that:
 *
 *   - the control interface answers right and wrong requests as control.h says;
 *   - GET /wait is answered when hydration completes or fails, and when the
 *     interface stops; it costs no thread, and no connection after its client
 *     has gone;
 *   - sockets of other processes are left alone, also when several processes
 *     start at the same time;
 *   - it goes on accepting connections after its limit was reached, and after a
 *     time without file descriptors;
 *   - a TCP port answers only requests that name it in their Host header;
 *   - a token file that cannot be right is refused;
 *   - a patch changes all settings that it names, or none;
 *   - progress lines are whole, and do not wait for the reader.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <check.h>
#include <jansson.h>

#include "clone/clone.h"
#include "control/control.h"
#include "control/host.h"
#include "control/instance.h"
#include "control/listen.h"
#include "control/progress.h"
#include "control/settings.h"
#include "control/size.h"
#include "control/status.h"
#include "control/token.h"
#include "hydration/hydrate.h"
#include "mock-backend.h"
#include "run-suite.h"
#include "store/metadata.h"

#define DISK_SIZE (UINT64_C (256) << 10)
#define REGION UINT64_C (4096)
#define REGIONS (DISK_SIZE / REGION)
#define WAITERS 200

/* Seconds until an answer comes that must come at once. */
#define PATIENCE 10

/* ---- a paused clone of random data, and its control socket ---- */

static char dir[] = "/tmp/test-control-XXXXXX";
static char path[64];
static struct mock_log *calls;
static struct mock *source, *dest, *store;
static struct instance instance;
static struct control *control;

static void
wake_control (void *opaque)
{
  if (control)
    control_wake (control);
}

static void
setup (void)
{
  const struct superblock sb = { .size = DISK_SIZE, .region_size = REGION };
  struct clone_options options = { .discard_passdown = true };
  const struct hydrate_settings settings = {
    .threshold = HYDRATE_THRESHOLD_DEFAULT, .batch = 1048576,
  };
  struct metadata *md;

  strcpy (dir + sizeof dir - 7, "XXXXXX");
  ck_assert_ptr_nonnull (mkdtemp (dir));
  snprintf (path, sizeof path, "%s/ctl", dir);

  calls = mock_log_new (false);
  mock_log_enable (calls, false);
  source = mock_new (calls, "source", DISK_SIZE, true);
  mock_fill_random (source, DISK_SIZE, 0, 1);
  dest = mock_new (calls, "destination", DISK_SIZE, false);
  mock_set_server (dest);
  store = mock_new (calls, "metadata", metadata_store_size (DISK_SIZE, REGION),
                    false);
  md = metadata_create (mock_backend (store), &sb, &mock_messages);
  ck_assert_ptr_nonnull (md);
  control = NULL;
  instance.hydrate = hydrate_new (&settings, true, wake_control, NULL,
                                  &mock_messages);
  ck_assert_ptr_nonnull (instance.hydrate);
  options.events = hydrate_events (instance.hydrate);
  instance.clone = clone_new (mock_backend (source), mock_backend (dest), md,
                              region_map_new (DISK_SIZE, REGION), &options,
                              &mock_messages);
  ck_assert_ptr_nonnull (instance.clone);
  ck_assert_int_eq (clone_start (instance.clone,
                                 &(struct clone_service){ 0 }), 0);
  ck_assert_int_eq (hydrate_start (instance.hydrate, instance.clone), 0);
}

static void
start (const char *address, const char *token)
{
  control = control_new (address, token, &instance, &mock_messages);
  ck_assert_ptr_nonnull (control);
  ck_assert_int_eq (control_start (control), 0);
}

static void
teardown (void)
{
  if (control)
    control_stop (control);
  hydrate_stop (instance.hydrate);
  control_free (control);
  mock_heal (dest);
  clone_close (instance.clone);
  hydrate_free (instance.hydrate);
  mock_free (source);
  mock_free (dest);
  mock_free (store);
  mock_log_free (calls);
  unlink (path);
  ck_assert_int_eq (rmdir (dir), 0);
}

/* ---- a client ---- */

struct answer {
  int code;
  char text[65536]; /* all of it */
  char *body;
  json_t *json;
};

static int
dial (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM, 0);

  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", path);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (connect (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  return fd;
}

static void
send_all (int fd, const char *buf, size_t len)
{
  while (len > 0) {
    const ssize_t n = send (fd, buf, len, MSG_NOSIGNAL);

    ck_assert_int_gt (n, 0);
    buf += n;
    len -= n;
  }
}

/* The Host header of requests. */
static const char *host = "x";

/* headers is NULL, or lines that end in \r\n. */
static void
send_request (int fd, const char *method, const char *target,
              const char *headers, const char *body)
{
  char *head;
  const int len =
    asprintf (&head, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n"
              "%sContent-Length: %zu\r\n\r\n", method, target, host,
              headers ? headers : "", body ? strlen (body) : 0);

  ck_assert_int_gt (len, 0);
  send_all (fd, head, len);
  if (body)
    send_all (fd, body, strlen (body));
  free (head);
}

/* Read until the server closes the connection, then close it here, too. */
static void
read_answer (int fd, struct answer *a)
{
  size_t len = 0;
  ssize_t n;

  while ((n = recv (fd, a->text + len, sizeof a->text - 1 - len, 0)) > 0)
    len += n;
  ck_assert_int_eq (n, 0);
  close (fd);
  a->text[len] = '\0';
  ck_assert_int_eq (sscanf (a->text, "HTTP/1.1 %d ", &a->code), 1);
  a->body = strstr (a->text, "\r\n\r\n");
  ck_assert_ptr_nonnull (a->body);
  a->body += 4;
  ck_assert_ptr_nonnull (strstr (a->text,
                                 "Content-Type: application/json\r\n"));
  a->json = NULL;
  if (a->body[0] != '\0') {
    ck_assert_int_eq (a->text[len - 1], '\n');
    a->json = json_loads (a->body, 0, NULL);
    ck_assert_ptr_nonnull (a->json);
  }
}

static void
ask (struct answer *a, const char *method, const char *target,
     const char *headers, const char *body)
{
  const int fd = dial ();

  send_request (fd, method, target, headers, body);
  read_answer (fd, a);
}

/* Send a wrong request.  The answer must have this code, be an error in JSON,
 * and contain the text `expect'.
 */
static void
ask_wrong (int code, const char *method, const char *target,
           const char *headers, const char *body, const char *expect)
{
  struct answer a;

  ask (&a, method, target, headers, body);
  ck_assert_msg (a.code == code, "%s %s: %s", method, target, a.text);
  ck_assert_ptr_nonnull (a.json);
  ck_assert_ptr_nonnull (json_string_value (json_object_get (a.json,
                                                             "error")));
  ck_assert_msg (strstr (a.text, expect) != NULL, "%s: %s", expect, a.text);
  json_decref (a.json);
}

static void
assert_state (struct answer *a, const char *state)
{
  ck_assert_int_eq (a->code, 200);
  ck_assert_str_eq (json_string_value (json_object_get (a->json, "state")),
                    state);
  json_decref (a->json);
}

static int
send_wait (void)
{
  const int fd = dial ();

  send_request (fd, "GET", "/wait", NULL, NULL);
  return fd;
}

static bool
is_readable (int fd)
{
  struct pollfd pfd = { .fd = fd, .events = POLLIN };

  return poll (&pfd, 1, 0) > 0;
}

/* Does it become readable soon? */
static bool
is_readable_soon (int fd)
{
  struct pollfd pfd = { .fd = fd, .events = POLLIN };

  return poll (&pfd, 1, PATIENCE * 1000) > 0;
}

static unsigned
count_entries (const char *name)
{
  DIR *d = opendir (name);
  unsigned n = 0;

  ck_assert_ptr_nonnull (d);
  while (readdir (d))
    n++;
  closedir (d);
  return n;
}

static double
seconds (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* ---- status and settings, without HTTP ---- */

START_TEST (test_size)
{
  static const struct {
    const char *str;
    uint64_t size;
  } good[] = {
    { "0", 0 }, { "1", 1 }, { "007", 7 }, { "4096", 4096 }, { "1b", 1 },
    { "3s", 1536 }, { "16M", 16 << 20 }, { "16m", 16 << 20 },
    { "1k", 1024 }, { "1G", 1 << 30 }, { "2T", UINT64_C (2) << 40 },
    { "1P", UINT64_C (1) << 50 }, { "7E", UINT64_C (7) << 60 },
    { "9223372036854775807", INT64_MAX },
  };
  static const char *const bad[] = {
    "", "M", " 1", "1 ", "-1", "+1", "1.5", "1e3", "0x10", "1MM", "1MiB",
    "1K1", "fast", "1\n",
  };
  static const char *const large[] = {
    "9223372036854775808", "18446744073709551616", "8E", "16E",
    "18446744073709551620", "99999999999999999999999999999999",
    "18014398509481984K",
  };
  uint64_t size = 42;
  size_t i;

  for (i = 0; i < sizeof good / sizeof good[0]; i++) {
    ck_assert_int_eq (size_parse (good[i].str, &size), 0);
    ck_assert_uint_eq (size, good[i].size);
  }
  size = 42;
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    ck_assert_msg (size_parse (bad[i], &size) == -1, "%s", bad[i]);
    ck_assert_int_eq (errno, EINVAL);
  }
  for (i = 0; i < sizeof large / sizeof large[0]; i++) {
    ck_assert_msg (size_parse (large[i], &size) == -1, "%s", large[i]);
    ck_assert_int_eq (errno, ERANGE);
  }
  ck_assert_uint_eq (size, 42);
}
END_TEST

static int
patch (const char *text, struct settings *settings, char **why)
{
  json_t *json = json_loads (text, JSON_DECODE_ANY, NULL);
  int r;

  ck_assert_msg (json != NULL, "%s", text);
  r = settings_patch (json, settings, why);
  json_decref (json);
  return r;
}

START_TEST (test_patch)
{
  static const struct {
    const char *text, *why;
  } bad[] = {
    { "[]", "object" },
    { "1", "object" },
    { "{\"nonsense\": 1}", "hydration-threshold" },
    { "{\"hydration-rate\": -1}", "from 0 to" },
    { "{\"hydration-rate\": 1.5}", "whole number" },
    { "{\"hydration-rate\": 1e3}", "whole number" },
    { "{\"hydration-rate\": null}", "whole number" },
    { "{\"hydration-rate\": true}", "whole number" },
    { "{\"hydration-rate\": [1]}", "whole number" },
    { "{\"hydration-rate\": \"fast\"}", "\"fast\" is not a size" },
    { "{\"hydration-rate\": \"\"}", "is not a size" },
    { "{\"hydration-threshold\": \"8E\"}", "hydration-threshold must be from" },
    { "{\"hydration-batch-size\": 4095}", "from 4096 to 33554432" },
    { "{\"hydration-batch-size\": \"33M\"}", "from 4096 to 33554432" },
    { "{\"hydration-rate\": 7, \"hydration-batch-size\": 0}", "batch-size" },
    { "{\"hydration-rate\": 7, \"nonsense\": 0}", "nonsense" },
    { "{\"hydration-priority\": \"fast\"}",
      "hydration-priority must be \"access\" or \"sequential\"" },
    { "{\"hydration-priority\": true}", "\"access\" or" },
    { "{\"hydration-priority\": null}", "\"access\" or" },
    { "{\"copy-on-read\": 1}", "copy-on-read must be true or false" },
    { "{\"copy-on-read\": \"maybe\"}", "true or false" },
    { "{\"copy-on-read\": null}", "true or false" },
    { "{\"source-timeout\": -1}", "from 0 to 31536000 seconds" },
    { "{\"source-timeout\": 31536001}", "from 0 to 31536000 seconds" },
    { "{\"source-timeout\": \"99999999999999999999\"}", "from 0 to 31536000" },
    { "{\"source-timeout\": 1.5}", "whole number of seconds" },
    { "{\"source-timeout\": \"1K\"}", "whole number of seconds" },
    { "{\"source-timeout\": \"\"}", "whole number of seconds" },
    { "{\"source-timeout\": false}", "whole number of seconds" },
    { "{\"copy-on-read\": true, \"source-timeout\": -1}", "source-timeout" },
    { "{\"source\": \"/dev/null\"}", "not a setting" },
  };
  const struct settings before = {
    .hydration = {
      .rate = 1, .threshold = 2, .batch = HYDRATE_BATCH_MIN, .access = true,
    },
    .source_timeout = 3,
  };
  struct settings s = before;
  char *why;
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    ck_assert_msg (patch (bad[i].text, &s, &why) == -1, "%s", bad[i].text);
    ck_assert_ptr_nonnull (why);
    ck_assert_msg (strstr (why, bad[i].why) != NULL, "%s: %s", bad[i].text,
                   why);
    ck_assert_int_eq (memcmp (&s, &before, sizeof s), 0);
    free (why);
  }

  ck_assert_int_eq (patch ("{}", &s, &why), 0);
  ck_assert_int_eq (memcmp (&s, &before, sizeof s), 0);
  ck_assert_int_eq (patch ("{\"hydration-rate\": \"1G\","
                           " \"hydration-batch-size\": 33554432}", &s, &why),
                    0);
  ck_assert_uint_eq (s.hydration.rate, 1 << 30);
  ck_assert_uint_eq (s.hydration.threshold, 2);
  ck_assert_uint_eq (s.hydration.batch, HYDRATE_BATCH_MAX);
  ck_assert (s.hydration.access && !s.copy_on_read);

  ck_assert_int_eq (patch ("{\"hydration-priority\": \"sequential\","
                           " \"copy-on-read\": true,"
                           " \"source-timeout\": 31536000}", &s, &why), 0);
  ck_assert (!s.hydration.access && s.copy_on_read);
  ck_assert_uint_eq (s.source_timeout, 31536000);
  ck_assert_int_eq (patch ("{\"hydration-priority\": \"access\","
                           " \"copy-on-read\": \"false\","
                           " \"source-timeout\": \"10\"}", &s, &why), 0);
  ck_assert (s.hydration.access && !s.copy_on_read);
  ck_assert_uint_eq (s.source_timeout, 10);
}
END_TEST

/* To be freed.  Takes over the reference. */
static char *
dump_json (json_t *json)
{
  char *text;

  ck_assert_ptr_nonnull (json);
  text = json_dumps (json, 0);
  json_decref (json);
  ck_assert_ptr_nonnull (text);
  return text;
}

static char *
dump (const struct status *status)
{
  return dump_json (status_json (status));
}

START_TEST (test_status_object)
{
  struct status s = {
    .size = 1073741824, .region_size = 4096, .regions = 262144,
    .hydrated = 5120, .durable = 4864, .bytes_hydrated = 20971520,
    .mode = MODE_RW,
    .hydration = {
      .state = HYDRATE_HYDRATING, .hydrating = 256, .rate = 104857600,
      .eta_known = true, .eta = 10, .source_connected = true,
      .source_connections = 4,
      .bad = {
        .regions = 3, .bytes = 12288, .ranges = 2,
        .range = { { 4096, 12288 }, { 1073737728, 1073741824 } },
      },
    },
    .settings = {
      .hydration = { .rate = 0, .threshold = 16777216, .batch = 1048576 },
      .copy_on_read = true, .source_timeout = 60,
    },
    .counters = {
      .counts = {
        .source_bytes = { 1, 2 },
        .requests = {
          [COUNTED_READ] = { 3, 4, 5 }, [COUNTED_WRITE] = { 0, 6, 7 },
          [COUNTED_ZERO] = { 0, 8, 9 }, [COUNTED_TRIM] = { 0, 10, 0 },
          [COUNTED_FLUSH] = { 0, 0, 0, 11 }, [COUNTED_CACHE] = { 0, 0, 0, 12 },
          [COUNTED_EXTENTS] = { 0, 0, 0, 13 },
        },
      },
      .commits = 14, .flushes = 15, .flushes_shared = 16,
    },
    .last_error = { "Connection refused", "" },
  };
  static const char *const states[] = {
    "hydrating", "paused", "waiting", "complete", "failed"
  };
  static const char *const modes[] = { "rw", "ro", "fail" };
  char expect[32], *text = dump (&s);
  int i;

  ck_assert_str_eq (text,
    "{\"size\": 1073741824, \"region_size\": 4096, \"regions\": 262144, "
    "\"hydrated\": 5120, \"hydrating\": 256, \"durable\": 4864, "
    "\"state\": \"hydrating\", \"mode\": \"rw\", "
    "\"bytes_hydrated\": 20971520, \"rate\": 104857600, \"eta_seconds\": 10, "
    "\"source\": {\"connected\": true, \"connections\": 4, "
    "\"error\": null}, "
    "\"bad\": {\"regions\": 3, \"bytes\": 12288, "
    "\"ranges\": [[4096, 8192], [1073737728, 4096]]}, "
    "\"settings\": {\"hydration-rate\": 0, \"hydration-threshold\": 16777216, "
    "\"hydration-batch-size\": 1048576, "
    "\"hydration-priority\": \"sequential\", \"copy-on-read\": true, "
    "\"source-timeout\": 60}, "
    "\"counters\": {\"source_read_bytes\": {\"clients\": 1, "
    "\"hydration\": 2}, \"requests\": {"
    "\"read\": {\"source\": 3, \"destination\": 4, \"both\": 5}, "
    "\"write\": {\"source\": 0, \"destination\": 6, \"both\": 7}, "
    "\"zero\": {\"source\": 0, \"destination\": 8, \"both\": 9}, "
    "\"trim\": {\"source\": 0, \"destination\": 10, \"both\": 0}, "
    "\"flush\": {\"all\": 11}, \"cache\": {\"all\": 12}, "
    "\"extents\": {\"all\": 13}}, "
    "\"commits\": 14, \"flushes\": 15, \"flushes_shared\": 16}, "
    "\"last_error\": {\"source\": \"Connection refused\", "
    "\"destination\": null}}");
  free (text);

  s.hydration.eta_known = false;
  for (i = HYDRATE_HYDRATING; i <= HYDRATE_FAILED; i++) {
    s.hydration.state = i;
    text = dump (&s);
    snprintf (expect, sizeof expect, "\"state\": \"%s\"", states[i]);
    ck_assert_ptr_nonnull (strstr (text, expect));
    ck_assert_ptr_nonnull (strstr (text, i == HYDRATE_COMPLETE
                                   ? "\"eta_seconds\": 0,"
                                   : "\"eta_seconds\": null,"));
    ck_assert_int_eq (status_ended (&s),
                      i == HYDRATE_COMPLETE || i == HYDRATE_FAILED);
    free (text);
  }
  s.hydration.state = HYDRATE_PAUSED;
  for (i = MODE_RW; i <= MODE_FAIL; i++) {
    s.mode = i;
    text = dump (&s);
    snprintf (expect, sizeof expect, "\"mode\": \"%s\"", modes[i]);
    ck_assert_ptr_nonnull (strstr (text, expect));
    ck_assert (!status_ended (&s));
    free (text);
  }
}
END_TEST

/* The source's error appears unchanged if it is UTF-8.  If not, question marks
 * replace all bytes that are not ASCII.
 */
START_TEST (test_status_error)
{
  static const struct {
    const char *error, *json;
  } cases[] = {
    { "", "null" },
    { "Connection refused", "\"Connection refused\"" },
    { "\"a\"\n\x01", "\"\\\"a\\\"\\n\\u0001\"" },
    { "\xc3\xa4", "\"\xc3\xa4\"" },
    { "\xc3\xa4 and \xff", "\"?? and ?\"" },
    { "cut off: \xc3", "\"cut off: ?\"" },
  };
  struct status s = { .hydration = { .state = HYDRATE_WAITING } };

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char expect[64], *text;

    snprintf (s.source_error, sizeof s.source_error, "%s", cases[i].error);
    snprintf (expect, sizeof expect, "\"error\": %s}", cases[i].json);
    text = dump (&s);
    ck_assert_msg (strstr (text, expect) != NULL, "%s: %s", expect, text);
    free (text);
  }

  memset (s.source_error, 'x', sizeof s.source_error - 1);
  s.source_error[sizeof s.source_error - 2] = '\xc3';
  free (dump (&s));
}
END_TEST

/* Any progress line is shorter than PIPE_BUF, so that a pipe takes it whole. */
START_TEST (test_status_length)
{
  const uint64_t max = INT64_MAX;
  struct status s = {
    .size = max, .region_size = max, .regions = max, .hydrated = max,
    .durable = max, .bytes_hydrated = max, .mode = MODE_FAIL,
    .hydration = {
      .state = HYDRATE_HYDRATING, .hydrating = max, .rate = max,
      .eta_known = true, .eta = max, .source_connections = UINT_MAX,
      .bad = { .regions = max, .bytes = max, .ranges = PLAN_BAD_SHOWN },
    },
    .settings = {
      .hydration = { .rate = max, .threshold = max, .batch = max },
      .source_timeout = max,
    },
  };
  char *text;

  for (unsigned i = 0; i < PLAN_BAD_SHOWN; i++) {
    s.hydration.bad.range[i].start = max;
    s.hydration.bad.range[i].end = UINT64_MAX - 1;
  }
  memset (s.source_error, '\x01', sizeof s.source_error - 1);
  text = dump_json (status_line_json (&s));
  ck_assert_ptr_nonnull (strstr (text, "\\u0001"));
  ck_assert_uint_lt (strlen (text), PIPE_BUF);
  free (text);
}
END_TEST

/* ---- requests ---- */

/* What the source says about its state. */
static struct {
  _Atomic enum backend_state state;
  const char *_Atomic reason;
} fate;

static enum backend_state
fate_state (struct backend *b)
{
  return fate.state;
}

static void
fate_reason (struct backend *b, char *buf, size_t size)
{
  snprintf (buf, size, "%s", fate.reason);
}

static void
assert_source_error (const char *error)
{
  struct answer a;
  json_t *json;

  ask (&a, "GET", "/status", NULL, NULL);
  ck_assert_int_eq (a.code, 200);
  json = json_object_get (json_object_get (a.json, "source"), "error");
  ck_assert_ptr_nonnull (json);
  if (error)
    ck_assert_str_eq (json_string_value (json), error);
  else
    ck_assert (json_is_null (json));
  json_decref (a.json);
}

/* The status has the reason of the last failure while the source is lost or
 * refused, and none while it is connected or after it was closed.
 */
START_TEST (test_source_error)
{
  static struct backend_ops ops;
  struct backend *b = mock_backend (source);
  struct answer a;

  ops = *b->ops;
  ops.state = fate_state;
  ops.reason = fate_reason;
  b->ops = &ops;
  fate.state = BACKEND_UP;
  fate.reason = "nothing";
  start (path, NULL);
  assert_source_error (NULL);
  fate.state = BACKEND_LOST;
  fate.reason = "Connection refused";
  assert_source_error ("Connection refused");
  fate.state = BACKEND_REFUSED;
  fate.reason = "it is another disk";
  assert_source_error ("it is another disk");
  fate.reason = "";
  assert_source_error (NULL);

  fate.state = BACKEND_UP;
  fate.reason = "nothing";
  hydrate_resume (instance.hydrate);
  read_answer (send_wait (), &a);
  assert_state (&a, "complete");
  assert_source_error (NULL);
}
END_TEST

START_TEST (test_answers)
{
  struct answer a;
  struct stat st;

  start (path, NULL);
  ck_assert_int_eq (lstat (path, &st), 0);
  ck_assert_uint_eq (st.st_mode, S_IFSOCK | 0600);

  ask (&a, "GET", "/status", NULL, NULL);
  ck_assert_int_eq (json_integer_value (json_object_get (a.json, "regions")),
                    REGIONS);
  assert_state (&a, "paused");
  ask (&a, "HEAD", "/status", NULL, NULL);
  ck_assert_int_eq (a.code, 200);
  ck_assert_ptr_null (a.json);

  ask (&a, "PATCH", "/settings", NULL, "{\"hydration-rate\": \"1M\"}");
  ck_assert_int_eq (a.code, 200);
  ck_assert_str_eq (a.body, "{\"hydration-rate\": 1048576, "
                    "\"hydration-threshold\": 16777216, "
                    "\"hydration-batch-size\": 1048576, "
                    "\"hydration-priority\": \"sequential\", "
                    "\"copy-on-read\": false, \"source-timeout\": 0}\n");
  json_decref (a.json);
  ask (&a, "PATCH", "/settings", NULL, "{\"hydration-rate\": 0}");
  json_decref (a.json);
  ask (&a, "GET", "/settings", NULL, NULL);
  ck_assert_int_eq (a.code, 200);
  ck_assert_int_eq (json_integer_value (json_object_get (a.json,
                                                         "hydration-rate")),
                    0);
  json_decref (a.json);

  ask (&a, "POST", "/pause", NULL, "a body is no harm");
  assert_state (&a, "paused");
  ask (&a, "POST", "/resume", NULL, NULL);
  json_decref (a.json);
  ask (&a, "GET", "/wait", NULL, NULL);
  assert_state (&a, "complete");
  ask (&a, "POST", "/pause", NULL, NULL);
  assert_state (&a, "complete");
}
END_TEST

/* Settings have an effect on the running clone, all of them or none. */
START_TEST (test_settings)
{
  struct clone *c = instance.clone;
  struct hydrate_settings h;
  struct answer a;
  char buf[REGION];

  start (path, NULL);
  ask (&a, "PATCH", "/settings", NULL,
       "{\"copy-on-read\": true, \"source-timeout\": 7,"
       " \"hydration-priority\": \"access\"}");
  ck_assert_int_eq (a.code, 200);
  json_decref (a.json);
  hydrate_get_settings (instance.hydrate, &h);
  ck_assert (h.access);
  ck_assert_uint_eq (clone_source_timeout (c), 7);
  ck_assert_int_eq (clone_pread (c, buf, REGION, 0), 0);
  ck_assert_uint_eq (region_map_count_valid (clone_map (c)), 1);

  ask_wrong (400, "PATCH", "/settings", NULL,
             "{\"copy-on-read\": false, \"source-timeout\": 8,"
             " \"hydration-priority\": \"sequential\","
             " \"hydration-batch-size\": 0}", "batch-size");
  hydrate_get_settings (instance.hydrate, &h);
  ck_assert (h.access && clone_copy_on_read (c));
  ck_assert_uint_eq (clone_source_timeout (c), 7);

  ask (&a, "PATCH", "/settings", NULL,
       "{\"copy-on-read\": false, \"hydration-priority\": \"sequential\"}");
  ck_assert_int_eq (a.code, 200);
  json_decref (a.json);
  hydrate_get_settings (instance.hydrate, &h);
  ck_assert (!h.access);
  ck_assert_int_eq (clone_pread (c, buf, REGION, REGION), 0);
  ck_assert_uint_eq (region_map_count_valid (clone_map (c)), 1);
}
END_TEST

/* The sum of a member of all cells of GET /map. */
static json_int_t
sum_cells (json_t *map, const char *key)
{
  json_t *cells = json_object_get (map, "cells"), *cell;
  json_int_t sum = 0;
  size_t i;

  json_array_foreach (cells, i, cell)
    sum += json_integer_value (json_object_get (cell, key));
  return sum;
}

static void
assert_runs (const char *target, const char *runs)
{
  struct answer a;

  ask (&a, "GET", target, NULL, NULL);
  ck_assert_int_eq (a.code, 200);
  ck_assert_msg (strstr (a.body, runs) != NULL, "%s: %s", runs, a.body);
  json_decref (a.json);
}

/* Try the bad ranges again until all but three regions are valid. */
static bool
three_regions_are_bad (void *opaque)
{
  struct hydrate_status st;

  hydrate_get_status (instance.hydrate, &st);
  if (st.bad.regions == 3)
    return true;
  hydrate_resume (instance.hydrate);
  return false;
}

static bool
hydration_is_quiet (void *opaque)
{
  struct hydrate_status st;

  hydrate_get_status (instance.hydrate, &st);
  return st.hydrating == 0;
}

/* The map shows each state, as cells and as runs: durable, dirty, bad, in
 * flight.
 */
START_TEST (test_map)
{
  struct answer a;
  struct mock_gate *gate;
  char buf[3 * REGION];

  memset (buf, 1, sizeof buf);
  ck_assert_int_eq (clone_pwrite (instance.clone, buf, REGION, 0, 0), 0);
  ck_assert_int_eq (clone_flush (instance.clone, NULL), 0);
  ck_assert_int_eq (clone_pwrite (instance.clone, buf, 3 * REGION, REGION, 0),
                    0);
  start (path, NULL);
  ask (&a, "GET", "/map", NULL, NULL);
  ck_assert_int_eq (a.code, 200);
  ck_assert_int_eq (sum_cells (a.json, "length"), DISK_SIZE);
  ck_assert_int_eq (sum_cells (a.json, "durable"), REGION);
  ck_assert_int_eq (sum_cells (a.json, "dirty"), 3 * REGION);
  ck_assert_int_eq (sum_cells (a.json, "invalid"), DISK_SIZE - 4 * REGION);
  ck_assert_int_eq (sum_cells (a.json, "in_flight"), 0);
  ck_assert_int_eq (sum_cells (a.json, "bad"), 0);
  json_decref (a.json);
  assert_runs ("/map?offset=0&length=100K",
               "\"offset\": 0, \"length\": 102400, \"runs\": ["
               "{\"offset\": 0, \"length\": 4096, \"state\": \"durable\"}, "
               "{\"offset\": 4096, \"length\": 12288, "
               "\"state\": \"dirty\"}, "
               "{\"offset\": 16384, \"length\": 86016, "
               "\"state\": \"invalid\"}], \"next\": null}");
  assert_runs ("/map?offset=4000&length=200",
               "[{\"offset\": 4000, \"length\": 96, "
               "\"state\": \"durable\"}, {\"offset\": 4096, "
               "\"length\": 104, \"state\": \"dirty\"}]");
  ask_wrong (400, "GET", "/map?offset=262144", NULL, NULL, "disk's size");
  ask_wrong (400, "GET", "/map?length=0", NULL, NULL, "at least 1");
  ask_wrong (400, "GET", "/map?length=-1", NULL, NULL, "length must be");
  ask_wrong (400, "GET", "/map?offset", NULL, NULL, "offset must be");
  ask_wrong (400, "GET", "/map?cells=7", NULL, NULL, "only the arguments");

  /* Three regions are bad.  Then a copy of the second is stopped, and the
   * others fail again, before it or after it.
   */
  mock_fail (source, MOCK_PREAD, 32768, 3 * REGION, 1, 0, EIO);
  mock_wait_until (three_regions_are_bad, NULL);
  hydrate_pause (instance.hydrate);
  mock_wait_until (hydration_is_quiet, NULL);
  ck_assert_int_eq (clone_flush (instance.clone, NULL), 0);
  ask (&a, "GET", "/map", NULL, NULL);
  ck_assert_int_eq (sum_cells (a.json, "durable"), DISK_SIZE - 3 * REGION);
  ck_assert_int_eq (sum_cells (a.json, "invalid"), 3 * REGION);
  ck_assert_int_eq (sum_cells (a.json, "bad"), 3 * REGION);
  json_decref (a.json);
  mock_heal (source);
  mock_fail (source, MOCK_PREAD, 32768, REGION, 1, 0, EIO);
  mock_fail (source, MOCK_PREAD, 40960, REGION, 1, 0, EIO);
  gate = mock_gate (source, MOCK_PREAD, 36864, REGION, 1);
  hydrate_resume (instance.hydrate);
  mock_gate_wait (gate);
  assert_runs ("/map?offset=36K&length=4K",
               "[{\"offset\": 36864, \"length\": 4096, "
               "\"state\": \"in_flight\"}]");
  ask (&a, "GET", "/map", NULL, NULL);
  ck_assert_int_ge (sum_cells (a.json, "in_flight"), REGION);
  ck_assert_int_eq (sum_cells (a.json, "in_flight") +
                    sum_cells (a.json, "bad"), 3 * REGION);
  json_decref (a.json);
  mock_heal (source);
  mock_gate_open (gate);
}
END_TEST

/* A string of n blanks, to be freed. */
static char *
blanks (size_t n)
{
  char *s = malloc (n + 1);

  ck_assert_ptr_nonnull (s);
  memset (s, ' ', n);
  s[n] = '\0';
  return s;
}

START_TEST (test_refusals)
{
  char *fits = blanks (64 << 10), *large = blanks ((64 << 10) + 1);
  struct answer a;

  start (path, NULL);
  ask_wrong (404, "GET", "/", NULL, NULL, "/status, /wait, /pause");
  ask_wrong (404, "GET", "/status/", NULL, NULL, "/settings");
  ask_wrong (404, "BREW", "/%ff%00", NULL, NULL, "/settings");
  ask_wrong (405, "DELETE", "/status", NULL, NULL, "Allow: GET, HEAD\r\n");
  ask_wrong (405, "GET", "/pause", NULL, NULL, "Allow: POST\r\n");
  ask_wrong (405, "HEADS", "/wait", NULL, NULL, "Allow: GET, HEAD\r\n");
  ask_wrong (405, "POST", "/settings", NULL, "{}",
             "Allow: GET, HEAD, PATCH\r\n");
  ask_wrong (400, "PATCH", "/settings", NULL, NULL, "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL, "{", "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL, "{\"\xff\": \"\xc3\"}",
             "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL, "{} x", "not valid JSON");
  /* The error's text ends in the middle of a character. */
  ask_wrong (400, "PATCH", "/settings", NULL, "{\"\\\xc3\xa9\": 5}",
             "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL, "[\xc3\xa4\xe2\x82\xac",
             "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL,
             "{\"hydration-rate\": 1, \"hydration-rate\": 2}",
             "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL,
             "{\"hydration-rate\": 99999999999999999999}", "not valid JSON");
  ask_wrong (400, "PATCH", "/settings", NULL, "{\"\xc3\xa4\": 1}",
             "\xc3\xa4");
  ask_wrong (400, "PATCH", "/settings", NULL, fits, "not valid JSON");
  ask_wrong (413, "PATCH", "/settings", NULL, large, "64 KiB");
  ask_wrong (413, "POST", "/resume", NULL, large, "64 KiB");
  ask_wrong (404, "POST", "/nothing", NULL, large, "/settings");
  free (large);
  free (fits);

  /* No refused request has changed anything. */
  ck_assert_uint_eq (mock_count (source, MOCK_PREAD), 0);
  ask (&a, "GET", "/status", NULL, NULL);
  ck_assert_ptr_nonnull (strstr (a.body, "\"hydration-rate\": 0"));
  assert_state (&a, "paused");
}
END_TEST

START_TEST (test_token)
{
  struct answer a;

  start (path, "Se.cret+/=");
  ask_wrong (401, "GET", "/status", NULL, NULL, "WWW-Authenticate: Bearer");
  ask_wrong (401, "GET", "/nothing", NULL, NULL, "WWW-Authenticate: Bearer");
  ask_wrong (401, "POST", "/resume", "Authorization: Bearer\r\n", NULL, "");
  ask_wrong (401, "POST", "/resume", "Authorization: Bearer \r\n", NULL, "");
  ask_wrong (401, "POST", "/resume", "Authorization: Bearer Se.cret+/\r\n",
             NULL, "");
  ask_wrong (401, "POST", "/resume", "Authorization: Bearer Se.cret+/=S\r\n",
             NULL, "");
  ask_wrong (401, "POST", "/resume", "Authorization: Bearer Se.cret+/-\r\n",
             NULL, "");
  ask_wrong (401, "POST", "/resume", "Authorization: Basic Se.cret+/=\r\n",
             NULL, "");
  ask_wrong (401, "POST", "/resume", "X-Token: Bearer Se.cret+/=\r\n", NULL,
             "");
  ask (&a, "GET", "/status", "Authorization: bearer Se.cret+/=\r\n", NULL);
  assert_state (&a, "paused");
}
END_TEST

START_TEST (test_bad_token)
{
  const unsigned errors = mock_errors ();

  ck_assert_ptr_null (control_new (path, "", &instance, &mock_messages));
  ck_assert_ptr_null (control_new (path, "a b", &instance, &mock_messages));
  ck_assert_ptr_null (control_new (path, "a\n", &instance, &mock_messages));
  ck_assert_uint_eq (mock_errors (), errors + 3);
  ck_assert_int_eq (access (path, F_OK), -1);
}
END_TEST

/* Clients that do not speak HTTP, or stop in the middle of a request, do not
 * disturb others, nor the end.
 */
START_TEST (test_garbage)
{
  static const char *const garbage[] = {
    "", "\n", "GET", "GET /status", "GET /status HTTP/1.1\r\n",
    "\1\2\3\r\n\r\n",
    "GET /status HTTP/9.9\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
    "PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
    "PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{",
    "PATCH /settings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx",
    "GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /wait HTTP/1.1\r\n",
  };
  enum { n = sizeof garbage / sizeof garbage[0] };
  char zeroes[5000] = "";
  int fd[2 * n + 1];
  struct answer a;
  double begin;
  size_t i;

  start (path, NULL);
  for (i = 0; i < 2 * n; i++) {
    fd[i] = dial ();
    send_all (fd[i], garbage[i / 2], strlen (garbage[i / 2]));
  }
  fd[i] = dial ();
  send_all (fd[i], zeroes, sizeof zeroes);
  for (i = 0; i < 2 * n; i += 2)
    close (fd[i]);
  ask (&a, "GET", "/status", NULL, NULL);
  assert_state (&a, "paused");

  begin = seconds ();
  control_stop (control);
  ck_assert_double_lt (seconds () - begin, 5);
  for (i = 1; i < 2 * n; i += 2)
    close (fd[i]);
  close (fd[2 * n]);
}
END_TEST

/* The threads block all signals. */
START_TEST (test_signals)
{
  const int fd = open ("/dev/null", O_WRONLY);
  struct progress *p;
  struct answer a;
  sigset_t set;

  p = progress_new (fd, &instance, &mock_messages);
  ck_assert_ptr_nonnull (p);
  close (fd);
  start (path, NULL);
  ck_assert_int_eq (progress_start (p), 0);
  ask (&a, "GET", "/status", NULL, NULL);
  assert_state (&a, "paused");

  sigemptyset (&set);
  sigaddset (&set, SIGUSR1);
  ck_assert_int_eq (pthread_sigmask (SIG_BLOCK, &set, NULL), 0);
  ck_assert_int_eq (kill (getpid (), SIGUSR1), 0);
  mock_settle ();
  ck_assert_int_eq (sigpending (&set), 0);
  ck_assert_int_eq (sigismember (&set, SIGUSR1), 1);
  progress_stop (p);
  progress_free (p);
}
END_TEST

/* ---- GET /wait ---- */

START_TEST (test_wait_complete)
{
  struct answer a;
  unsigned threads;
  int fd[WAITERS], i;

  start (path, NULL);
  threads = count_entries ("/proc/self/task");
  for (i = 0; i < WAITERS; i++)
    fd[i] = send_wait ();
  mock_settle ();
  ask (&a, "GET", "/status", NULL, NULL);
  assert_state (&a, "paused");
  for (i = 0; i < WAITERS; i++)
    ck_assert (!is_readable (fd[i]));
  ck_assert_uint_eq (count_entries ("/proc/self/task"), threads);

  ask (&a, "POST", "/resume", NULL, NULL);
  json_decref (a.json);
  for (i = 0; i < WAITERS; i++) {
    read_answer (fd[i], &a);
    ck_assert_int_eq (json_integer_value (json_object_get (a.json, "durable")),
                      REGIONS);
    assert_state (&a, "complete");
  }
}
END_TEST

START_TEST (test_wait_failed)
{
  struct answer a;
  int fd;

  start (path, NULL);
  mock_fail (dest, MOCK_PWRITE, MOCK_ANYWHERE, 1, 0, EIO);
  mock_fail (dest, MOCK_ZERO, MOCK_ANYWHERE, 1, 0, EIO);
  fd = send_wait ();
  ask (&a, "POST", "/resume", NULL, NULL);
  json_decref (a.json);
  read_answer (fd, &a);
  assert_state (&a, "failed");
  ask (&a, "GET", "/wait", NULL, NULL);
  assert_state (&a, "failed");

  mock_heal (dest);
  ask (&a, "POST", "/resume", NULL, NULL);
  json_decref (a.json);
  ask (&a, "GET", "/wait", NULL, NULL);
  assert_state (&a, "complete");
}
END_TEST

/* GET /wait is not answered while the destination is lost: it may come back. */
START_TEST (test_wait_mode)
{
  struct answer a;
  int fd;

  start (path, NULL);
  mock_server_crash (dest, NULL, NULL);
  fd = send_wait ();
  mock_settle ();
  ck_assert (!is_readable (fd));
  mock_server_back (dest);
  ask (&a, "POST", "/resume", NULL, NULL);
  json_decref (a.json);
  read_answer (fd, &a);
  assert_state (&a, "complete");
}
END_TEST

static bool
has_files (void *opaque)
{
  return count_entries ("/proc/self/fd") == *(unsigned *)opaque;
}

static bool
has_more_files (void *opaque)
{
  return count_entries ("/proc/self/fd") > *(unsigned *)opaque;
}

START_TEST (test_wait_and_go_away)
{
  unsigned files, ours;
  int fd[WAITERS], i;

  start (path, NULL);
  files = count_entries ("/proc/self/fd");
  for (i = 0; i < WAITERS; i++)
    fd[i] = send_wait ();
  ours = files + WAITERS;
  mock_wait_until (has_more_files, &ours);
  mock_settle ();
  for (i = 0; i < WAITERS; i++)
    close (fd[i]);
  mock_wait_until (has_files, &files);
}
END_TEST

/* A client that sends requests until the server takes no more, and never reads
 * an answer.
 */
static int
dial_and_jam (void)
{
  static const char request[] = "GET /status HTTP/1.1\r\nHost: x\r\n\r\n";
  const int fd = dial ();
  int idle = 0;

  while (idle < 5) {
    if (send (fd, request, strlen (request), MSG_DONTWAIT | MSG_NOSIGNAL) ==
        (ssize_t)strlen (request))
      idle = 0;
    else {
      idle++;
      usleep (10000);
    }
  }
  return fd;
}

START_TEST (test_stop)
{
  struct answer a;
  double begin;
  int fd[WAITERS], slow, jammed, i;

  start (path, NULL);
  for (i = 0; i < WAITERS; i++)
    fd[i] = send_wait ();
  slow = dial ();
  send_all (slow, "GET /wait HTTP/1.1\r\n", 20);
  jammed = dial_and_jam ();
  ask (&a, "GET", "/status", NULL, NULL);
  assert_state (&a, "paused");

  begin = seconds ();
  control_stop (control);
  ck_assert_double_lt (seconds () - begin, 5);
  for (i = 0; i < WAITERS; i++) {
    read_answer (fd[i], &a);
    assert_state (&a, "paused");
  }
  ck_assert (is_readable (slow));
  close (slow);
  close (jammed);
}
END_TEST

/* ---- sockets ---- */

START_TEST (test_address_is_path)
{
  ck_assert (listen_address_is_path ("/run/clone"));
  ck_assert (listen_address_is_path ("clone.sock"));
  ck_assert (listen_address_is_path ("./a:80"));
  ck_assert (listen_address_is_path ("a:/b"));
  ck_assert (!listen_address_is_path ("localhost:80"));
  ck_assert (!listen_address_is_path ("[::1]:80"));
  ck_assert (!listen_address_is_path (":"));
}
END_TEST

static void
refuse (const char *address, const char *why)
{
  const unsigned errors = mock_errors ();

  ck_assert_msg (control_new (address, NULL, &instance, &mock_messages) == NULL,
                 "%s", address);
  ck_assert_uint_eq (mock_errors (), errors + 1);
  ck_assert_msg (strstr (mock_last_error (), why) != NULL, "%s: %s", why,
                 mock_last_error ());
}

START_TEST (test_path)
{
  char longer[200];
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct stat st;
  int fd;

  /* Files that are not sockets. */
  fd = open (path, O_CREAT | O_WRONLY, 0600);
  close (fd);
  refuse (path, "not a socket");
  ck_assert_int_eq (lstat (path, &st), 0);
  ck_assert (S_ISREG (st.st_mode));
  unlink (path);
  ck_assert_int_eq (symlink ("elsewhere", path), 0);
  refuse (path, "not a socket");
  unlink (path);
  snprintf (longer, sizeof longer, "%s/%0120d", dir, 0);
  refuse (longer, "107");
  snprintf (longer, sizeof longer, "%s/no/socket", dir);
  refuse (longer, "No such file");

  /* A socket of another type. */
  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", path);
  fd = socket (AF_UNIX, SOCK_DGRAM, 0);
  ck_assert_int_eq (bind (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  refuse (path, "not known");
  close (fd);
  unlink (path);

  /* A socket that is in use, and one that was left behind. */
  start (path, NULL);
  refuse (path, "another process");
  control_stop (control);
  refuse (path, "another process");
  control_free (control);
  ck_assert_int_eq (lstat (path, &st), -1);

  fd = socket (AF_UNIX, SOCK_STREAM, 0);
  ck_assert_int_eq (bind (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  close (fd);
  control = control_new (path, NULL, &instance, &mock_messages);
  ck_assert_ptr_nonnull (control);
  close (dial ());

  /* A file that another process has put there is not removed. */
  unlink (path);
  fd = open (path, O_CREAT | O_WRONLY, 0600);
  close (fd);
  control_free (control);
  control = NULL;
  ck_assert_int_eq (lstat (path, &st), 0);
}
END_TEST

/* A port that is free at this moment. */
static unsigned
free_port (void)
{
  struct sockaddr_in addr = { .sin_family = AF_INET };
  socklen_t len = sizeof addr;
  const int fd = socket (AF_INET, SOCK_STREAM, 0);

  addr.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  ck_assert_int_eq (bind (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  ck_assert_int_eq (getsockname (fd, (struct sockaddr *)&addr, &len), 0);
  close (fd);
  return ntohs (addr.sin_port);
}

/* GET /status.  The Host header is this name and, if with_port, the port. */
static void
ask_tcp (struct answer *a, unsigned port, const char *name, bool with_port)
{
  struct sockaddr_in addr = {
    .sin_family = AF_INET, .sin_port = htons (port),
    .sin_addr.s_addr = htonl (INADDR_LOOPBACK),
  };
  const int fd = socket (AF_INET, SOCK_STREAM, 0);
  char value[64];

  ck_assert_int_eq (connect (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  snprintf (value, sizeof value, with_port ? "%s:%u" : "%s", name, port);
  host = value;
  send_request (fd, "GET", "/status", NULL, NULL);
  host = "x";
  read_answer (fd, a);
}

START_TEST (test_tcp)
{
  char address[64];
  struct answer a;
  unsigned port = free_port ();

  refuse ("127.0.0.1:", "ADDRESS:PORT");
  refuse ("127.0.0.1:http", "ADDRESS:PORT");
  refuse ("127.0.0.1:0", "ADDRESS:PORT");
  refuse ("127.0.0.1:65536", "ADDRESS:PORT");
  refuse ("127.0.0.1:99999999999999999999", "ADDRESS:PORT");
  refuse ("127.0.0.1:-1", "ADDRESS:PORT");
  refuse ("127.0.0.1:1 ", "ADDRESS:PORT");
  refuse (":80", "ADDRESS:PORT");
  refuse (":", "ADDRESS:PORT");
  refuse ("[]:80", "ADDRESS:PORT");
  refuse ("[:80", "ADDRESS:PORT");
  refuse ("::1:80", "ADDRESS:PORT");
  refuse ("1.2.3.4.5:80", "no such address");
  refuse ("0.0.0.0:80", "control-token=+FILE");
  refuse ("[::]:80", "control-token=+FILE");
  refuse ("10.0.0.1:80", "control-token=+FILE");

  snprintf (address, sizeof address, "127.0.0.1:%u", port);
  start (address, NULL);
  refuse (address, "Address already in use");
  ask_tcp (&a, port, "127.0.0.1", true);
  assert_state (&a, "paused");
  ask_tcp (&a, port, "localhost", true);
  assert_state (&a, "paused");
  ask_tcp (&a, port, "site.example", true);
  ck_assert_int_eq (a.code, 421);
  ck_assert_ptr_nonnull (json_object_get (a.json, "error"));
  json_decref (a.json);
  ask_tcp (&a, port, "127.0.0.1", false);
  ck_assert_int_eq (a.code, 421);
  json_decref (a.json);
}
END_TEST

START_TEST (test_host)
{
  static const char *const right[] = {
    "192.0.2.1:8080", "Old.Host:8080", "old.host:8080", "localhost:8080",
    "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080",
  };
  static const char *const wrong[] = {
    "", ":", ":8080", "192.0.2.1", "192.0.2.1:", "192.0.2.1:80",
    "192.0.2.1:80800", "192.0.2.1:+8080", "192.0.2.1:8080x", "192.0.2.1:8080 ",
    "192.0.2.2:8080", "192.0.2.1.site.example:8080", "site.example:8080",
    "localhost.site.example:8080", "old.host.site.example:8080", "localhost",
    "[::1]", "[::1", "[::1]8080", "[::2]:8080", "[]:8080", "::1:8080",
    "127.0.0.2:8080", "old.host:8080:8080",
  };
  struct sockaddr_in in = {
    .sin_family = AF_INET, .sin_port = htons (8080),
    .sin_addr.s_addr = htonl (0xc0000201), /* 192.0.2.1 */
  };
  struct sockaddr_in6 in6 = {
    .sin6_family = AF_INET6, .sin6_port = htons (80),
  };
  char name[2000];
  size_t i;

  for (i = 0; i < sizeof right / sizeof right[0]; i++)
    ck_assert_msg (host_is_ours (right[i], "Old.host:8080",
                                 (struct sockaddr *)&in), "%s", right[i]);
  for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
    ck_assert_msg (!host_is_ours (wrong[i], "Old.host:8080",
                                  (struct sockaddr *)&in), "%s", wrong[i]);
  ck_assert (!host_is_ours (NULL, "Old.host:8080", (struct sockaddr *)&in));
  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  ck_assert (!host_is_ours (name, "Old.host:8080", (struct sockaddr *)&in));

  /* Port 80 may be missing, and there are several texts for an address. */
  in6.sin6_addr.s6_addr[0] = 0x20;
  in6.sin6_addr.s6_addr[15] = 1;
  ck_assert (host_is_ours ("[2000::1]", "[::]:80", (struct sockaddr *)&in6));
  ck_assert (host_is_ours ("[2000:0::0001]:80", "[::]:80",
                           (struct sockaddr *)&in6));
  ck_assert (host_is_ours ("[::]", "[::]:80", (struct sockaddr *)&in6));
  ck_assert (host_is_ours ("localhost", "[::]:80", (struct sockaddr *)&in6));
  ck_assert (!host_is_ours ("[2000::2]", "[::]:80", (struct sockaddr *)&in6));
  ck_assert (!host_is_ours ("site.example", "[::]:80",
                            (struct sockaddr *)&in6));
}
END_TEST

START_TEST (test_tcp_token)
{
  struct control *c;
  char address[64];

  snprintf (address, sizeof address, "0.0.0.0:%u", free_port ());
  c = control_new (address, "token", &instance, &mock_messages);
  ck_assert_ptr_nonnull (c);
  control_free (c);
}
END_TEST

/* ---- several starters ---- */

#define STARTERS 4
#define ROUNDS 200

struct starter {
  pthread_barrier_t *barrier;
  struct listener listener;
  int result;
};

static void
start_listening (void *opaque)
{
  struct starter *s = opaque;

  pthread_barrier_wait (s->barrier);
  s->result = listen_open (&s->listener, path, false, &mock_messages);
}

/* A killed server has left its socket, and several start at the same time: one
 * gets the name, and clients reach it.
 */
START_TEST (test_starters)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct starter s[STARTERS], *winner;
  struct mock_thread *thread[STARTERS];
  pthread_barrier_t barrier;
  int fd, i, round, winners;

  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", path);
  pthread_barrier_init (&barrier, NULL, STARTERS);
  for (round = 0; round < ROUNDS; round++) {
    fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq (bind (fd, (struct sockaddr *)&addr, sizeof addr), 0);
    close (fd);
    for (i = 0; i < STARTERS; i++) {
      s[i].barrier = &barrier;
      thread[i] = mock_thread (start_listening, &s[i]);
    }
    for (i = winners = 0, winner = NULL; i < STARTERS; i++) {
      mock_join (thread[i]);
      if (s[i].result == 0) {
        winner = &s[i];
        winners++;
      }
    }
    ck_assert_msg (winners == 1, "round %d: %d of %d have succeeded", round,
                   winners, STARTERS);
    fd = dial ();
    ck_assert (is_readable_soon (winner->listener.fd));
    close (fd);
    listen_close (&winner->listener);
    ck_assert_int_eq (access (path, F_OK), -1);
  }
  pthread_barrier_destroy (&barrier);
  ck_assert_uint_eq (count_entries (dir), 2); /* no lock is left */
}
END_TEST

/* ---- limits ---- */

/* Set the number of the first file descriptor that cannot be opened, and return
 * the old one.
 */
static rlim_t
limit_files (rlim_t max)
{
  struct rlimit limit;
  rlim_t old;

  ck_assert_int_eq (getrlimit (RLIMIT_NOFILE, &limit), 0);
  old = limit.rlim_cur;
  limit.rlim_cur = max;
  ck_assert_int_eq (setrlimit (RLIMIT_NOFILE, &limit), 0);
  return old;
}

/* At the limit, half of 100, another client waits.  It is served as soon as one
 * of the others has gone.
 */
START_TEST (test_connection_limit)
{
  const rlim_t normal = limit_files (100);
  struct answer a;
  int fd[50], last;
  size_t i;

  start (path, NULL);
  ask (&a, "GET", "/status", NULL, NULL); /* it has computed its limit */
  assert_state (&a, "paused");
  limit_files (normal);
  for (i = 0; i < 50; i++)
    fd[i] = dial ();
  last = dial ();
  send_request (last, "GET", "/status", NULL, NULL);
  mock_settle ();
  ck_assert (!is_readable (last));
  close (fd[0]);
  ck_assert (is_readable_soon (last));
  read_answer (last, &a);
  assert_state (&a, "paused");
  for (i = 1; i < 50; i++)
    close (fd[i]);
}
END_TEST

/* Without file descriptors the thread does not spin.  When there are some again
 * the client that waits is served, whether there is another connection or not.
 */
START_TEST (test_no_files)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct answer a;
  clock_t used;
  rlim_t normal;
  int other = -1;

  start (path, NULL);
  if (_i > 0)
    other = dial ();
  mock_settle ();
  normal = limit_files (3);
  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", path);
  ck_assert_int_eq (connect (fd, (struct sockaddr *)&addr, sizeof addr), 0);
  send_request (fd, "GET", "/status", NULL, NULL);
  used = clock ();
  for (int i = 0; i < 10; i++)
    mock_settle ();
  used = clock () - used;
  ck_assert (!is_readable (fd));
  limit_files (normal);
  ck_assert_int_lt (used, CLOCKS_PER_SEC / 10);
  ck_assert (is_readable_soon (fd));
  read_answer (fd, &a);
  assert_state (&a, "paused");
  if (other >= 0)
    close (other);
}
END_TEST

/* ---- the token's file ---- */

/* Read a token from a file with this content. */
static char *
token_of (const char *content, size_t len, char **why)
{
  char file[80], *token;
  int fd;

  snprintf (file, sizeof file, "%s/token", dir);
  fd = open (file, O_CREAT | O_WRONLY | O_TRUNC, 0600);
  ck_assert_int_eq (write (fd, content, len), len);
  close (fd);
  token = token_read (file, why);
  unlink (file);
  ck_assert_ptr_null (token ? *why : NULL);
  return token;
}

static void
assert_token (const char *content, const char *expect)
{
  char *why, *token = token_of (content, strlen (content), &why);

  ck_assert_ptr_nonnull (token);
  ck_assert_str_eq (token, expect);
  free (token);
}

static void
assert_no_token (const char *content, size_t len, const char *expect)
{
  char *why, *token = token_of (content, len, &why);

  ck_assert_ptr_null (token);
  ck_assert_ptr_nonnull (why);
  ck_assert_msg (strstr (why, expect) != NULL, "%s: %s", expect, why);
  free (why);
}

START_TEST (test_token_file)
{
  static char large[100000], longest[TOKEN_MAX + 3];
  char *why;

  assert_token ("a", "a");
  assert_token ("secret\n", "secret");
  assert_token ("secret\nanother line\n", "secret");
  memset (longest, 'x', TOKEN_MAX);
  assert_token (longest, longest);
  ck_assert (token_is_valid (longest));
  longest[TOKEN_MAX] = 'x';
  ck_assert (!token_is_valid (longest));
  assert_no_token (longest, TOKEN_MAX + 1, "too long");
  longest[TOKEN_MAX] = '\n';
  longest[TOKEN_MAX + 1] = 'x';
  assert_no_token (longest, TOKEN_MAX + 2, "too long");
  longest[TOKEN_MAX + 1] = '\0';
  memset (large, 'x', TOKEN_MAX);
  assert_token (longest, large);

  memset (large, 'x', sizeof large);
  assert_no_token (large, sizeof large, "too long");
  assert_no_token ("", 0, "empty");
  assert_no_token ("\n", 1, "empty");
  assert_no_token ("\nsecret\n", 8, "empty");
  assert_no_token ("se\0cret\n", 8, "NUL");
  assert_no_token ("secret\n\0", 8, "NUL");
  ck_assert_ptr_null (token_read ("/nonexistent/token", &why));
  ck_assert_ptr_nonnull (strstr (why, "No such file"));
  free (why);
  ck_assert_ptr_null (token_read (dir, &why));
  ck_assert_ptr_nonnull (strstr (why, "directory"));
  free (why);
}
END_TEST

/* ---- progress ---- */

/* Check that each line of the text is a status.  *n is their number; the result
 * is the state of the last one.  Destroys the text.
 */
static const char *
check_lines (char *text, unsigned *n)
{
  static char state[16];
  char *end;

  for (*n = 0; *text; text = end + 1, (*n)++) {
    json_t *json;

    end = strchr (text, '\n');
    ck_assert_ptr_nonnull (end);
    *end = '\0';
    json = json_loads (text, 0, NULL);
    ck_assert_msg (json != NULL, "%s", text);
    ck_assert_int_eq (json_integer_value (json_object_get (json, "regions")),
                      REGIONS);
    snprintf (state, sizeof state, "%s",
              json_string_value (json_object_get (json, "state")));
    json_decref (json);
  }
  return state;
}

static size_t
read_all (int fd, char *buf, size_t size)
{
  size_t len = 0;
  ssize_t n;

  while (len < size - 1 && (n = read (fd, buf + len, size - 1 - len)) > 0)
    len += n;
  buf[len] = '\0';
  return len;
}

START_TEST (test_progress)
{
  static char text[65536];
  struct progress *p;
  unsigned n;
  int fd[2];

  ck_assert_int_eq (_i ? pipe (fd)
                    : socketpair (AF_UNIX, SOCK_STREAM, 0, fd), 0);
  p = progress_new (fd[1], &instance, &mock_messages);
  ck_assert_ptr_nonnull (p);
  close (fd[1]);
  ck_assert_int_eq (progress_start (p), 0);
  hydrate_resume (instance.hydrate);
  /* The end of the file comes without progress_stop. */
  read_all (fd[0], text, sizeof text);
  ck_assert_str_eq (check_lines (text, &n), "complete");
  ck_assert_uint_ge (n, 1);
  progress_stop (p);
  progress_free (p);
  close (fd[0]);
}
END_TEST

START_TEST (test_progress_stop)
{
  static char text[65536];
  struct progress *p;
  unsigned n;
  int fd[2];

  ck_assert_int_eq (pipe (fd), 0);
  p = progress_new (fd[1], &instance, &mock_messages);
  ck_assert_int_eq (progress_start (p), 0);
  progress_stop (p);
  progress_stop (p);
  progress_free (p);
  close (fd[1]);
  read_all (fd[0], text, sizeof text);
  ck_assert_str_eq (check_lines (text, &n), "paused");
  ck_assert_uint_eq (n, 2);
  close (fd[0]);
}
END_TEST

/* The pipe or socket is full, and nobody reads.  No part of a line is written,
 * and the shared file has not become non-blocking.
 */
START_TEST (test_progress_full)
{
  static char text[1 << 20];
  struct progress *p;
  char byte = '\n';
  size_t filled = 0;
  double begin;
  unsigned n;
  int fd[2];

  ck_assert_int_eq (_i ? pipe (fd)
                    : socketpair (AF_UNIX, SOCK_STREAM, 0, fd), 0);
  ck_assert_int_eq (fcntl (fd[1], F_SETFL, O_NONBLOCK), 0);
  while (write (fd[1], text, 4096) > 0)
    filled += 4096;
  while (write (fd[1], &byte, 1) > 0)
    filled++;
  ck_assert_int_eq (fcntl (fd[1], F_SETFL, 0), 0);

  p = progress_new (fd[1], &instance, &mock_messages);
  ck_assert_int_eq (progress_start (p), 0);
  mock_settle ();
  ck_assert_int_eq (fcntl (fd[1], F_GETFL) & O_NONBLOCK, 0);
  begin = seconds ();
  progress_stop (p);
  ck_assert_double_lt (seconds () - begin, 5);
  progress_free (p);
  close (fd[1]);
  ck_assert_uint_lt (filled, sizeof text);
  filled -= read (fd[0], text, filled);
  while (filled > 0)
    filled -= read (fd[0], text, filled);
  read_all (fd[0], text, sizeof text);
  check_lines (text, &n);
  ck_assert_uint_eq (n, 0);
  close (fd[0]);
}
END_TEST

START_TEST (test_progress_nobody)
{
  const unsigned errors = mock_errors ();
  struct progress *p;
  int fd[2];

  ck_assert_int_eq (_i ? pipe (fd)
                    : socketpair (AF_UNIX, SOCK_STREAM, 0, fd), 0);
  p = progress_new (fd[1], &instance, &mock_messages);
  ck_assert_ptr_nonnull (p);
  close (fd[0]);
  /* SIGPIPE is not ignored here, and would end the test. */
  ck_assert_int_eq (progress_start (p), 0);
  mock_settle ();
  progress_stop (p);
  progress_free (p);
  close (fd[1]);
  ck_assert_uint_eq (mock_errors (), errors);
}
END_TEST

START_TEST (test_progress_fd)
{
  const int fd = open ("/dev/null", O_RDONLY);

  ck_assert_int_ge (fd, 0);
  ck_assert_ptr_null (progress_new (fd, &instance, &mock_messages));
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "for writing"));
  close (fd);
  ck_assert_ptr_null (progress_new (fd, &instance, &mock_messages));
  ck_assert_ptr_nonnull (strstr (mock_last_error (), "is not open"));
  ck_assert_ptr_null (progress_new (-1, &instance, &mock_messages));
}
END_TEST

/* Lines are appended at the shared position of a file: after existing data, and
 * before data that others write later.
 */
START_TEST (test_progress_file)
{
  char name[80], text[8192];
  struct progress *p;
  unsigned n;
  int fd;

  snprintf (name, sizeof name, "%s/lines", dir);
  fd = open (name, O_CREAT | O_RDWR, 0600);
  ck_assert_int_eq (write (fd, "before\n", 7), 7);
  p = progress_new (fd, &instance, &mock_messages);
  ck_assert_int_eq (progress_start (p), 0);
  progress_stop (p);
  progress_free (p);
  ck_assert_int_eq (write (fd, "after\n", 6), 6);
  ck_assert_int_eq (lseek (fd, 0, SEEK_SET), 0);
  read_all (fd, text, sizeof text);
  close (fd);
  unlink (name);
  ck_assert_int_eq (strncmp (text, "before\n", 7), 0);
  ck_assert_str_eq (text + strlen (text) - 7, "\nafter\n");
  text[strlen (text) - 6] = '\0';
  ck_assert_str_eq (check_lines (text + 7, &n), "paused");
  ck_assert_uint_eq (n, 2);
}
END_TEST

static Suite *
control_suite (void)
{
  Suite *s = suite_create ("control");
  TCase *pure = tcase_create ("status and settings");
  TCase *http = tcase_create ("http");
  TCase *lines = tcase_create ("progress");

  tcase_add_test (pure, test_size);
  tcase_add_test (pure, test_patch);
  tcase_add_test (pure, test_status_object);
  tcase_add_test (pure, test_status_error);
  tcase_add_test (pure, test_status_length);
  tcase_add_test (pure, test_address_is_path);
  tcase_add_test (pure, test_host);
  suite_add_tcase (s, pure);

  tcase_add_checked_fixture (http, setup, teardown);
  tcase_set_timeout (http, 60);
  tcase_add_test (http, test_answers);
  tcase_add_test (http, test_source_error);
  tcase_add_test (http, test_map);
  tcase_add_test (http, test_refusals);
  tcase_add_test (http, test_token);
  tcase_add_test (http, test_bad_token);
  tcase_add_test (http, test_garbage);
  tcase_add_test (http, test_signals);
  tcase_add_test (http, test_wait_complete);
  tcase_add_test (http, test_wait_failed);
  tcase_add_test (http, test_wait_mode);
  tcase_add_test (http, test_wait_and_go_away);
  tcase_add_test (http, test_stop);
  tcase_add_test (http, test_path);
  tcase_add_test (http, test_tcp);
  tcase_add_test (http, test_tcp_token);
  tcase_add_test (http, test_starters);
  tcase_add_test (http, test_connection_limit);
  tcase_add_loop_test (http, test_no_files, 0, 2);
  tcase_add_test (http, test_token_file);
  tcase_add_test (http, test_settings);
  suite_add_tcase (s, http);

  tcase_add_checked_fixture (lines, setup, teardown);
  tcase_set_timeout (lines, 60);
  tcase_add_loop_test (lines, test_progress, 0, 2);
  tcase_add_test (lines, test_progress_stop);
  tcase_add_loop_test (lines, test_progress_full, 0, 2);
  tcase_add_loop_test (lines, test_progress_nobody, 0, 2);
  tcase_add_test (lines, test_progress_fd);
  tcase_add_test (lines, test_progress_file);
  suite_add_tcase (s, lines);
  return s;
}

int
main (void)
{
  return run_suite (control_suite ());
}
