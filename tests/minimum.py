"""Constraints for pip that pin every library to the lowest version that pyproject.toml allows.

python tests/minimum.py > constraints.txt
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = ("keyring", "s3", "files", "lab", "test")


def lowest() -> list[str]:
    """One line a library: 'trio==0.32'."""
    wanted = [
        *PROJECT["dependencies"],
        *(one for extra in EXTRAS for one in PROJECT["optional-dependencies"][extra]),
    ]
    return sorted(
        {re.sub(r"\[.*\]", "", one).replace(">=", "==") for one in wanted}
    )  # a constraint has no extras


if __name__ == "__main__":
    print("\n".join(lowest()))
