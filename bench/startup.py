"""What starting costs: modules and CPU-milliseconds of imports and of the command.

    python bench/startup.py [--repeat N]

Each row is the cheapest of N runs in processes of their own, Python's own start-up included, which the first row
shows. CPU time, not wall time: it is the one figure that a busy machine leaves comparable.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from vadpipe.bench.machine import machine_line

# A row's name, and the program that is measured.
ROWS = {
    "python": "",
    "import pipeline": "import pipeline",
    "import vadpipe": "import vadpipe",
    "vadpipe.Job": "import vadpipe; vadpipe.Job",
    "import stages.digest": "import stages.digest",
    "stages.VcenterVm": "import stages; stages.VcenterVm",
    "vadpipe --version": "from vadpipe.cli.main import main; main(['--version'])",
    "vadpipe --help": "from vadpipe.cli.main import main; main(['--help'])",
    "vadpipe points --help": "from vadpipe.cli.main import main; main(['points', '--help'])",
}

# Prints the number of modules at the end, also where the program ends with SystemExit.
COUNTED = "import atexit, sys; atexit.register(lambda: print(len(sys.modules), file=sys.stderr))\n"


def measure(program: str) -> tuple[int, float]:
    """Modules that one run loads, and its CPU-seconds."""
    before = _children_s()
    done = subprocess.run(
        [sys.executable, "-c", COUNTED + program], capture_output=True, text=True, check=True
    )
    return int(done.stderr.split()[-1]), _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--repeat", type=int, default=5, help="runs of each row (5)")
    repeat = arguments.parse_args().repeat
    print(machine_line())
    print(f"{'':24} {'modules':>8} {'CPU-ms':>8}")
    for name, program in ROWS.items():
        runs = [measure(program) for _ in range(repeat)]
        print(f"{name:24} {runs[0][0]:8} {1000 * min(spent for _, spent in runs):8.0f}")


if __name__ == "__main__":
    main()
