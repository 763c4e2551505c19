"""Log lines, metrics and traces. They never change an answer."""
