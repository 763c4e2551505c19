"""Documents that are attached when a firmware is published: to a registry of either kind, and to a layout."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.oci.access import Access, registry_reference
from fleet_fn.oci.attachment import Attachment, Document, add_to_list, attach, is_attachment_tag
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import digest_of
from fleet_fn.oci.publication import Published
from fleet_fn.oci.publishing import publish_to_registry
from tests.support.http import Request, Response, Server
from tests.support.memory_registry import MemoryRegistry

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
VERSION = {"org.opencontainers.image.version": "1.2.3"}
NOTE = Document("application/vnd.example.note", b"a note", {"about": "it"}, "note.txt")
SBOM = Document("application/spdx+json", b"{}")
SUBJECT = b'{"layers": []}'


def publish(registry: MemoryRegistry, *documents: Document, tag: str = "1.2.3") -> Published:
    return publish_to_registry(
        registry_reference(f"127.0.0.1:{registry.port}/pump:{tag}"),
        BytesIO(b"firmware"),
        VERSION,
        access=Access(insecure=True),
        documents=[lambda _, document=document: document for document in documents],  # type: ignore[misc]
    )


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(params=[False, True], ids=["fallback", "referrers API"])
def registry(request: pytest.FixtureRequest) -> Iterator[MemoryRegistry]:
    registry = MemoryRegistry(lists_referrers=request.param)
    with Server(registry) as server:
        registry.port = server.port
        yield registry


@pytest.fixture
def old_registry() -> Iterator[MemoryRegistry]:
    """One without the referrers API."""
    registry = MemoryRegistry()
    with Server(registry) as server:
        registry.port = server.port
        yield registry


# --- The manifest -----------------------------------------------------------------------------------------------------


def test_an_attachment_names_its_subject_and_its_document() -> None:
    attachment = attach(NOTE, SUBJECT)
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    note = {"mediaType": NOTE.media_type, "digest": digest_of(b"a note"), "size": 6}
    assert json.loads(attachment.manifest) == {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": NOTE.media_type,
        "config": empty,
        "layers": [{**note, "annotations": {"org.opencontainers.image.title": "note.txt"}}],
        "subject": {"mediaType": MANIFEST, "digest": digest_of(SUBJECT), "size": len(SUBJECT)},
        "annotations": {"about": "it"},
    }
    assert attachment.entry == {
        "mediaType": MANIFEST,
        "digest": digest_of(attachment.manifest),
        "size": len(attachment.manifest),
        "artifactType": NOTE.media_type,
        "annotations": {"about": "it"},
    }


@pytest.mark.parametrize(
    ("tag", "is_one"),
    [
        (f"sha256-{'a' * 64}", True),
        (f"sha256-{'a' * 64}.sig", True),
        (f"sha256-{'a' * 64}.att", True),
        (f"sha256-{'a' * 64}.bin", False),
        (f"sha256-{'a' * 63}", False),
        ("1.2.3", False),
    ],
)
def test_a_tag_of_attachments_is_told_by_its_form(tag: str, is_one: bool) -> None:
    assert is_attachment_tag(tag) is is_one


# --- Lists ------------------------------------------------------------------------------------------------------------


def read_list(content: bytes) -> Any:
    value = json.loads(content)
    assert {key: value[key] for key in value if key != "manifests"} == {"schemaVersion": 2, "mediaType": INDEX}
    return value["manifests"]


def test_a_list_keeps_what_others_wrote() -> None:
    first, second = attach(NOTE, SUBJECT), attach(SBOM, SUBJECT)
    odd = [5, {"digest": "md5:0", "more": [1]}]
    listed = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*odd, first.entry]}).encode()
    subject = digest_of(SUBJECT)
    added = add_to_list(listed, subject, second)
    assert read_list(added) == [*odd, first.entry, second.entry]
    assert add_to_list(added, subject, second) == added
    assert add_to_list(listed, subject, first) == listed


def test_a_list_that_is_the_subject_itself_is_replaced() -> None:
    attachment = attach(NOTE, SUBJECT)
    for content in (None, SUBJECT):
        assert read_list(add_to_list(content, digest_of(SUBJECT), attachment)) == [attachment.entry]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"mediaType": "x", "manifests": []}', b'{"layers": []}'])
def test_a_list_that_is_something_else_is_not_replaced(content: bytes) -> None:
    with pytest.raises(PermanentError, match=r"^list of referrers"):
        add_to_list(content, "", attach(NOTE, SUBJECT))


def test_a_list_that_is_full_is_not_lengthened() -> None:
    entries = [{"digest": f"sha256:{number:064}"} for number in range(1000)]
    listed = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    with pytest.raises(PermanentError, match="it has 1000 already"):
        add_to_list(listed, "", attach(NOTE, SUBJECT))


@given(
    st.binary(max_size=50)
    | st.recursive(
        st.none() | st.integers() | st.sampled_from([INDEX, MANIFEST, attach(NOTE, SUBJECT).digest]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["mediaType", "manifests", "digest", "x"]), inner, max_size=4)
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_list_gets_the_entry_or_fails(content: bytes) -> None:
    attachment = attach(NOTE, SUBJECT)
    try:
        listed = add_to_list(content, digest_of(SUBJECT), attachment)
    except PermanentError as error:
        assert error.reason.startswith("list of referrers")
        return
    assert add_to_list(listed, digest_of(SUBJECT), attachment) == listed
    digests = [entry.get("digest") for entry in json.loads(listed)["manifests"] if isinstance(entry, dict)]
    assert attachment.digest in digests


# --- Registries -------------------------------------------------------------------------------------------------------


def test_documents_are_there_before_the_tag(registry: MemoryRegistry) -> None:
    published = publish(registry, NOTE, SBOM)
    assert published.attached == (
        (NOTE.media_type, published.attached[0][1]),
        (SBOM.media_type, published.attached[1][1]),
    )
    assert registry.asked("PUT")[-1] == "PUT manifests/1.2.3"
    subject = registry.manifests[published.digest]
    attachments = [attach(NOTE, subject), attach(SBOM, subject)]
    assert [attachment.digest for attachment in attachments] == [digest for _, digest in published.attached]
    for attachment in attachments:
        assert registry.manifests[attachment.digest] == attachment.manifest
        assert registry.blobs[digest_of(attachment.document.content)] == attachment.document.content
    assert registry.referrers(published.digest) == [attachment.entry for attachment in attachments]


def test_a_list_is_written_only_if_the_registry_has_none(registry: MemoryRegistry) -> None:
    published = publish(registry, NOTE)
    assert (published.digest.replace(":", "-") in registry.manifests) is not registry.lists_referrers


def test_publishing_again_attaches_nothing_twice(registry: MemoryRegistry) -> None:
    first = publish(registry, NOTE)
    assert publish(registry, NOTE) == first
    assert len(registry.referrers(first.digest)) == 1


def test_nothing_is_attached_without_a_document(registry: MemoryRegistry) -> None:
    published = publish(registry)
    assert registry.manifests.keys() == {"1.2.3", published.digest}
    assert registry.asked("PUT")[-1] == "PUT manifests/1.2.3"
    assert published.attached == ()


def test_a_list_that_another_publisher_changed_is_changed_again(old_registry: MemoryRegistry) -> None:
    other: list[Attachment] = []

    def lose_the_first(request: Request) -> Response | None:
        if request.method == "PUT" and request.path.endswith(published_list) and not other:
            subject = old_registry.manifests[published_list.replace("-", ":")]
            other.append(attach(SBOM, subject))
            old_registry.manifests[published_list] = add_to_list(None, digest_of(subject), other[0])
            return Response(201)
        return None

    published_list = publish(old_registry).digest.replace(":", "-")
    old_registry.special = lose_the_first
    published = publish(old_registry, NOTE)
    subject = old_registry.manifests[published.digest]
    assert old_registry.referrers(published.digest) == [other[0].entry, attach(NOTE, subject).entry]


def test_a_list_that_never_keeps_an_entry_fails(old_registry: MemoryRegistry) -> None:
    old_registry.special = lambda request: (
        Response(201) if request.method == "PUT" and "/manifests/sha256-" in request.path else None
    )
    with pytest.raises(TransientError, match="is being changed by other publishers: try again"):
        publish(old_registry, NOTE)
    assert "1.2.3" not in old_registry.manifests


def test_a_registry_that_refuses_an_attachment_gets_no_tag(registry: MemoryRegistry) -> None:
    registry.special = lambda request: Response(400) if b'"subject"' in request.body else None
    with pytest.raises(PermanentError, match="answered 400 to a PUT"):
        publish(registry, NOTE)
    assert "1.2.3" not in registry.manifests


# --- Layouts ----------------------------------------------------------------------------------------------------------


def test_a_layout_lists_attachments_without_a_tag(tmp_path: Path) -> None:
    layout = layout_reference(f"oci-layout:{tmp_path / 'pump'}:1.2.3")

    def publish_here() -> Published:
        return publish_to_layout(layout, BytesIO(b"firmware"), VERSION, latest=True, documents=[lambda _: NOTE])

    published = publish_here()
    assert publish_here() == published
    blobs = tmp_path / "pump" / "blobs" / "sha256"
    attachment = attach(NOTE, (blobs / published.digest.removeprefix("sha256:")).read_bytes())
    assert published.attached == ((NOTE.media_type, attachment.digest),)
    assert (blobs / attachment.digest.removeprefix("sha256:")).read_bytes() == attachment.manifest
    assert (blobs / digest_of(NOTE.content).removeprefix("sha256:")).read_bytes() == NOTE.content
    entries = json.loads((tmp_path / "pump" / "index.json").read_bytes())["manifests"]
    assert attachment.entry in entries
    assert len(entries) == 3
