"""An OpenID provider on Authlib's provider classes: users sign in there, and Drogue Cloud takes its tokens.

It is as strict as Keycloak is with a well-configured client: PKCE by S256 for each client, exact redirect URIs, refresh
tokens that hold once, and the end of a session whose refresh token comes a second time.
"""

from tests.support.openid.models import CLIENT, SECRET, Client
from tests.support.openid.provider import Knobs, OpenIdProvider

__all__ = ["CLIENT", "SECRET", "Client", "Knobs", "OpenIdProvider"]
