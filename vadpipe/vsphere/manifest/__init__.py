"""The VSS manifest of a snapshot: located, and fetched by one of the ways that the programming guide names.

locate   which file belongs to the snapshot        copy       a copy on a datastore that outlives the snapshot
fetch    the ways, tried in order                  external   VMware's tools: vifs and PowerCLI
https    over HTTPS
"""
