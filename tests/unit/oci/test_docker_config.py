"""Credentials for a repository in a Docker configuration, and reasons that quote no secret."""

import base64
import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError
from fleet_fn.oci.docker_config import Credentials, from_docker_config


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def login(user: str = "ada", password: str = "pass") -> dict[str, str]:
    return {"auth": encoded(f"{user}:{password}")}


def found(
    folder: Path, config: object, host: str = "ghcr.io", repository: str = "acme/sensor/pump"
) -> Credentials | None:
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(content)
    return from_docker_config(folder, host, repository)


# --- Whose entry it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("GHCR.io", "ghcr.io"),
        ("ghcr.io", "GHCR.IO"),
        ("ghcr.io/", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v1/", "ghcr.io"),
        ("https://ghcr.io/somebody/else", "ghcr.io"),
        ("ghcr.io/v2/", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("http://localhost:5000/v1/", "localhost:5000"),
        ("[::1]:5000", "[::1]:5000"),
        *(
            (key, host)
            for key in ("https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io")
            for host in ("docker.io", "index.docker.io", "registry-1.docker.io")
        ),
    ],
)
def test_a_registry_is_found_by_each_of_its_names(tmp_path: Path, key: str, host: str) -> None:
    assert found(tmp_path, {"auths": {key: login()}}, host) == Credentials("ada", "pass")


@pytest.mark.parametrize(
    "key",
    [
        "ghcr.io:443",
        "cr.io",
        "ghcr.io.evil.example",
        "evil.example/ghcr.io",
        "evil.example://ghcr.io:5000",
        "https://evil.example/ghcr.io",
        "docker.io",
        "",
        "/",
        "ghcr.io/acm",
        "ghcr.io/acme/sens",
        "ghcr.io/acme/sensor/pump/more",
        "ghcr.io/other",
        "acme/sensor/pump",
    ],
)
def test_credentials_of_other_repositories_do_not_match(tmp_path: Path, key: str) -> None:
    assert found(tmp_path, {"auths": {key: login()}}) is None


@pytest.mark.parametrize(
    ("repository", "user"),
    [
        ("acme/sensor/pump", "sensor"),
        ("acme/sensor", "sensor"),
        ("acme/sensors", "acme"),
        ("acme", "acme"),
        ("acme-evil/sensor", "all"),
        ("other", "all"),
    ],
)
def test_the_most_specific_key_wins_by_whole_components(tmp_path: Path, repository: str, user: str) -> None:
    keys = {"ghcr.io/acme": "acme", "ghcr.io": "all", "ghcr.io/acme/sensor": "sensor"}
    for order in (1, -1):
        auths = {key: login(name) for key, name in list(keys.items())[::order]}
        credentials = found(tmp_path, {"auths": auths}, repository=repository)
        assert credentials
        assert credentials.user == user


def test_a_host_comes_before_a_url_with_it(tmp_path: Path) -> None:
    auths = {"https://ghcr.io": login("url"), "ghcr.io": login("host")}
    assert found(tmp_path, {"auths": auths}) == Credentials("host", "pass")


def test_an_empty_entry_leaves_it_to_a_less_specific_one(tmp_path: Path) -> None:
    auths = {"ghcr.io/acme": {}, "ghcr.io": login()}
    assert found(tmp_path, {"auths": auths, "credsStore": "desktop"}) == Credentials("ada", "pass")


def test_entries_of_other_registries_need_not_be_understood(tmp_path: Path) -> None:
    auths = {"quay.io": [], "docker.io": {"auth": 5}, "ghcr.io": login()}
    assert found(tmp_path, {"auths": auths}) == Credentials("ada", "pass")


# --- What an entry says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "credentials"),
    [
        ({"auth": encoded("ada:pass")}, Credentials("ada", "pass")),
        ({"auth": encoded("ada:pass"), "email": "ada@example.com"}, Credentials("ada", "pass")),
        ({"auth": encoded("ada:a:b:")}, Credentials("ada", "a:b:")),
        ({"auth": encoded("ada:pass\0\0")}, Credentials("ada", "pass")),
        ({"auth": encoded("ada:pass1").rstrip("=")}, Credentials("ada", "pass1")),
        ({"auth": "\n".join(encoded("ada:pass1")) + "\n"}, Credentials("ada", "pass1")),
        ({"auth": encoded("Ada Lovelace:pass word é")}, Credentials("Ada Lovelace", "pass word é")),
        ({"auth": encoded("_json_key:" + json.dumps({"a": 1}))}, Credentials("_json_key", '{"a": 1}')),
        ({"username": "ada", "password": "pass"}, Credentials("ada", "pass")),
        ({"auth": "", "username": "ada", "password": "pass"}, Credentials("ada", "pass")),
        ({"auth": encoded("ada:pass"), "username": "eve", "password": "x"}, Credentials("ada", "pass")),
        ({"auth": encoded("ada:pass"), "identitytoken": "x"}, Credentials("ada", "pass")),
        ({"registrytoken": "abc"}, Credentials(None, "abc")),
        ({"auth": encoded("ada:pass"), "registrytoken": "abc"}, Credentials(None, "abc")),
        ({}, None),
        ({"email": "ada@example.com"}, None),
        ({"auth": None, "username": "", "identitytoken": ""}, None),
    ],
)
def test_an_entry_has_a_user_and_a_password_or_a_token_or_nothing(
    tmp_path: Path, entry: object, credentials: Credentials | None
) -> None:
    assert found(tmp_path, {"auths": {"ghcr.io": entry}}) == credentials


