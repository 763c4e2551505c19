"""Log lines, metrics and traces. None of them ever changes an answer."""
