"""Client of an OCI registry that reads manifests and blobs.

It follows the OCI distribution specification 1.1.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.http import long_download
from fleet_fn.http.address_policy import make_address_check, split_url
from fleet_fn.http.client import Count, HttpClient, Stream
from fleet_fn.http.head import Headers
from fleet_fn.http.long_download import LongDownload
from fleet_fn.http.messages import Answer
from fleet_fn.oci.authentication import Authorization
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.layer import Readable
from fleet_fn.oci.manifest import (
    INDEX,
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    Descriptor,
    digest_of,
    read_json_object,
)
from fleet_fn.oci.reference import api_host, is_digest, is_tag
from fleet_fn.oci.referrers import MAX_REFERRERS, of_type, read_entries

_MAX_REDIRECTS: Final = 5
#: Bounds on a list of tags.
MAX_TAGS: Final = 10_000
_PAGE_TAGS: Final = 1000
_MAX_PAGES: Final = 100
#: Bound on the pages of a list together: clients that push choose the annotations in a list of referrers.
_MAX_LIST_BYTES: Final = 8 * 1024 * 1024
#: Link to the next page (OCI distribution specification 1.1, "Listing Tags"; RFC 8288).
_NEXT: Final = re.compile(r"<([^>]*)>\s*;\s*rel=\"?next\"?")
_ACCEPT_MANIFESTS: Final = {"Accept": ", ".join(MANIFESTS + INDEXES)}
_ACCEPT_JSON: Final = {"Accept": "application/json"}
_ACCEPT_INDEX: Final = {"Accept": INDEX}
_ACCEPT_BLOBS: Final = {"Accept": "*/*"}


class _Page(NamedTuple):
    """A page of a list, the authorization of its request, and whether it is the last."""

    answer: Answer
    authorization: str | None
    is_last: bool


class RegistryClient:
    """A client of one OCI registry. Safe to use from several threads."""

    def __init__(
        self,
        host: str,
        *,
        credentials: Callable[[str], Credentials | None],
        plain_http: bool,
        ca_file: str | None,
        count: Count | None = None,
    ) -> None:
        """Create a client.

        Args:
            host: the registry, with its port if references have one.
            credentials: returns the credentials for a repository.
            plain_http: use plain HTTP instead of TLS.
            ca_file: PEM file of trust anchors; None means the system's.
            count: called for each request, redirects to other hosts included.

        """
        self.url = f"{'http' if plain_http else 'https'}://{api_host(host)}"
        self._plain_http = plain_http
        self._name = f"OCI registry {host}"
        self._upstream = HttpClient(self._name, self.url, ca_file=ca_file)
        if count:
            self._upstream = self._upstream.with_count("oci", count)
        self._authorization = Authorization(self._upstream.origin.host, credentials, self._fetch_token, name=self._name)

    def resolve_tag(self, repository: str, tag: str, deadline: Deadline) -> tuple[str, bytes]:
        """Fetch the manifest or index that a tag names now; return its digest and bytes.

        Raises:
            PermanentError: there is no such tag, or the registry denies access, or its answer is malformed.
            TransientError: the registry does not answer in time.

        """
        answer = self._manifest(repository, tag, deadline)
        digest = digest_of(answer.body)
        told = _digest_header(answer.headers)
        if told not in (None, digest):
            raise PermanentError(f"{self._name}: digest mismatch: says that tag {tag} is {told}, but sends {digest}")
        return digest, answer.body

    def digest(self, repository: str, tag: str, deadline: Deadline) -> str | None:
        """Return a tag's current digest by HEAD; None if the registry does not give it.

        Raises:
            PermanentError, TransientError: see `resolve_tag`.

        """
        answer, _ = self._ask_for_manifest("HEAD", repository, tag, deadline)
        # Any other status leads to a GET, which reports the error; some registries lack HEAD.
        return _digest_header(answer.headers) if answer.status == 200 else None

    def manifest(self, repository: str, digest: str, deadline: Deadline) -> bytes:
        """Fetch the manifest or index with a digest; return its verified bytes.

        Raises:
            PermanentError, TransientError: see `resolve_tag`.

        """
        return self._verify(self._manifest(repository, digest, deadline).body, digest)

    def tags(self, repository: str, deadline: Deadline, *, whole: bool = False) -> list[str]:
        """Return the tags of a repository, `MAX_TAGS` at most, in the registry's order.

        Raises:
            PermanentError: there is no such repository, or the registry denies access, or its answer is malformed; or
                there are more tags, and the list has to be `whole`.
            TransientError: the registry does not answer in time.

        """
        tags: list[str] = []
        is_whole = False
        for page in self._pages(repository, "tags/list", f"n={_PAGE_TAGS}", _ACCEPT_JSON, deadline):
            self._raise_for_status(page.answer.status, f"no repository {repository}", repository, page.authorization)
            tags += _read_tags(page.answer.body, self._name)
            is_whole = page.is_last and len(tags) <= MAX_TAGS
            # One more than may be shows that the list is not whole.
            if len(tags) >= (MAX_TAGS + 1 if whole else MAX_TAGS):
                break
        if whole and not is_whole:
            raise PermanentError(
                f"{self._name}: {repository} has more than {MAX_TAGS} tags, or lists them on more than {_MAX_PAGES} "
                "pages"
            )
        return tags[:MAX_TAGS]

    def referrers(
        self, repository: str, digest: str, artifact_type: str, deadline: Deadline
    ) -> list[Descriptor] | None:
        """Return the manifests that are attached to the one with `digest`.

        They are those of one type, or of all if that is empty, `MAX_REFERRERS` at most. Nothing in them was checked.
        None if the registry has no such list (it is older than OCI 1.1).

        Raises:
            PermanentError: the registry denies access, or its answer is malformed.
            TransientError: the registry does not answer in time.

        """
        query = f"artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        found: list[Descriptor] = []
        for page in self._pages(repository, f"referrers/{digest}", query, _ACCEPT_INDEX, deadline):
            if page.answer.status == 404:
                return None
            self._raise_for_status(page.answer.status, "", repository, page.authorization)
            entries = _read_list(page.answer.body, "list of referrers", "manifests", self._name)
            found += of_type(read_entries(entries), artifact_type)
            if len(found) >= MAX_REFERRERS:
                break
        return found[:MAX_REFERRERS]

    def find(self, repository: str, tag: str, deadline: Deadline) -> bytes | None:
        """Return the manifest or index that a tag names now; None if there is no such tag.

        Raises:
            PermanentError, TransientError: see `resolve_tag`.

        """
        answer, authorization = self._ask_for_manifest("GET", repository, tag, deadline)
        if answer.status == 404:
            return None
        self._raise_for_status(answer.status, "", repository, authorization)
        return answer.body

    def blob(self, repository: str, blob: Descriptor, deadline: Deadline) -> bytes:
        """Fetch a blob of at most `MAX_MANIFEST_BYTES` bytes; return its verified bytes.

        Raises:
            PermanentError: see `resolve_tag`; or the blob is larger.
            TransientError: see `resolve_tag`.

        """
        if blob.size > MAX_MANIFEST_BYTES:
            raise PermanentError(f"blob {blob.digest} has {blob.size} bytes; at most {MAX_MANIFEST_BYTES} are read")
        content = bytearray()
        with self._blob(repository, blob, deadline) as stream:
            while len(content) < blob.size and (piece := stream.read(blob.size - len(content), deadline)):
                content += piece
        return self._verify(bytes(content), blob.digest)

    @contextmanager
    def stream(self, repository: str, blob: Descriptor) -> Iterator[Readable]:
        """Open a blob for reading its bytes as they arrive, unverified.

        At most as many bytes come as its descriptor says. A download has no deadline as long as it makes progress.

        Raises:
            PermanentError: there is no such blob, or it has another size.
            TransientError: the registry does not answer, or the download stalls; reads raise this, too.

        """
        with self._blob(repository, blob, Deadline(long_download.STALL_TIMEOUT_SECONDS)) as stream:
            yield LongDownload(stream, blob.size, self._name)

    def close(self) -> None:
        """Close idle connections; a later request opens a new one."""
        self._upstream.close()

    def _manifest(self, repository: str, reference: str, deadline: Deadline) -> Answer:
        answer, authorization = self._ask_for_manifest("GET", repository, reference, deadline)
        what = f"manifest {reference}" if ":" in reference else f"tag {reference}"
        self._raise_for_status(answer.status, f"no {what} in {repository}", repository, authorization)
        return answer

    def _ask_for_manifest(
        self, method: str, repository: str, reference: str, deadline: Deadline
    ) -> tuple[Answer, str | None]:
        path = f"/v2/{repository}/manifests/{reference}"
        return self._ask(method, path, repository, deadline, _ACCEPT_MANIFESTS)

    def _pages(
        self, repository: str, of: str, query: str, headers: Mapping[str, str], deadline: Deadline
    ) -> Iterator[_Page]:
        """Yield the pages of a list, `_MAX_PAGES` at most, of any status.

        Raises:
            PermanentError, TransientError: see `resolve_tag`; or the list has more than `_MAX_LIST_BYTES`.

        """
        first = f"/v2/{repository}/{of}"
        path: str | None = f"{first}?{query}" if query else first
        size = 0
        for _ in range(_MAX_PAGES):
            if path is None:
                return
            answer, authorization = self._ask("GET", path, repository, deadline, headers)
            size += len(answer.body)
            if size > _MAX_LIST_BYTES:
                raise PermanentError(f"{self._name}: a list of more than {_MAX_LIST_BYTES} bytes in {repository}")
            path = _next_page(answer.headers, first, self._name)
            yield _Page(answer, authorization, path is None)

    def _ask(
        self, method: str, path: str, repository: str, deadline: Deadline, headers: Mapping[str, str]
    ) -> tuple[Answer, str | None]:
        """Return the answer, of any status, and the authorization of its request."""
        authorization = self._authorization.header(repository)
        answer = self._upstream.request(method, path, deadline, headers=_with_authorization(headers, authorization))
        if answer.status == 401:
            authorization = self._authorize(repository, authorization, answer.headers, deadline)
            answer = self._upstream.request(method, path, deadline, headers=_with_authorization(headers, authorization))
        return answer, authorization

    @contextmanager
    def _blob(self, repository: str, blob: Descriptor, deadline: Deadline) -> Iterator[Stream]:
        """Open the answer that carries a blob, after following redirects."""
        path = f"/v2/{repository}/blobs/{blob.digest}"
        authorization = self._authorization.header(repository)
        with ExitStack() as stack:
            stream = stack.enter_context(
                self._upstream.stream(path, deadline, _with_authorization(_ACCEPT_BLOBS, authorization))
            )
            if stream.status == 401:
                stack.close()
                authorization = self._authorize(repository, authorization, stream.headers, deadline)
                stream = stack.enter_context(
                    self._upstream.stream(path, deadline, _with_authorization(_ACCEPT_BLOBS, authorization))
                )
            url, redirects = self.url + path, 0
            while stream.status in (301, 302, 303, 307, 308) and (location := stream.headers.get("Location")):
                stack.close()
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise PermanentError(f"{self._name}: more than {_MAX_REDIRECTS} redirects for a blob")
                # Credentials are not sent after a redirect, not even to the same host.
                url, authorization = _join_url(url, location, self._name), None
                upstream, path = self._client_for(url)
                stream = stack.enter_context(upstream.stream(path, deadline, _ACCEPT_BLOBS))
            if redirects and stream.status != 200:
                raise PermanentError(f"{upstream.name}: answered {stream.status} for a blob")
            self._raise_for_status(stream.status, f"no blob {blob.digest} in {repository}", repository, authorization)
            if stream.length not in (None, blob.size):
                raise PermanentError(
                    f"{self._name}: size mismatch: blob {blob.digest} has {stream.length} bytes, expected {blob.size}"
                )
            yield stream

    def _authorize(self, repository: str, refused: str | None, headers: Headers, deadline: Deadline) -> str:
        challenges = headers.getlist("WWW-Authenticate")
        return self._authorization.answer_challenge(repository, refused, challenges, deadline)

    def _raise_for_status(self, status: int, missing: str, repository: str, authorization: str | None) -> None:
        """Raise `PermanentError` for any status but 200."""
        if status == 404:
            raise PermanentError(f"{self._name}: {missing}")
        if status in (401, 403):
            raise self._authorization.refusal(repository, authorization)
        if status != 200:
            raise PermanentError(f"{self._name}: answered {status}")

    def _verify(self, content: bytes, digest: str) -> bytes:
        actual = digest_of(content)
        if actual != digest:
            raise PermanentError(f"{self._name}: digest mismatch: sends {actual} for {digest}")
        return content

    def _fetch_token(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        upstream, path = self._client_for(url)
        return upstream.request("GET", path, deadline, headers=headers)

    def _client_for(self, url: str) -> tuple[HttpClient, str]:
        """Return the HTTP client and the path for a URL that the registry named.

        Raises:
            PermanentError: the address policy forbids requests to it.

        """
        origin, path = split_url(url, plain_http=self._plain_http, registry=self._name)
        if origin == self.url:
            return self._upstream, path
        return self._upstream.for_redirect(origin, make_address_check(self._addresses)), path

    def _addresses(self) -> list[str]:
        """Return the address that the registry last answered from."""
        return [self._upstream.address] if self._upstream.address else []


def _with_authorization(headers: Mapping[str, str], authorization: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": authorization} if authorization else headers


def _digest_header(headers: Headers) -> str | None:
    digest = headers.get("Docker-Content-Digest")
    return digest if digest and is_digest(digest) else None


def _read_tags(body: bytes, registry: str) -> list[str]:
    """Return the tags in a page of a list; other entries are left out."""
    tags = _read_list(body, "list of tags", "tags", registry)
    return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]


def _read_list(body: bytes, what: str, member: str, registry: str) -> list[object]:
    """Return the list in a page, unchecked; an empty one for null."""
    try:
        entries = read_json_object(body, what).get(member)
    except PermanentError as error:
        raise PermanentError(f"{registry}: {error.reason}") from error
    if not isinstance(entries, list | None):
        raise PermanentError(f"{registry}: {what} is no list")
    return entries or []


def _next_page(headers: Headers, first: str, registry: str) -> str | None:
    """Return path and query of the next page of a list, or None after the last one.

    The link's host is ignored: our credentials go to the registry's own only.
    """
    link = _NEXT.search(", ".join(headers.getlist("Link")))
    if link is None:
        return None
    target = urlsplit(_join_url(first, link[1], registry))
    if target.path != first:
        raise PermanentError(f"{registry}: the next page of a list is elsewhere")
    return f"{target.path}?{target.query}"


def _join_url(base: str, location: str, registry: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise PermanentError(f"{registry}: sends us to a malformed URL") from error