@given(
    user=st.text(st.characters(exclude_characters=":", exclude_categories=["C", "Z"]), min_size=1),
    password=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1),
    padded=st.booleans(),
    nulls=st.integers(0, 3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_encoded_credentials_are_decoded(tmp_path: Path, user: str, password: str, padded: bool, nulls: int) -> None:
    auth = encoded(f"{user}:{password}" + "\0" * nulls)
    credentials = found(tmp_path, {"auths": {"ghcr.io": {"auth": auth if padded else auth.rstrip("=")}}})
    assert credentials == Credentials(user, password)


# --- Configurations without credentials -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{}, {"auths": {}}, {"auths": None}, {"credsStore": "desktop"}, {"credHelpers": {"quay.io": "x", "ghcr.io": ""}}],
)
def test_a_configuration_without_an_entry_has_no_credentials(tmp_path: Path, config: object) -> None:
    assert found(tmp_path, config) is None


def test_a_configuration_need_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert from_docker_config(tmp_path, "ghcr.io", "pump") is None
    assert from_docker_config(tmp_path / "missing", "ghcr.io", "pump") is None
    assert from_docker_config(tmp_path / "file" / "missing", "ghcr.io", "pump") is None


def test_the_file_itself_can_be_named_and_be_called_anything(tmp_path: Path) -> None:
    config = tmp_path / ".dockerconfigjson"
    config.write_text(json.dumps({"auths": {"ghcr.io": login()}}))
    assert from_docker_config(str(config), "ghcr.io", "pump") == Credentials("ada", "pass")


def test_it_is_read_anew_each_time_as_a_mounted_secret_changes(tmp_path: Path) -> None:
    for number in range(2):  # a volume's files are links to a folder that is replaced as a whole
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text(json.dumps({"auths": {"ghcr.io": login(f"user{number}")}}))
    (tmp_path / "config.json").symlink_to("current/config.json")
    for number in range(2):
        (tmp_path / "new").symlink_to(str(number))
        (tmp_path / "new").replace(tmp_path / "current")
        assert from_docker_config(tmp_path, "ghcr.io", "pump") == Credentials(f"user{number}", "pass")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"auths": {"ghcr.io": {}}, "credsStore": "desktop"}, "credential helpers"),
        ({"credHelpers": {"ghcr.io": "gcr"}}, "credential helpers"),
        ({"credHelpers": {"https://ghcr.io": "gcr"}, "auths": {"ghcr.io": {}}}, "credential helpers"),
        ({"auths": {"ghcr.io": {"identitytoken": "x"}}}, "identity tokens"),
        ({"auths": {"ghcr.io": {"auth": encoded("ada:"), "identitytoken": "x"}}}, "identity tokens"),
        ({"auths": {"ghcr.io": {"username": "ada", "identitytoken": "x"}}, "credsStore": "x"}, "identity tokens"),
    ],
)
def test_unsupported_credentials_fail_with_advice(tmp_path: Path, config: object, reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        found(tmp_path, config)
    way_out = "set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN instead"
    assert caught.value.reason == f"OCI registry credentials: DOCKER_CONFIG: {reason} are not supported: {way_out}"


# --- Configurations that make no sense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (b"", r"config\.json: not JSON"),
        (b"auths", r"config\.json: not JSON"),
        (b"\xff\xfe", r"config\.json: text that is not UTF-8"),
        (b'{"auths": {}, "auths": {}}', r"config\.json: a key stands twice"),
        (b"[" * 100_000, r"config\.json: nested too deeply"),
        (b'"' + b"x" * 1024 * 1024, r"config\.json is larger than 1048576 bytes"),
        ([], r"config\.json: not a JSON object"),
        ("x", r"config\.json: not a JSON object"),
        ({"auths": []}, "auths is no object"),
        ({"credHelpers": "x"}, "credHelpers is no object"),
        ({"auths": {"ghcr.io": None}}, "the entry for the registry is no object"),
        ({"auths": {"ghcr.io": "YTpi"}}, "the entry for the registry is no object"),
        ({"auths": {"ghcr.io": {"auth": 5}}}, "auth of the entry for the registry is no string"),
        ({"auths": {"ghcr.io": {"username": [], "password": "x"}}}, "username of the entry .* is no string"),
        ({"auths": {"ghcr.io": {"registrytoken": {"x": 1}}}}, "registrytoken of the entry .* is no string"),
        ({"auths": {"ghcr.io": {"auth": "!!!!"}}}, "auth of the entry .* is not user:password in base64"),
        ({"auths": {"ghcr.io": {"auth": "YWRh!!!!OnBhc3M="}}}, "auth of the entry .* is not user:password in base64"),
        ({"auths": {"ghcr.io": {"auth": "é"}}}, "auth of the entry .* is not user:password in base64"),
        ({"auths": {"ghcr.io": {"auth": encoded("ada")}}}, "auth of the entry .* is not user:password in base64"),
        ({"auths": {"ghcr.io": {"auth": encoded(b"a:\xff")}}}, "auth of the entry .* is not user:password in base64"),
        ({"auths": {"ghcr.io": {"auth": encoded("ada:")}}}, "the entry for the registry lacks a password"),
        ({"auths": {"ghcr.io": {"auth": encoded(":pass")}}}, "the entry for the registry lacks a user name"),
        ({"auths": {"ghcr.io": {"username": "ada"}}}, "the entry for the registry lacks a password"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_a_failure_that_says_where(
    tmp_path: Path, config: object, problem: str
) -> None:
    with pytest.raises(PermanentError, match=f"^OCI registry credentials: DOCKER_CONFIG: {problem}"):
        found(tmp_path, config)


def test_unreadable_configuration_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PermanentError, match=r"^OCI registry credentials: DOCKER_CONFIG: loop: Too many levels"):
        from_docker_config(tmp_path / "loop", "ghcr.io", "pump")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(
        PermanentError, match=r"^OCI registry credentials: DOCKER_CONFIG: config\.json: Is a directory$"
    ):
        from_docker_config(tmp_path, "ghcr.io", "pump")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PermanentError, match=r"^OCI registry credentials: DOCKER_CONFIG: fifo: not JSON"):
        from_docker_config(tmp_path / "fifo", "ghcr.io", "pump")


