"""Client of an OCI registry for publishing (OCI distribution specification 1.1).

oras-py provides the session and the tokens. Its retries, which sleep for minutes, are not used. This module adds
timeouts, streamed bodies, HTTP Basic, and errors that people can act on. Importing it is slow.
"""

import http.client
import json
import logging
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3
from oras.auth.token import TokenAuth
from oras.auth.utils import authHeader
from oras.provider import Registry
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies

from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.oci.access import Access
from fleet_fn.oci.challenges import parse_challenges
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.manifest import INDEX, INDEXES, MANIFEST, MANIFESTS, MAX_MANIFEST_BYTES, digest_of
from fleet_fn.oci.publication import WANTS_CREDENTIALS, Content
from fleet_fn.oci.reference import api_host, is_digest

E = TypeVar("E", bound=BaseException)

#: Bounds connecting, and sending each chunk.
CONNECT_TIMEOUT_SECONDS: Final = 10.0
#: Bounds the wait for an answer; that to an upload takes longer, because the registry may have to move the blob.
ANSWER_TIMEOUT_SECONDS: Final = 10.0
UPLOAD_TIMEOUT_SECONDS: Final = 300.0
_MAX_MESSAGE_CHARACTERS: Final = 200
#: OpenSSL's codes for certificates that are self-signed, or whose issuer is not trusted.
_UNKNOWN_ISSUER: Final = (18, 19, 20, 21)

# Without a handler of its own, oras-py's logger prints.
logging.getLogger("oras").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    #: Final URL, after redirects.
    url: str


