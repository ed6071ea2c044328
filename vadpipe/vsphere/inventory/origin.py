"""Where a VM was, and what cannot be had later: kept with each point, so that the VM can come back."""

from __future__ import annotations

from typing import Final

CONFIG_DOCUMENT: Final = "vm-config.xml"
