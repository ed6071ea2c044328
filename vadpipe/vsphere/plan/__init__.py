"""The plan of a restore into a new VM: what a point says of its VM, what becomes of each part, and why."""
