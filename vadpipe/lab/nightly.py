"""`examples/nightly.py` on the lab, whose hosts have no names and no ports: preflight leaves them out."""

import runpy
from dataclasses import replace
from pathlib import Path

from stages.preflight import Preflight

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "nightly.py"

example = runpy.run_path(str(EXAMPLE))["job"]
job = replace(example, machine=replace(example.machine, preflight=Preflight(probe_hosts=False)))
