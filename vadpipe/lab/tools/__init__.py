"""Stand-ins for other vendors' commands, which really fetch from the lab's vCenter.

vifs   of the vSphere CLI      pwsh   PowerShell with PowerCLI's Copy-DatastoreItem

Each takes the arguments that its original documents and refuses everything else with status 64. Beside an installed
one lie `seen.json`, what it was started with, and `mood`, if a test wrote it: what it does instead of its work.
"""

import sys
from pathlib import Path

_NAMES = ("vifs", "pwsh")
_ROOT = Path(__file__).parents[3]


def install_tools(directory: Path) -> None:
    """Put the commands into `directory`. They need nothing of their environment."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _NAMES:
        command = directory / name
        command.write_text(
            f"#!{sys.executable} -I\n"
            f"import sys\nsys.path.insert(0, {str(_ROOT)!r})\n"
            f"from vadpipe.lab.tools.{name} import main\nmain()\n"
        )
        command.chmod(0o755)
