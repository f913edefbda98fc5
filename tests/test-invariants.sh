#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that HACKING.md can be trusted: its two tables have a row for each of
# the invariants I1 to I12, every test that it names exists and is run, and
# every file and function that keeps an invariant exists.  Also proves that each
# test script is in a list of tests/Makefile.am, so that it is run.

. "$(dirname "$0")/functions.sh"

requires_command make
top=$srcdir/..
{ make_list UNIT_TESTS; make_list SHELL_TESTS; make_list ALL_TESTS; } |
  sort >"$tmp/run"

# hacking FILE: what is wrong in it, with the files and tests of this tree.
hacking ()
{
  "$python" - "$1" "$top" "$tmp/run" <<'PY'
import glob, os, re, sys

text = open(sys.argv[1]).read()
top = sys.argv[2]
run = set(open(sys.argv[3]).read().split())
wrong = []

for heading in "The invariants", "What runs when":
    table = text.split("# %s\n" % heading)[1].split("\n#")[0]
    rows = set(re.findall(r"^\| (I\d+) \|", table, re.M))
    wrong += ["%s: no row for I%d" % (heading, i) for i in range(1, 13)
              if "I%d" % i not in rows]

# A unit test has no file where Check is not installed, but it has a source.
tests = set(re.findall(r"\b(?:unit/)?test-[a-z0-9-]+(?:\.sh)?\b(?!\.|/)", text))
tests = {t for t in tests if t.endswith(".sh") or t.startswith("unit/")}
for test in sorted(tests):
    source = test if test.endswith(".sh") else test + ".c"
    if not os.path.exists(os.path.join(top, "tests", source)):
        wrong.append("%s does not exist" % test)
    elif test not in run and test.endswith(".sh"):
        wrong.append("%s is in no list of tests/Makefile.am" % test)

files = {}
for name in glob.glob(top + "/lib/**/*.[ch]", recursive=True):
    files.setdefault(os.path.basename(name), []).append(name)
table = text.split("# The invariants\n")[1].split("\n#")[0]
for row in re.findall(r"^\|.*\|$", table, re.M):
    kept_by = row.split("|")[3]
    for name, functions in re.findall(r"`([^`]*\.[ch])`([^`]*)", kept_by):
        base = os.path.basename(name)
        if base not in files:
            wrong.append("%s does not exist" % name)
            continue
        source = "".join(open(f).read() for f in files[base])
        for function in re.findall(r"\b[a-z]+_[a-z_]+\b", functions):
            if not re.search(r"\b%s\b" % function, source):
                wrong.append("%s has no %s" % (name, function))

for line in wrong:
    print(line)
print("%d tests, %d wrong" % (len(tests), len(wrong)))
sys.exit(1 if wrong or not tests else 0)
PY
}

hacking "$top/HACKING.md"

# One that is wrong in each of these is refused.
sed -e 's/^| I7 |/| I70 |/' -e 's/test-lock\.sh/test-locks.sh/g' \
    -e 's/`region-map\.c`/`region-maps.c`/' -e 's/region_map_/region_maps_/' \
    -e 's/commit_flush/flush_commit/' "$top/HACKING.md" >"$tmp/HACKING.md"
fails hacking "$tmp/HACKING.md" >"$tmp/out"
cat "$tmp/out"
grep -x 'The invariants: no row for I7' "$tmp/out"
grep -x 'What runs when: no row for I7' "$tmp/out"
grep -x 'test-locks.sh does not exist' "$tmp/out"
grep -x 'region-maps.c does not exist' "$tmp/out"
grep -x 'commit.c has no flush_commit' "$tmp/out"

for test in "$srcdir"/test-*.sh; do
  grep -qx "$(basename "$test")" "$tmp/run" ||
    fail "$(basename "$test") is in no list of tests/Makefile.am"
done
