"""The HTTP face: requests in, responses out. Knows nothing of firmware."""
