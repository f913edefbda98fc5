#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that destination and metadata may be NBD exports, of nbdkit and of
# qemu-nbd, alone and together, with several connections and with one; and that
# the clone goes on there after a restart.

. "$(dirname "$0")/functions.sh"

requires_command qemu-nbd
size=$(((8 << 20) + 512))
make_disk "$tmp/src" $size
serve src file "$tmp/src"

start_dest ()
{
  case $1 in
    memory) serve dest memory 9M; serve meta memory 1M ;;
    file) truncate -s $size "$tmp/d"; serve dest file "$tmp/d"
          truncate -s 1M "$tmp/m"; serve meta file "$tmp/m" ;;
    single) truncate -s $size "$tmp/d"
            serve dest --filter=multi-conn file "$tmp/d" \
                  multi-conn-mode=disable
            truncate -s 1M "$tmp/m"
            serve meta --filter=multi-conn file "$tmp/m" \
                  multi-conn-mode=disable ;;
    qemu) truncate -s $size "$tmp/d"; truncate -s 1M "$tmp/m"
          serve_qemu dest -f raw -e 0 "$tmp/d"
          serve_qemu meta -f raw -e 0 "$tmp/m" ;;
    qcow2) qemu-img create -q -f qcow2 "$tmp/d" $size
           serve_qemu dest -f qcow2 --discard=unmap "$tmp/d"
           truncate -s 1M "$tmp/m"
           serve_qemu meta -f raw "$tmp/m" ;;
    plain) # No zero, no trim, no FUA, no extents; flush alone.
           truncate -s $size "$tmp/d"
           serve dest --filter=nozero --filter=fua --filter=noextents \
                 file "$tmp/d"
           serve meta --filter=nozero --filter=fua memory 1M ;;
  esac
}

# While they are clients, qemu-nbd -e 1 serves nobody else: compare through the
# clone, and the destination after the clone's end.
for dest in memory file single qemu qcow2 plain; do
  : "destination: $dest"
  rm -f "$tmp/d" "$tmp/m"
  cp "$tmp/src" "$tmp/model"
  model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")
  start_dest $dest
  args=("$(uri src)" destination="$(uri dest)" metadata="$(uri meta)"
        region-size=64K)
  serve_clone "${args[@]}" hydration=off
  "${model[@]}" --ops 150 --seed 1
  stop clone
  serve_clone "${args[@]}" hydration-rate=2M
  status_is '.durable > 0'
  "${model[@]}" --ops 100 --seed 2
  set_settings '{"hydration-rate": 0}'
  wait_complete
  "${model[@]}" --ops 50 --seed 3
  stop clone
  serve_clone "${args[@]}"
  status_is '.state == "complete"'
  stop clone
  nbdcopy "$(uri dest)" "$tmp/out"
  head -c $size "$tmp/out" >"$tmp/out2"
  same "$tmp/out2" "$tmp/model"
  rm "$tmp/out" "$tmp/out2"
  stop dest
  stop meta
done

# One of them a file, the other not.
rm -f "$tmp/d" "$tmp/m"
cp "$tmp/src" "$tmp/model"
serve meta memory 1M
serve_clone "$tmp/src" destination="$tmp/d" metadata="$(uri meta)"
"${model[@]}" --ops 50
wait_complete
stop clone
same "$tmp/d" "$tmp/model"
test ! -e "$tmp/d.clone"
