"""What many VMs cost: SOAP calls and CPU-seconds of `vadpipe cleanup --dry-run` and of `vadpipe preflight`.

    python bench/crowd.py [--vms N] [--stray N]

The lab runs in a process of its own. CPU time is that of the command's process alone, its start included.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from vadpipe.bench.machine import machine_line
from vadpipe.lab.vcenter.crowd import crowd

CONFIG = """
from pathlib import Path

from pipeline import Job
from pipeline.secrets import Secret
from sinks import Nowhere
from stages import Journal, Vcenter, VcenterVm

vcenter = Vcenter("127.0.0.1", "backup", Secret.from_text("lab"), thumbprint={thumbprint!r}, port={port})
journal = Journal(Path({journal!r}))
jobs = [
    Job(VcenterVm(vcenter, f"vm{{number:04}}", reader=None, journal=journal), print, into=Nowhere())
    for number in range({count})
]
"""
COMMANDS = {"cleanup": ["cleanup", "--dry-run"], "preflight": ["preflight"]}
# Counts the calls that pyVmomi makes, and prints them at the end with the CPU-seconds of the process.
COUNTED = """
import atexit, sys, time
from pyVmomi.SoapAdapter import SoapStubAdapter
calls, invoke = [], SoapStubAdapter.InvokeMethod
SoapStubAdapter.InvokeMethod = lambda self, *args, **named: calls.append(1) or invoke(self, *args, **named)
atexit.register(lambda: print("calls", len(calls), "cpu", time.process_time(), file=sys.stderr))
from vadpipe.cli.main import main
main(sys.argv[1:])
"""


def measure(arguments: list[str]) -> tuple[int, float, str]:
    """The SOAP calls, the CPU-seconds and the output of one command."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *arguments], capture_output=True, text=True, check=False
    )
    found = re.search(r"calls (\d+) cpu ([\d.]+)", done.stderr)
    if found is None:
        raise SystemExit(done.stderr)
    return int(found[1]), float(found[2]), done.stdout


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--vms", type=int, default=1000, help="how many VMs (1000)")
    arguments.add_argument("--stray", type=int, default=0, help="VMs with a disk that nothing refers to (0)")
    given = arguments.parse_args()
    print(machine_line())
    print(f"{'':12} {'SOAP calls':>10} {'per VM':>8} {'CPU-s':>8}")
    with tempfile.TemporaryDirectory() as scratch, crowd(Path(scratch) / "lab", given.vms) as (vcenter, _):
        for number in range(given.stray):
            name = f"vm{number:04}"
            (Path(scratch) / "lab" / "datastores" / "datastore1" / name / "stray.vmdk").write_bytes(b"#")
        config = Path(scratch) / "jobs.py"
        facts = {"thumbprint": vcenter.thumbprint, "port": vcenter.port, "count": given.vms}
        config.write_text(CONFIG.format(**facts, journal=f"{scratch}/journal"))
        for name, command in COMMANDS.items():
            calls, cpu_s, _ = measure([*command, str(config)])
            print(f"{name:12} {calls:10} {calls / given.vms:8.2f} {cpu_s:8.2f}")


if __name__ == "__main__":
    main()