# --- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "secret"),
    [
        ("ada", "pass\r\nHost: evil"),
        ("ada", "pass\0word"),
        ("ada\n", "pass"),
        ("ada", "\ud800"),
        ("a:b", "pass"),
        (None, ""),
        (None, "two words"),
        (None, "é"),
        (None, "line\n"),
    ],
)
def test_there_are_no_credentials_that_no_header_can_carry(user: str | None, secret: str) -> None:
    with pytest.raises(
        PermanentError, match=r"^OCI registry credentials: the .* has characters that no header can carry$"
    ):
        Credentials(user, secret)


@pytest.mark.parametrize(
    ("credentials", "scheme", "header"),
    [(Credentials("ada", "pass"), "basic", "Basic YWRhOnBhc3M="), (Credentials(None, "abc"), "bearer", "Bearer abc")],
)
def test_credentials_have_a_scheme_and_a_header(credentials: Credentials, scheme: str, header: str) -> None:
    assert (credentials.scheme, credentials.header) == (scheme, header)


def test_a_secret_is_not_shown() -> None:
    assert repr(Credentials("ada", "S3cr3t")) == "Credentials(user='ada')"


SECRET = "S3cr3t"
secrets = st.text(max_size=12).map(lambda text: SECRET + text)
values: st.SearchStrategy[Any] = st.recursive(
    secrets
    | secrets.map(encoded)
    | secrets.map(lambda text: encoded(f"{text}:{text}"))
    | st.binary(max_size=6).map(lambda some: encoded(SECRET.encode() + some))
    | st.none()
    | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["auth", "username", "password", "identitytoken", "registrytoken"]), inner, max_size=4
        )
        | st.dictionaries(st.sampled_from(["ghcr.io", "https://ghcr.io", "ghcr.io/acme"]), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), inner, max_size=3)
    ),
    max_leaves=8,
)
entries = st.dictionaries(
    st.sampled_from(["auth", "username", "password", "identitytoken", "registrytoken"]), values, max_size=4
)
configs = values | st.fixed_dictionaries(
    {"auths": st.fixed_dictionaries({"ghcr.io": entries})}, optional={"credsStore": secrets, "credHelpers": values}
)


@given(configs.map(lambda config: json.dumps(config).encode()) | st.binary().map(lambda some: SECRET.encode() + some))
@example(SECRET.encode() + b"\xff")
@example(b'{"S3cr3t": "\\ud800"}')
@example(json.dumps({"auths": {"ghcr.io": {"auth": encoded(SECRET.encode() + b"\xff")}}}).encode())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_configuration_yields_credentials_none_or_a_failure_without_secrets(tmp_path: Path, config: bytes) -> None:
    try:
        credentials = found(tmp_path, config)
    except PermanentError as error:
        told = "".join(traceback.format_exception(error))
        link: BaseException | None = error
        while link:
            told += f"{link!s} {link!r} "
            link = link.__cause__ or link.__context__
        assert error.reason.startswith("OCI registry credentials: ")
        assert error.reason.isprintable()
        assert SECRET not in told
        assert encoded(SECRET)[:8] not in told
    else:
        assert credentials is None or isinstance(credentials, Credentials)
