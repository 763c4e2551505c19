"""An OpenID provider: its metadata, its keys, and requests to its endpoints."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key, KeySet

from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, negative_ttl
from fleet_fn.http.client import HttpClient
from fleet_fn.http.messages import Answer
from fleet_fn.strict_json import parse_json

#: The provider's name in reasons.
PROVIDER: Final = "OpenID provider"
#: Age at which metadata and keys are read again. A key that the provider withdraws counts for so long.
_MAX_AGE_SECONDS: Final = 15 * 60.0
#: Kinds of keys that prove who signed (RFC 7518, section 6.1; RFC 8037). A shared secret that is published does not.
_PUBLIC_KINDS: Final = ("RSA", "EC", "OKP")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the discovery document says (OpenID Connect Discovery 1.0, section 3)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    #: None if the provider has none.
    revocation_endpoint: str | None
    end_session_endpoint: str | None


class Provider:
    """A provider, asked when it is needed. Safe to use from several threads."""

    def __init__(self, issuer: str, *, ca_file: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask no provider yet.

        Args:
            issuer: its URL, as in its tokens.
            ca_file: PEM file with the trusted authorities; None trusts the system's.
            clock: seconds, never stepping.

        """
        self.issuer = issuer
        self._ca_file = ca_file
        self._metadata: TTLCache[str, Metadata] = TTLCache(1, negative_ttl=negative_ttl, clock=clock)
        self._keys: TTLCache[str, KeySet] = TTLCache(1, negative_ttl=negative_ttl, clock=clock)
        self._lock = threading.Lock()
        #: Clients by the origin of endpoints, which may be on other hosts than the issuer.
        self._clients: dict[str, HttpClient] = {}

    @property
    def known_metadata(self) -> Metadata | None:
        """Metadata that was read before, of any age."""
        return self._metadata.peek(self.issuer)

    def metadata(self, deadline: Deadline) -> Metadata:
        """Return the metadata; while the provider does not answer, what was read before.

        Raises:
            TransientError: the provider does not answer.
            PermanentError: the answer is no discovery document of this issuer.

        """
        try:
            return self._metadata.get(self.issuer, _MAX_AGE_SECONDS, lambda: self._discover(deadline), deadline)
        except TransientError:
            if known := self.known_metadata:
                return known
            raise

    def keys(self, deadline: Deadline, max_age: float = _MAX_AGE_SECONDS) -> KeySet:
        """Return the public keys, as they were at most `max_age` seconds ago.

        Raises:
            TransientError, PermanentError: as with `metadata`.

        """
        return self._keys.get(self.issuer, max_age, lambda: self._read_keys(deadline), deadline)

    def post(
        self, url: str, form: Mapping[str, str], deadline: Deadline, headers: Mapping[str, str] = MappingProxyType({})
    ) -> Answer:
        """Send a form to an endpoint.

        Raises:
            TransientError, PermanentError: as with `HttpClient.request`.

        """
        client, path = self._client(url)
        kind = "application/x-www-form-urlencoded"
        return client.request("POST", path, deadline, headers=headers, body=urlencode(form).encode(), content_type=kind)

    def close(self) -> None:
        """Close idle connections; a later request opens new ones."""
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.close()

    def _discover(self, deadline: Deadline) -> Metadata:
        found = self._get(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration", "discovery document", deadline)
        if found.get("issuer") != self.issuer:  # section 4.3
            raise PermanentError(f"{PROVIDER}: its discovery document is of another issuer than {self.issuer}")
        return Metadata(
            self._endpoint(found, "authorization_endpoint"),
            self._endpoint(found, "token_endpoint"),
            self._endpoint(found, "jwks_uri"),
            self._endpoint(found, "revocation_endpoint") if "revocation_endpoint" in found else None,
            self._endpoint(found, "end_session_endpoint") if "end_session_endpoint" in found else None,
        )

    def _endpoint(self, found: Mapping[str, Any], name: str) -> str:
        """Return the URL of an endpoint, which is as safe as the issuer's."""
        url = found.get(name)
        allowed = ("https", "http") if self.issuer.startswith("http:") else ("https",)
        if isinstance(url, str) and url.isascii() and url.isprintable() and " " not in url:
            parts = urlsplit(url)
            if parts.scheme in allowed and parts.hostname and "@" not in parts.netloc and not parts.fragment:
                return url
        raise PermanentError(f"{PROVIDER}: its discovery document has no valid {name}")

    def _read_keys(self, deadline: Deadline) -> KeySet:
        found = self._get(self.metadata(deadline).jwks_uri, "set of keys", deadline).get("keys")
        keys: list[Key] = []
        for each in found if isinstance(found, list) else ():
            if isinstance(each, dict) and each.get("kty") in _PUBLIC_KINDS:
                with suppress(JoseError, ValueError):  # of a curve that we do not know, and need not know
                    keys.append(JWKRegistry.import_key(each))
        if not keys:
            raise PermanentError(f"{PROVIDER}: its set of keys has none that can be used")
        return KeySet(keys)

    def _get(self, url: str, what: str, deadline: Deadline) -> dict[str, Any]:
        client, path = self._client(url)
        answer = client.request("GET", path, deadline)
        if answer.status != 200:
            raise PermanentError(f"{PROVIDER}: answered {answer.status} for its {what}")
        try:
            found = parse_json(answer.body)
        except ValueError as error:
            raise PermanentError(f"{PROVIDER}: its {what} is malformed: {error}") from error
        if not isinstance(found, dict):
            raise PermanentError(f"{PROVIDER}: its {what} is no JSON object")
        return found

    def _client(self, url: str) -> tuple[HttpClient, str]:
        """Return the client for a URL, and the path to ask it for."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            client = self._clients.get(origin)
            if client is None:
                client = self._clients[origin] = HttpClient(PROVIDER, origin, ca_file=self._ca_file)
        path = parts.path or "/"
        return client, f"{path}?{parts.query}" if parts.query else path
