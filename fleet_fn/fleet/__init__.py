"""The state of a fleet, for operators."""
