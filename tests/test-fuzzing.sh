#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Runs the fuzzers in fuzzing/ a bounded number of times.  Whatever the bytes of
# the metadata, or of a request to the control interface, the program does not
# crash and reads them correctly.  Loaders with a bug are caught.  AFL++, all
# but one of these bugs and most of the runs are left to --all.

. "$(dirname "$0")/functions.sh"
# They link the built library, which must not have a sanitizer, too.
not_under asan tsan "the fuzzers have a sanitizer of their own"
not_under valgrind "the fuzzers have a sanitizer"
requires_command clang "$python"
# clang's fuzzer runtime is in a separate package.
echo 'int LLVMFuzzerTestOneInput (const char *p, long n) { return 0; }' \
  >"$tmp/try.c"
requires clang -fsanitize=fuzzer,address -o "$tmp/try" "$tmp/try.c"

lib=$srcdir/../lib
libfuzzer=0 afl=0 caught=0 bugs=0
metadata_runs=$(long_or_short 20000 5000)
settings_runs=$(long_or_short 100000 20000)

# fuzz PROGRAM SEEDS RUNS LENGTH: with libFuzzer.
fuzz ()
{
  mkdir -p "$tmp/corpus-$2"
  "$1" -runs="$3" -max_len="$4" -seed=1 -timeout=60 \
       -artifact_prefix="$tmp/" "$tmp/corpus-$2" "$tmp/fuzz/seeds/$2" \
       >"$tmp/fuzz.log" 2>&1
}

bash "$srcdir/fuzzing/build" libfuzzer "$builddir" "$tmp/fuzz"
fuzz "$tmp/fuzz/fuzz-metadata" metadata $metadata_runs 4096
# The seeds lead deep into the loader: not all stores were refused at once.
edges=$(sed -n 's/.*DONE *cov: \([0-9]*\).*/\1/p' "$tmp/fuzz.log")
[ "$edges" -gt 120 ]
fuzz "$tmp/fuzz/fuzz-settings" settings $settings_runs 256
libfuzzer=$((metadata_runs + settings_runs))

# catches FILE EXPRESSION: a loader with this change to a file of lib/store is
# caught.
catches ()
{
  bugs=$((bugs + 1))
  rm -rf "$tmp/lib" "$tmp/bug" "$tmp/corpus-metadata"
  cp -r "$lib" "$tmp/lib"
  sed -i "$2" "$tmp/lib/store/$1"
  fails cmp -s "$lib/store/$1" "$tmp/lib/store/$1"
  bash "$srcdir/fuzzing/build" libfuzzer "$builddir" "$tmp/bug" "$tmp/lib"
  fails fuzz "$tmp/bug/fuzz-metadata" metadata 200000 4096
  grep -E 'not true|AddressSanitizer|runtime error' "$tmp/fuzz.log"
  caught=$((caught + 1))
}

# The bitmap's checksum is not checked.
catches bitmap.c 's/le32toh (image.crc) != bitmap_crc (sb, s, &image)/false/'
# result: the last line.
result ()
{
  { set +x; } 2>/dev/null
  echo "fuzzing: $libfuzzer runs with libFuzzer, $afl with AFL++, nothing" \
       "found; $caught of $bugs bugs caught"
}

if ! is_all; then
  left_to_all "AFL++, six loaders with a bug, three of four runs"
  result
  exit 0
fi

# A store that was cut is read past its end.
catches metadata.c 's/if (b->size < wanted)/if (false)/'
# Unknown features are ignored.
catches superblock.c 's/if (sb->incompat \& ~METADATA_INCOMPAT)/if (false)/;
         s/else if (version >= 2 \&\& features)/else if (false)/'
# Superblocks of one generation that differ are accepted.
catches superblock.c 's/if (a->generation == b->generation)/if (false)/'
# The data of features is dropped.
catches superblock.c '/memcpy (image->feature_area/,/;/d'
# The older superblock is current.
catches superblock.c \
        's/sb\[1\].generation > sb\[0\].gen/sb[1].generation < sb[0].gen/'
# The complete flag is not compared with the bitmap.
catches bitmap.c 's/(md->sb.flags & METADATA_COMPLETE) \&\&/false \&\&/'

# AFL++, with the same programs.
if command -v afl-fuzz afl-clang-fast >/dev/null; then
  export AFL_NO_UI=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1
  export AFL_SKIP_CPUFREQ=1 AFL_NO_AFFINITY=1
  bash "$srcdir/fuzzing/build" afl "$builddir" "$tmp/afl"
  for name in metadata settings; do
    afl-fuzz -s 1 -E 20000 -V 120 -t 1000 -m none \
             -i "$tmp/afl/seeds/$name" -o "$tmp/found-$name" \
             -- "$tmp/afl/fuzz-$name" >"$tmp/afl.log" 2>&1 </dev/null
    stats=$tmp/found-$name/default/fuzzer_stats
    grep -qx 'saved_crashes *: 0' "$stats" || fail "AFL++ found a crash"
    grep -qx 'saved_hangs *: 0' "$stats" || fail "AFL++ found a hang"
    afl=$((afl + $(sed -n 's/^execs_done *: //p' "$stats")))
  done
  [ "$afl" -gt 1000 ]
fi

result
