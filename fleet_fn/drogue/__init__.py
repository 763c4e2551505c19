"""Everything that talks to, or looks like, Drogue Cloud."""
