#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that the folders of lib/ are layers: a file includes headers of its own
# folder and of the folders on its left only, by their full names, and no header
# includes itself through others.  plugin/ and tools/ stand on top of lib/ and
# do not include each other's headers; nothing in lib/ includes nbdkit's.  It
# also proves that the check works: a tree with an include in the wrong
# direction, and one with a circle, are refused.

. "$(dirname "$0")/functions.sh"
requires_command "$python"

layers ()
{
  "$python" - "$1" <<'END'
import collections, glob, os, re, sys

LAYERS = ["base", "backend", "store", "clone", "hydration", "control"]
top = sys.argv[1]
wrong = []
graph = collections.defaultdict(list)
count = 0

for name in sorted(glob.glob(top + "/**/*.[ch]", recursive=True)):
    file = os.path.relpath(name, top)
    folder = os.path.dirname(file)
    text = open(name).read()
    for header in re.findall(r'^ *# *include *"([^"]+)"', text, re.M):
        count += 1
        if folder.startswith("lib/"):
            layer = folder[len("lib/"):]
            other = os.path.dirname(header)
            if layer not in LAYERS or other not in LAYERS or \
               LAYERS.index(other) > LAYERS.index(layer):
                wrong.append("%s includes %s" % (file, header))
            graph[file].append("lib/" + header)
        elif os.path.dirname(header) not in LAYERS + [""]:
            wrong.append("%s includes %s" % (file, header))
        if not any(os.path.exists(os.path.join(top, d, header))
                   for d in ("lib", folder)):
            wrong.append("%s includes %s, which does not exist"
                         % (file, header))
    if folder.startswith("lib") and re.search(r"nbdkit-plugin\.h", text):
        wrong.append("%s includes nbdkit-plugin.h" % file)

done = set()

def visit(file, path):
    if file in path:
        wrong.append("circle: " + " ".join(path[path.index(file):] + [file]))
    elif file not in done:
        for header in graph[file]:
            visit(header, path + [file])
        done.add(file)

for file in list(graph):
    visit(file, [])
for line in wrong:
    print(line)
print("%d includes, %d wrong" % (count, len(wrong)))
sys.exit(1 if wrong or count == 0 else 0)
END
}

# The sources only: the build directory may be inside the tree.
mkdir "$tmp/tree"
for folder in lib plugin tools; do
  cp -r "$srcdir/../$folder" "$tmp/tree/$folder"
done
layers "$tmp/tree"

echo '#include "clone/clone.h"' >>"$tmp/tree/lib/store/commit.c"
fails layers "$tmp/tree" >"$tmp/out"
grep -q '^lib/store/commit.c includes clone/clone.h$' "$tmp/out"
cp "$srcdir/../lib/store/commit.c" "$tmp/tree/lib/store/commit.c"

echo '#include "store/commit.h"' >>"$tmp/tree/lib/store/metadata.h"
fails layers "$tmp/tree" >"$tmp/out"
grep -q '^circle: ' "$tmp/out"
