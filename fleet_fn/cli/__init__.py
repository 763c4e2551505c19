"""The command line. Nothing in production imports it."""
