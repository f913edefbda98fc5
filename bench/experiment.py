# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""An experiment: steps, and the lines of the table that get their figures.  The
steps take turns (A B A B ...), so that other work of the machine affects all of
them alike.

A row is a generator of experiments.  Servers and disks that it sets up exist
while the generator is suspended:

    def p0(lab):
        line = Line("1 GiB", "s", "cp", at_least(1))
        with lab.source(...) as source:
            def clone():
                line.clone.append(...)
            def cp():
                line.peer.append(...)
            yield Experiment([line], [clone, cp])
"""


class Experiment:
    def __init__(self, lines, steps, runs=5):
        self.lines = lines
        self.steps = steps
        self.runs = runs

    def run(self, runs, tell):
        for i in range(runs):
            for step in self.steps:
                tell(f"{self.lines[0].name}: run {i + 1} of {runs}, "
                     f"{step.__name__}")
                step()
