#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves the rules of create=.  `auto' creates metadata only for a destination
# that is new or holds no data, `always' also for one with content, and `never'
# does not.  None of them overwrites valid metadata, or what a larger
# destination holds beyond the source's size.  New files can be read and written
# by their owner only.  A symbolic link to nowhere is refused, by its name.

. "$(dirname "$0")/functions.sh"

make_disk "$tmp/src" 2M
model=("$python" "$srcdir/model.py" "$tmp/src" "$(uri clone)")

finish ()
{
  wait_complete
  "${model[@]}"
  stop clone
  head -c 2M "$tmp/dest" >"$tmp/out"
  same "$tmp/out" "$tmp/src"
}

# auto: a new destination, sparse; one of holes; one of zeroes.
for create in auto always; do
  rm -f "$tmp"/dest*
  serve_clone "$tmp/src" destination="$tmp/dest" create=$create hydration=off
  test "$(stat -c %s "$tmp/dest")" -eq $((2 << 20))
  test "$(stat -c %b "$tmp/dest")" -le 16
  control POST /resume
  finish
done
rm -f "$tmp"/dest*
truncate -s 3M "$tmp/dest"
serve_clone "$tmp/src" destination="$tmp/dest"
finish
rm -f "$tmp"/dest*
dd if=/dev/zero of="$tmp/dest" bs=1M count=2 status=none
serve_clone "$tmp/src" destination="$tmp/dest"
finish

# auto and never refuse a destination with one byte in it.
rm -f "$tmp"/dest*
truncate -s 2M "$tmp/dest"
printf x | dd of="$tmp/dest" bs=1 seek=1999999 conv=notrunc status=none
refused create=always "$tmp/src" destination="$tmp/dest"
refused create=always "$tmp/src" destination="$tmp/dest" create=auto
refused metadata "$tmp/src" destination="$tmp/dest" create=never

# always: the content is lost, but not beyond the source's size.
make_garbage "$tmp/dest" 3M
cp "$tmp/dest" "$tmp/garbage"
serve_clone "$tmp/src" destination="$tmp/dest" create=always hydration=off
"${model[@]}"
control POST /resume
finish
cmp -i 2M "$tmp/dest" "$tmp/garbage"

# All of them use valid metadata.
rm -f "$tmp"/dest*
serve_clone "$tmp/src" destination="$tmp/dest" hydration=off
qemu-io -f raw -c 'write -P 0x77 0 1M' "$(uri clone)"
cp "$tmp/src" "$tmp/model"
qemu-io -f raw -c 'write -P 0x77 0 1M' "$tmp/model"
stop clone
for create in always auto never; do
  serve_clone "$tmp/src" destination="$tmp/dest" create=$create hydration=off
  status_is '.hydrated == 256 and .durable == 256'
  $python "$srcdir/model.py" "$tmp/model" "$(uri clone)"
  stop clone
done

# New files are for their owner, whatever the umask and the source's mode are.
rm -f "$tmp"/dest*
chmod 666 "$tmp/src"
old_umask=$(umask)
umask 000
serve_clone "$tmp/src" destination="$tmp/dest"
umask "$old_umask"
test "$(stat -c %a "$tmp/dest")" = 600
test "$(stat -c %a "$tmp/dest.clone")" = 600
finish

# A symbolic link to nowhere; one to a file is as good as the file.
rm -f "$tmp"/dest*
ln -s "$tmp/nowhere" "$tmp/link"
refused "destination $tmp/link: .* symbolic link to $tmp/nowhere, which" \
        "$tmp/src" destination="$tmp/link"
refused "metadata $tmp/link: .* symbolic link to $tmp/nowhere, which" \
        "$tmp/src" destination="$tmp/dest" metadata="$tmp/link"
truncate -s 2M "$tmp/nowhere"
serve_clone "$tmp/src" destination="$tmp/link" metadata="$tmp/dest.clone"
wait_complete
stop clone
same "$tmp/nowhere" "$tmp/src"
