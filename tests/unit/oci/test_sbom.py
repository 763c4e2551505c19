"""SBOMs: which standard a document follows, whatever its file is called."""

import json
from pathlib import Path

import pytest

from fleet_fn.errors import PermanentError
from fleet_fn.oci.sbom import read_sbom

SPDX_3 = {"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": []}


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        ({"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT"}, "application/spdx+json"),
        (SPDX_3, "application/spdx+json"),
        ({"@context": ["https://example.org/x", SPDX_3["@context"]]}, "application/spdx+json"),
        ({"bomFormat": "CycloneDX", "specVersion": "1.6"}, "application/vnd.cyclonedx+json"),
        ("\ufeff \n" + json.dumps({"bomFormat": "CycloneDX"}), "application/vnd.cyclonedx+json"),
        ("# made by a tool\nSPDXVersion: SPDX-2.3\nDataLicense: CC0-1.0\n", "text/spdx"),
        (
            '<?xml version="1.0"?>\n<bom serialNumber="urn:uuid:1"\n xmlns="http://cyclonedx.org/schema/bom/1.6"/>',
            "application/vnd.cyclonedx+xml",
        ),
        ("<b:bom xmlns:b='http://cyclonedx.org/schema/bom/1.4'/>", "application/vnd.cyclonedx+xml"),
        ("", None),
        ("{}", None),
        ("[]", None),
        ("null", None),
        ("{" * 100_000, None),
        ('{"a":' * 100_000, None),
        ({"bomFormat": "SPDX"}, None),
        ({"spdxVersion": 2.3}, None),
        ({"@context": 5}, None),
        ("<html><body>SPDXVersion: SPDX-2.3</body></html>", None),
        ("<bom xmlns='https://example.org/'/>", None),
        ("These are not the tags SPDXVersion: SPDX-2.3 that you look for", None),
        (b"\x7fELF\xff", None),
    ],
)
def test_a_document_is_told_by_its_content(
    tmp_path: Path, content: dict[str, object] | str | bytes, media_type: str | None
) -> None:
    path = tmp_path / "sbom.txt"
    text = json.dumps(content) if isinstance(content, dict) else content
    encoded = text.encode() if isinstance(text, str) else text
    path.write_bytes(encoded)
    if media_type is None:
        with pytest.raises(PermanentError) as failed:
            read_sbom(path)
        assert failed.value.reason == f"{path}: neither an SPDX nor a CycloneDX document"
        return
    document = read_sbom(path)
    assert (document.media_type, document.content, document.title) == (media_type, encoded, "sbom.txt")


def test_a_title_can_be_shown(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.json"
    path.write_text('{"bomFormat": "CycloneDX"}')
    assert read_sbom(path).title == "sbom"


def test_a_file_that_is_no_sbom_for_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_fn.oci.sbom._MAX_BYTES", 10)
    path = tmp_path / "sbom.json"
    path.write_text('{"bomFormat": "CycloneDX"}')
    with pytest.raises(PermanentError, match="is larger than 10 bytes"):
        read_sbom(path)
