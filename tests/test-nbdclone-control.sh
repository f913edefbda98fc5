#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that nbdclone controls running clones, over a unix socket and over TCP
# with a token; and that a server that is dead, silent, or not a clone leads to
# one clear error and the documented exit status.

. "$(dirname "$0")/functions.sh"

nbdclone=$(program tools/nbdclone)
unset NBDCLONE_TOKEN_FILE

# said WORDS...: each of them is in the output of the last nbdclone.
said ()
{
  local word
  for word; do
    grep -q -F -e "$word" "$tmp/out" "$tmp/err" || fail "it does not say $word"
  done
}

ctl=$tmp/clone.ctl
make_disk "$tmp/src" 4M
serve src file "$tmp/src"
serve_clone "$(uri src)" destination="$tmp/dest" region-size=64K \
            hydration=off hydration-rate=20M

# ---- status

nbdclone_exits 0 status "$ctl"
said "$ctl" "$(uri src)" "$tmp/dest" paused '0.0%' '0 bytes of 4 MiB' rw \
     'connected, ' 'hydration-rate: 20 MiB/s' 'hydration-threshold: 16 MiB'
fails grep -q $'\033' "$tmp/out"
nbdclone_exits 0 status --json "$ctl"
jq -e '.state == "paused" and .size == 4194304' "$tmp/out"
jq -e --arg from "$(uri src)" --arg to "$tmp/dest" \
   '.source.name == $from and .destination.name == $to' "$tmp/out"
# Half of the disk, and its first regions durable.
qemu-io -f raw -c 'write 0 1M' -c flush -c 'write 1M 1M' "$(uri clone)"
nbdclone_exits 0 status "$ctl"
said '50.0%' '2 MiB of 4 MiB'
grep -q '\[=*> *\] 50.0%' "$tmp/out"
(cd "$tmp" && nbdclone_exits 0 status clone.ctl)

# ---- wrong usage

for args in "status" "status $ctl $ctl" "status --nonsense $ctl" \
            "status --answer-timeout=0 $ctl" "status --answer-timeout=x $ctl" \
            "status --token=$tmp/none $ctl" "status --token" \
            "status http://" "status http://localhost/x" \
            "status http://user@localhost" "status https://localhost" \
            "status $(printf '%0200d' 0)"; do
  # shellcheck disable=SC2086 # words
  nbdclone_exits 2 $args
done

# ---- servers that are no clones

# bad HOW WORD...: the error for such a server has these words.
bad ()
{
  local how=$1
  shift
  server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
         "$tmp/fake.pid" "$how" "$tmp"
  nbdclone_exits 4 status --answer-timeout=${timeout:-60} "$tmp/fake.sock"
  said "$tmp/fake.sock: " "$@"
  kill9 fake
}
nbdclone_exits 4 status "$tmp/nothing"
said "$tmp/nothing: cannot connect: No such file"
nbdclone_exits 4 status "$tmp/src"
said 'cannot connect: '
timeout=0.2 bad silent 'no answer within 0.2 seconds'
bad hangup 'ended without an answer'
bad garbage 'not HTTP'
bad html 'not the control interface of a clone'
bad text 'not the control interface of a clone'
bad object 'not that of a clone'
bad endless 'too long'
bad redirect 'HTTP status 302'
# It was killed: nobody listens.
nbdclone_exits 4 status "$tmp/fake.sock"
said 'Connection refused' 'nbdkit does not run'
# The error's text cannot do anything to a terminal.
server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
       "$tmp/fake.pid" escapes
nbdclone_exits 1 status "$tmp/fake.sock"
said 'a?[31mb??c?'
kill9 fake

# A status in full: the numbers, an unknown setting, a lost source, and names
# with control characters.
mkdir "$tmp/files"
cat >"$tmp/files/status.json" <<'END'
{"size": 5497558138880, "region_size": 8192, "regions": 671088640,
 "hydrated": 671088639, "hydrating": 0, "durable": 1, "state": "waiting",
 "mode": "fail", "bytes_hydrated": 5497558138879, "rate": 1600,
 "eta_seconds": 3725, "settings": {"hydration-rate": 0, "new-setting": [1]},
 "source": {"connected": false, "connections": 0, "name": "a\u001bc",
            "error": "Connection \u001b[2J refused"},
 "bad": {"regions": 1, "bytes": 4096, "ranges": [[0, 4096]]}}
END
server fake "$python" "$srcdir/fake-control.py" "$tmp/fake.sock" \
       "$tmp/fake.pid" files "$tmp/files"
nbdclone_exits 0 status "$tmp/fake.sock"
# 100% only if all is valid.
said '5.0 TiB of 5 TiB, durable 8 KiB' '99.9%' '1.6 KiB/s' '1:02:05 h' waiting \
     'lost: Connection ?[2J refused; 4 KiB cannot be read' 'a?c' \
     'hydration-rate: no limit' 'new-setting: [1]'
fails grep -q $'\033' "$tmp/out"
kill9 fake

# ---- TCP, with a token

stop clone
echo 'secret-1' >"$tmp/token"
echo 'secret-2' >"$tmp/other-token"
printf '\n' >"$tmp/no-token"
head -c 100000 /dev/zero | tr '\0' x >"$tmp/long-token"
port=$($python -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
url=http://127.0.0.1:$port
server clone nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
       "$(uri src)" destination="$tmp/dest" hydration=off \
       control="127.0.0.1:$port" control-token=+"$tmp/token"
nbdclone_exits 0 status --token="$tmp/token" "$url"
nbdclone_exits 0 status --token "$tmp/token" "$url/"
# A proxy would learn the token.
NBDCLONE_TOKEN_FILE=$tmp/token http_proxy=http://127.0.0.1:9 \
  all_proxy=http://127.0.0.1:9 nbdclone_exits 0 status "$url"
nbdclone_exits 4 status "$url"
said 'token is missing'
nbdclone_exits 4 status --token="$tmp/other-token" "$url"
said 'token is wrong'
nbdclone_exits 2 status --token="$tmp/no-token" "$url"
nbdclone_exits 2 status --token="$tmp/long-token" "$url"
stop clone
nbdclone_exits 4 status --token="$tmp/token" "$url"
said 'Connection refused'

# ---- help

"$nbdclone" --help >"$tmp/help"
for command in $(sed -n 's/^  nbdclone \([a-z]*\) .*/\1/p' "$tmp/help"); do
  nbdclone_exits 0 "$command" --help
  said "nbdclone $command" 'Exit status: 0'
done
# An output that cannot be written is an error.
fails "$nbdclone" --help >/dev/full
