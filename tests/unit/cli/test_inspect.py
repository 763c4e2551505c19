"""`inspect`: origin, signatures and attachments of a firmware, and what the function would refuse."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fleet_fn.cli.inspect_display import print_attached, print_signatures
from fleet_fn.cli.main import main
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.store import Signed
from fleet_fn.oci.attached import Attached
from fleet_fn.oci.attachment import Document, attach
from fleet_fn.oci.manifest import digest_of
from fleet_fn.oci.signature_search import Signature
from tests.support.images import ImageLayout
from tests.support.signed import FOLDER, KEYS, P256, reference

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
NOT_SIGNED = "inspect: not signed by a trusted key: "


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRMWARE_VERIFY_KEYS", "FIRMWARE_DENY", "SOURCE_DATE_EPOCH", "DROGUE_USER"):
        monkeypatch.delenv(name, raising=False)


def inspect(reference: str, *options: str) -> Result:
    result = CliRunner().invoke(main, ["inspect", reference, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(result: Result, name: str) -> list[str]:
    """What the lines with a name say."""
    lines = (line.split(maxsplit=1) for line in result.stdout.splitlines())
    return [line[1] for line in lines if line[0] == name]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a key pair: `mine.pem` in it, and `trusted/mine.pub`."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "mine.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "trusted").mkdir()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "trusted" / "mine.pub").write_bytes(public)
    return tmp_path


def publish(keys: Path, *options: str) -> str:
    """Publishes a firmware, and returns its reference."""
    (keys / "build.bin").write_bytes(bytes(1024))
    to = f"oci-layout:{keys / 'pump'}:1"
    result = CliRunner().invoke(main, ["publish", str(keys / "build.bin"), to, "--version", "1", *options])
    assert (result.exit_code, result.stderr) == (0, "")
    return to


# --- Signatures of cosign ---------------------------------------------------------------------------------------------


def test_each_signature_tells_its_form_coverage_and_key() -> None:
    result = inspect(reference("artifact"), "--key", str(KEYS))
    assert (result.exit_code, result.stderr) == (0, "")
    # cosign signs with Ed25519ph, which neither its own `verify` nor the function takes.
    good = [f"{name}.pub" for name in ("p256", "p384", "rsa")]
    expected = [
        *(f"{form} of the manifest: good, by {key}" for form in ("bundle", "simple signing") for key in good),
        *(f"{form} of the manifest: does not count: signed by another key" for form in ("bundle", "simple signing")),
    ]
    assert sorted(said(result, "signature")) == sorted(expected)
    assert said(result, "attached") == [f"signature       {size}  {BUNDLE}" for size in (907, 651, 659, 703)]


def test_signatures_are_listed_without_keys() -> None:
    result = inspect(reference("annotated"))
    assert result.exit_code == 0
    assert said(result, "signature") == [
        f"{form} of the manifest: not checked; name its key with --key" for form in ("bundle", "simple signing")
    ]


def test_a_signature_of_an_index_covers_the_index() -> None:
    for platform in ("none/arm", "none/arm64"):
        result = inspect(reference("index", "all"), "--platform", platform, "--key", str(P256))
        assert (result.exit_code, result.stderr) == (0, "")
        assert said(result, "signature") == [
            "bundle of the index: good, by p256.pub",
            "simple signing of the index: good, by p256.pub",
        ]
    alone = inspect(reference("index"), "--key", str(P256))
    assert (alone.exit_code, said(alone, "signature")) == (1, ["none"])


def test_an_index_shows_the_digest_of_the_manifest_in_it() -> None:
    """A signature may cover it alone, and FIRMWARE_DENY may name it."""
    shown = [inspect(reference("index", "all"), "--platform", f"none/{name}") for name in ("arm", "arm64")]
    assert said(shown[0], "digest") == said(shown[1], "digest")
    (first,), (second,) = (said(result, "manifest") for result in shown)
    assert first != second
    for digest in (first, second):
        chosen = inspect(f"oci-layout:{FOLDER / 'index'}@{digest}")
        assert (said(chosen, "digest"), said(chosen, "manifest")) == ([digest], [])


def test_an_attestation_is_no_signature() -> None:
    result = inspect(reference("attested"), "--key", str(P256))
    assert (result.exit_code, result.stderr) == (1, f"{NOT_SIGNED}no signature\n")
    assert said(result, "signature") == ["none"]
    assert said(result, "attached") == [f"attestation     703  {BUNDLE}"]


def test_what_is_attached_is_no_version() -> None:
    result = inspect(reference("artifact").removesuffix(":1.2.3"))
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["TAG", "1.2.3"]


def test_signatures_are_no_firmware() -> None:
    entries = json.loads((FOLDER / "artifact" / "index.json").read_bytes())["manifests"]
    digests = {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in entries}
    fallback = digests["1.2.3"].replace(":", "-")
    for tag in (fallback, f"{fallback}.sig"):
        result = inspect(reference("artifact", tag))
        assert result.exit_code == 1
        assert result.stderr.startswith("inspect: no firmware: ")
    blob = FOLDER / "artifact" / "blobs" / "sha256" / digests[fallback].removeprefix("sha256:")
    for referrer in json.loads(blob.read_bytes())["manifests"]:
        result = inspect(f"oci-layout:{FOLDER / 'artifact'}@{referrer['digest']}")
        assert result.stderr == "inspect: no firmware: the manifest is attached to another one\n"


def test_a_copied_layout_keeps_its_signatures_if_more_is_attached(tmp_path: Path) -> None:
    """Its own are listed under the fallback tag, what `publish` attaches is in the layout's index."""
    folder = tmp_path / "copy"
    shutil.copytree(FOLDER / "annotated", folder)
    index = json.loads((folder / "index.json").read_bytes())
    blobs = folder / "blobs" / "sha256"
    manifest = (blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_bytes()
    sbom = attach(Document("application/spdx+json", b"{}"), manifest)
    for blob in (sbom.manifest, *sbom.blobs):
        (blobs / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    (folder / "index.json").write_text(json.dumps({**index, "manifests": [*index["manifests"], sbom.entry]}))
    told = inspect(f"oci-layout:{folder}:1.2.3", "--key", str(P256))
    assert told.exit_code == 0
    assert said(told, "signature")[0] == "bundle of the manifest: good, by p256.pub"
    assert [line.split()[0] for line in said(told, "attached")] == ["SBOM", "signature"]


# --- Signatures and attachments of ours -------------------------------------------------------------------------------


def test_what_publish_signed_is_good(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = publish(keys, "--sign-key", str(keys / "mine.pem"))
    monkeypatch.setenv("FIRMWARE_VERIFY_KEYS", str(keys / "trusted"))
    result = inspect(to)
    assert result.exit_code == 0
    assert said(result, "signature") == ["bundle of the manifest: good, by mine.pub"]


def test_firmware_that_the_function_would_refuse_is_shown_and_fails(keys: Path) -> None:
    to = publish(keys)
    assert said(inspect(to), "signature") == ["none"]
    result = inspect(to, "--key", str(keys / "trusted"))
    assert (result.exit_code, result.stderr) == (1, f"{NOT_SIGNED}no signature\n")
    assert said(result, "version") == ["1"]
    publish(keys, "--sign-key", str(keys / "mine.pem"))
    result = inspect(to, "--key", str(P256))
    assert (result.exit_code, result.stderr) == (1, f"{NOT_SIGNED}signed by another key\n")
    assert said(result, "signature") == ["bundle of the manifest: does not count: signed by another key"]


def test_denied_firmware_fails(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = publish(keys)
    (digest,) = said(inspect(to), "digest")
    denied = keys / "denied"
    denied.write_text(f"{digest}  # bad\n")
    monkeypatch.setenv("FIRMWARE_DENY", str(denied))
    result = inspect(to)
    assert (result.exit_code, result.stderr) == (1, f"inspect: denied: {digest} is in FIRMWARE_DENY\n")
    denied.write_text("bad")
    result = inspect(to)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"inspect: FIRMWARE_DENY: {denied}, line 1: ")
    denied.unlink()
    result = inspect(to)
    assert (result.exit_code, result.stderr) == (2, f"inspect: FIRMWARE_DENY: {denied}: No such file or directory\n")


def test_origin_hardware_and_requirements_are_shown(keys: Path) -> None:
    options = ["--hardware", "rev-a", "--hardware", "rev-b", "--requires", ">=1.4"]
    origin = ["--source", "https://git.example/acme/pump", "--revision", "4f9c2d1"]
    result = inspect(publish(keys, *options, *origin))
    for name, value in (
        ("hardware", "rev-a, rev-b"),
        ("requires", ">=1.4"),
        ("source", "https://git.example/acme/pump"),
        ("revision", "4f9c2d1"),
    ):
        assert said(result, name) == [value]


def test_a_version_that_fits_no_command_fails(keys: Path) -> None:
    layout = ImageLayout(keys / "pump")
    for tag, length in (("fits", 255), ("long", 256)):
        layout.tag(layout.artifact(bytes(1024), "1" * length), tag)
    assert inspect(f"oci-layout:{keys / 'pump'}:fits").exit_code == 0
    result = inspect(f"oci-layout:{keys / 'pump'}:long")
    assert result.exit_code == 1
    assert result.stderr.endswith("inspect: the version has more than 255 bytes, so no device can be sent it\n")


def test_requirements_that_are_no_range_fail(keys: Path) -> None:
    layout = ImageLayout(keys / "pump")
    layout.tag(layout.artifact(bytes(1024), annotations={"io.drogue.firmware.requires": "new"}), "1")
    result = inspect(f"oci-layout:{keys / 'pump'}:1")
    assert result.exit_code == 1
    assert said(result, "requires") == ["new"]
    assert result.stderr.startswith("inspect: 1: annotation io.drogue.firmware.requires contains")


def test_attached_documents_are_listed_with_kind_type_size_and_digest(keys: Path) -> None:
    (keys / "sbom.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    to = publish(keys, "--sbom", str(keys / "sbom.json"), "--sign-key", str(keys / "mine.pem"))
    result = inspect(to)
    sbom, signature = said(result, "attached")
    assert sbom == "SBOM             27  application/spdx+json"
    assert signature.startswith("signature ")
    assert signature.endswith(BUNDLE)
    lines = result.stdout.splitlines()
    digests = [lines[number + 1].strip() for number, line in enumerate(lines) if line.startswith("attached")]
    entries = json.loads((keys / "pump" / "index.json").read_bytes())["manifests"]
    assert digests == [entry["digest"] for entry in entries if "artifactType" in entry]
    assert max(map(len, lines[5:])) <= 80


def test_other_documents_are_listed_and_unreadable_ones_are_not(keys: Path) -> None:
    folder = keys / "pump"
    layout = ImageLayout(folder)
    firmware = layout.artifact(bytes(1024))
    empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    document = layout.blob(b"note", "text/plain")
    layout.tag(firmware, "1")
    attached = [
        layout.manifest(empty, [document], subject=firmware, artifactType="application/x\nnote"),
        layout.manifest(layout.blob(b"{}", "application/vnd.example.config"), [document, document], subject=firmware),
        layout.manifest(empty, [document], subject=document),
        layout.manifest(
            empty, [layout.blob(b"{}", "text/spdx")], subject=firmware, artifactType="application/vnd.example.sbom"
        ),
        layout.manifest(empty, [5], subject=firmware),  # type: ignore[list-item]
        layout.blob(b"no JSON", "application/vnd.oci.image.manifest.v1+json"),
    ]
    index = json.loads((folder / "index.json").read_bytes())
    (folder / "index.json").write_text(json.dumps({**index, "manifests": [*index["manifests"], *attached]}))
    result = inspect(f"oci-layout:{folder}:1")
    assert result.exit_code == 0
    assert said(result, "attached") == [
        "other             4  application/x\N{REPLACEMENT CHARACTER}note",
        "other             8  application/vnd.example.config",
        "SBOM              2  application/vnd.example.sbom",
    ]


def test_a_long_list_of_attachments_is_cut(keys: Path) -> None:
    layout = ImageLayout(keys / "pump")
    firmware = layout.artifact(bytes(1024))
    layout.tag(firmware, "1")
    empty = layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    attached = [layout.manifest(empty, [], subject=firmware, artifactType=f"application/{n}") for n in range(101)]
    index = json.loads((keys / "pump" / "index.json").read_bytes())
    (keys / "pump" / "index.json").write_text(json.dumps({**index, "manifests": [*index["manifests"], *attached]}))
    result = inspect(f"oci-layout:{keys / 'pump'}:1")
    assert len(said(result, "attached")) == 100
    assert result.stdout.splitlines()[-1] == "and more; only the first 100 are listed"


def test_a_registry_that_cannot_list_is_told() -> None:
    """Signatures that were found are shown all the same."""

    def search(_: object, __: object) -> Iterator[Signature]:
        yield Signature("sha256:0", "bundle", None, "signed by another key")
        raise TransientError("OCI registry HOST: no answer in time")

    def attached(_: object) -> list[Attached]:
        raise PermanentError("OCI registry HOST: answered 400")

    def unavailable(_: object, __: object) -> Iterator[Signature]:
        raise TransientError("OCI registry HOST: no answer in time")

    signed, told = Signed("here", ("sha256:1",), search, attached), list[str]()
    print_signatures(signed, [], told.append, told.append)
    print_attached(signed, told.append, told.append)
    assert told == [
        "signature  bundle of the sha256:0: not checked; name its key with --key",
        "not all signatures could be looked at: OCI registry HOST: no answer in time",
        "what is attached cannot be listed: OCI registry HOST: answered 400",
    ]
    told.clear()
    print_signatures(signed._replace(search=unavailable), [], told.append, told.append)
    assert told == ["not all signatures could be looked at: OCI registry HOST: no answer in time"]


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing", None, "No such file or directory"),
        ("key.pub", b"", "has no public key (PEM)"),
        ("key.pem", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "has a private key"),
        ("{application}/keys", None, "has {application} in it; name the application's own keys with --key"),
    ],
)
def test_keys_that_cannot_be_used_are_a_mistake(keys: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (keys / name).write_bytes(content)
    result = inspect(publish(keys), "--key", str(keys / name))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"inspect: {keys / name}: {reason}")


def test_a_signature_that_was_copied_from_other_firmware_does_not_count(keys: Path) -> None:
    """The referrers of one firmware are listed for another, in a copy of the captured layout."""
    folder = keys / "copy"
    shutil.copytree(FOLDER / "annotated", folder)
    index = json.loads((folder / "index.json").read_bytes())
    signed = index["manifests"][0]["digest"].replace(":", "-")
    other = publish(keys).replace("pump", "copy")
    CliRunner().invoke(main, ["publish", str(keys / "build.bin"), other, "--version", "1"])
    (digest,) = said(inspect(other), "digest")
    text = (folder / "index.json").read_text()
    assert signed in text
    (folder / "index.json").write_text(text.replace(signed, digest.replace(":", "-")))
    result = inspect(other, "--key", str(P256))
    assert result.exit_code == 1
    assert result.stderr == f"{NOT_SIGNED}attached to another manifest; signature of another digest\n"
