"""Signatures and keys, one by one: what verifies, and what is refused for which reason."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError
from fleet_fn.oci.signature_keys import MAX_KEYS, PublicKey, load_keys, read_keys
from fleet_fn.oci.signatures import (
    BadSignatureError,
    check_bundle,
    check_detached,
    check_digest,
    check_simple_signing,
    read_detached,
)
from tests.support.signer import Signer, encode

DIGEST: Final = f"sha256:{'ab' * 32}"
OTHER_DIGEST: Final = f"sha256:{'cd' * 32}"
P256: Final = Signer()
SIGNERS: Final = {
    "p256": P256,
    "p384": Signer(ec.generate_private_key(ec.SECP384R1())),
    "ed25519": Signer(ed25519.Ed25519PrivateKey.generate()),
    "rsa": Signer(rsa.generate_private_key(65537, 2048)),
}
STRANGER: Final = Signer()


def keys(*signers: Signer) -> list[PublicKey]:
    return [key for signer in signers for key in read_keys(signer.public, "key.pem", "key.pem")]


TRUSTED: Final = keys(*SIGNERS.values())


def bundle_problem(bundle: bytes, digest: str = DIGEST) -> str:
    with pytest.raises(BadSignatureError) as caught:
        check_bundle(bundle, digest, TRUSTED)
    assert str(caught.value).isprintable()
    return str(caught.value)


def text_problem(text: bytes, signature: object) -> str:
    with pytest.raises(BadSignatureError) as caught:
        check_simple_signing(text, signature, DIGEST, TRUSTED)
    return str(caught.value)


# --- Good ones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNERS)
def test_each_kind_of_key_signs_in_each_form(name: str) -> None:
    signer = SIGNERS[name]
    (own,) = keys(signer)
    assert check_bundle(signer.bundle(DIGEST), DIGEST, TRUSTED) == own
    text, signature = signer.text(DIGEST)
    assert check_simple_signing(text, signature, DIGEST, TRUSTED) == own
    assert check_detached(signer.sign(b"content"), b"content", TRUSTED) == own


def test_several_signatures_and_subjects_in_one_bundle_count_together() -> None:
    value = json.loads(P256.bundle(DIGEST, subject=[{"digest": {"sha512": "x"}}, {"digest": {"sha256": "ab" * 32}}]))
    value["dsseEnvelope"]["signatures"].insert(0, {"sig": encode(b"nonsense"), "keyid": "other"})
    assert check_bundle(json.dumps(value).encode(), DIGEST, TRUSTED).fingerprint == keys(P256)[0].fingerprint


def test_the_log_and_the_hint_of_a_bundle_are_not_looked_at() -> None:
    value = json.loads(P256.bundle(DIGEST))
    value["verificationMaterial"] = {"publicKey": {"hint": "wrong"}, "tlogEntries": [{"logIndex": "-1"}, 3]}
    assert check_bundle(json.dumps(value).encode(), DIGEST, TRUSTED)


def test_base64_may_have_the_alphabet_of_urls() -> None:
    value = json.loads(P256.bundle(DIGEST))
    envelope = value["dsseEnvelope"]
    envelope["payload"] = envelope["payload"].replace("+", "-").replace("/", "_")
    envelope["signatures"] = [
        {"sig": base64.urlsafe_b64encode(base64.b64decode(envelope["signatures"][0]["sig"])).decode()}
    ]
    assert check_bundle(json.dumps(value).encode(), DIGEST, TRUSTED)


# --- Attacks ----------------------------------------------------------------------------------------------------------


def test_another_key_does_not_count() -> None:
    assert bundle_problem(STRANGER.bundle(DIGEST)) == "signed by another key"
    assert text_problem(*STRANGER.text(DIGEST)) == "signed by another key"


def test_the_signature_of_another_digest_does_not_count() -> None:
    assert bundle_problem(P256.bundle(OTHER_DIGEST)) == "signature of another digest"
    assert text_problem(*P256.text(OTHER_DIGEST)) == "signature of another digest"


def test_another_payload_type_does_not_count() -> None:
    assert bundle_problem(P256.bundle(DIGEST, payload_type="text/plain")) == "envelope of another payload type"
    # Relabelled: the type is part of what was signed.
    value = json.loads(P256.bundle(DIGEST, payload_type="text/plain"))
    value["dsseEnvelope"]["payloadType"] = "application/vnd.in-toto+json"
    assert bundle_problem(json.dumps(value).encode()) == "signed by another key"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"predicateType": "https://spdx.dev/Document"}, "another predicate than that of a signature"),
        ({"predicateType": None}, "another predicate"),
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "statement of another type"),
        ({"subject": []}, "signature of another digest"),
        ({"subject": None}, "signature of another digest"),
        ({"subject": [{"digest": {"sha256": "AB" * 32}}]}, "signature of another digest"),
        ({"subject": [{"digest": {"sha512": "ab" * 32}}, "x", {}, {"digest": [1]}]}, "signature of another digest"),
    ],
)
def test_a_statement_has_to_be_a_signature_of_the_digest(changes: dict[str, Any], problem: str) -> None:
    assert problem in bundle_problem(P256.bundle(DIGEST, **changes))


def test_a_key_that_stands_twice_is_refused_wherever_it_is() -> None:
    good = P256.bundle(DIGEST)
    twice = good.replace(b'{"mediaType":', b'{"mediaType": "x", "mediaType":', 1)
    assert "stands twice" in bundle_problem(twice)
    statement = (
        '{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://sigstore.dev/cosign/sign/v1",'
        f' "subject": [{{"digest": {{"sha256": "{"cd" * 32}", "sha256": "{"ab" * 32}"}}}}], "predicate": {{}}}}'
    )
    assert "stands twice" in bundle_problem(P256.bundle(DIGEST, payload=statement.encode()))
    text = f'{{"critical": {{}}, "critical": {{"image": {{"docker-manifest-digest": "{DIGEST}"}}}}}}'.encode()
    assert "stands twice" in text_problem(text, encode(P256.sign(text)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"type": "atomic container signature"}, "signed text of another type"),
        ({"image": None}, "signature of another digest"),
        ({"image": {"docker-manifest-digest": [DIGEST]}}, "signature of another digest"),
    ],
)
def test_a_signed_text_has_to_be_of_cosigns_type(changes: dict[str, Any], problem: str) -> None:
    assert text_problem(*P256.text(DIGEST, **changes)) == problem


@pytest.mark.parametrize("signature", [None, 3, "", "x", "é", "ab==" * 5000, [encode(P256.sign(b"x"))]])
def test_signatures_that_are_none(signature: object) -> None:
    assert text_problem(P256.text(DIGEST)[0], signature)


def test_envelopes_are_bounded() -> None:
    value = json.loads(P256.bundle(DIGEST))
    value["dsseEnvelope"]["signatures"] *= 9
    assert "more than 8" in bundle_problem(json.dumps(value).encode())
    value["dsseEnvelope"]["signatures"] = []
    assert "without signatures" in bundle_problem(json.dumps(value).encode())


GOOD: Final = json.loads(P256.bundle(DIGEST))
#: Any JSON, as an attacker may put it into any place.
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(["mediaType", "dsseEnvelope", "payload", "payloadType", "signatures", "sig"]), JSON)
def test_no_other_value_of_what_counts_is_taken(place: str, value: Any) -> None:
    bundle = json.loads(json.dumps(GOOD))
    envelope = bundle["dsseEnvelope"]
    holder: Any = {"mediaType": bundle, "dsseEnvelope": bundle, "sig": envelope["signatures"][0]}.get(place, envelope)
    if holder[place] != value:
        holder[place] = value
        assert bundle_problem(json.dumps(bundle).encode())


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_flipped_byte_changes_what_a_bundle_signs(position: int, mask: int) -> None:
    good = P256.bundle(DIGEST)
    bundle = bytearray(good)
    bundle[position % len(bundle)] ^= mask
    try:
        check_bundle(bytes(bundle), DIGEST, TRUSTED)
    except BadSignatureError:
        return
    payloads = [json.loads(text)["dsseEnvelope"]["payload"] for text in (bundle, good)]
    assert base64.b64decode(payloads[0]) == base64.b64decode(payloads[1])


@given(st.integers(0, 1500))
def test_no_truncated_bundle_is_taken(length: int) -> None:
    good = P256.bundle(DIGEST)
    assert bundle_problem(good[: min(length, len(good) - 1)])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(content: bytes) -> None:
    assert bundle_problem(content)
    assert text_problem(content, encode(content))


# --- Detached ---------------------------------------------------------------------------------------------------------


def test_detached_signatures_are_base64_raw_or_a_bundle() -> None:
    signature = P256.sign(b"content")
    message = {"messageDigest": {"algorithm": "SHA2_256", "digest": "x"}, "signature": encode(signature)}
    bundle = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "messageSignature": message}
    for content in (signature, encode(signature).encode() + b"\n", json.dumps(bundle).encode()):
        assert read_detached(content) == signature
    with pytest.raises(BadSignatureError, match="bundle without a signature of a file"):
        read_detached(P256.bundle(DIGEST))
    with pytest.raises(BadSignatureError, match="more than 2048 bytes"):
        read_detached(b"\xff" * 3000)


def test_a_raw_signature_may_begin_like_a_bundle() -> None:
    signatures = (SIGNERS["ed25519"].sign(b"%d" % number) for number in range(100_000))
    signature = next(signature for signature in signatures if signature.startswith(b"{"))
    assert read_detached(signature) == signature


@pytest.mark.parametrize(("name", "can"), [("p256", True), ("rsa", True), ("ed25519", False), ("p384", False)])
def test_bytes_are_checked_by_their_sha256_where_the_kind_of_key_allows_it(name: str, can: bool) -> None:
    signature, digest = SIGNERS[name].sign(b"content"), hashlib.sha256(b"content").digest()
    assert (check_digest(signature, digest, TRUSTED) is not None) is can
    assert check_digest(signature, bytes(32), TRUSTED) is None


# --- Keys -------------------------------------------------------------------------------------------------------------


def pem(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def key_problem(content: bytes) -> str:
    with pytest.raises(PermanentError) as caught:
        read_keys(content, "key.pem", "/keys/key.pem")
    assert caught.value.reason.startswith("/keys/key.pem: ")
    return caught.value.reason


def test_weak_and_strange_keys_are_refused() -> None:
    assert "1024 bits; it needs 2048" in key_problem(pem(rsa.generate_private_key(65537, 1024)))
    assert "curve secp521r1" in key_problem(pem(ec.generate_private_key(ec.SECP521R1())))
    assert "another kind" in key_problem(pem(dsa.generate_private_key(2048)))
    private = P256.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    problem = key_problem(private)
    assert "private key" in problem
    assert not set(private.decode().split("\n")[1:-2]) & set(problem.split())


def test_a_file_may_have_several_keys_and_words_between_them() -> None:
    content = b"release\n" + P256.public + b"\n# last year's\n" + STRANGER.public
    assert [key.name for key in read_keys(content, "keys.pem", "keys.pem")] == ["keys.pem"] * 2


def test_a_file_that_was_cut_off_is_an_error_and_not_a_key_less() -> None:
    assert "a key without an end" in key_problem(P256.public + STRANGER.public[:-20])


def test_each_visible_file_of_a_folder_has_to_be_a_key(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_bytes(P256.public)
    (tmp_path / "b.pub").write_bytes(STRANGER.public + P256.public)
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden").write_text("nothing")
    assert [key.name for key in load_keys(tmp_path)] == ["b.pub", "b.pub"]
    (tmp_path / "README").write_text("keys")
    with pytest.raises(PermanentError, match=r"README: has no public key"):
        load_keys(tmp_path)


def test_folders_of_keys_are_bounded(tmp_path: Path) -> None:
    for number in range(MAX_KEYS + 1):
        (tmp_path / str(number)).write_bytes(Signer().public)
    with pytest.raises(PermanentError, match=r"65 keys; at most 64"):
        load_keys(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_in_a_key_file_are_keys_or_a_reason(content: bytes) -> None:
    for text in (content, b"-----BEGIN PUBLIC KEY-----\n" + encode(content).encode() + b"\n-----END PUBLIC KEY-----\n"):
        assert key_problem(text)
