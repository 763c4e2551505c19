"""Documents of a DDI server: whatever it sends is read as the API describes it, or refused."""

import copy
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.ddi.documents import (
    Handling,
    MalformedDocumentError,
    Window,
    read_base,
    read_cancellation,
    read_deployment,
)

SHA256: Final = "ab" * 32
DEPLOYMENT: Final[dict[str, Any]] = {
    "id": "8",
    "deployment": {
        "download": "forced",
        "update": "attempt",
        "maintenanceWindow": "available",
        "chunks": [
            {
                "part": "os",
                "version": "1.2.0",
                "name": "firmware",
                "artifacts": [
                    {
                        "filename": "firmware.bin",
                        "hashes": {"sha1": "x", "md5": "y", "sha256": SHA256},
                        "size": 3000,
                        "_links": {"download-http": {"href": "http://x/f"}, "md5sum-http": {"href": "http://x/f.MD5"}},
                    }
                ],
                "metadata": [{"key": "io.drogue.firmware.hardware", "value": "rev-b"}],
            }
        ],
    },
}


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def with_value(path: str, value: object) -> dict[str, Any]:
    """The deployment with another value at a path; `...` removes it."""
    document = copy.deepcopy(DEPLOYMENT)
    *parents, last = path.split(".")
    place: Any = document
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def test_a_deployment_is_read() -> None:
    read = read_deployment(encoded(DEPLOYMENT), "deployment")
    assert (read.action, read.download, read.update, read.window) == (
        "8",
        Handling.FORCED,
        Handling.ATTEMPT,
        Window.AVAILABLE,
    )
    (artifact,) = read.artifacts
    assert (artifact.part, artifact.version, artifact.file, artifact.size) == ("os", "1.2.0", "firmware.bin", 3000)
    assert artifact.checksum == bytes.fromhex(SHA256)
    assert artifact.links == ("http://x/f",)
    assert artifact.metadata == {"io.drogue.firmware.hardware": "rev-b"}


def test_a_link_for_tls_comes_before_one_without() -> None:
    links = {"download-http": {"href": "http://x"}, "download": {"href": "https://x"}}
    document = with_value("deployment.chunks.0.artifacts.0._links", links)
    assert read_deployment(encoded(document), "deployment").artifacts[0].links == ("https://x", "http://x")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("deployment.maintenanceWindow", ...),
        ("deployment.chunks.0.artifacts", ...),
        ("deployment.chunks.0.artifacts", []),
        ("deployment.chunks.0.metadata", None),
        ("deployment.chunks.0.artifacts.0.hashes", {}),
        ("deployment.chunks.0.artifacts.0.size", ...),
        ("deployment.chunks.0.artifacts.0._links", ...),
        ("deployment.more", {"of": "it"}),
    ],
)
def test_what_may_be_left_out_is(path: str, value: object) -> None:
    assert read_deployment(encoded(with_value(path, value)), "deployment").action == "8"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("id", 8),
        ("id", ""),
        ("id", "../../rest"),
        ("id", "8/feedback?x="),
        ("deployment", ...),
        ("deployment.download", "sometimes"),
        ("deployment.update", ...),
        ("deployment.maintenanceWindow", "ajar"),
        ("deployment.chunks", {}),
        ("deployment.chunks", [{}] * 101),
        ("deployment.chunks.0.version", ""),
        ("deployment.chunks.0.version", "1\n2"),
        ("deployment.chunks.0.version", 1.2),
        ("deployment.chunks.0.part", None),
        ("deployment.chunks.0.artifacts.0.filename", 1),
        ("deployment.chunks.0.artifacts.0.size", True),
        ("deployment.chunks.0.artifacts.0.size", -1),
        ("deployment.chunks.0.artifacts.0.size", 3e3),
        ("deployment.chunks.0.artifacts.0.hashes", []),
        ("deployment.chunks.0.artifacts.0.hashes.sha256", "ab"),
        ("deployment.chunks.0.artifacts.0.hashes.sha256", f"{SHA256}\n"),
        ("deployment.chunks.0.artifacts.0._links.download-http.href", None),
        ("deployment.chunks.0.metadata", [{"key": "x"}]),
    ],
)
def test_a_malformed_deployment_is_refused(path: str, value: object) -> None:
    with pytest.raises(MalformedDocumentError):
        read_deployment(encoded(with_value(path, value)), "deployment")


def test_a_base_has_the_links_of_the_api() -> None:
    links = {"deploymentBase": {"href": "a"}, "installedBase": {"href": "b"}, "self": {"href": "c"}, "curies": [{}]}
    base = read_base(encoded({"config": {"polling": {"sleep": "00:05:00"}}, "_links": links}))
    assert (base.deployment, base.installed, base.confirmation, base.cancellation) == ("a", "b", None, None)


def test_a_cancellation_names_its_action() -> None:
    assert read_cancellation(b'{"id": "11", "cancelAction": {"stopId": "8"}}') == ("11", "8")


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "_links", "href", "deployment", "chunks", "artifacts", "hashes", "size", "metadata"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
PATHS: Final = [
    "id",
    "deployment",
    "deployment.chunks",
    "deployment.chunks.0.part",
    "deployment.chunks.0.artifacts",
    "deployment.chunks.0.artifacts.0.hashes",
    "deployment.chunks.0.artifacts.0._links",
    "deployment.chunks.0.metadata",
]


@given(JSON, st.binary(max_size=20), st.sampled_from(PATHS))
def test_anything_else_is_refused_as_malformed(document: object, raw: bytes, path: str) -> None:
    for text in (encoded(document), raw, encoded(with_value(path, document))):
        for read in (read_base, read_cancellation, lambda body: read_deployment(body, "deployment")):
            try:
                read(text)
            except MalformedDocumentError:
                pass