class PushClient:
    """A client of one repository in a registry. Not to be shared by threads."""

    def __init__(self, host: str, name: str, access: Access) -> None:
        """Create a client for the repository `name` at `host`, which may include a port.

        Raises:
            PermanentError: the file of trust anchors cannot be read.

        """
        self._host = host
        host = api_host(host)
        self._origin = f"{'http' if access.insecure else 'https'}://{host}"
        self._repository = f"{self._origin}/v2/{name}"
        self._name = name
        self._insecure = access.insecure
        self._auth = _Auth(access.credentials, urlsplit(self._origin))
        self._registry = _Registry(host, self._origin, self._auth, access)

    def __enter__(self) -> "PushClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._registry.session.close()

    def manifest(self, tag: str) -> bytes | None:
        """Return the manifest or index that a tag names, or None if there is no such tag.

        Raises:
            PermanentError, TransientError: the registry refuses the request, or is unavailable.

        """
        accept = {"Accept": ", ".join(MANIFESTS + INDEXES)}
        answer = self._request("GET", f"{self._repository}/manifests/{tag}", headers=accept, missing=(404,))
        return None if answer.status == 404 else answer.body

    def tags(self) -> list[str]:
        """Return the tags of the repository, at most one page of 1000.

        Raises:
            PermanentError, TransientError: the registry refuses the request, or is unavailable.

        """
        answer = self._request("GET", f"{self._repository}/tags/list?n=1000")
        tags = _json(answer.body).get("tags")
        return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []

    def upload(self, digest: str, content: bytes | Content) -> None:
        """Upload a blob with the digest `sha256:…`, unless the repository has it.

        Raises:
            PermanentError: the registry refuses it, or the content cannot be read.
            TransientError: the registry is unavailable.

        """
        if self._request("HEAD", f"{self._repository}/blobs/{digest}", missing=(404,)).status != 404:
            return
        session = self._request("POST", f"{self._repository}/blobs/uploads/")
        if not (location := session.headers.get("Location")):
            raise PermanentError(f"{self._host}: does not say where to upload to: is it a registry?")
        url = urljoin(session.url, location)
        if self._origin.startswith("https:") and not url.startswith("https:"):
            raise PermanentError(f"{self._host}: redirects the upload to a URL without TLS")
        self._request(
            "PUT",
            f"{url}{'&' if '?' in url else '?'}digest={digest}",
            headers={"Content-Type": "application/octet-stream"},
            data=content,
        )

    def tag(self, tag: str, manifest: bytes) -> None:
        """Upload a manifest under `tag`, and check that the tag names it afterwards.

        Raises:
            PermanentError, TransientError: the registry refuses the manifest, or is unavailable; or the tag names
                another manifest afterwards.

        """
        url, digest = f"{self._repository}/manifests/{tag}", digest_of(manifest)
        self._request("PUT", url, headers={"Content-Type": MANIFEST}, data=manifest)
        found = self._request("HEAD", url, headers={"Accept": MANIFEST}).headers.get("Docker-Content-Digest")
        if found is None:  # the header is optional
            found = digest_of(self.manifest(tag) or b"")
        if found != digest:
            elsewhere = found if is_digest(found) else "something else"  # not quoted: it may echo our credentials
            raise PermanentError(
                f"{self._host}: the tag {tag} names {elsewhere} instead of {digest}, which was sent: is another "
                "client publishing to it?"
            )

    def put(self, manifest: bytes) -> str | None:
        """Upload a manifest without a tag.

        Return the digest of the manifest that it is attached to, if the registry lists it among that one's referrers;
        None if the registry keeps no such list.

        Raises:
            PermanentError, TransientError: the registry refuses the manifest, or is unavailable.

        """
        url = f"{self._repository}/manifests/{digest_of(manifest)}"
        return self._request("PUT", url, headers={"Content-Type": MANIFEST}, data=manifest).headers.get("OCI-Subject")

    def replace(self, tag: str, index: bytes) -> None:
        """Upload an index under `tag`.

        Raises:
            PermanentError, TransientError: the registry refuses the index, or is unavailable.

        """
        url = f"{self._repository}/manifests/{tag}"
        self._request("PUT", url, headers={"Content-Type": INDEX}, data=index)

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | Content | None = None,
        missing: tuple[int, ...] = (),
    ) -> _Answer:
        """Send a request; return its answer if it is a success or `missing` allows it.

        Raises:
            PermanentError, TransientError: any other answer, or none.

        """
        try:
            with self._registry.do_request(url, method, data, dict(headers or {}), stream=True) as response:
                body = response.raw.read(MAX_MANIFEST_BYTES + 1, decode_content=True) or b""
                answer = _Answer(response.status_code, response.headers, body, response.url)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._translate(error) from error
        if len(body) > MAX_MANIFEST_BYTES:
            raise PermanentError(f"{self._host}: answers with more than {MAX_MANIFEST_BYTES} bytes")
        self._raise_for_status(answer, method, missing)
        return answer

    def _raise_for_status(self, answer: _Answer, method: str, missing: tuple[int, ...]) -> None:
        status, said = answer.status, self._registry_message(answer.body)
        if status == 429 or status >= 500:
            raise TransientError(f"{self._host}: answered {status}{said}")
        if status == 401:
            raise PermanentError(
                f"{self._host}: the credentials were refused{said}"
                if self._auth.credentials
                else f"{self._host}: {WANTS_CREDENTIALS}: set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, "
                f"or log in as docker does{said}"
            )
        if status == 403:
            raise PermanentError(f"{self._host}: access denied to {self._name}{said}")
        if status == 413:
            raise PermanentError(f"{self._host}: too large for the registry{said}")
        if status == 400 and b"HTTPS server" in answer.body and self._insecure:
            raise PermanentError(f"{self._host}: speaks TLS; leave out --insecure")
        if status in missing:
            return
        if method != "HEAD" and answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise PermanentError(f"{self._host}: answers with a web page: is it a registry?")
        if 200 <= status < 300:
            return
        if status == 404:
            raise PermanentError(f"{self._host}: no repository {self._name}, or no OCI registry at this URL{said}")
        raise PermanentError(f"{self._host}: answered {status} to a {method}{said}")

    def _registry_message(self, body: bytes) -> str:
        """Return the registry's own message, without our secrets.

        See "Error Codes" in the OCI distribution specification.
        """
        errors = _json(body).get("errors")
        error = errors[0] if isinstance(errors, list) and errors else None
        if not isinstance(error, dict):
            return ""
        text = ": ".join(str(error[key]) for key in ("code", "message") if error.get(key))
        for secret in self._auth.secrets():
            text = text.replace(secret, "…")
        return f" ({text[:_MAX_MESSAGE_CHARACTERS]})" if text else ""

    def _translate(self, error: Exception) -> UpstreamError:
        """Return an upstream error with an actionable reason.

        `error` comes from requests, urllib3 or the sockets below.
        """
        host, causes = self._host, list(_causes(error))
        if own := _first(causes, UpstreamError):  # raised while reading the content to be sent
            return own
        if _first(causes, requests.exceptions.ProxyError):
            return TransientError(f"{host}: the proxy in the environment cannot reach the registry")
        if untrusted := _first(causes, ssl.SSLCertVerificationError):
            advice = "; name the trust anchors with --ca-file" if untrusted.verify_code in _UNKNOWN_ISSUER else ""
            return PermanentError(f"{host}: certificate not trusted: {untrusted.verify_message}{advice}")
        if tls := _first(causes, ssl.SSLError):
            if tls.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return PermanentError(f"{host}: does not speak TLS; --insecure is for plain HTTP")
            return TransientError(f"{host}: TLS: {tls.reason or 'handshake failed'}")
        if _first(causes, socket.gaierror):
            return PermanentError(f"{host}: host not found")
        if _first(causes, ConnectionRefusedError):
            return TransientError(f"{host}: connection refused")
        if _first(causes, TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError):
            return TransientError(f"{host}: no answer in time")
        if _first(causes, ConnectionError, http.client.IncompleteRead):
            return TransientError(f"{host}: connection closed without an answer")
        if _first(causes, http.client.HTTPException):
            return PermanentError(f"{host}: answer is not HTTP")
        if (network := _first(causes, OSError)) and network.strerror:
            return TransientError(f"{host}: {network.strerror}")
        return PermanentError(f"{host}: malformed answer ({type(error).__name__})")


