"""Fetching a manifest from its datastore, in the four ways that the programming guide names.

ways         what they have in common, and trying them in order       https        over HTTPS (with host_ticket)
copy         a copy on a datastore that outlives the snapshot         vifs, powercli   VMware's tools (external)
"""
