"""Run the commands that the README shows, and put what they print into README.md and docs/run.svg.

The tables of docs/restore.md are written from the policy of the restore.

.venv/bin/python docs/refresh.py        after a change of what commands print; read the difference before committing
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pipeline.units import MiB
from vadpipe.lab.guest import build_windows_guest
from vadpipe.vsphere.plan.policy_devices import tables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples"
WIDTH = 110  # columns of the picture

# The blocks of the README that are made here, by their first line; lines of commands begin with "$ ".
FIRST_BACKUP = "$ vadpipe init /srv/backup"
PLAN = "$ export REPOSITORY=/srv/nightly"


def block(text: str, first_line: str) -> str:
    """The block of a page that begins with a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [found] = [body for body in blocks if body.startswith(first_line)]
    return str(found)


def played(shown: str, root: Path) -> str:
    """Run the commands of a block below `root`, which stands for `/`; the block as it has to be."""
    lines: list[str] = []
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VC_", "VM", "REPO"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "HOME": f"{root}/home/you",
        "XDG_STATE_HOME": "",
    }
    for line in shown.splitlines():
        if not line.startswith("$ "):
            continue
        lines.append(line)
        words = [_below(word, root) for word in shlex.split(line[2:])]
        if words[0] == "export":
            for word in words[1:]:
                name, _, value = word.partition("=")
                environment[name] = value
            continue
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
        lines += (done.stdout + done.stderr).replace(f"{root}/", "/").splitlines()
    return "\n".join(lines) + "\n"


def prepared(root: Path) -> Path:
    """A directory that stands for `/`, with a VM in vms/web01 and the examples."""
    root.mkdir(parents=True, exist_ok=True)
    build_windows_guest(
        root / "vms" / "web01", "web01", system_capacity=2048 * MiB, data_capacity=512 * MiB, fill=48 * MiB
    )
    for example in EXAMPLES.glob("*.py"):
        (root / example.name).write_text(example.read_text())
    (root / "srv").mkdir()
    return root


def _below(word: str, root: Path) -> str:
    """A word of a command with its absolute path below `root`."""
    return re.sub(r"(^|=|:)/(vms|srv|restore)\b", rf"\1{root}/\2", word)


def picture(root: Path) -> str:
    """The first run of the lab's demo as an SVG of a terminal."""
    command = [sys.executable, "-m", "vadpipe", "lab", "demo", str(root / "demo")]
    environment = {**os.environ, "COLUMNS": str(WIDTH)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    [run] = re.findall(r"^== First run.*?\n(.*?)^peak memory", done.stdout, re.M | re.S)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    shown = re.sub(r"^\$ vadpipe run \S+.*$", "$ vadpipe run nightly.py", run, flags=re.M)
    for line in shown.splitlines():
        style = "bold" if line.startswith("$ ") else "yellow" if "ATTENTION" in line else ""
        console.print(Text(line, style=style), soft_wrap=False)
    svg = console.export_svg(title="vadpipe run", unique_id="vadpipe-run")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # loads fonts from another server


def restore_page(text: str) -> str:
    """The page with the tables of the restore policy as they are now."""
    for title, table in tables().items():
        text = re.sub(
            rf"(^## {title}\n.*?)^\|.*?^(?!\|)", rf"\1{_plain(table)}", text, count=1, flags=re.M | re.S
        )
    return text


def _plain(text: str) -> str:
    """Text as the replacement of a pattern."""
    return text.replace("\\", r"\\")


def main() -> None:
    page = ROOT / "docs" / "restore.md"
    page.write_text(restore_page(page.read_text()))
    with tempfile.TemporaryDirectory() as scratch:
        root = prepared(Path(scratch, "root"))
        text = README.read_text()
        for first_line in (FIRST_BACKUP, PLAN):
            shown = block(text, first_line)
            text = text.replace(shown, played(shown, root))
        README.write_text(text)
        (ROOT / "docs" / "run.svg").write_text(picture(Path(scratch)))


if __name__ == "__main__":
    main()
