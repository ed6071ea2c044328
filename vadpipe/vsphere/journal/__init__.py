"""The journal: what a run is about to do at a server, written down before it does it, so that it can be undone."""
