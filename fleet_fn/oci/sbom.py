"""SBOMs: which of the two standards a document follows, SPDX or CycloneDX.

A document is told by its content, as file names tell little. It is attached unchanged, and not checked further.
"""

import json
import re
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.attached import CYCLONEDX, CYCLONEDX_XML, SPDX, SPDX_TAG_VALUE
from fleet_fn.oci.attachment import Document

_MAX_BYTES: Final = 64 * 1024 * 1024
#: The element that such an XML document consists of, or an SPDX tag, is looked for in this many bytes.
_MAX_HEAD_BYTES: Final = 64 * 1024
_TAG: Final = re.compile(rb"^SPDXVersion:[ \t]*SPDX-[0-9]", re.MULTILINE)
_ELEMENT: Final = re.compile(rb"<(?:[A-Za-z0-9_.-]+:)?bom\s[^>]*[\"']http://cyclonedx\.org/schema/bom/[0-9]")


def read_sbom(path: Path) -> Document:
    """Return the SBOM in a file.

    Raises:
        PermanentError: the file is none; the reason begins with the path.
        OSError: the file cannot be read.

    """
    content = read_small(path, _MAX_BYTES, str(path))
    media_type = _media_type(content)
    if media_type is None:
        raise PermanentError(f"{path}: neither an SPDX nor a CycloneDX document")
    return Document(media_type, content, title=path.name if path.name.isprintable() else "sbom")


def _media_type(content: bytes) -> str | None:
    head = content[:_MAX_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"{"):
        if head.startswith(b"<"):
            return CYCLONEDX_XML if _ELEMENT.search(head) else None
        return SPDX_TAG_VALUE if _TAG.search(head) else None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if document.get("bomFormat") == "CycloneDX":
        return CYCLONEDX
    # SPDX 2 has a version; SPDX 3 is JSON-LD.
    is_spdx = str(document.get("spdxVersion")).startswith("SPDX-")
    return SPDX if is_spdx or "://spdx.org/rdf/3." in json.dumps(document.get("@context")) else None
