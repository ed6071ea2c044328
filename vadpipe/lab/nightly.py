"""`examples/nightly.py` on the lab, whose hosts have no names and no ports: preflight does not probe them."""

import runpy
from dataclasses import replace

from stages.preflight import Preflight
from vadpipe.lab import EXAMPLES

example = runpy.run_path(str(EXAMPLES / "nightly.py"))["job"]
job = replace(example, machine=replace(example.machine, preflight=Preflight(probe_hosts=False)))
