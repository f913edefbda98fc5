# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""A strict reader of Prometheus' text format, version 0.0.4.

    prometheus.py FILE [NAME{LABEL="VALUE",...}...]

Checks FILE, then prints the values of these samples, one a line.  Stricter than
the format: each metric has HELP and then TYPE, all its samples follow at once,
counters end in _total and do not fall below 0, histograms are complete and
their buckets do not decrease, and no sample appears twice.
"""

import math
import re
import sys

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(r"(%s)(?:\{(%s(?:,%s)*)\})? (\S+)" % (NAME, LABEL, LABEL))
SUFFIXES = {"histogram": ["_bucket", "_sum", "_count"]}


class Bad(Exception):
    pass


def number(text):
    if text in ("NaN", "+Inf", "-Inf"):
        return float(text.replace("Inf", "inf"))
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text):
        raise Bad("not a number: " + text)
    return float(text)


def parse(text):
    """{(name, labels): value} and {metric: type}; labels: sorted pairs."""
    if not text.endswith("\n"):
        raise Bad("no newline at the end")
    samples, types, metric, helped = {}, {}, None, None
    for line in text[:-1].split("\n"):
        m = re.fullmatch(r"# HELP (%s) (\S.*)" % NAME, line)
        if m:
            helped = m[1]
            if helped in types:
                raise Bad("twice: " + line)
            continue
        m = re.fullmatch(r"# TYPE (%s) (counter|gauge|histogram)" % NAME, line)
        if m:
            if m[1] != helped:
                raise Bad("TYPE without HELP: " + line)
            metric = helped
            types[metric] = m[2]
            if (m[2] == "counter") != metric.endswith("_total"):
                raise Bad("_total is for counters: " + line)
            continue
        m = SAMPLE.fullmatch(line)
        if not m:
            raise Bad("wrong line: " + line)
        if helped != metric:
            raise Bad("HELP without TYPE: " + helped)
        names = [metric + s for s in SUFFIXES.get(types.get(metric), [""])] \
            if metric else []
        if m[1] not in names:
            raise Bad("not a sample of %s: %s" % (metric, line))
        labels = re.findall(LABEL, m[2] or "")
        if len(dict(labels)) != len(labels):
            raise Bad("a label appears twice: " + line)
        key = (m[1], tuple(sorted(labels)))
        if key in samples:
            raise Bad("twice: " + line)
        samples[key] = number(line.rsplit(" ", 1)[1])
        if types[metric] != "gauge" and not samples[key] >= 0:
            raise Bad("below 0: " + line)
    check_empty(samples, types)
    for name, kind in types.items():
        if kind == "histogram":
            check_histogram(samples, name)
    return samples, types


def check_empty(samples, types):
    for name, kind in types.items():
        first = name + SUFFIXES.get(kind, [""])[0]
        if not any(key[0] == first for key in samples):
            raise Bad("no sample: " + name)


def check_histogram(samples, name):
    series = {}
    for (sample, labels), value in samples.items():
        if sample == name + "_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            bounds = [pair[1] for pair in labels if pair[0] == "le"]
            if len(bounds) != 1:
                raise Bad("a bucket without le: " + name)
            series.setdefault(rest, []).append((number(bounds[0]), value))
    for labels, buckets in series.items():
        if buckets != sorted(buckets) or buckets[-1][0] != math.inf:
            raise Bad("buckets of %s" % name)
        if any(a[1] > b[1] for a, b in zip(buckets, buckets[1:])):
            raise Bad("a bucket of %s has less than the one before" % name)
        if samples.get((name + "_count", labels)) != buckets[-1][1]:
            raise Bad("_count of " + name)
        if (name + "_sum", labels) not in samples:
            raise Bad("no _sum of " + name)


def main():
    try:
        samples, _ = parse(open(sys.argv[1]).read())
    except Bad as error:
        sys.exit("%s: %s" % (sys.argv[1], error))
    for wanted in sys.argv[2:]:
        name, _, labels = wanted.partition("{")
        key = (name, tuple(sorted(re.findall(LABEL, labels))))
        if key not in samples:
            sys.exit("no such sample: " + wanted)
        print("%g" % samples[key])


if __name__ == "__main__":
    main()
