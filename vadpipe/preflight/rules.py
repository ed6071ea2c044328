"""The table of rules: every condition that a job is checked against before it touches its VM."""

from __future__ import annotations

from . import (
    rules_devices,
    rules_guest,
    rules_machine,
    rules_site,
    rules_storage,
    rules_tools,
    rules_transport,
)
from .rule import Rule

RULES: tuple[Rule, ...] = (
    *rules_machine.RULES,
    *rules_guest.RULES,
    *rules_tools.RULES,
    *rules_devices.RULES,
    *rules_storage.RULES,
    *rules_site.RULES,
    *rules_transport.RULES,
)
