#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that random requests of every kind, at unaligned offsets, do what they
# do to a plain disk, before, while and after the clone hydrates, and after
# restarts: for disks of any size in bytes, which the export and the destination
# have exactly; for every region size; and for files and servers of all kinds as
# source, destination and metadata.  In the end the destination alone has the
# clients' data.

. "$(dirname "$0")/functions.sh"

requires_command qemu-img qemu-nbd
requires nbdkit --dump-plugin --filter=blocksize-policy null

# Each row is a clone.  It runs
#   always  in each run of this test,
#   quick   but not under a tool,
#   long    in `tests/run --all' only, which runs all rows under a tool, too.
table='
# WHEN    SIZE REGIONS SOURCE  DEST    REQUESTS
always 16777993  4K    nbd     file    250
quick  16777993  4K    file    file    250
quick  16777993  64K   nbd     file    250
long   16777993  64K   file    file    250
long   16777993  1M    nbd     file    250
always 16777993  1M    file    file    250
long   33555968  4K    nbd     file    250
quick  33555968  64K   nbd     file    250
long   33555968  1M    nbd     file    250
long   33555968  1G    nbd     file    250

quick         1  4K    file    file    20
quick       511  4K    file    file    20
long        512  4K    file    file    20
quick       513  4K    file    file    20
always     4095  4K    file    file    20
long       4096  4K    file    file    20
quick      4097  4K    file    file    20
long       8192  4K    file    file    20
quick  16515073  4K    file    file    20
long   33555968  4K    file    file    20
long          1  64K   file    file    20
long        511  64K   file    file    20
quick       512  64K   file    file    20
long        513  64K   file    file    20
long       4095  64K   file    file    20
quick     65535  64K   file    file    20
long      65536  64K   file    file    20
quick     65537  64K   file    file    20
long     131072  64K   file    file    20
long   16515073  64K   file    file    20
long   33555968  64K   file    file    20

quick   5255225  auto  file    file    40
long    5255225  4K    file    file    40
quick   5255225  8K    file    file    40
quick   5255225  16K   file    file    40
long    5255225  32K   file    file    40
long    5255225  64K   file    file    40
quick   5255225  128K  file    file    40
long    5255225  256K  file    file    40
long    5255225  512K  file    file    40
long    5255225  1M    file    file    40
quick   5255225  2M    file    file    40
long    5255225  4M    file    file    40
quick   5255225  8M    file    file    40
long    5255225  16M   file    file    40
long    5255225  32M   file    file    40
long    5255225  64M   file    file    40
long    5255225  128M  file    file    40
long    5255225  256M  file    file    40
long    5255225  512M  file    file    40
quick   5255225  1G    file    file    40

quick   8389120  64K   nbd     memory  100
always  8389120  64K   nbd     nbd     100
always  8389120  64K   nbd     single  100
quick   8389120  64K   nbd     qemu    100
quick   8389120  64K   nbd     qcow2   100
quick   8389120  64K   nbd     plain   100
quick   8389120  64K   file    mixed   100
always  8388608  4K    strict  file    150
always  8388608  4K    file    strict  150
'

# A server with a minimum block size: requests that are not aligned fail.
strict=(--filter=blocksize-policy file)
strict_args=(blocksize-minimum=4096 blocksize-preferred=65536
             blocksize-maximum=1M blocksize-error-policy=error)
one_connection=(--filter=multi-conn file)

# start_source SOURCE FILE: sets source.
start_source ()
{
  source=$(uri src)
  case $1 in
    file) source=$2 ;;
    nbd) serve src file "$2" ;;
    strict) serve src "${strict[@]}" "$2" "${strict_args[@]}" ;;
  esac
}

