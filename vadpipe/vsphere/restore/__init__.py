"""A VM that comes back from a restore point: what the point says of it, what is planned, and how it is made."""
