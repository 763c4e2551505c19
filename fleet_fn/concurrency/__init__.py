"""Work and values that threads share."""
