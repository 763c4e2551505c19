"""The DFU protocol, as values and functions: no I/O, no clock, no settings."""
