"""Intents: what is about to be done outside, written down before it is done."""
