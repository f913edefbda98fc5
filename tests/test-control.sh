#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the control interface of the plugin works as documented: all
# members of /status, pause, resume, wait and settings; and that wrong requests
# get 400, 404 or 405 with a message in JSON, and change nothing.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M
serve src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K \
            hydration=off hydration-rate=1000000

test "$(stat -c %a "$tmp/clone.ctl")" = 600 ||
  test "$(stat -c %a "$tmp/clone.ctl")" = 700

control GET /status -i >"$tmp/answer"
grep -i '^content-type: application/json' "$tmp/answer"
types='{"bytes_hydrated":"number","durable":"number","eta_seconds":"null",
  "hydrated":"number","hydrating":"number","mode":"string","rate":"number",
  "region_size":"number","regions":"number",
  "settings":"object","size":"number","source":"object","state":"string"}'
control GET /status >"$tmp/status"
jq -e --argjson types "$types" '
  . as $s | $types | to_entries |
  all(. as $e | ($s | has($e.key)) and
      ($s[$e.key] | type | . == $e.value or $e.key == "eta_seconds"))' \
   "$tmp/status"
jq -e '.size == 4194304 and .region_size == 65536 and .regions == 64 and
       .hydrated == 0 and .hydrating == 0 and .durable == 0 and
       .state == "paused" and .mode == "rw" and .bytes_hydrated == 0 and
       .source.connected == true and .source.connections >= 1 and
       .source.connections <= 8 and
       (.settings | has("hydration-rate") and has("hydration-threshold") and
                    has("hydration-batch-size")) and
       .settings."hydration-rate" == 1000000' "$tmp/status"

jq -e --arg from "$(uri src)" --arg to "$tmp/dest" \
   '.source.name == $from and .destination.name == $to' "$tmp/status"

# Settings: one alone, and several at once; the answer has all of them.
control PATCH /settings -d '{"hydration-rate": 123}' >"$tmp/body"
jq -e 'length == 6 and ."hydration-rate" == 123' "$tmp/body"
control PATCH /settings -d \
  '{"hydration-threshold": 2097152, "hydration-batch-size": 131072}' \
  >"$tmp/body"
jq -e '. == {"hydration-rate": 123, "hydration-threshold": 2097152,
             "hydration-batch-size": 131072, "hydration-priority": "access",
             "copy-on-read": false, "source-timeout": 0}' "$tmp/body"
control PATCH /settings -d '{}' >"$tmp/body"
control GET /status | jq .settings | diff - <(jq . "$tmp/body") ||
  test "$(control GET /status | jq -S .settings)" = "$(jq -S . "$tmp/body")"
settings=$(status '.settings | tojson')

wrong ()
{
  local code=$1 got
  shift
  got=$(http_code "$@")
  [ "$got" = "$code" ] || fail "$got instead of $code: $*"
  jq -e '.error | type == "string" and length > 0' "$tmp/body"
}

for body in '' 'x' '[]' '1' '{' '{"hydration-rate": -1}' \
            '{"hydration-rate": "fast"}' '{"hydration-rate": 1.5}' \
            '{"hydration-rate": null}' '{"nonsense": 1}' \
            '{"region-size": 4096}' '{"hydration-batch-size": 0}' \
            '{"hydration-threshold": -5}' \
            '{"hydration-rate": 99999999999999999999}' \
            '{"hydration-rate": 5, "nonsense": 1}' \
            '{"hydration-rate": 5, "hydration-threshold": -1}' \
            '{"hydration-rate": 5} x'; do
  wrong 400 PATCH /settings -d "$body"
  test "$(status '.settings | tojson')" = "$settings"
done
# A body that is far too long.
head -c 10M /dev/zero | tr '\0' ' ' >"$tmp/long"
code=$(http_code PATCH /settings --data-binary "@$tmp/long" || :)
test "$code" = 400 || test "$code" = 413
for path in / /nonsense /status/ /statu /status/x /settings/x; do
  wrong 404 GET "$path"
done
for path in /status /wait; do
  wrong 405 POST "$path"
  wrong 405 DELETE "$path"
done
for path in /pause /resume; do
  wrong 405 GET "$path"
  wrong 405 PUT "$path"
done
wrong 405 POST /settings -d '{"hydration-rate": 5}'
status_is '.state == "paused" and .hydrated == 0'

# Garbage, halves of requests, and many connections at once do no harm.
$python - "$tmp/clone.ctl" <<'PY'
import os, socket, sys
socks = []
for data in (b"", b"GET", b"\0" * 5000, b"GET /status HTTP/1.1\r\n",
             b"PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
             b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"):
    for i in range(10):
        s = socket.socket(socket.AF_UNIX)
        s.connect(sys.argv[1])
        s.send(data)
        socks.append(s)
for s in socks[::2]:
    s.close()
PY
status_is '.state == "paused"'

# Several clients can wait; pause and resume can be repeated.
control GET /wait >"$tmp/wait1" & a=$!
control GET /wait >"$tmp/wait2" & b=$!
control POST /pause
control POST /pause
set_settings '{"hydration-rate": 0}'
status_is '.state == "paused"'
kill -0 $a $b
control POST /resume
control POST /resume
wait $a
wait $b
wait_complete
status_is '.state == "complete" and .hydrated == 64 and .durable == 64 and
           .hydrating == 0 and .bytes_hydrated == 4194304 and
           .source.connected == false and .source.connections == 0 and
           .source.name == null'
# It is too late to pause and resume, and does no harm.
control POST /pause || :
control POST /resume || :
status_is '.state == "complete"'
stop clone
test ! -e "$tmp/clone.ctl"

# SIGTERM ends GET /wait requests, too.
rm "$tmp/dest" "$tmp/dest.clone"
serve_clone "$(uri src)" destination="$tmp/dest" hydration=off
control GET /wait >/dev/null 2>&1 & a=$!
status_is '.state == "paused"'
stop clone
wait $a || :

# A socket that is in use is an error, and so is a file that is not a socket.  A
# socket that a killed server has left behind is replaced.
serve_clone "$(uri src)" destination="$tmp/dest" hydration=off
refused control "$tmp/src" destination="$tmp/dest2" control="$tmp/clone.ctl"
refused control "$tmp/src" destination="$tmp/dest2" control="$tmp/src"
kill9 clone
test -S "$tmp/clone.ctl"
server clone nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
       "$(uri src)" destination="$tmp/dest" control="$tmp/clone.ctl"
wait_complete
stop clone

# An address that is not loopback needs a token.
refused 'control-token|loopback' "$tmp/src" destination="$tmp/dest2" \
        control=0.0.0.0:10809

# With one connection to the source copies are larger, to fill a long link.
stop src
rm "$tmp/dest" "$tmp/dest.clone"
serve src --filter=multi-conn file "$tmp/src" multi-conn-mode=disable
serve_clone "$(uri src)" destination="$tmp/dest" hydration=off
status_is '.settings."hydration-batch-size" == 1048576'
stop clone
