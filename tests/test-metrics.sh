#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that /metrics is correct in Prometheus' text format, in each state,
# and that its numbers are those of /status: after requests whose number is
# known, while clients write, and when the clone is complete.  promtool, if it
# is installed, agrees.  The strict reader refuses wrong texts.  The dashboard
# in examples/grafana.json is valid JSON and uses only metrics that exist.

. "$(dirname "$0")/functions.sh"

# metrics [SAMPLE...]: get and check them, print these samples.
metrics ()
{
  control GET /metrics >"$tmp/metrics"
  $python "$srcdir/prometheus.py" "$tmp/metrics" "${@/#/nbdkit_clone_}"
}

# metric SAMPLE VALUE
metric ()
{
  local value
  value=$(metrics "$1")
  [ "$value" = "$2" ] || fail "$1 is $value, not $2"
}

make_disk "$tmp/src" 4M
serve src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=4K hydration=off
control GET /metrics -i | grep -i '^content-type: text/plain; version=0.0.4'
metric 'state{state="paused"}' 1
metric 'state{state="complete"}' 0
metric 'mode{mode="rw"}' 1
metric 'size_bytes' 4.1943e+06
metric 'hydration_remaining_seconds' nan

# Requests whose number is known.
cat >"$tmp/requests.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
h.pread(4096, 1 << 20)              # source
h.pwrite(b"x" * 4096, 0)            # destination
h.pread(4096, 0)                    # destination
h.pread(8192, 0)                    # both
h.pwrite(b"y" * 100, 65536)         # both
h.zero(4096, 131072)
h.trim(4096, 262144)
h.cache(4096, 524288)
h.flush()
h.flush()
h.block_status(65536, 0, lambda *args: 0)
h.shutdown()
PY
$python "$tmp/requests.py" "$(uri clone)"
for sample in 'read source 1' 'read destination 1' 'read both 1' \
              'write source 0' 'write destination 1' 'write both 1' \
              'zero destination 1' 'trim destination 1' 'cache all 1' \
              'flush all 2' 'extents all 1'; do
  # shellcheck disable=SC2086
  set -- $sample
  metric "requests_total{request=\"$1\",sides=\"$2\"}" "$3"
  test "$(status ".counters.requests.$1.$2")" = "$3"
done
metric 'read_seconds_count{hydrated="yes"}' 1
metric 'read_seconds_count{hydrated="no"}' 2
metric 'write_seconds_count{hydrated="yes"}' 0
metric 'write_seconds_count{hydrated="no"}' 2
metric 'read_seconds_bucket{hydrated="no",le="+Inf"}' 2
metric 'flushes_total' "$(status .counters.flushes)"
test "$(status .counters.flushes)" -ge 2
# Two reads, the edges of a write, and a region for the cache request.
bytes=$((4096 + 4096 + 3996 + 4096))
metric 'source_read_bytes_total{reader="clients"}' $bytes
metric 'source_read_bytes_total{reader="hydration"}' 0
status_is '.last_error == {"source": null, "destination": null}'

# While a client writes, each text is correct, and no counter goes back.
nbdcopy "$tmp/src" "$(uri clone)" &
copy=$!
pids+=("$copy")
last=0
for i in $(seq 10); do
  now=$(metrics 'requests_total{request="write",sides="destination"}')
  [ "$now" -ge "$last" ] || fail "$now after $last"
  last=$now
done
wait "$copy"

control POST /resume >/dev/null
wait_complete
metric 'state{state="complete"}' 1
metric 'state{state="paused"}' 0
metric 'durable_regions' 1024
metric 'source_connected' 0
metric 'hydration_remaining_seconds' 0
if command -v promtool >/dev/null; then
  promtool check metrics <"$tmp/metrics"
fi
stop clone

# The latest error stays when the clone has read the range after all.
rm "$tmp/dest" "$tmp/dest.clone"
stop src
serve src --filter=error file "$tmp/src" error-pread=EIO \
      error-pread-rate=100% error-file="$tmp/failing"
serve_clone "$(uri src)" destination="$tmp/dest" hydration=off
touch "$tmp/failing"
cat >"$tmp/read.py" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pread(512, 1048576)
except nbd.Error:
    sys.exit(0)
sys.exit("the read has not failed")
PY
$python "$tmp/read.py" "$(uri clone)"
status_is '.last_error.destination == null and
           .last_error.source ==
             "cannot read 512 bytes at offset 1048576: Input/output error"'
rm "$tmp/failing"
control POST /resume >/dev/null
wait_complete
status_is '.last_error.source != null'
stop clone

# unknown_names FILE: print the metrics in it that do not exist.
unknown_names ()
{
  sed -n 's/^\(nbdkit_clone_[a-z_]*\).*/\1/p' "$tmp/metrics" | sort -u \
      >"$tmp/known"
  grep -o 'nbdkit_clone_[a-z_]*' "$1" | sort -u | comm -23 - "$tmp/known"
}
dashboard=$srcdir/../examples/grafana.json
jq -e '.panels | length > 0 and
       all (.[].targets[]; .expr | test ("nbdkit_clone_"))' "$dashboard"
test -z "$(unknown_names "$dashboard")"
sed 's/nbdkit_clone_size_bytes/nbdkit_clone_sizes/' "$dashboard" >"$tmp/wrong"
test "$(unknown_names "$tmp/wrong")" = nbdkit_clone_sizes

# Prometheus' own check of the configuration.
if command -v promtool >/dev/null; then
  promtool check config --syntax-only "$srcdir/../examples/prometheus.yml"
fi

# The reader notices what is wrong.
wrong ()
{
  sed "$1" "$tmp/metrics" >"$tmp/wrong"
  fails cmp -s "$tmp/metrics" "$tmp/wrong"
  fails $python "$srcdir/prometheus.py" "$tmp/wrong"
}
wrong '/HELP nbdkit_clone_state/d'
wrong '/TYPE nbdkit_clone_mode/d'
wrong 's/_total/_sum/'
wrong '/read_seconds_bucket.*Inf/d'
wrong '/write_seconds_sum/d'
wrong 's/^nbdkit_clone_size_bytes .*/& &/'
wrong 's/^nbdkit_clone_regions .*/nbdkit_clone_regions many/'
wrong 's/,le="0.001"} [0-9]*/,le="0.001"} 999999/'
