"""Work and answers that threads share."""
