"""Real devices against sandbox and function: `make peers`. See docs/peers.md."""
