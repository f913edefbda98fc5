# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Figures: the results of measurements, and the table.

A line of the table compares two sides, the clone and its peer, by the medians
of their figures.  The ratio is the clone's rate, latency or count divided by
the peer's.  The line's limit shows which ratios are good:

    at least X   more is better: figures are rates, or times to do a job, whose
                 inverse is the rate
    at most X    less is better: figures are latencies or counts
    None         the line is for information only
"""

import statistics


class Limit:
    def __init__(self, word, value):
        self.word = word
        self.value = value

    def holds(self, ratio):
        if self.word == "at least":
            return ratio >= self.value
        return ratio <= self.value

    def __str__(self):
        sign = {"at least": ">=", "at most": "<="}[self.word]
        return f"{sign} {self.value:g}"


def at_least(value):
    return Limit("at least", value)


def at_most(value):
    return Limit("at most", value)


class Line:
    """One line of the table.

    unit: "s" and "ms" are times; all other units are rates or counts
    is_speed: figures are times to do a job, so the ratio is that of their
        inverses; by default true for "s" only
    """

    def __init__(self, name, unit, peer, limit, is_speed=None):
        self.name = name
        self.unit = unit
        self.peer_name = peer
        self.limit = limit
        self.is_speed = unit == "s" if is_speed is None else is_speed
        self.clone = []
        self.peer = []
        self.notes = []

    def ratio(self):
        c = statistics.median(self.clone)
        p = statistics.median(self.peer)
        if self.is_speed:
            c, p = p, c
        return c / p if p else float("inf")

    def holds(self):
        """True or False; None if there is no limit."""
        return self.limit.holds(self.ratio()) if self.limit else None


def spread(figures, unit):
    """The median, and the range unless all figures are equal."""
    text = f"{short(statistics.median(figures))} {unit}".rstrip()
    if min(figures) != max(figures):
        text += f" ({short(min(figures))}..{short(max(figures))})"
    return text


def short(x):
    """Three significant digits."""
    if x == 0:
        return "0"
    if abs(x) >= 100:
        return f"{x:.0f}"
    if abs(x) >= 10:
        return f"{x:.1f}"
    if abs(x) >= 1:
        return f"{x:.2f}"
    return f"{x:.3g}"


COLUMNS = ("row", "condition", "clone: median (range)",
           "peer: median (range)", "ratio", "must be", "holds")


def table_line(row, line):
    holds = {True: "yes", False: "NO", None: "-"}[line.holds()]
    return (row, line.name, spread(line.clone, line.unit),
            f"{line.peer_name}: {spread(line.peer, line.unit)}",
            f"{line.ratio():.3f}", str(line.limit or "-"), holds)


def format_table(lines, columns=COLUMNS):
    """lines: tuples with one text for each column"""
    lines = [columns] + lines
    widths = [max(len(l[i]) for l in lines) for i in range(len(columns))]
    text = ""
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths))
        text += "  ".join(cells).rstrip() + "\n"
    return text
