"""Drogue Cloud: its events, its APIs and its formats."""
