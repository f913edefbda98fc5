#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the mode is "fail" when the server of the destination is lost, that
# invalid regions can still be read then, and that what was flushed is there when
# the server is back.

. "$(dirname "$0")/functions.sh"

requires_command qemu-io
make_disk "$tmp/src" 1M
truncate -s 1M "$tmp/d" "$tmp/m"
serve dest file "$tmp/d"
serve meta file "$tmp/m"
args=("$tmp/src" destination="$(uri dest)" metadata="$(uri meta)"
      hydration=off)
serve_clone "${args[@]}"
qemu-io -f raw -c 'write -P 1 0 64k' -c flush "$(uri clone)"
status_is '.mode == "rw"'

kill9 dest
eventually status_is '.mode == "fail"'
refuse () { ! qemu-io -f raw -c "$1" "$(uri clone)"; }
refuse 'read 0 64k'
refuse 'write 0 64k'
refuse 'write 128k 64k'
qemu-io -f raw -c 'read 512k 64k' "$(uri clone)"
stop clone || :

serve dest file "$tmp/d"
serve_clone "${args[@]}"
status_is '.mode == "rw" and .durable == 16'
qemu-io -f raw -c 'read -P 1 0 64k' "$(uri clone)"
