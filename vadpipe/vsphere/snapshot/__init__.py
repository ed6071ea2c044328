"""Snapshots: quiesced, found again, removed, consolidated; their changed areas and their hot-added disks."""
