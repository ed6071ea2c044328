"""Snapshots: quiesced, found, kept still, removed; changed areas; consolidation."""
