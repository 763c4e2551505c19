"""The users of the console, as they signed in."""

import secrets

from fleet_fn.console.sign_in import cookie
from fleet_fn.console.sign_in.client import Client, Identity, Tokens
from fleet_fn.console.sign_in.sessions import Session, Sessions
from fleet_fn.console.sign_in.user_token import SignedOutError, UserToken
from fleet_fn.console.users import User
from fleet_fn.deadline import Deadline
from fleet_fn.errors import UpstreamError
from fleet_fn.http.client import HttpClient

#: How long a page waits for the provider.
PROVIDER_SECONDS = 5.0


class OidcUsers:
    """Knows users by the cookies of their browsers."""

    has_sessions = True

    def __init__(self, client: Client, drogue: HttpClient, sessions: Sessions | None = None) -> None:
        """Know no user yet.

        Args:
            client: the console at the OpenID provider.
            drogue: Drogue Cloud, without credentials.
            sessions: the users' sessions.

        """
        self.client = client
        self._drogue = drogue
        self._sessions = sessions or Sessions()

    def current(self) -> User | None:
        """Return the user of the request; None if they have to sign in.

        A user whose token cannot be renewed has to sign in again, even for a page that needs nothing of Drogue Cloud.
        While the provider does not answer, the user stays signed in.
        """
        session_id = cookie.session_id()
        session = self._sessions.find(session_id) if session_id else None
        if session_id is None or session is None:
            return None
        try:
            session.token.header(Deadline(PROVIDER_SECONDS))
        except SignedOutError:
            self._sessions.end(session_id)
            return None
        except UpstreamError:
            pass  # a page that needs the token tells the reason
        return session.user

    def begin(self, identity: Identity, tokens: Tokens) -> None:
        """Begin a session for the browser."""
        token = UserToken(self.client, tokens)
        user = User(secrets.token_hex(16), identity.name, self._drogue.with_authorization(token))
        cookie.replace_session(self._sessions.begin(user, token, identity.id_token))

    def end(self) -> tuple[Session, str | None] | None:
        """End the session of the browser.

        Return it with its refresh token; None if there was none.
        """
        session_id = cookie.session_id()
        cookie.replace_session(None)
        session = self._sessions.end(session_id) if session_id else None
        return (session, session.token.end()) if session else None
