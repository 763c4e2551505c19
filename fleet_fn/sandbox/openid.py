"""Users of the sandbox's APIs by the access tokens of an OpenID provider."""

import time
from collections.abc import Callable
from typing import Final

from authlib.oauth2.claims import ClaimsOption, JWTClaims

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.openid.provider import Provider
from fleet_fn.openid.verification import check_claims, read_signed
from fleet_fn.sandbox.refusal import RefusedError

_TOKEN: Final = "the access token"  # noqa: S105 - its name
_PROVIDER_SECONDS: Final = 5.0


class OpenIdUsers:
    """Knows users by access tokens that are for one client, as Drogue Cloud does.

    Drogue Cloud tells users by `sub`; the sandbox tells them by `preferred_username`, as `--member` names them.
    """

    def __init__(self, provider: Provider, client_id: str, now: Callable[[], float] = time.time) -> None:
        self._provider = provider
        self._client_id = client_id
        self._now = now

    def user(self, token: str) -> str | None:
        """Return the user of a valid token; None for any other.

        Raises:
            RefusedError: the provider does not answer.

        """
        try:
            signed = read_signed(self._provider, token, _TOKEN, Deadline(_PROVIDER_SECONDS))
            expected: dict[str, ClaimsOption] = {
                "iss": {"essential": True, "value": self._provider.issuer},
                "aud": {"essential": True, "values": [self._client_id]},
                "azp": {"value": self._client_id},
                "exp": {"essential": True},
            }
            check_claims(JWTClaims(signed.claims, signed.header, expected), _TOKEN, self._now(), leeway=0)
        except PermanentError:
            return None
        except TransientError as error:
            raise RefusedError(503, "ServiceUnavailable", error.reason) from error
        name = signed.claims.get("preferred_username")
        return name if isinstance(name, str) and name else None
