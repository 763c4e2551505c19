"""Client of a DDI server on behalf of many controllers.

It has the gateway token of one tenant. The token goes to the server's own origin only. Links are followed as the server
gives them: they carry its cache key.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, NoReturn, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from fleet_fn.ddi.documents import (
    Base,
    Cancellation,
    Deployment,
    MalformedDocumentError,
    read_base,
    read_cancellation,
    read_deployment,
)
from fleet_fn.ddi.messages import Feedback, attributes_json
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http import long_download
from fleet_fn.http.address_policy import make_address_check, split_url
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import Count, HttpClient, Stream
from fleet_fn.http.long_download import LongDownload
from fleet_fn.http.origin import Origin

T = TypeVar("T")

#: The server's name in reasons.
DDI_SERVER: Final = "DDI server"
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
#: Media types of documents: hawkBit's own, and what others send.
_ACCEPT: Final = {"Accept": "application/hal+json, application/json"}
#: All bytes, as a range: hawkBit adds a status to the action for each download without one, and counts these.
_WHOLE: Final = {"Accept": "*/*", "Range": "bytes=0-"}
_ELSEWHERE: Final = {"Accept": "*/*"}


class ActionClosedError(PermanentError):
    """The action is not open any more, or does not take feedback now."""


class ActionChangedError(TransientError):
    """What a link led to is gone: the server has another word by now."""


class DdiClient:
    """A client of one tenant of a DDI server. Safe to use from several threads."""

    def __init__(
        self, url: str, tenant: str, token: str, *, ca_file: str | None = None, count: Count | None = None
    ) -> None:
        """Create a client.

        Args:
            url: the server's base URL.
            tenant: the tenant's name.
            token: the tenant's gateway token.
            ca_file: PEM file of trust anchors; None means the system's.
            count: called for each request, also for those that the server sends elsewhere.

        """
        parts = urlsplit(url)
        self._upstream = HttpClient(
            DDI_SERVER,
            f"{parts.scheme}://{parts.netloc}",
            authorization=Fixed(f"GatewayToken {token}"),
            ca_file=ca_file,
        )
        if count:
            self._upstream = self._upstream.with_count("hawkbit", count)
        self._folder = parts.path.rstrip("/")
        self._api = f"/{quote(tenant, safe='')}/controller/v1"
        self._root = self._folder + self._api
        self._plain_http = parts.scheme == "http"
        self._url = f"{parts.scheme}://{parts.netloc}{self._root}"

    @property
    def place(self) -> str:
        """Unique name of the server and the tenant."""
        return self._url

    # --- Reading ------------------------------------------------------------------------------------------------------

    def base(self, controller: str, deadline: Deadline) -> Base:
        """Return the links of a controller, all of them absolute.

        hawkBit creates a target for a controller that it does not know.

        Raises:
            PermanentError: the server refuses the controller or the token, or its answer is malformed.
            TransientError: the server does not answer in time.

        """
        path = self._controller_path(controller)
        answer = self._upstream.request("GET", path, deadline, headers=_ACCEPT)
        if answer.status == 404:
            raise PermanentError(
                f"{DDI_SERVER}: 404 for controller {controller} (wrong HAWKBIT_URL, wrong HAWKBIT_TENANT, or the "
                "server creates no targets)"
            )
        base = self._read(answer.status, f"controller {controller}", read_base, answer.body)
        here = self._join(path)
        return Base(*(self._join(link, here) if link else None for link in base))

    def deployment(self, link: str, member: str, deadline: Deadline) -> Deployment:
        """Return the action that an absolute link leads to.

        `member` is `deployment` or `confirmation`.

        Raises:
            PermanentError: as with `base`.
            TransientError: as with `base`; `ActionChangedError`: the action has changed since the link was given.

        """
        found = self._follow(link, "the action", lambda text: read_deployment(text, member), deadline)
        artifacts = tuple(
            artifact._replace(links=tuple(self._join(each, link) for each in artifact.links))
            for artifact in found.artifacts
        )
        return found._replace(artifacts=artifacts)

    def cancellation(self, link: str, deadline: Deadline) -> Cancellation:
        """Return the wish to cancel that a link leads to.

        Raises:
            PermanentError, TransientError: see `deployment`.

        """
        return self._follow(link, "the cancellation", read_cancellation, deadline)

    def _follow(self, link: str, what: str, read: Callable[[bytes], T], deadline: Deadline) -> T:
        answer = self._upstream.request("GET", self._own_path(link), deadline, headers=_ACCEPT)
        if answer.status in (404, 410):
            raise ActionChangedError(f"{DDI_SERVER}: {what} has changed meanwhile")
        return self._read(answer.status, what, read, answer.body)

    def _read(self, status: int, what: str, read: Callable[[bytes], T], body: bytes) -> T:
        if status != 200:
            _raise_for_status(status, what)
        try:
            return read(body)
        except MalformedDocumentError as error:
            raise PermanentError(f"{DDI_SERVER}: the answer for {what} {error}") from error

    # --- Telling ------------------------------------------------------------------------------------------------------

    def tell(self, controller: str, action: str, feedback: Feedback, deadline: Deadline) -> None:
        """Add a status to an action.

        Raises:
            ActionClosedError: the action does not take it.
            RateLimitedError: the action has too many statuses already.
            PermanentError, TransientError: it was not taken.

        """
        self._tell(controller, "deploymentBase", action, feedback, deadline)

    def answer_cancellation(self, controller: str, cancellation: str, feedback: Feedback, deadline: Deadline) -> None:
        """Accept or reject a cancellation; see `tell`."""
        self._tell(controller, "cancelAction", cancellation, feedback, deadline)

    def _tell(self, controller: str, kind: str, action: str, feedback: Feedback, deadline: Deadline) -> None:
        resource = f"{kind}/{quote(action, safe='')}"
        path = f"{self._controller_path(controller)}/{resource}/feedback"
        status = self._send("POST", path, feedback.to_json(action), deadline)
        if status in (404, 410):
            raise ActionClosedError(f"{DDI_SERVER}: {status} for {resource} (closed, or not open for feedback)")
        if not 200 <= status < 300:
            _raise_for_status(status, resource)

    def put_attributes(self, link: str, attributes: Mapping[str, str], deadline: Deadline) -> None:
        """Merge attributes into those of the target that a link belongs to.

        Raises:
            PermanentError, TransientError: they were not taken.

        """
        status = self._send("PUT", self._own_path(link), attributes_json(attributes), deadline)
        if not 200 <= status < 300:
            _raise_for_status(status, "the attributes")

    def _send(self, method: str, path: str, body: bytes, deadline: Deadline) -> int:
        answer = self._upstream.request(
            method, path, deadline, body=body, content_type="application/json", wants_body=False
        )
        return answer.status

    # --- Downloading --------------------------------------------------------------------------------------------------

    def own_path(self, link: str) -> str:
        """Return the path of a link to the server itself; empty if it leads elsewhere."""
        origin, path = split_url(self._join(link), plain_http=True, registry=DDI_SERVER)
        if Origin.of(origin) == self._upstream.origin:
            return path
        # Behind a proxy, hawkBit may not know its own address. A path of its API is its own all the same.
        if path.startswith(f"{self._root}/"):
            return path
        return f"{self._folder}{path}" if path.startswith(f"{self._api}/") else ""

    @contextmanager
    def stream(self, links: tuple[str, ...], size: int) -> Iterator[LongDownload]:
        """Open an artifact for reading its bytes as they arrive, unverified.

        Args:
            links: where it is. One to the server's own origin is preferred; elsewhere the token is not sent.
            size: bytes that are expected; no more are read.

        Raises:
            PermanentError: there is no such artifact, or it has another size, or it is where no request may go.
            TransientError: the server does not answer, or the download stalls; reads raise this, too.

        """
        url = self._join(next((link for link in links if self.own_path(link)), links[0]))
        deadline = Deadline(long_download.STALL_TIMEOUT_SECONDS)
        with ExitStack() as stack:
            upstream, path = self._client_for(url)
            headers = _WHOLE if upstream is self._upstream else _ELSEWHERE
            stream = stack.enter_context(upstream.stream(path, deadline, headers))
            redirects = 0
            while stream.status in _REDIRECTS and (location := stream.headers.get("Location")):
                stack.close()
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise PermanentError(f"{DDI_SERVER}: more than {_MAX_REDIRECTS} redirects for an artifact")
                url = self._join(location, url)
                upstream, path = self._stranger(url)
                stream = stack.enter_context(upstream.stream(path, deadline, _ELSEWHERE))
            _check_head(upstream.name, stream, size)
            yield LongDownload(stream, size, upstream.name)

    def close(self) -> None:
        """Close idle connections; a later request opens new ones."""
        self._upstream.close()

    # --- Where requests go --------------------------------------------------------------------------------------------

    def _controller_path(self, controller: str) -> str:
        if controller in ("", ".", ".."):
            # Clients and servers remove dot segments (RFC 3986, section 5.2.4).
            raise PermanentError(f"{DDI_SERVER}: no URL can carry the controller {controller!r}")
        return f"{self._root}/{quote(controller, safe='')}"

    def _own_path(self, link: str) -> str:
        """Return the path of a link that only the server itself may serve.

        Raises:
            PermanentError: it leads elsewhere, where the token must not go.

        """
        if path := self.own_path(link):
            return path
        host = urlsplit(self._join(link)).netloc
        raise PermanentError(
            f"{DDI_SERVER}: its links lead to {host}, where the token is not sent; set HAWKBIT_URL to the URL that the "
            "server has in its links"
        )

    def _client_for(self, url: str) -> tuple[HttpClient, str]:
        path = self.own_path(url)
        return (self._upstream, path) if path else self._stranger(url)

    def _stranger(self, url: str) -> tuple[HttpClient, str]:
        """Return a client without the token for a URL that the server named.

        Raises:
            PermanentError: the address policy forbids requests to it.

        """
        origin, path = split_url(url, plain_http=self._plain_http, registry=DDI_SERVER)
        return self._upstream.for_redirect(origin, make_address_check(self._addresses)), path

    def _addresses(self) -> list[str]:
        """Return the address that the server last answered from."""
        return [self._upstream.address] if self._upstream.address else []

    def _join(self, link: str, base: str | None = None) -> str:
        try:
            return urljoin(base or self._url, link)
        except ValueError as error:
            raise PermanentError(f"{DDI_SERVER}: sends us to a malformed URL") from error


def _raise_for_status(status: int, what: str) -> NoReturn:
    """Raise the error of a status that is no success."""
    if status == 401:
        raise PermanentError(
            f"{DDI_SERVER}: 401 (wrong HAWKBIT_GATEWAY_TOKEN, or gateway tokens are off for the tenant, or wrong "
            "HAWKBIT_TENANT)"
        )
    if status in (409, 423):
        raise TransientError(f"{DDI_SERVER}: {status} for {what} (something else changes it at this moment)")
    if status == 400:
        raise PermanentError(f"{DDI_SERVER}: 400 for {what} (the server does not take this id)")
    if status == 403:
        raise PermanentError(f"{DDI_SERVER}: 403 for {what} (the gateway token must not do this)")
    raise PermanentError(f"{DDI_SERVER}: answered {status} for {what}")


def _check_head(name: str, stream: Stream, size: int) -> None:
    """Refuse an answer that is not all of an artifact.

    Raises:
        PermanentError: it is not.

    """
    if stream.status == 401 and name == DDI_SERVER:  # elsewhere there was no token
        _raise_for_status(401, "an artifact")
    if stream.status in (404, 410):
        raise PermanentError(f"{name}: {stream.status} for an artifact (removed, or its action is not open any more)")
    if stream.status not in (200, 206):
        raise PermanentError(f"{name}: answered {stream.status} for an artifact")
    if stream.status == 206 and not (stream.headers.get("Content-Range") or "").startswith("bytes 0-"):
        raise PermanentError(f"{name}: sends another range of an artifact than all of it")
    if stream.length not in (None, size):
        raise PermanentError(f"{name}: size mismatch: an artifact has {stream.length} bytes, expected {size}")
