"""What an operator asks about a fleet."""
