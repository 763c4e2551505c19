"""Trust: keys that are added and removed, the deny list, and signatures in image layouts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.layout_store import LayoutStore
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, Signed
from fleet_fn.firmware.trust import REREAD_SECONDS, Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.signature_search import MAX_SIGNATURES, Signature
from tests.support.firmware import Published, publish, random_bytes
from tests.support.signer import INDEX, Attacher, Signer

CAPTURED: Final = Path(__file__).parents[2] / "support" / "signed"
RELEASE: Final = Signer()
STRANGER: Final = Signer()
NOT_SIGNED: Final = "not signed by a trusted key: "


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_time(self) -> None:
        self.seconds += REREAD_SECONDS + 0.1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "release.pub").write_bytes(RELEASE.public)
    return folder


@pytest.fixture
def trust(keys: Path, clock: Clock) -> Trust:
    return Trust(str(keys), None, clock=clock)


def resolve(folder: Path, name: str, tag: str, platform: str | None = None) -> Firmware:
    single_flight = SingleFlight()
    files = VerifiedFiles(single_flight)
    shapes = Shapes(Cache(folder / ".cache", 1024 * 1024, files, single_flight), single_flight)
    return LayoutStore(files, shapes).resolve(Reference(f"{folder}/", name, tag, None, platform), Deadline(10))


def check(trust: Trust, firmware: Firmware, application: str = "acme") -> Signature | None:
    return trust.check(firmware, application, Deadline(10))


def problem(trust: Trust, firmware: Firmware, application: str = "acme") -> str:
    with pytest.raises(PermanentError) as caught:
        check(trust, firmware, application)
    return caught.value.reason


class Release:
    """A firmware in a layout of its own, and who may write there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.published: Published = publish(folder, "sensor", "1", random_bytes(500))
        self.attacher = Attacher(folder / "sensor")

    @property
    def digest(self) -> str:
        return self.published.digest

    @property
    def firmware(self) -> Firmware:
        return resolve(self._folder, "sensor", "1")


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


# --- Signatures that the real cosign made -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "tag", "key", "forms"),
    [
        ("artifact", "1.2.3", "p256", {"bundle", "simple signing"}),
        ("artifact", "1.2.3", "p384", {"bundle", "simple signing"}),
        ("artifact", "1.2.3", "rsa", {"bundle", "simple signing"}),
        ("annotated", "1.2.3", "p256", {"bundle", "simple signing"}),
    ],
)
def test_what_cosign_signed_is_trusted_in_each_form(
    layout: str, tag: str, key: str, forms: set[str], clock: Clock
) -> None:
    (path,) = [file for file in (CAPTURED / "keys").iterdir() if file.stem == key]
    firmware = resolve(CAPTURED, layout, tag)
    trust = Trust(str(path), None, clock=clock)
    found = check(trust, firmware)
    assert found is not None
    assert found.covers == firmware.manifest
    assert firmware.signed is not None
    trusted = trust.keys("acme", Deadline(10))
    good = [signature for signature in firmware.signed.search(trusted, Deadline(10)) if signature.key]
    assert {signature.form for signature in good} == forms


def test_cosigns_signature_of_an_index_counts_for_the_manifest_in_it(clock: Clock) -> None:
    trust = Trust(str(CAPTURED / "keys"), None, clock=clock)
    index = json.loads((CAPTURED / "index" / "index.json").read_bytes())["manifests"]
    (all_of_them,) = [entry for entry in index if entry["annotations"]["org.opencontainers.image.ref.name"] == "all"]
    content = (CAPTURED / "index" / "blobs" / all_of_them["digest"].replace(":", "/")).read_bytes()
    entry = json.loads(content)["manifests"][0]
    chosen = next(iter(entry.get("annotations", {}).values()), "/".join(entry.get("platform", {}).values()))
    firmware = resolve(CAPTURED, "index", "all", chosen or None)
    found = check(trust, firmware)
    assert found is not None
    assert found.covers == all_of_them["digest"]
    # Only the index is signed, so a manifest in it is not when it is named itself.
    assert problem(trust, resolve(CAPTURED, "index", "1.2.3")) == f"{NOT_SIGNED}no signature"


def test_what_cosign_attested_is_not_signed(clock: Clock) -> None:
    trust = Trust(str(CAPTURED / "keys"), None, clock=clock)
    assert problem(trust, resolve(CAPTURED, "attested", "1.2.3")).startswith(NOT_SIGNED)


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_firmware_needs_a_signature_only_with_keys(release: Release) -> None:
    assert check(Trust(None, None), release.firmware) is None


def test_a_good_signature_is_searched_for_once(trust: Trust, release: Release) -> None:
    release.attacher.sign(RELEASE, release.digest)
    searches = 0
    firmware = release.firmware
    assert firmware.signed is not None
    search = firmware.signed.search

    def counted(*arguments: Any) -> Any:
        nonlocal searches
        searches += 1
        return search(*arguments)

    watched = replace(firmware, signed=Signed("sensor", firmware.signed.digests, counted))
    for _ in range(5):
        found = check(trust, watched)
        assert found is not None
        assert (found.form, found.key and found.key.name) == ("bundle", "release.pub")
    assert searches == 1


