"""OpenID Connect: what a provider says of itself, and the tokens that it signs."""
