"""Which job starts when and where, within the limits of vSphere; and what that gives for a site, simulated."""
