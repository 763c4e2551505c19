"""The HTTP face: requests in, responses out. It knows nothing of firmware."""
