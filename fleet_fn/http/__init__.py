"""The HTTP client, and where it may connect to."""
