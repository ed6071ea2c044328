"""Failures on demand: injected at calls and tasks, faults of the API by name, and files that misbehave."""
