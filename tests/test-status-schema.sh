#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that plugin/status.schema.json describes the status: real answers in
# all states and modes, with unreadable ranges and a lost source, are valid, and
# so is a progress line; the schema describes each of their members; and it
# refuses answers with something missing or wrong.

. "$(dirname "$0")/functions.sh"

export CLONE_LEAKS=0 # of nbdkit's
requires "$python" -c 'import jsonschema'
schema=$srcdir/../plugin/status.schema.json
make_disk "$tmp/src" 1M

# check FILTER: the status becomes this.  It is validated at the end.
check ()
{
  eventually status_is "$1"
  control GET /status >"$tmp/status"
  jq -e "$1" "$tmp/status"
  cat "$tmp/status" >>"$tmp/answers"
}

serve src --filter=error file "$tmp/src" error-pread-rate=100% \
      error-file="$tmp/bad"
truncate -s 1M "$tmp/dest"
serve_device dest "$tmp/dest"
serve_clone "$(uri src)" destination="$(device dest)" metadata="$tmp/meta" \
            region-size=64K hydration=off
check '.state == "paused" and .mode == "rw"'

touch "$tmp/bad"
set_settings '{"hydration-rate": 1048576, "source-timeout": 1}'
control POST /resume
check '.state == "hydrating" and .bad.regions > 0'
kill9 src
check '.state == "waiting" and .source.error != null'
rm "$tmp/bad"
serve src file "$tmp/src"
fault dest write
check '.state == "failed" and .mode == "rw"'
kill9 dest
check '.mode == "fail"'
rm "$tmp/dest.faults/dest.write"
serve_device dest "$tmp/dest"
set_settings '{"hydration-rate": 0}'
eventually status_is '.mode == "rw"'
control POST /resume
wait_complete
check '.state == "complete"'
ends_soon clone
kill9 dest

# A progress line.
serve_clone "$(uri src)" destination="$tmp/new" hydration=off progress=stderr
eventually grep -q '^{' "$tmp/clone.log"
stop clone
grep '^{' "$tmp/clone.log" >>"$tmp/answers"

$python - "$schema" "$tmp/answers" <<'PY'
import copy, json, jsonschema, sys

def make_strict(schema):
    """Allow no members but those that are described."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema["additionalProperties"] = False
        for value in schema.values():
            make_strict(value)

def change(status, path, value):
    """Set the member at this path, or delete it if the value is `delete'."""
    status = copy.deepcopy(status)
    place = status
    for name in path[:-1]:
        place = place[name]
    if value is delete:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return status

delete = object()
with open(sys.argv[1]) as f:
    schema = json.load(f)
jsonschema.Draft7Validator.check_schema(schema)
make_strict(schema)
validator = jsonschema.Draft7Validator(schema)
with open(sys.argv[2]) as f:
    answers = [json.loads(line) for line in f]
for answer in answers:
    validator.validate(answer)

wrong = [
    (["size"], "1M"), (["state"], "asleep"), (["mode"], None),
    (["durable"], -1), (["rate"], 1.5), (["bad", "ranges"], [[0]]),
    (["source", "error"], ""), (["settings", "hydration-priority"], True),
    (["more"], 1), (["source", "more"], 1), (["settings", "more"], 1),
]
wrong += [([name], delete) for name in schema["required"]]
wrong += [(["settings", name], delete) for name in answers[0]["settings"]]
for path, value in wrong:
    if validator.is_valid(change(answers[0], path, value)):
        sys.exit("valid with a wrong %s" % path)
print("%d answers, %d wrong ones" % (len(answers), len(wrong)))
PY
