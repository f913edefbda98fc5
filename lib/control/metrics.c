/* nbdkit-clone
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "control/metrics.h"
#include "control/request.h"

#define PREFIX "nbdkit_clone_"

/* ---- the format ---- */

static void
print_head (FILE *fp, const char *name, const char *type, const char *help)
{
  fprintf (fp, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name, help,
           name, type);
}

static void
print_one (FILE *fp, const char *name, const char *type, const char *help,
           uint64_t value)
{
  print_head (fp, name, type, help);
  fprintf (fp, PREFIX "%s %" PRIu64 "\n", name, value);
}

static void
print_labelled (FILE *fp, const char *name, const char *label,
                const char *label_value, uint64_t value)
{
  fprintf (fp, PREFIX "%s{%s=\"%s\"} %" PRIu64 "\n", name, label, label_value,
           value);
}

/* One of the names is true: its sample is 1, the others are 0. */
static void
print_choice (FILE *fp, const char *name, const char *help,
              const char *const *names, unsigned n, unsigned chosen)
{
  print_head (fp, name, "gauge", help);
  for (unsigned i = 0; i < n; i++)
    print_labelled (fp, name, name, names[i], i == chosen);
}

/* ---- histograms ---- */

static void
print_bucket (FILE *fp, const char *name, const char *hydrated,
              const char *bound, uint64_t count)
{
  fprintf (fp, PREFIX "%s_bucket{hydrated=\"%s\",le=\"%s\"} %" PRIu64 "\n",
           name, hydrated, bound, count);
}

static void
print_times (FILE *fp, const char *name, const char *hydrated,
             const struct counted_times *times)
{
  char bound[32];
  uint64_t count = 0;

  for (unsigned i = 0; i < COUNTERS_BOUNDS; i++) {
    snprintf (bound, sizeof bound, "%g", counters_bound[i] / 1e9);
    count += times->bucket[i];
    print_bucket (fp, name, hydrated, bound, count);
  }
  count += times->bucket[COUNTERS_BOUNDS];
  print_bucket (fp, name, hydrated, "+Inf", count);
  fprintf (fp, PREFIX "%s_sum{hydrated=\"%s\"} %.9f\n", name, hydrated,
           times->nanoseconds / 1e9);
  fprintf (fp, PREFIX "%s_count{hydrated=\"%s\"} %" PRIu64 "\n", name,
           hydrated, count);
}

static void
print_histogram (FILE *fp, const char *name, const char *help,
                 const struct counted_times times[2])
{
  print_head (fp, name, "histogram", help);
  print_times (fp, name, "yes", &times[1]);
  print_times (fp, name, "no", &times[0]);
}

/* ---- the metrics ---- */

static void
print_disk (FILE *fp, const struct status *s)
{
  print_one (fp, "size_bytes", "gauge", "Size of the disk.", s->size);
  print_one (fp, "region_size_bytes", "gauge", "Size of a region.",
             s->region_size);
  print_one (fp, "regions", "gauge", "Number of regions of the disk.",
             s->regions);
  print_one (fp, "valid_regions", "gauge",
             "Number of regions whose data is in the destination.",
             s->hydrated);
  print_one (fp, "durable_regions", "gauge",
             "Number of regions that are valid in the metadata on disk.",
             s->durable);
  print_one (fp, "valid_bytes", "gauge", "Bytes in valid regions.",
             s->bytes_hydrated);
}

static void
print_hydration (FILE *fp, const struct status *s)
{
  const struct hydrate_status *h = &s->hydration;

  print_choice (fp, "state", "What hydration does: 1 for the present state.",
                status_state_names, STATUS_STATES, h->state);
  print_choice (fp, "mode", "What clients can do: 1 for the present mode.",
                status_mode_names, STATUS_MODES, s->mode);
  print_one (fp, "regions_in_flight", "gauge",
             "Number of regions that hydration is copying.", h->hydrating);
  print_one (fp, "hydration_bytes_per_second", "gauge",
             "Bytes that became valid in a second, recently.", h->rate);
  print_head (fp, "hydration_remaining_seconds", "gauge",
              "Time until all is hydrated at this rate; NaN if not known.");
  if (h->eta_known)
    fprintf (fp, PREFIX "hydration_remaining_seconds %" PRIu64 "\n", h->eta);
  else
    fprintf (fp, PREFIX "hydration_remaining_seconds NaN\n");
  print_one (fp, "bad_regions", "gauge",
             "Number of regions that the source could not read.",
             h->bad.regions);
  print_one (fp, "bad_bytes", "gauge",
             "Bytes that the source could not read.", h->bad.bytes);
  print_one (fp, "source_connected", "gauge",
             "1 if the source answers; 0 if it is lost, or closed because the "
             "clone is complete.", h->source_connected);
  print_one (fp, "source_connections", "gauge",
             "Number of open connections to the source.",
             h->source_connections);
}

static void
print_requests (FILE *fp, const struct counts *counts)
{
  static const char *const sides[] = {
    [COUNTED_SOURCE] = "source", [COUNTED_DESTINATION] = "destination",
    [COUNTED_BOTH] = "both", [COUNTED_ALL] = "all",
  };

  print_head (fp, "requests_total", "counter",
              "Requests of clients, by the sides that they have used.");
  for (unsigned i = 0; i < COUNTED_REQUESTS; i++)
    for (unsigned k = 0; k < COUNTED_SIDES; k++)
      if (status_request_has_sides (i) != (k == COUNTED_ALL))
        fprintf (fp, PREFIX "requests_total{request=\"%s\",sides=\"%s\"} %"
                 PRIu64 "\n", status_request_names[i], sides[k],
                 counts->requests[i][k]);
}

static void
print_counters (FILE *fp, const struct clone_counters *c)
{
  static const char read[] = "source_read_bytes_total";
  const uint64_t *bytes = c->counts.source_bytes;

  print_requests (fp, &c->counts);
  print_head (fp, read, "counter", "Bytes that were read from the source.");
  print_labelled (fp, read, "reader", "clients", bytes[COUNTED_CLIENTS]);
  print_labelled (fp, read, "reader", "hydration", bytes[COUNTED_HYDRATION]);
  print_one (fp, "commits_total", "counter",
             "Commits that wrote to the metadata.", c->commits);
  print_one (fp, "flushes_total", "counter",
             "Flushes that clients, writes with FUA and the periodic commit "
             "have asked for.", c->flushes);
  print_one (fp, "flushes_shared_total", "counter",
             "Flushes that were done by a commit for several flushes.",
             c->flushes_shared);
  print_histogram (fp, "read_seconds", "How long reads of clients took; "
                   "hydrated: all their regions were valid.",
                   c->counts.times[0]);
  print_histogram (fp, "write_seconds", "How long writes of clients took; "
                   "hydrated: all their regions were valid.",
                   c->counts.times[1]);
}

void
metrics_print (FILE *fp, const struct status *status)
{
  print_head (fp, "build_info", "gauge", "1, labelled with the version.");
  print_labelled (fp, "build_info", "version", PACKAGE_VERSION, 1);
  print_disk (fp, status);
  print_hydration (fp, status);
  print_counters (fp, &status->counters);
}

enum MHD_Result
metrics_handle (struct request *r)
{
  struct status status;
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    return MHD_NO;
  status_get (r->instance, &status);
  metrics_print (fp, &status);
  if (fclose (fp) == EOF) {
    free (text);
    return MHD_NO;
  }
  return request_answer_text (r, text, len,
                              "text/plain; version=0.0.4; charset=utf-8");
}
