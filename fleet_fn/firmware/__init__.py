"""Where the bytes come from, and how they are known to be the right ones."""
