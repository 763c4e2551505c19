"""Sign-in with OpenID Connect.

Each user acts with their own access token, which stays in memory.
"""
