#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a source that is a local file is refused while a program with
# QEMU's image locking has it open for writing, with a message that names the
# process; that a program that only reads it does not matter; and that the clone
# starts when the writer is gone.

. "$(dirname "$0")/functions.sh"

requires_command qemu-nbd qemu-io qemu-img
make_disk "$tmp/src" 4M
make_disk "$tmp/other" 4M 2
args=("$tmp/src" destination="$tmp/dest" hydration=off)

# writer_is_refused NAME: the source is refused because the server NAME has it
# open for writing.
writer_is_refused ()
{
  refused "$tmp/src: qemu-nbd \(process $(cat "$tmp/$1.pid")\).*writing" \
          "${args[@]}"
}

serve_qemu writer -f raw "$tmp/src"
grep -q OFDLCK "/proc/$(cat "$tmp/writer.pid")/fdinfo"/* ||
  skip "this QEMU, or this file system, has no image locking"

# A writer, under several names of the file.
writer_is_refused writer
ln -s src "$tmp/link"
refused 'link.*open for writing' "$tmp/link" destination="$tmp/dest"
# The same when a clone goes on.
stop writer
serve_clone "${args[@]}"
stop clone
serve_qemu writer -f raw "$tmp/src"
writer_is_refused writer
# Served by that process it can be the source.
serve_clone "$(uri writer)" destination="$tmp/dest" hydration=off
stop clone
stop writer

# A writer that lets others write, too, is a writer like any other.
serve_qemu sharing --image-opts \
           driver=raw,file.driver=file,file.filename="$tmp/src" --shared=2
writer_is_refused sharing
kill9 sharing

# Readers: with -r, and as the backing file of another image.
serve_qemu reader -r -f raw "$tmp/src"
qemu-img create -q -f qcow2 -b "$tmp/src" -F raw "$tmp/overlay"
serve_qemu overlay -f qcow2 "$tmp/overlay"
serve_clone "${args[@]}"
$python "$srcdir/model.py" "$tmp/src" "$(uri clone)"
stop clone

# The writer of another file.
serve_qemu other -f raw "$tmp/other"
serve_clone "${args[@]}"
stop clone
