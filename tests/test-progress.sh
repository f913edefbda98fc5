#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that progress= writes lines of JSON, the last with the state
# "complete", and that a reader that goes away or does not read stops nothing.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 4M

# Lines go to a file descriptor, or to stderr.
serve_fd ()
{
  exec nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
         control="$tmp/clone.ctl" "$tmp/src" destination="$tmp/dest" \
         "$@" 7>"$tmp/progress"
}

server clone serve_fd progress=7
wait_complete
stop clone
cat "$tmp/progress"
test -s "$tmp/progress"
# Every line is whole, and only the last one is "complete".
test "$(tail -c 1 "$tmp/progress" | od -An -tx1 | tr -d ' ')" = 0a
while read -r line; do
  jq -e '.regions == 1024 and .hydrated <= 1024' <<<"$line"
done <"$tmp/progress"
tail -n 1 "$tmp/progress" | jq -e '.state == "complete" and .durable == 1024'
test "$(grep -c '"complete"' "$tmp/progress")" -eq 1

rm "$tmp/dest" "$tmp/dest.clone"
serve_clone "$tmp/src" destination="$tmp/dest" progress=stderr
wait_complete
stop clone
grep '^{' "$tmp/clone.log" | tail -n 1 | jq -e '.state == "complete"'
# Without progress= there are no lines.
rm "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
serve_clone "$tmp/src" destination="$tmp/dest"
wait_complete
stop clone
fails grep '^{' "$tmp/clone.log"

# A reader that never reads, and one that has gone.
rm "$tmp/dest" "$tmp/dest.clone"
mkfifo "$tmp/fifo"
serve_fifo ()
{
  exec nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
         control="$tmp/clone.ctl" "$tmp/src" destination="$tmp/dest" \
         progress=7 7<>"$tmp/fifo"
}
server clone serve_fifo
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
rm "$tmp/dest" "$tmp/dest.clone"
serve_gone ()
{
  exec nbdkit -f -P "$tmp/clone.pid" -U "$tmp/clone.sock" "$plugin" \
         control="$tmp/clone.ctl" "$tmp/src" destination="$tmp/dest" \
         progress=7 hydration-rate=2M 7> >(exec true)
}
server clone serve_gone
wait_complete
stop clone
same "$tmp/dest" "$tmp/src"
