"""The HTTP client, and the addresses that it may connect to."""
