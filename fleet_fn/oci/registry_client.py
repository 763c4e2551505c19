"""A registry's HTTP interface (OCI distribution specification 1.1), as far as reading needs it."""

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final
from urllib.parse import urljoin

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.address_policy import permitting, split_url
from fleet_fn.http.client import Answer, Count, HttpClient, Stream
from fleet_fn.oci.authentication import Authorization
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.layer import Readable
from fleet_fn.oci.manifest import INDEXES, MANIFESTS, MAX_MANIFEST, Descriptor, digest_of
from fleet_fn.oci.reference import api_host, is_digest

#: Seconds within which a download has to bring `_PROGRESS` bytes; one that does not is given up.
STALLED: Final = 30.0
_PROGRESS: Final = 1024
_MAX_REDIRECTS: Final = 5
_ACCEPT_MANIFESTS: Final = {"Accept": ", ".join(MANIFESTS + INDEXES)}
_ACCEPT_BLOBS: Final = {"Accept": "*/*"}


class RegistryClient:
    """One registry. Safe to use from several threads."""

    def __init__(
        self,
        host: str,
        *,
        credentials: Callable[[str], Credentials | None],
        plain_http: bool,
        ca_file: str | None,
        background: SingleFlight,
        count: Count | None = None,
    ) -> None:
        """A registry at `host`, perhaps with a port; `credentials` gives those for a repository.

        `count` is told of each request, also of those to where the registry sends us.
        """
        self.url = f"{'http' if plain_http else 'https'}://{api_host(host)}"
        self._plain_http = plain_http
        self._name = f"OCI registry {host}"
        self._upstream = HttpClient(self._name, self.url, ca_file=ca_file, background=background)
        if count:
            self._upstream = self._upstream.counted("oci", count)
        self._authorization = Authorization(self._upstream.origin.host, credentials, self._fetch_token, name=self._name)

    def tagged(self, repository: str, tag: str, deadline: Deadline) -> tuple[str, bytes]:
        """What a tag stands at right now: a manifest's or an index's digest and bytes.

        Raises:
            PermanentError: there is no such tag, or the registry does not let us see it, or what it answers makes no
                sense.
            TransientError: the registry does not answer in time.

        """
        answer = self._manifest(repository, tag, deadline)
        digest = digest_of(answer.body)
        told = _told_digest(answer.headers)
        if told not in (None, digest):
            raise PermanentError(f"digest mismatch: the registry says that tag {tag} is {told}, but sends {digest}")
        return digest, answer.body

    def digest(self, repository: str, tag: str, deadline: Deadline) -> str | None:
        """The digest that a tag stands at right now, for the price of a HEAD; None where the registry does not tell.

        Raises:
            PermanentError, TransientError: as with `tagged`.

        """
        answer, _ = self._ask_for_manifest("HEAD", repository, tag, deadline)
        # What is wrong with another answer is told by that to a GET; some registries have no HEAD.
        return _told_digest(answer.headers) if answer.status == 200 else None

    def manifest(self, repository: str, digest: str, deadline: Deadline) -> bytes:
        """The verified bytes of the manifest or index that has a digest.

        Raises:
            PermanentError, TransientError: as with `tagged`.

        """
        return _verified(self._manifest(repository, digest, deadline).body, digest)

    def blob(self, repository: str, blob: Descriptor, deadline: Deadline) -> bytes:
        """The verified bytes of a small blob: `MAX_MANIFEST` at most.

        Raises:
            PermanentError: as with `tagged`; or the blob is larger.
            TransientError: as with `tagged`.

        """
        if blob.size > MAX_MANIFEST:
            raise PermanentError(f"blob {blob.digest} has {blob.size} bytes; at most {MAX_MANIFEST} are read")
        content = bytearray()
        with self._blob(repository, blob, deadline) as stream:
            while len(content) < blob.size and (piece := stream.read(blob.size - len(content), deadline)):
                content += piece
        return _verified(bytes(content), blob.digest)

    @contextmanager
    def stream(self, repository: str, blob: Descriptor) -> Iterator[Readable]:
        """A blob's bytes as they come, not verified, and never more than its descriptor says.

        However large it is, it may take its time as long as there is progress.

        Raises:
            PermanentError: there is no such blob, or it has another size.
            TransientError: the registry does not answer, or nothing comes any more; when reading, too.

        """
        with self._blob(repository, blob, Deadline(STALLED)) as stream:
            yield _Download(stream, blob.size, self._name)

    def close(self) -> None:
        """Closes the connections that are kept; a later request makes a new one."""
        self._upstream.close()

    def _manifest(self, repository: str, reference: str, deadline: Deadline) -> Answer:
        answer, authorization = self._ask_for_manifest("GET", repository, reference, deadline)
        what = f"manifest {reference}" if ":" in reference else f"tag {reference}"
        self._raise_for_status(answer.status, f"no {what} in {repository}", repository, authorization)
        return answer

    def _ask_for_manifest(
        self, method: str, repository: str, reference: str, deadline: Deadline
    ) -> tuple[Answer, str | None]:
        """The answer, whatever its status, and the authorization that led to it."""
        path = f"/v2/{repository}/manifests/{reference}"
        authorization = self._authorization.header(repository)
        answer = self._upstream.request(method, path, deadline, headers=_with(_ACCEPT_MANIFESTS, authorization))
        if answer.status == 401:
            authorization = self._authorized(repository, authorization, answer.headers, deadline)
            answer = self._upstream.request(method, path, deadline, headers=_with(_ACCEPT_MANIFESTS, authorization))
        return answer, authorization

    @contextmanager
    def _blob(self, repository: str, blob: Descriptor, deadline: Deadline) -> Iterator[Stream]:
        """The answer that brings a blob, from wherever the registry sends us for it."""
        path = f"/v2/{repository}/blobs/{blob.digest}"
        authorization = self._authorization.header(repository)
        with ExitStack() as stack:
            stream = stack.enter_context(self._upstream.stream(path, deadline, _with(_ACCEPT_BLOBS, authorization)))
            if stream.status == 401:
                stack.close()
                authorization = self._authorized(repository, authorization, stream.headers, deadline)
                stream = stack.enter_context(self._upstream.stream(path, deadline, _with(_ACCEPT_BLOBS, authorization)))
            url, redirects = self.url + path, 0
            while stream.status in (301, 302, 303, 307, 308) and (location := stream.headers.get("Location")):
                stack.close()
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise PermanentError(f"{self._name}: more than {_MAX_REDIRECTS} redirects for a blob")
                # Credentials stay behind, even where the host is the same.
                url, authorization = _joined(url, location, self._name), None
                upstream, path = self._elsewhere(url, deadline)
                stream = stack.enter_context(upstream.stream(path, deadline, _ACCEPT_BLOBS))
            if redirects and stream.status != 200:
                raise PermanentError(f"{upstream.name}: answered {stream.status} for a blob")
            self._raise_for_status(stream.status, f"no blob {blob.digest} in {repository}", repository, authorization)
            announced = stream.headers.get("Content-Length")
            if announced is not None and announced != str(blob.size):
                if not (announced.isascii() and announced.isdigit()):  # not repeated: it may be what we were known by
                    raise PermanentError(f"size mismatch: blob {blob.digest} has a size that is no number")
                raise PermanentError(
                    f"size mismatch: blob {blob.digest} has {announced} bytes where there should be {blob.size}"
                )
            yield stream

    def _authorized(
        self, repository: str, refused: str | None, headers: http.client.HTTPMessage, deadline: Deadline
    ) -> str:
        challenges = headers.get_all("WWW-Authenticate", [])
        return self._authorization.answer_to(repository, refused, challenges, deadline)

    def _raise_for_status(self, status: int, missing: str, repository: str, authorization: str | None) -> None:
        """Raises `PermanentError` for any answer but one that brings what was asked for."""
        if status == 404:
            raise PermanentError(missing)
        if status in (401, 403):
            raise self._authorization.refusal(repository, authorization)
        if status != 200:
            raise PermanentError(f"{self._name}: answered {status}")

    def _fetch_token(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        upstream, path = self._elsewhere(url, deadline)
        return upstream.request("GET", path, deadline, headers=headers)

    def _elsewhere(self, url: str, deadline: Deadline) -> tuple[HttpClient, str]:
        """Whom to ask at a URL that the registry sent us to, and the path there.

        Raises:
            PermanentError: no request may go there.

        """
        origin, path = split_url(url, plain_http=self._plain_http, registry=self._name)
        if origin == self.url:
            return self._upstream, path
        return self._upstream.elsewhere(origin, permitting(lambda: self._upstream.addresses(deadline))), path


class _Download:
    """A blob that comes in, however slowly, as long as it does."""

    def __init__(self, stream: Stream, size: int, registry: str) -> None:
        self._registry = registry
        self._stream = stream
        self._left = size
        self._window = Deadline(STALLED)
        self._progress = 0

    def read(self, size: int, /) -> bytes:
        """What comes next, at most `size` bytes; none after as many as the descriptor says, or where it ends early.

        Raises:
            TransientError: the connection broke, or nothing comes any more.
            PermanentError: what comes is not HTTP.

        """
        if not self._left:
            return b""
        try:
            piece = self._stream.read(min(size, self._left), self._window)
        except TransientError as error:
            if self._window.remaining:
                raise
            raise TransientError(f"{self._registry}: a download made no progress for {STALLED:g} s") from error
        self._left -= len(piece)
        self._progress += len(piece)
        if self._progress >= _PROGRESS:
            self._window, self._progress = Deadline(STALLED), 0
        return piece


def _with(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers


def _told_digest(headers: http.client.HTTPMessage) -> str | None:
    digest: str = headers.get("Docker-Content-Digest", "")
    return digest if is_digest(digest) else None


def _verified(content: bytes, digest: str) -> bytes:
    actual = digest_of(content)
    if actual != digest:
        raise PermanentError(f"digest mismatch: the registry sends {actual} for {digest}")
    return content


def _joined(base: str, location: str, registry: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise PermanentError(f"{registry}: sends us to a malformed URL") from error
