"""Firmware: from a reference in a spec to verified bytes."""
