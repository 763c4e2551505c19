"""Image layouts as skopeo, buildah, buildx and oras write them, and as nobody should."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCTETS: Final = "application/octet-stream"
LABEL: Final = "io.drogue.metadata"

#: What a manifest says of a blob, or an index of a manifest.
Descriptor = dict[str, Any]


def tar(
    files: Mapping[str, bytes | tarfile.TarInfo], *, gzipped: bool = False, format: int = tarfile.PAX_FORMAT
) -> bytes:
    """A layer: names and what they hold; a `TarInfo` stands for what is no regular file, or no sound one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0) if gzipped else buffer.getvalue()


def metadata(
    content: bytes, version: object = "1.0.0", *, size: object = None, checksum: object = None, **more: object
) -> str:
    """What describes a firmware in a label or in `firmware.json`; it tells the truth unless it is given another."""
    described = {
        "version": version,
        "size": len(content) if size is None else size,
        "checksum": hashlib.sha256(content).hexdigest() if checksum is None else checksum,
        **more,
    }
    return json.dumps(described)


class ImageLayout:
    """An OCI image layout that is written piece by piece; each piece's descriptor is what the next one names."""

    def __init__(self, folder: Path) -> None:
        """A layout in `folder`, which is made."""
        self.folder = folder
        self._entries: list[Descriptor] = []
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self._write_index()

    def blob(self, content: bytes, media_type: str, **fields: object) -> Descriptor:
        """Stores a blob; `fields` of its descriptor replace the true ones, or come on top."""
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / "sha256" / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content), **fields}

    def layer(self, files: Mapping[str, bytes | tarfile.TarInfo], *, gzipped: bool = False) -> Descriptor:
        """Stores a layer of an image."""
        return self.blob(tar(files, gzipped=gzipped), OCI_LAYER + ("+gzip" if gzipped else ""))

    def config(self, labels: Mapping[str, object] | None = None, layers: Sequence[Descriptor] = ()) -> Descriptor:
        """Stores the config of an image with these labels and layers."""
        content = {
            "architecture": "arm64",
            "os": "linux",
            "config": {"Labels": dict(labels)} if labels is not None else {},
            "rootfs": {"type": "layers", "diff_ids": [self._diff_id(layer) for layer in layers]},
            "history": [{"created_by": "tests"} for _ in layers],
        }
        return self.blob(json.dumps(content).encode(), OCI_CONFIG)

    def manifest(self, config: Descriptor, layers: Sequence[Descriptor], **fields: object) -> Descriptor:
        """Stores a manifest; `fields` of it (`annotations`, `mediaType`, …) replace the usual ones, or come on top."""
        content = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers), **fields}
        return self.blob(json.dumps(content).encode(), OCI_MANIFEST)

    def image(self, layers: Sequence[Descriptor], labels: Mapping[str, object] | None = None) -> Descriptor:
        """Stores the config and the manifest of an image."""
        return self.manifest(self.config(labels, layers), layers)

    def labelled_image(
        self,
        content: bytes,
        version: str = "1.0.0",
        *,
        name: str = "firmware",
        label: str | None = None,
        gzipped: bool = False,
        below: Sequence[Descriptor] = (),
        above: Sequence[Descriptor] = (),
    ) -> Descriptor:
        """Stores an image whose label describes the file `name` in it.

        Args:
            content: the file's.
            version: in the label.
            name: of the file, as it stands in the archive.
            label: instead of what `metadata` makes.
            gzipped: whether the layer is compressed.
            below: layers under that of the firmware.
            above: layers over it.

        """
        layers = [*below, self.layer({name: content}, gzipped=gzipped), *above]
        return self.image(layers, {LABEL: metadata(content, version) if label is None else label})

    def image_with_manifest_file(
        self,
        content: bytes,
        version: str = "1.0.0",
        *,
        described: str | bytes | None = None,
        prefix: str = "",
        gzipped: bool = False,
    ) -> Descriptor:
        """Stores an image with the files `firmware.json` and `firmware.bin`.

        Args:
            content: of the firmware.
            version: in `firmware.json`.
            described: what that holds, instead of what `metadata` makes.
            prefix: stands before both names in the archive: `./`, …
            gzipped: whether the layer is compressed.

        """
        text = metadata(content, version) if described is None else described
        encoded = text.encode() if isinstance(text, str) else text
        files = {f"{prefix}firmware.json": encoded, f"{prefix}firmware.bin": content}
        return self.image([self.layer(files, gzipped=gzipped)])

    def artifact(self, content: bytes, version: str | None = "1.0.0", **fields: object) -> Descriptor:
        """Stores an artifact as `oras push` makes it; `version` is its annotation, if there is one."""
        annotations = {} if version is None else {"annotations": {"org.opencontainers.image.version": version}}
        layer = self.blob(content, OCTETS, annotations={"org.opencontainers.image.title": "firmware.bin"})
        return self.manifest(
            self.blob(b"{}", EMPTY), [layer], **{"artifactType": "application/vnd.tests", **annotations, **fields}
        )

    def index(self, manifests: Mapping[str, Descriptor] | Sequence[Descriptor], **fields: object) -> Descriptor:
        """Stores an index of manifests; the keys of a mapping are their platforms, `os/architecture[/variant]`."""
        if isinstance(manifests, Mapping):
            parts = ("os", "architecture", "variant")
            manifests = [
                {**manifest, "platform": dict(zip(parts, platform.split("/"), strict=False))}
                for platform, manifest in manifests.items()
            ]
        content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests), **fields}
        return self.blob(json.dumps(content).encode(), OCI_INDEX)

    def tag(self, manifest: Descriptor, tag: str) -> None:
        """Has a tag stand at a manifest or an index."""
        self._entries = [entry for entry in self._entries if entry["annotations"][_REF_NAME] != tag]
        self._entries.append({**manifest, "annotations": {_REF_NAME: tag}})
        self._write_index()

    def content(self, descriptor: Descriptor) -> bytes:
        """The bytes of a blob."""
        encoded = str(descriptor["digest"]).removeprefix("sha256:")
        return (self.folder / "blobs" / "sha256" / encoded).read_bytes()

    def _diff_id(self, layer: Descriptor) -> str:
        content = self.content(layer)
        if str(layer["mediaType"]).endswith("gzip"):
            content = gzip.decompress(content)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries}
        (self.folder / "index.json").write_text(json.dumps(index))


_REF_NAME: Final = "org.opencontainers.image.ref.name"
