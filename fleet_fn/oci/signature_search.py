"""Find the signatures of a manifest in its repository, and check them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeVar

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.oci.manifest import Descriptor, Manifest, media_type_of, read_descriptor, read_manifest
from fleet_fn.oci.referrers import MAX_REFERRER_BYTES, Attachments, fallback_tag, is_attached
from fleet_fn.oci.signature_keys import PublicKey
from fleet_fn.oci.signatures import (
    BUNDLE,
    MAX_SIGNED_BYTES,
    SIGNATURE_ANNOTATION,
    SIMPLE_SIGNING,
    BadSignatureError,
    check_bundle,
    check_simple_signing,
    may_sign,
)

T = TypeVar("T")

#: Signatures of one manifest that are looked at, in each form.
MAX_SIGNATURES: Final = 64
BUNDLE_FORM: Final = "bundle"
SIMPLE_FORM: Final = "simple signing"
DETACHED_FORM: Final = "detached"


class Signature(NamedTuple):
    """A signature that was found, good or not."""

    #: Digest of the manifest or index, or of a description, that it is of or claims to be of.
    covers: str
    #: `bundle`, `simple signing` or `detached`.
    form: str
    #: The key by which it is; None if it does not count.
    key: PublicKey | None
    #: Why it does not count; empty if it does.
    problem: str = ""


def find_signatures(
    repository: Attachments, digests: Sequence[str], keys: Sequence[PublicKey], deadline: Deadline
) -> Iterator[Signature]:
    """Yield the signatures of manifests, in both forms.

    Good ones are by one of `keys`. A client that can write to the repository can add signatures without end. So a
    broken one does not hide another, only the first `MAX_SIGNATURES` are looked at, and the caller gets each once it is
    checked.

    Args:
        repository: has the manifests.
        digests: of the manifests.
        keys: the keys that count.
        deadline: bounds the search.

    Raises:
        TransientError: a part of the repository was unavailable. It is raised last: the signature that counts may be
            elsewhere.

    """
    search = _Search(repository, keys, deadline)
    for digest in digests:
        yield from search.bundles(digest)
        yield from search.texts(digest)
    if search.unavailable:
        raise search.unavailable


class _Search:
    """A search in one repository."""

    def __init__(self, repository: Attachments, keys: Sequence[PublicKey], deadline: Deadline) -> None:
        self._repository = repository
        self._keys = keys
        self._deadline = deadline
        #: The first failure that may be over soon.
        self.unavailable: TransientError | None = None

    def bundles(self, digest: str) -> Iterator[Signature]:
        """Yield the signatures of a manifest in the bundle form, which are attached to it."""
        referrers, problem = self._attempt(lambda: self._repository.referrers(digest, BUNDLE, self._deadline))
        if problem:
            yield Signature(digest, BUNDLE_FORM, None, problem)
        found = [referrer for referrer in referrers or () if may_sign(referrer.annotations)]
        for referrer in found[:MAX_SIGNATURES]:
            bundle, problem = self._attempt(partial(self._read_bundle, referrer, digest))
            if bundle is not None:
                key, problem = self._attempt(partial(check_bundle, bundle, digest, self._keys))
                yield Signature(digest, BUNDLE_FORM, key, problem)
            elif problem:
                yield Signature(digest, BUNDLE_FORM, None, problem)
        if len(found) > MAX_SIGNATURES:
            yield _too_many(digest, BUNDLE_FORM, len(found))

    def texts(self, digest: str) -> Iterator[Signature]:
        """Yield the signatures in simple signing: layers under a tag of their own."""
        tag = f"{fallback_tag(digest)}.sig"
        layers, problem = self._attempt(lambda: _layers_of(self._repository.tagged(tag, self._deadline)))
        if problem:
            yield Signature(digest, SIMPLE_FORM, None, problem)
        found = [layer for layer in layers or () if media_type_of(layer) == SIMPLE_SIGNING]
        for layer in found[:MAX_SIGNATURES]:
            key, problem = self._attempt(partial(self._check_text, layer, digest))
            yield Signature(digest, SIMPLE_FORM, key, problem)
        if len(found) > MAX_SIGNATURES:
            yield _too_many(digest, SIMPLE_FORM, len(found))

    def _read_bundle(self, referrer: Descriptor, digest: str) -> bytes | None:
        """Return the bundle in an attached manifest; None if it holds something else."""
        if referrer.size > MAX_REFERRER_BYTES:
            raise BadSignatureError(f"its manifest has {referrer.size} bytes; at most {MAX_REFERRER_BYTES} are read")
        content = self._repository.manifest(referrer.digest, self._deadline)
        if len(content) != referrer.size:  # parsing 4 MiB takes a second
            raise BadSignatureError(f"its manifest has {len(content)} bytes, and its descriptor says {referrer.size}")
        manifest = read_manifest(content)
        if not isinstance(manifest, Manifest) or [media_type_of(layer) for layer in manifest.layers] != [BUNDLE]:
            return None
        if not may_sign(manifest.annotations):
            return None
        if not is_attached(manifest, digest):
            raise BadSignatureError("attached to another manifest")
        return self._read_signed(read_descriptor(manifest.layers[0], "bundle"))

    def _check_text(self, layer: object, digest: str) -> PublicKey:
        described = read_descriptor(layer, "signature")
        signature = described.annotations.get(SIGNATURE_ANNOTATION)
        return check_simple_signing(self._read_signed(described), signature, digest, self._keys)

    def _read_signed(self, blob: Descriptor) -> bytes:
        if blob.size > MAX_SIGNED_BYTES:
            raise BadSignatureError(f"{blob.size} bytes long; at most {MAX_SIGNED_BYTES} are read")
        return self._repository.config(blob, self._deadline)

    def _attempt(self, work: Callable[[], T]) -> tuple[T | None, str]:
        """Return the result of `work`, or None and why there is none."""
        try:
            if not self._deadline.remaining:  # cached and local content does not look at it
                raise TransientError("no time is left to look at all signatures")
            return work(), ""
        except BadSignatureError as error:
            return None, str(error)
        except PermanentError as error:
            return None, error.reason
        except TransientError as error:
            self.unavailable = self.unavailable or error
            return None, error.reason


def _layers_of(content: bytes | None) -> Sequence[object]:
    manifest = read_manifest(content) if content is not None else None
    return manifest.layers if isinstance(manifest, Manifest) else ()


def _too_many(digest: str, form: str, count: int) -> Signature:
    return Signature(digest, form, None, f"{count} signatures; only the first {MAX_SIGNATURES} are looked at")
