#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that parameters, files and servers that cannot work are refused with
# one clear error and exit status 1, and that nothing is created or changed.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 1M
make_disk "$tmp/small" 1000K
mkdir "$tmp/dir"
truncate -s 2M "$tmp/old"
dest=destination="$tmp/dest"

# Keys and values.
refused 'source|destination'
refused destination "$tmp/src"
refused source "$dest"
refused "unknown|nonsense" "$tmp/src" "$dest" nonsense=1
for v in maybe 2 ''; do
  refused hydration "$tmp/src" "$dest" "hydration=$v"
  refused discard-passdown "$tmp/src" "$dest" "discard-passdown=$v"
  refused copy-on-read "$tmp/src" "$dest" "copy-on-read=$v"
  refused source-check "$tmp/src" "$dest" "source-check=$v"
  refused create "$tmp/src" "$dest" "create=$v"
  refused hydration-priority "$tmp/src" "$dest" "hydration-priority=$v"
done
for v in x -1 '' 1s 31536001; do
  refused source-timeout "$tmp/src" "$dest" "source-timeout=$v"
done
for v in x -1 '' 1Q '1 2' 99999999999999999999; do
  refused hydration-threshold "$tmp/src" "$dest" "hydration-threshold=$v"
  refused hydration-batch-size "$tmp/src" "$dest" "hydration-batch-size=$v"
  refused hydration-rate "$tmp/src" "$dest" "hydration-rate=$v"
  refused commit-interval "$tmp/src" "$dest" "commit-interval=$v"
done
for v in 0 512 1G; do
  refused hydration-batch-size "$tmp/src" "$dest" hydration-batch-size=$v
done
for v in 0 x -1 '' 100000000000; do
  refused source-connections "$tmp/src" "$dest" "source-connections=$v"
  refused destination-connections "$tmp/src" "$dest" \
          "destination-connections=$v"
done
for v in 0 1 512 2K 4095 4097 12K 2G 1T -4096 4Q x ''; do
  refused region-size "$tmp/src" "$dest" "region-size=$v"
done
# Tokens.
: >"$tmp/empty-token"
printf 'se\0cret\n' >"$tmp/nul-token"
head -c 100000 /dev/zero | tr '\0' x >"$tmp/long-token"
for v in empty nul long; do
  refused 'control-token.*(empty|NUL|long)' "$tmp/src" "$dest" \
          control="$tmp/ctl" control-token=+"$tmp/$v-token"
done
refused control-token "$tmp/src" "$dest" control="$tmp/ctl" \
        control-token=+"$tmp/no-token"
refused progress "$tmp/src" "$dest" progress=nowhere
refused 'progress|descriptor' "$tmp/src" "$dest" progress=987

# Files.
refused "$tmp/missing" "$tmp/missing" "$dest"
refused "$tmp/dir" "$tmp/dir" "$dest"
refused /dev/null /dev/null "$dest"
refused "$tmp/dir" "$tmp/src" destination="$tmp/dir"
refused "$tmp/dir" "$tmp/src" "$dest" metadata="$tmp/dir"
refused "$tmp/none/dest" "$tmp/src" destination="$tmp/none/dest"
refused "$tmp/none/meta" "$tmp/src" "$dest" metadata="$tmp/none/meta"
refused small "$tmp/src" destination="$tmp/small"
refused small "$tmp/src" destination="$tmp/small" create=always
refused metadata "$tmp/src" "$dest" create=never
refused metadata "$tmp/src" destination="$tmp/old" create=never
refused 'control' "$tmp/src" "$dest" control="$tmp/none/control"
refused 'control' "$tmp/src" "$dest" control="$(printf '/%0200d' 0)"

if [ "$(id -u)" -ne 0 ]; then
  cp "$tmp/src" "$tmp/unreadable"
  chmod 000 "$tmp/unreadable"
  refused "$tmp/unreadable" "$tmp/unreadable" "$dest"
fi

# URIs and servers.
refused nowhere "nbd+unix:///?socket=$tmp/nowhere.sock" "$dest"
refused nowhere "$tmp/src" destination="nbd+unix:///?socket=$tmp/nowhere.sock" \
        metadata="$tmp/meta"
refused nowhere "$tmp/src" "$dest" \
        metadata="nbd+unix:///?socket=$tmp/nowhere.sock"
for v in 'nbd://' 'nbd+unix:///' 'nbd://[' 'nbd://host:port:port/' \
         'http://localhost/disk' 'nbd+what://localhost'; do
  refused . "$v" "$dest"
done
serve memory memory 512K
refused metadata "$tmp/src" destination="$(uri memory)"
refused small "$tmp/src" destination="$(uri memory)" metadata="$tmp/meta"
serve full memory 1M
serve tiny memory 1K
refused 'small|needed' "$tmp/src" destination="$(uri full)" metadata="$(uri tiny)"
serve readonly -r memory 1M
refused 'read-only|readonly' "$tmp/src" destination="$(uri readonly)" \
        metadata="$tmp/meta"
serve oldstyle --oldstyle memory 1M
refused 'source.*oldstyle' "$(uri oldstyle)" "$dest"
refused 'destination.*oldstyle' "$tmp/src" destination="$(uri oldstyle)" \
        metadata="$tmp/meta"
refused 'metadata.*oldstyle' "$tmp/src" "$dest" metadata="$(uri oldstyle)"
# A file with other data where the metadata should be.
refused "$tmp/small" "$tmp/src" "$dest" metadata="$tmp/small"

test ! -e "$tmp/dest"
test ! -e "$tmp/meta"

# An empty disk.
: >"$tmp/empty"
refused "source $tmp/empty is empty" "$tmp/empty" "$dest"
serve nothing memory 0
refused 'source .* is empty' "$(uri nothing)" "$dest"
test ! -e "$tmp/dest"
