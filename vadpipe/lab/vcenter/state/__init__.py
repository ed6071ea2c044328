"""What the lab remembers, and what acts on it or renders it. No managed objects."""