class _Registry(Registry):  # type: ignore[misc] # oras-py has no types
    """oras-py's client, with timeouts instead of retries."""

    session: requests.Session

    def __init__(self, host: str, origin: str, auth: "_Auth", access: Access) -> None:
        super().__init__(host, access.insecure, tls_verify=access.ca_file or True)
        # The environment may name proxies. Its .netrc is ignored: credentials in it would replace ours.
        self.session.trust_env = False
        self.session.proxies = get_environ_proxies(origin)
        adapter = _Adapter(access.tls_context())
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        auth.session, auth._tls_verify = self.session, self._tls_verify
        self.auth = auth
        self._origin = origin

    def do_request(
        self,
        url: str,
        method: str = "GET",
        data: Any = None,
        headers: dict[str, str] | None = None,
        json: Any = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send a request; repeat it once with new credentials if the registry wants them.

        Each scope has its own token: a token for reading is refused for writing, which oras-py does not handle. Another
        host that the registry names does not get our credentials.
        """
        is_ours = url.startswith(f"{self._origin}/")
        headers = {**(headers or {}), **(self.auth.get_auth_header() if is_ours else {})}
        response = self.session.request(
            method, url, data=data, json=json, headers=headers, stream=stream, verify=self._tls_verify
        )
        if not is_ours or response.status_code not in (401, 403):
            return response
        with ExitStack() as stack:
            stack.callback(response.close)
            headers, changed = self.auth.authenticate_request(response, headers, refresh=True)
            if not changed:
                stack.pop_all()  # left open: the caller reads the body
                return response
        return self.session.request(
            method, url, data=data, json=json, headers=headers, stream=stream, verify=self._tls_verify
        )


class _Auth(TokenAuth):  # type: ignore[misc] # oras-py has no types
    """Answers challenges for a token, by oras-py, and for HTTP Basic (RFC 7617)."""

    def __init__(self, credentials: Credentials | None, origin: SplitResult) -> None:
        super().__init__()
        self.credentials = credentials
        self.prefix = origin.scheme
        self._host = origin.hostname
        self._is_basic = False
        if credentials and credentials.user is not None:
            self.set_basic_auth(credentials.user, credentials.secret)
        elif credentials:
            self.set_token_auth(credentials.secret)

    def get_auth_header(self) -> dict[str, str]:
        if self._is_basic:
            return {"Authorization": f"Basic {self._basic_auth}"}
        header: dict[str, str] = super().get_auth_header()
        return header

    def authenticate_request(
        self,
        original: requests.Response,
        headers: dict[str, str],
        refresh: bool = False,  # noqa: ARG002 - oras-py's signature
    ) -> tuple[dict[str, str], bool]:
        """Return headers for a second request, and whether they differ from the first's."""
        challenges = parse_challenges([original.headers.get("WWW-Authenticate", "")])
        parameters = {challenge.scheme: challenge.parameters for challenge in reversed(challenges)}
        user = self.credentials.user if self.credentials else None
        if self.credentials and user is None:
            return headers, False
        if "bearer" in parameters:
            self.token = self._new_token(parameters["bearer"])
        elif "basic" in parameters and user is not None and not self._is_basic:
            self._is_basic = True
        else:
            return headers, False
        return {**headers, **self.get_auth_header()}, self._is_basic or self.token is not None

    def _new_token(self, parameters: Mapping[str, str]) -> str | None:
        realm = urlsplit(parameters.get("realm", ""))
        if realm.scheme not in ("http", "https"):
            return None
        is_plain = realm.scheme == "http" and (self.prefix, self._host) != ("http", realm.hostname)
        if self.credentials and is_plain:
            raise PermanentError("the registry's token realm has no TLS: our credentials were not sent")
        try:
            token = self.request_token(authHeader(parameters))
        except (AttributeError, RecursionError):  # oras-py takes any JSON for an object
            return None
        return token if isinstance(token, str) else None

    def secrets(self) -> list[str]:
        """Return the strings that no message may contain."""
        basic = getattr(self, "_basic_auth", None)
        return [secret for secret in (self.credentials and self.credentials.secret, basic, self.token) if secret]


class _Adapter(HTTPAdapter):
    """A transport adapter with timeouts on each request, and our TLS context."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(*args, ssl_context=self._tls, **kwargs)

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = (
            CONNECT_TIMEOUT_SECONDS,
            UPLOAD_TIMEOUT_SECONDS if request.method == "PUT" else ANSWER_TIMEOUT_SECONDS,
        )
        return super().send(request, *args, **kwargs)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and all errors that it wraps."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        cause = pending.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            pending += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]


def _first(causes: Iterable[BaseException], *kinds: type[E]) -> E | None:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)


def _json(body: bytes) -> dict[str, Any]:
    """Parse an answer's JSON object; return an empty one if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