def test_keys_are_rotated_without_a_restart(trust: Trust, clock: Clock, keys: Path, release: Release) -> None:
    release.attacher.sign(RELEASE, release.digest)
    assert check(trust, release.firmware)
    (keys / "next.pub").write_bytes(STRANGER.public)
    clock.pass_time()
    assert check(trust, release.firmware)
    (keys / "release.pub").unlink()
    clock.pass_time()
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}signed by another key"
    release.attacher.sign(STRANGER, release.digest)
    clock.pass_time()
    found = check(trust, release.firmware)
    assert found is not None
    assert found.key is not None
    assert found.key.name == "next.pub"


def test_a_signature_that_comes_late_counts_after_10_seconds(trust: Trust, clock: Clock, release: Release) -> None:
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}no signature"
    release.attacher.sign(RELEASE, release.digest)
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}no signature"
    clock.pass_time()
    assert check(trust, release.firmware)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("no key")])
def test_keys_that_become_unreadable_stop_updates(
    trust: Trust, clock: Clock, keys: Path, release: Release, damage: Callable[[Path], object]
) -> None:
    release.attacher.sign(RELEASE, release.digest)
    assert check(trust, release.firmware)
    damage(keys / "release.pub")
    clock.pass_time()
    assert problem(trust, release.firmware).startswith("FIRMWARE_VERIFY_KEYS: ")


def test_each_application_may_have_keys_of_its_own(tmp_path: Path, clock: Clock, release: Release) -> None:
    trust = Trust(str(tmp_path / "keys-of" / "{application}.pub"), None, clock=clock)
    (tmp_path / "keys-of").mkdir()
    (tmp_path / "keys-of" / "acme.pub").write_bytes(RELEASE.public)
    (tmp_path / "keys-of" / "other.pub").write_bytes(STRANGER.public)
    release.attacher.sign(RELEASE, release.digest)
    assert check(trust, release.firmware, "acme")
    assert problem(trust, release.firmware, "other") == f"{NOT_SIGNED}signed by another key"
    assert "No such file" in problem(trust, release.firmware, "third")
    assert "not one valid path component" in problem(trust, release.firmware, "../acme")


# --- The deny list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["manifest", "bytes"])
def test_a_denied_firmware_is_not_served_even_if_it_is_signed(
    tmp_path: Path, keys: Path, clock: Clock, release: Release, of: str
) -> None:
    denied = tmp_path / "denied"
    denied.write_text("# nothing yet\n")
    trust = Trust(str(keys), str(denied), clock=clock)
    release.attacher.sign(RELEASE, release.digest)
    assert check(trust, release.firmware)
    digest = release.digest if of == "manifest" else f"sha256:{release.published.checksum.hex()}"
    denied.write_text(f"\n{digest}  # loops\n")
    clock.pass_time()
    assert problem(trust, release.firmware) == f"denied: {digest} is in FIRMWARE_DENY"
    denied.write_text("sha256:short\n")
    clock.pass_time()
    assert problem(trust, release.firmware).startswith(f"FIRMWARE_DENY: {denied}, line 1: 'sha256:short' is no digest")
    denied.unlink()
    clock.pass_time()
    assert problem(trust, release.firmware) == f"FIRMWARE_DENY: {denied}: No such file or directory"


# --- Attacks in a layout ----------------------------------------------------------------------------------------------


def test_a_signature_that_was_copied_from_another_manifest_does_not_count(trust: Trust, release: Release) -> None:
    release.attacher.attach(RELEASE.bundle(f"sha256:{'ab' * 32}"), release.digest)
    release.attacher.tag_signature(release.digest, RELEASE.text(f"sha256:{'ab' * 32}"))
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}signature of another digest"


def test_a_good_signature_counts_among_bad_ones(trust: Trust, release: Release) -> None:
    release.attacher.attach(STRANGER.bundle(release.digest), release.digest)
    release.attacher.attach(b"{", release.digest)
    release.attacher.attach(b"x" * 200_000, release.digest)
    release.attacher.sign(RELEASE, release.digest)
    assert check(trust, release.firmware)


def test_a_good_text_counts_among_bad_ones(trust: Trust, release: Release) -> None:
    bad = (b"{}", "?"), (b"x" * 200_000, "eA=="), STRANGER.text(release.digest)
    release.attacher.tag_signature(release.digest, *bad, RELEASE.text(release.digest))
    found = check(trust, release.firmware)
    assert found is not None
    assert found.form == "simple signing"


def test_only_so_many_signatures_are_looked_at(trust: Trust, release: Release) -> None:
    for number in range(MAX_SIGNATURES):
        release.attacher.attach(json.dumps({"number": number}).encode(), release.digest)
    release.attacher.sign(RELEASE, release.digest)
    reason = problem(trust, release.firmware)
    assert reason == f"{NOT_SIGNED}bundle of another media type; 65 signatures; only the first 64 are looked at"


