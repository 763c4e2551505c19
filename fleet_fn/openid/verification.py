"""Verification of the tokens that an OpenID provider signs (RFC 7519)."""

from typing import Final, Protocol

from joserfc import jwt
from joserfc.errors import BadSignatureError, ClaimError, ExpiredTokenError, InvalidKeyIdError, JoseError
from joserfc.jws import JWSRegistry

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.openid.provider import PROVIDER, Provider

#: Seconds by which the provider's clock may differ from ours.
CLOCK_SKEW_SECONDS: Final = 60
#: Only public keys prove who signed: neither a shared secret nor no signature at all.
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
_REGISTRY: Final = JWSRegistry(algorithms=list(_ALGORITHMS), strict_check_header=False)
#: Age of the keys that must not lack the key of a token: keys are not read more often for unknown ones.
_FRESH_SECONDS: Final = 10.0


def read_signed(provider: Provider, token: str, what: str, deadline: Deadline) -> jwt.Token:
    """Return a token whose signature is the provider's.

    Its claims are still to be checked.

    Args:
        provider: has to have signed it.
        token: the token.
        what: what reasons call it.
        deadline: for reading the provider's keys.

    Raises:
        PermanentError: the provider has not signed it.
        TransientError: the provider's keys cannot be had.

    """
    try:
        try:
            return jwt.decode(token, provider.keys(deadline), registry=_REGISTRY)
        except InvalidKeyIdError:  # the provider may have another key by now
            return jwt.decode(token, provider.keys(deadline, _FRESH_SECONDS), registry=_REGISTRY)
    except (JoseError, ValueError) as error:
        raise PermanentError(f"{PROVIDER}: {what} is not acceptable: {describe(error)}") from None


class Claims(Protocol):
    """Claims that know what is expected of them: joserfc's, or Authlib's."""

    def validate(self, now: int, leeway: int) -> None:
        """Check them.

        Raises:
            JoseError: one is wrong.

        """


def check_claims(claims: Claims, what: str, now: float, leeway: int = CLOCK_SKEW_SECONDS) -> None:
    """Check the claims of a signed token, which may have expired `leeway` seconds ago.

    Raises:
        PermanentError: one is wrong, or the token has expired.

    """
    try:
        claims.validate(now=int(now), leeway=leeway)
    except (JoseError, ValueError) as error:
        raise PermanentError(f"{PROVIDER}: {what} is not acceptable: {describe(error)}") from None


def describe(error: JoseError | ValueError) -> str:
    """Return what is wrong with a token; no text of the token is quoted."""
    match error:
        case ExpiredTokenError():
            return "it has expired"
        case ClaimError():
            return f"its claim {error.claim} is wrong"
        case BadSignatureError():
            return "its signature is wrong"
        case InvalidKeyIdError():
            return "its key is not the provider's"
        case JoseError():
            return f"{error.error or type(error).__name__}".replace("_", " ")
        case _:
            return "it is malformed"
