#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that clients do not wait for the source where they do not need it.
# Hydration has as many reads under way as it may have, and the source stops
# answering.  Then valid regions are read and written, whole invalid regions are
# written, zeroed and trimmed, and all of it is flushed.  None of these requests
# can wait for the source, since it does not answer, and none sends it a
# request.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
make_disk "$tmp/src" 16M

# Reads of hydration that may be under way: 1M / 128K.
all_reads=8
settings=(hydration-threshold=1M hydration-batch-size=128K)

stalled () { [ "$(requests src Read)" -ge $all_reads ]; }

# what_clients_do EXPORT: on 4M to 12M; 1M to 2M are valid.
what_clients_do ()
{
  qemu-io -t writeback -f raw -d unmap \
          -c 'read -P 7 1M 1M' -c 'read -P 7 1111111 5000' \
          -c 'write -P 1 1M 4k' -c 'write -P 2 1200000 700' \
          -c 'write -P 3 12M 4k' -c 'write -P 4 12292k 12k' \
          -c 'read -P 3 12M 4k' \
          -c 'write -z 13M 1M' -c 'discard 14M 1M' \
          -c 'write -f -P 5 15M 4k' -c 'flush' \
          -c 'read -P 0 13M 1M' -c 'read -P 5 15M 4k' "$1"
}

# The source has several connections, or one that all must share; the
# destination is a file, or a server.
for config in multi:file single:file multi:nbd single:nbd; do
  : "source and destination: $config"
  case ${config%:*} in
    multi) serve_pausable src file "$tmp/src" ;;
    single) serve_pausable src --filter=multi-conn file "$tmp/src" \
                           multi-conn-mode=disable ;;
  esac
  rm -f "$tmp/dest" "$tmp/meta"
  dest=$tmp/dest
  if [ "${config#*:}" = nbd ]; then
    truncate -s 16M "$tmp/dest"
    serve dest file "$tmp/dest"
    dest=$(uri dest)
  fi
  cp "$tmp/src" "$tmp/model"
  serve_clone "$(uri src)" destination="$dest" metadata="$tmp/meta" \
              region-size=4K hydration-rate=4K "${settings[@]}"
  for f in "$(uri clone)" "$tmp/model"; do
    qemu-io -f raw -c 'write -P 7 1M 1M' "$f"
  done

  # Hydration knows the source's extents by now.
  eventually status_is '.bytes_hydrated > 1048576'
  control POST /pause
  eventually status_is '.hydrating == 0'
  hold src
  : >"$tmp/src.requests"
  set_settings '{"hydration-rate": 0}'
  control POST /resume
  eventually stalled
  before=$(requests src)

  what_clients_do "$(uri clone)"

  status_is '.state == "hydrating" and .mode == "rw"'
  test "$(requests src)" -eq "$before"
  let_go src
  wait_complete
  what_clients_do "$tmp/model" >"$tmp/model.log"
  stop clone
  same "$tmp/dest" "$tmp/model"
  if [ "$dest" != "$tmp/dest" ]; then stop dest; fi
  stop src
done
