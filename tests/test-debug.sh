#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the debug flags -D clone.NAME=1 exist, and that each makes nbdkit
# print more than it does without any.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 1M
for flag in none request region commit hydrate; do
  rm -f "$tmp/dest" "$tmp/dest.clone" "$tmp/clone.log"
  nbdkit_args=(-v)
  [ $flag = none ] || nbdkit_args+=(-D clone.$flag=1)
  serve_clone "$tmp/src" destination="$tmp/dest"
  qemu-io -f raw -c 'write -P 1 1000 5000' -c flush "$(uri clone)"
  wait_complete
  stop clone
  mv "$tmp/clone.log" "$tmp/$flag.out"
done
for flag in request region commit hydrate; do
  test "$(wc -l <"$tmp/$flag.out")" -gt "$(wc -l <"$tmp/none.out")"
done