@pytest.mark.parametrize("tells_type", [True, False])
def test_a_layout_may_have_many_versions(trust: Trust, release: Release, tells_type: bool) -> None:
    entry = release.attacher.sign(RELEASE, release.digest)
    others = [{**entry, "digest": f"sha256:{number:064x}"} for number in range(1000)]
    if tells_type:  # the signature is an old one
        others = [{key: value for key, value in other.items() if key != "artifactType"} for other in others]
    index = release.attacher.layout / "index.json"
    known = json.loads(index.read_bytes())["manifests"]
    index.write_text(json.dumps({"manifests": known + others if tells_type else others + known}))
    assert check(trust, release.firmware)


def test_a_search_without_time_is_not_finished(trust: Trust, release: Release) -> None:
    release.attacher.sign(RELEASE, release.digest)
    with pytest.raises(TransientError, match="no time is left"):
        trust.check(release.firmware, "acme", Deadline(0))


def test_a_claim_such_as_an_sbom_is_no_signature_and_takes_no_place(trust: Trust, keys: Path, release: Release) -> None:
    predicate = "https://spdx.dev/Document"
    for number in range(MAX_SIGNATURES + 1):
        bundle = RELEASE.bundle(release.digest, predicateType=predicate, predicate={"number": number})
        annotations = {"dev.sigstore.bundle.predicateType": predicate}
        release.attacher.attach(bundle, release.digest, annotations=annotations)
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}no signature"
    # It says that it is a signature, but is none.
    release.attacher.attach(RELEASE.bundle(release.digest, predicateType=predicate), release.digest)
    release.attacher.sign(RELEASE, release.digest)
    assert check(Trust(str(keys), None), release.firmware)


def test_a_bundle_that_is_not_attached_to_the_manifest_does_not_count(trust: Trust, release: Release) -> None:
    other = f"sha256:{'ab' * 32}"
    entry = release.attacher.attach(RELEASE.bundle(release.digest), other)
    release.attacher.tag_fallback(release.digest, entry)
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}attached to another manifest"


def test_the_fallback_tag_may_be_the_manifest_itself(trust: Trust, release: Release) -> None:
    content = release.attacher.read(release.digest)
    described = release.attacher.put(content, "application/vnd.oci.image.manifest.v1+json")
    release.attacher.tag(release.digest.replace(":", "-"), described)
    assert problem(trust, release.firmware) == f"{NOT_SIGNED}no signature"


def test_a_changed_annotation_makes_another_manifest(trust: Trust, release: Release, tmp_path: Path) -> None:
    release.attacher.sign(RELEASE, release.digest)
    manifest = json.loads(release.attacher.read(release.digest))
    manifest["annotations"]["org.opencontainers.image.version"] = "99"
    changed = release.attacher.put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    release.attacher.tag("99", changed)
    assert problem(trust, resolve(tmp_path, "sensor", "99")) == f"{NOT_SIGNED}no signature"


@pytest.mark.parametrize("signed", ["index", "manifest", None])
def test_of_an_index_either_may_be_signed(trust: Trust, release: Release, tmp_path: Path, signed: str | None) -> None:
    entry = release.attacher.put(release.attacher.read(release.digest), "application/vnd.oci.image.manifest.v1+json")
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    described = release.attacher.put(json.dumps(index).encode(), INDEX)
    release.attacher.tag("all", described)
    covers = {"index": described["digest"], "manifest": release.digest}
    if signed:
        release.attacher.sign(RELEASE, covers[signed])
        found = check(trust, resolve(tmp_path, "sensor", "all"))
        assert found is not None
        assert found.covers == covers[signed]
    else:
        release.attacher.sign(STRANGER, described["digest"])
        assert problem(trust, resolve(tmp_path, "sensor", "all")) == f"{NOT_SIGNED}signed by another key"


def test_a_source_without_signatures_is_not_trusted(trust: Trust, release: Release) -> None:
    bare = Firmware("1", 3, bytes(32), "other", release.firmware.opener)
    assert problem(trust, bare) == f"{NOT_SIGNED}its source has no signatures"


def test_an_unavailable_source_is_not_taken_for_an_unsigned_one(trust: Trust, release: Release) -> None:
    def search(*_: object) -> Any:
        yield Signature(release.digest, "bundle", None, "no answer")
        raise TransientError("no answer")

    hung = Firmware(
        "1", 3, bytes(32), "artifact", release.firmware.opener, signed=Signed("sensor", (release.digest,), search)
    )
    with pytest.raises(TransientError):
        check(trust, hung)


def test_an_unsigned_copy_does_not_hide_the_signed_one(trust: Trust, release: Release, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "sensor", tmp_path / "copy")
    release.attacher.sign(RELEASE, release.digest)
    assert problem(trust, resolve(tmp_path, "copy", "1")) == f"{NOT_SIGNED}no signature"
    assert check(trust, release.firmware)
