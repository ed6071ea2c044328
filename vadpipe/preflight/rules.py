"""Every condition that a job is checked against before it touches its VM."""

from __future__ import annotations

from vadpipe.rules import RuleTable, Violation

from . import privileges, rules_devices, rules_guest, rules_site, rules_vm
from .facts import Case

RULES: RuleTable[Case, Violation] = RuleTable(
    [*rules_vm.RULES, *rules_guest.RULES, *rules_devices.RULES, *rules_site.RULES, *privileges.RULES]
)
