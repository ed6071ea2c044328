"""A VM held still for a backup: all of the packages beside this one, together."""
