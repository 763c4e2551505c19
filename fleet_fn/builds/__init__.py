"""Builds of firmware: their descriptions, and their runs in Tekton."""