# start_destination DEST: sets dest, meta, and servers, which are to be stopped.
start_destination ()
{
  local d=$tmp/d m=$tmp/m

  rm -f "$d" "$d.clone" "$m"
  dest=$(uri dest) meta=$(uri meta)
  servers=(dest meta)
  case $1 in
    file | mixed | memory) ;;
    qcow2) qemu-img create -q -f qcow2 "$d" $size; truncate -s 1M "$m" ;;
    *) truncate -s $size "$d"; truncate -s 1M "$m" ;;
  esac
  case $1 in
    file) dest=$d meta=$d.clone servers=() ;;
    mixed) serve meta memory 1M; dest=$d servers=(meta) ;;
    memory) serve dest memory $((size + 1024 * 1024)); serve meta memory 1M ;;
    nbd) serve dest file "$d"; serve meta file "$m" ;;
    single)
      serve dest "${one_connection[@]}" "$d" multi-conn-mode=disable
      serve meta "${one_connection[@]}" "$m" multi-conn-mode=disable ;;
    strict)
      serve dest "${strict[@]}" "$d" "${strict_args[@]}"
      serve meta "${strict[@]}" "$m" "${strict_args[@]}" ;;
    qemu) serve_qemu dest -f raw -e 0 "$d"; serve_qemu meta -f raw -e 0 "$m" ;;
    # Servers for one client only.
    qcow2)
      serve_qemu dest -f qcow2 --discard=unmap "$d"
      serve_qemu meta -f raw "$m" ;;
    plain) # No zero, no trim, no FUA, no extents; flush alone.
      serve dest --filter=nozero --filter=fua --filter=noextents file "$d"
      serve meta --filter=nozero --filter=fua memory 1M ;;
  esac
}

# make_source FILE SIZE: with a hole and zeroes where there is room, because
# hydration treats them specially.
make_source ()
{
  make_disk "$1" "$2"
  if [ "$2" -gt 4194304 ]; then
    dd if=/dev/zero of="$1" bs=64K seek=32 count=32 conv=notrunc status=none
    # Not every file system has holes.
    fallocate -p -o 1M -l 900K "$1" || :
  fi
}

# try SIZE REGION-SIZE SOURCE DEST REQUESTS
seed=0
try ()
{
  local size=$1 region_size=$2 ops disk=$tmp/disk-$1 r model args hydrated
  ops=$(fewer "$5")
  seed=$((seed + 1))
  [ -f "$disk" ] || make_source "$disk" "$size"
  cp "$disk" "$tmp/model"
  model=("$python" "$srcdir/model.py" "$tmp/model" "$(uri clone)")
  start_source "$3" "$disk"
  start_destination "$4"
  args=("$source" destination="$dest" metadata="$meta")

  serve_clone "${args[@]}" region-size="$region_size" hydration=off
  r=$(numfmt --from=iec "${region_size/auto/4K}")
  status_is ".size == $size and .hydrated == 0 and .region_size == $r and
             .regions == $(((size + r - 1) / r))"
  test "$(nbdinfo --size "$(uri clone)")" -eq "$size"
  "${model[@]}" --ops "$ops" --seed $seed
  # If there are few regions, the client may have made all of them valid.
  status_is '.state == "paused" or .hydrated == .regions'
  hydrated=$(status .hydrated)
  stop clone

  # Slowly, so that the requests come while it hydrates.
  serve_clone "${args[@]}" hydration-rate=$((size / 4 + 65536))
  status_is ".durable >= $hydrated"
  "${model[@]}" --ops "$ops" --seed $((1000 + seed))
  set_settings '{"hydration-rate": 0}'
  "${model[@]}" --ops $((ops / 2)) --seed $((2000 + seed))
  wait_complete
  "${model[@]}" --ops $((ops / 2)) --seed $((3000 + seed))
  stop clone

  if [ "$dest" = "$tmp/d" ]; then
    same "$dest" "$tmp/model"
  else
    serve_clone "${args[@]}"
    status_is '.state == "complete"'
    stop clone
    nbdcopy "$dest" "$tmp/out"
    # The destination may be larger than the disk.
    cmp -n "$size" "$tmp/out" "$tmp/model"
    rm "$tmp/out"
  fi
  if [ "$3" != file ]; then stop src; fi
  for server in "${servers[@]}"; do stop "$server"; done
}

tried=0 left=0
while read -r when row; do
  case $when in
    '' | '#') continue ;;
    always) ;;
    quick) [ -z "$tool" ] || is_all || { left=$((left + 1)); continue; } ;;
    long) is_all || { left=$((left + 1)); continue; } ;;
  esac
  : "clone: $row"
  # shellcheck disable=SC2086
  try $row
  tried=$((tried + 1))
done <<<"$table"

echo "model: $tried kinds of clones"
[ $left -eq 0 ] || left_to_all "$left other kinds of clones"
