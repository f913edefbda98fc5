# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""Plots a row with gnuplot, as SVG: one panel for each line of the table, with
the figures as dots and the medians as bars.
"""

import statistics
import subprocess

WIDTH, HEIGHT = 300, 300


def quoted(text):
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'


def panel(line):
    sides = [(1, "clone", line.clone), (2, line.peer_name, line.peer)]
    tics = ", ".join(f"{quoted(name)} {x}" for x, name, _ in sides)
    top = 1.15 * max(line.clone + line.peer) or 1
    script = (f"set title {quoted(wrapped(line.name))}\n"
              f"set ylabel {quoted(line.unit)}\n"
              f"set yrange [0:{top:g}]\n"
              f"set xtics ({tics})\n"
              "plot $bars using 1:2:(0.6) with boxes notitle, "
              "$dots using 1:2 with points notitle\n")
    data = "$bars << EOD\n"
    for x, _, figures in sides:
        data += f"{x} {statistics.median(figures):g}\n"
    data += "EOD\n$dots << EOD\n"
    for x, _, figures in sides:
        for i, figure in enumerate(figures):
            data += f"{x + 0.4 * (i + 0.5) / len(figures) - 0.2:g} {figure:g}\n"
    return data + "EOD\n" + script


def wrapped(name):
    """The name, on two lines if it is long."""
    if len(name) < 30 or ", " not in name:
        return name
    middle = min((i for i in range(len(name)) if name.startswith(", ", i)),
                 key=lambda i: abs(i - len(name) / 2))
    return name[:middle + 1] + "\n" + name[middle + 2:]


def plot(path, title, lines):
    columns = min(len(lines), 4)
    rows = -(-len(lines) // columns)
    script = (f"set terminal svg size {WIDTH * columns},"
              f"{HEIGHT * rows + 40} font 'sans-serif,12' background 'white'\n"
              f"set output {quoted(path)}\n"
              "unset key\n"
              "set style fill solid 0.35 noborder\n"
              "set xrange [0.4:2.6]\n"
              "set grid ytics lc rgb '#dddddd'\n"
              "set border 3\n"
              "set tics nomirror\n"
              "set linetype 1 lc rgb '#3b6ea5'\n"
              "set linetype 2 lc rgb '#1b1b1b' pt 7 ps 0.5\n"
              f"set multiplot layout {rows},{columns} title {quoted(title)}\n")
    for line in lines:
        script += panel(line)
    subprocess.run(["gnuplot", "-"], input=script + "unset multiplot\n",
                   text=True, check=True)
