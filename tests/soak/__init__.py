"""Load and soak: a whole fleet at once, faults on every wire, and whether the function stays as it was."""
