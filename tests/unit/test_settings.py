"""Settings from the environment, and the messages about invalid ones."""

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import gettempdir

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.settings import SETTINGS, Settings, SettingsError

REQUIRED = {"DROGUE_API_URL": "https://api.example", "FIRMWARE_REGISTRY": "ghcr.io/acme/"}
SECRETS = {
    "DROGUE_TOKEN": "drogue_token",
    "DROGUE_OIDC_CLIENT_SECRET": "drogue_oidc_client_secret",
    "FIRMWARE_REGISTRY_TOKEN": "firmware_registry_token",
    "HAWKBIT_GATEWAY_TOKEN": "hawkbit_gateway_token",
    "EVENTS_PASSWORD": "events_password",
    "EVENTS_TOKEN": "events_token",
}
#: What some variables make no sense without.
WITH = {
    "DROGUE_USER": {"DROGUE_TOKEN": "x"},
    "DROGUE_OIDC_TOKEN_URL": {"DROGUE_OIDC_CLIENT_ID": "x", "DROGUE_OIDC_CLIENT_SECRET": "x"},
    "DROGUE_OIDC_CLIENT_ID": {"DROGUE_OIDC_TOKEN_URL": "https://sso.example", "DROGUE_OIDC_CLIENT_SECRET": "x"},
    "DROGUE_OIDC_CLIENT_SECRET": {"DROGUE_OIDC_TOKEN_URL": "https://sso.example", "DROGUE_OIDC_CLIENT_ID": "x"},
    "MQTT_APPLICATIONS": {"DROGUE_MQTT_URL": "mqtts://mqtt.example"},
    "FIRMWARE_REGISTRY_USER": {"FIRMWARE_REGISTRY_TOKEN": "x"},
    "EVENTS_USER": {"EVENTS_PASSWORD": "x"},
    "EVENTS_PASSWORD": {"EVENTS_USER": "x"},
    "HAWKBIT_URL": {"HAWKBIT_GATEWAY_TOKEN": "x"},
    "HAWKBIT_GATEWAY_TOKEN": {"HAWKBIT_URL": "https://hawkbit.example"},
    "MTU_DEFAULT": {"MTU_MAX": "4294967295"},
    "MTU_MAX": {"MTU_DEFAULT": "1"},
}
#: A file with characters that a token can have.
TOKEN_FILE = "/proc/sys/kernel/random/boot_id"
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIUbyTSmHaPpMPCVrDWcVK2mFx6QHAwCgYIKoZIzj0EAwIw
-----END CERTIFICATE-----
"""


def read(environment: Mapping[str, str] = {}, /, **variables: str) -> Settings:
    return Settings.from_environment(REQUIRED | dict(environment) | variables)


def told(environment: Mapping[str, str]) -> str:
    """The one line about an environment that is not accepted."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environment)
    line = str(caught.value)
    assert line.isprintable()
    assert line.isascii() or "…" in line
    return line


# --- Defaults and values ----------------------------------------------------------------------------------------------

#: Of each variable: the field, the default, and what some values mean.
VARIABLES: dict[str, tuple[str, object, dict[str, object]]] = {
    "DROGUE_API_URL": (
        "drogue_api_url",
        "https://api.example",
        {
            "http://localhost:8080": "http://localhost:8080",
            "https://api.example/base/": "https://api.example/base",
            "http://[::1]:80/": "http://[::1]:80",
        },
    ),
    "DROGUE_USER": ("drogue_user", None, {"admin": "admin", "jürgen x": "jürgen x"}),
    "DROGUE_TOKEN": ("drogue_token", None, {"drg_abc~1": "drg_abc~1"}),
    "DROGUE_OIDC_TOKEN_URL": (
        "drogue_oidc_token_url",
        None,
        {"https://sso.example/realms/x/token": "https://sso.example/realms/x/token"},
    ),
    "DROGUE_OIDC_CLIENT_ID": ("drogue_oidc_client_id", None, {"fleet": "fleet"}),
    "DROGUE_OIDC_CLIENT_SECRET": ("drogue_oidc_client_secret", None, {"s": "s"}),
    "APPLICATIONS": (
        "applications",
        (),
        {"acme": ("acme",), "b, A.b-1,b,": ("b", "A.b-1"), f"{'a' * 63}.{'b' * 63}": (f"{'a' * 63}.{'b' * 63}",)},
    ),
    "DEVICE_LABELS": (
        "device_labels",
        None,
        {"ring=new": {"ring": "new"}, "a=1, b= ,c=d=e": {"a": "1", "b": "", "c": "d=e"}},
    ),
    "DROGUE_MQTT_URL": (
        "mqtt_url",
        None,
        {"mqtts://mqtt.example:8883": "mqtts://mqtt.example:8883", "wss://[::1]/mqtt": "wss://[::1]/mqtt"},
    ),
    "MQTT_APPLICATIONS": (
        "mqtt_applications",
        (),
        {"a": ("a",), "b-1, a.b,,a b-1": ("b-1", "a.b", "a"), "a,*": ("*",), "*": ("*",)},
    ),
    "MQTT_EXCLUDE": ("mqtt_exclude", (), {"a,b": ("a", "b")}),
    "MQTT_GROUP": ("mqtt_group", "fleet-fn", {"pumps_2.A": "pumps_2.A"}),
    "MQTT_CONNECTIONS": ("mqtt_connections", 1, {"1": 1, "64": 64}),
    "FIRMWARE_REGISTRY": (
        "firmware_registry",
        "ghcr.io/acme/",
        {
            "ghcr.io": "ghcr.io",
            "localhost:5000/a_b/c-d/": "localhost:5000/a_b/c-d/",
            "[::1]:5000/x": "[::1]:5000/x",
            "ghcr.io/{application}/": "ghcr.io/{application}/",
            "ghcr.io/acme/fw-*": "ghcr.io/acme/fw-*",
            "ghcr.io/*": "ghcr.io/*",
            "ghcr.io/{application}__*": "ghcr.io/{application}__*",
            "oci-layout:/{application}-*": "oci-layout:/{application}-*",
            "oci-layout:/": "oci-layout:/",
            "oci-layout:.": "oci-layout:.",
            "oci-layout:/{application}/below": "oci-layout:/{application}/below",
            "oci-layout:fleet-{application}": "oci-layout:fleet-{application}",
        },
    ),
    "FIRMWARE_REGISTRY_USER": ("firmware_registry_user", None, {"robot$x": "robot$x"}),
    "FIRMWARE_REGISTRY_TOKEN": ("firmware_registry_token", None, {"t": "t"}),
    "FIRMWARE_REGISTRY_TOKEN_FILE": ("firmware_registry_token_file", None, {TOKEN_FILE: TOKEN_FILE}),
    "FIRMWARE_REGISTRY_INSECURE": ("firmware_registry_insecure", False, {"true": True, "FALSE": False}),
    "FIRMWARE_DEFAULT_IMAGE": ("firmware_default_image", None, {"{application}:stable": "{application}:stable"}),
    "FIRMWARE_DIR": ("firmware_dir", None, {"/": "/"}),
    "DOCKER_CONFIG": ("docker_config", None, {"/": "/", "/nowhere/at/all": "/nowhere/at/all"}),
    "FIRMWARE_CACHE_DIR": (
        "firmware_cache_dir",
        str(Path(gettempdir(), f"fleet-firmware-{os.getuid()}")),
        {"/var/cache/x": "/var/cache/x"},
    ),
    "FIRMWARE_CACHE_BYTES": ("firmware_cache_bytes", 536870912, {"1": 1, "1099511627776": 2**40}),
    "HAWKBIT_URL": ("hawkbit_url", None, {"https://hawkbit.example/": "https://hawkbit.example"}),
    "HAWKBIT_TENANT": ("hawkbit_tenant", "DEFAULT", {"acme": "acme"}),
    "HAWKBIT_GATEWAY_TOKEN": ("hawkbit_gateway_token", None, {"t": "t"}),
    "SPEC_TTL_SECONDS": ("spec_ttl_seconds", 10.0, {"0": 0.0, "2.5": 2.5, ".5": 0.5}),
    "IN_SYNC_TTL_SECONDS": ("in_sync_ttl_seconds", 0.0, {"0": 0.0, "1800": 1800.0}),
    "MANIFEST_TTL_SECONDS": ("manifest_ttl_seconds", 30.0, {"0": 0.0, "86400": 86400.0}),
    "REPORT_SEEN_SECONDS": ("report_seen_seconds", 86400.0, {"0": 0.0, "604800": 604800.0}),
    "POLL_SECONDS": ("poll_seconds", 300, {"0": 0, "4294967295": 2**32 - 1}),
    "WAIT_SECONDS": ("wait_seconds", 10, {"0": 0, "60": 60}),
    "MTU_DEFAULT": ("mtu_default_bytes", 512, {"1": 1, "4294967295": 2**32 - 1}),
    "MTU_MAX": ("mtu_max_bytes", 65536, {"1": 1, "4294967295": 2**32 - 1}),
    "EVENT_DEADLINE_SECONDS": ("event_deadline_seconds", 4.0, {"0.25": 0.25, "86400": 86400.0}),
    "EVENT_MAX_AGE_SECONDS": ("event_max_age_seconds", 25.0, {"0": 0.0, "3600": 3600.0}),
    "EVENTS_USER": ("events_user", None, {"knative": "knative"}),
    "EVENTS_PASSWORD": ("events_password", None, {"pass word ü": "pass word ü"}),
    "EVENTS_TOKEN": ("events_token", None, {"t": "t"}),
    "PREVIEW": ("preview", True, {"false": False, "True": True}),
    "REPORT_STATUS": ("report_status", True, {"false": False, "true": True}),
    "K_SINK": (
        "sink_url",
        None,
        {
            "http://broker-ingress.knative-eventing.svc.cluster.local/fleet/audit": (
                "http://broker-ingress.knative-eventing.svc.cluster.local/fleet/audit"
            ),
            "https://sink.example/events/": "https://sink.example/events/",
        },
    ),
    "K_CE_OVERRIDES": (
        "sink_overrides",
        None,
        {
            '{"extensions": {"team": "pumps", "x1": ""}}': {"team": "pumps", "x1": ""},
            '{"extensions": {}}': {},
            "{}": {},
            '{"extensions": {"team": "pumps"}, "later": 1}': {"team": "pumps"},
        },
    ),
    "LOG_LEVEL": ("log_level", "INFO", {"debug": "DEBUG", "WARNING": "WARNING"}),
    "LOG_FORMAT": ("log_format", "json", {"text": "text", "JSON": "json"}),
    "HOST": (
        "host",
        "0.0.0.0",
        {
            "127.0.0.1": "127.0.0.1",
            "localhost": "127.0.0.1",
            "::": "::",
            "[::1]": "::1",
            "2001:DB8:0::1": "2001:db8::1",
            "fe80::1%lo": "fe80::1%lo",
        },
    ),
    "PORT": ("port", 8080, {"0": 0, "65535": 65535}),
    "WEB_CONCURRENCY": ("workers", 1, {"1": 1, "4": 4}),
    "THREADS": ("threads", 8, {"1": 1, "64": 64}),
}


def test_every_setting_is_one_row_of_the_table() -> None:
    tested = {name: variable for variable, (name, _, _) in VARIABLES.items()}
    tested |= {"drogue_ca_file": "DROGUE_CA_FILE", "firmware_registry_ca_file": "FIRMWARE_REGISTRY_CA_FILE"}
    tested |= {"hawkbit_ca_file": "HAWKBIT_CA_FILE"}
    tested |= {"firmware_verify_keys": "FIRMWARE_VERIFY_KEYS", "firmware_deny": "FIRMWARE_DENY"}
    assert {name: setting.variable for name, setting in SETTINGS.items()} == tested
    assert list(SETTINGS) == [field.name for field in fields(Settings)]


def test_a_row_says_what_documentation_needs() -> None:
    texts = {setting.variable: setting.default_text for setting in SETTINGS.values()}
    expected = {
        "DROGUE_API_URL": "required",
        "DROGUE_TOKEN": "none",
        "DROGUE_CA_FILE": "the system's",
        "FIRMWARE_CACHE_DIR": "`fleet-firmware-UID` in the system's temporary directory",
        "FIRMWARE_CACHE_BYTES": "`536870912`",
        "EVENT_DEADLINE_SECONDS": "`4`",
        "PREVIEW": "`true`",
        "LOG_FORMAT": "`json`",
        "HOST": "`0.0.0.0`",
    }
    assert texts | expected == texts
    assert all(setting.meaning and setting.kind.takes for setting in SETTINGS.values())
    assert {setting.variable for setting in SETTINGS.values() if setting.kind.is_secret} == set(SECRETS)


@pytest.mark.parametrize("variable", VARIABLES)
def test_what_is_not_set_or_empty_has_its_default(variable: str) -> None:
    name, default, _ = VARIABLES[variable]
    assert getattr(read(), name) == default
    if variable not in REQUIRED:
        assert getattr(read({variable: ""}), name) == default


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [(variable, text, value) for variable, (_, _, values) in VARIABLES.items() for text, value in values.items()],
)
def test_what_is_set_is_read_in_its_unit(variable: str, text: str, value: object) -> None:
    settings = read(WITH.get(variable, {}), **{variable: text})
    read_value = getattr(settings, VARIABLES[variable][0])
    assert read_value == value
    assert type(read_value) is type(value)


def test_other_variables_are_nothing_to_go_by() -> None:
    assert read(HOME="/root", DROGUE_TOKENS="x", PORT_="x") == read()


# --- Violations -------------------------------------------------------------------------------------------------------

SECONDS = ("x", "-1", "1e3", "inf", "nan", " 1", "1 ", "1,5", "0x10", "\u0661", "+1", "1_000", ".", "9999999999")
WHOLE = ("x", "-1", "1.5", "1e3", " 1", "\u0661", "+1", "1_000")
BOOLEAN = ("yes", "1", "0", "on", "tru", " true")
URLS = (
    "api.example",
    "ftp://api.example",
    "//api.example",
    "https://",
    "https:///path",
    "https://api.example:port",
    "https://api.example:99999",
    "https://api.example/?query",
    "https://api.example/#fragment",
    "https://api.example/ü",
    "https://api.example/a b",
    "https://api.example/\n",
    "\thttps://api.example",
    "https://a..b/",
    f"https://{'a' * 64}.example",
    "https://[::1",
)

SECONDS_TAKEN = "a decimal number of seconds, e.g. 2.5"
PEM = "the path of a readable file of certificates (PEM)"
BLOCK = "a number of bytes from 1 to 4294967295"

INVALID: dict[str, tuple[tuple[str, ...], str]] = {
    "DROGUE_API_URL": (URLS, "the base URL of Drogue Cloud, e.g. https://api.example.com"),
    "DROGUE_OIDC_TOKEN_URL": (URLS, "the URL of the token endpoint, e.g. https://sso.example.com/token"),
    "DROGUE_MQTT_URL": (
        (
            *(
                "mqtt.example",
                "https://mqtt.example",
                "mqtts://",
                "mqtts://u:p@mqtt.example",
                "mqtts://mqtt.example/path",
            ),
            *(
                "mqtts://mqtt.example:x",
                "wss://mqtt.example/?q",
                "wss://mqtt.example/#f",
                "mqtt://a b",
                "mqtt://ü",
                "mqtt://a..b",
            ),
        ),
        "the URL of the MQTT integration, e.g. mqtts://mqtt-integration.example.com:443",
    ),
    "MQTT_APPLICATIONS": (("a_b", "a/b", "a,#", "-a", ",", "+"), "names of applications, separated by commas, or *"),
    "MQTT_EXCLUDE": (("*", "a,*", "ü"), "names of applications, separated by commas"),
    "MQTT_GROUP": (("a/b", "+", "a b", "x" * 65), "a name of 1 to 64 letters, digits, dots, underscores and hyphens"),
    "MQTT_CONNECTIONS": (("0", "65", "x"), "a number of connections from 1 to 64"),
    "HAWKBIT_URL": (URLS, "the base URL of hawkBit, e.g. https://hawkbit.example.com"),
    "APPLICATIONS": (
        (",", "a_b", "acme,-a", "a-", "a..b", "a.-b", "a" * 64, f"{'a.' * 127}a", "*", "ä"),
        "names of applications, separated by commas",
    ),
    "DEVICE_LABELS": ((",", "ring", "=new", "ring=new,site", "!ring"), "labels as in ring=new,site=oslo"),
    "FIRMWARE_REGISTRY": (
        (
            *("oci-layout:", "https://ghcr.io/acme", "ghcr.io/Acme", "ghcr.io/a b", "/acme", "ghcr.io/a?b"),
            *("ghcr.io/a\n", "ghcr.io//a", "ghcr.io/a//", "ghcr.io/../a", "ghcr.io:99999/a", "ghcr.io:x/a", "a..b/c"),
            *("ghcr.io/a**", "ghcr.io/*/a", "ghcr.io/a*/", "ghcr.io/a___*", "ghcr.io/A*", "oci-layout:*"),
            *("[::1/a", "user@ghcr.io/a", "ghcr.io/{application}/A", "ghcr.io/{device}", "ghcr.io/{application"),
            *("oci-layout:/nothere", "oci-layout:/nothere/{application}", "oci-layout:nothere/x-{application}"),
            *("oci-layout:/dev/null", "oci-layout:/dev/null/{application}", "oci-layout:/{device}", "oci-layout:/x}"),
        ),
        "a prefix of references such as ghcr.io/acme/, or oci-layout: and an existing folder",
    ),
    "DROGUE_CA_FILE": (("/nowhere", "/", "\udcff"), PEM),
    "FIRMWARE_REGISTRY_CA_FILE": (("/nowhere", "/"), PEM),
    "FIRMWARE_REGISTRY_TOKEN_FILE": (
        ("/nowhere", "/", "/dev/null", "/etc/passwd"),
        "the path of a file that holds a token, and nothing else",
    ),
    "HAWKBIT_CA_FILE": (("/nowhere", "/"), PEM),
    "FIRMWARE_DIR": (("/nowhere", "/dev/null"), "an existing folder"),
    "FIRMWARE_CACHE_DIR": (
        ("/dev/null", "/dev/null/below", "/proc/below"),
        "a folder that can be written or created, and that no other user owns",
    ),
    "DROGUE_USER": (("a:b",), "the user of the access token, without a colon"),
    "EVENTS_USER": (("a:b",), "the user that events present, without a colon"),
    "FIRMWARE_DEFAULT_IMAGE": (
        ("Not A Ref!!", "a:b:c", "../x", "{app}:latest", "x}:latest"),
        "a reference: name, name:tag or name@sha256:…",
    ),
    "FIRMWARE_REGISTRY_INSECURE": (BOOLEAN, "true or false"),
    "PREVIEW": (BOOLEAN, "true or false"),
    "REPORT_STATUS": (BOOLEAN, "true or false"),
    "FIRMWARE_CACHE_BYTES": ((*WHOLE, "0", "9" * 20, "512M"), "a number of bytes above 0"),
    "SPEC_TTL_SECONDS": (SECONDS, SECONDS_TAKEN),
    "IN_SYNC_TTL_SECONDS": (SECONDS, SECONDS_TAKEN),
    "MANIFEST_TTL_SECONDS": (SECONDS, SECONDS_TAKEN),
    "EVENT_DEADLINE_SECONDS": (
        (*SECONDS, "86400.5", "2147484"),
        "a decimal number of seconds up to 86400 (a day), e.g. 2.5",
    ),
    "EVENT_MAX_AGE_SECONDS": (SECONDS, SECONDS_TAKEN),
    "POLL_SECONDS": ((*WHOLE, "4294967296"), "a whole number of seconds"),
    "WAIT_SECONDS": ((*WHOLE, "4294967296"), "a whole number of seconds"),
    "MTU_DEFAULT": ((*WHOLE, "0", "4294967296"), BLOCK),
    "MTU_MAX": ((*WHOLE, "0", "4294967296"), BLOCK),
    "K_SINK": (URLS, "the http or https URL of a sink for CloudEvents, which Knative's SinkBinding sets"),
    "K_CE_OVERRIDES": (
        (
            *("nonsense", "[]", "null", '"extensions"', '{"extensions": []}', '{"extensions": {"team": 1}}'),
            *('{"extensions": {"Team": "x"}}', '{"extensions": {"the-team": "x"}}', '{"extensions": {"": "x"}}'),
            *('{"extensions": {"id": "x"}}', '{"extensions": {"data": "x"}}', '{"extensions": {"team": null}}'),
            *('{"extensions": {"a": "1", "a": "2"}}', "{'extensions': {}}", "{", "\udcff"),
        ),
        'JSON as in {"extensions": {"team": "pumps"}}: names of a-z and 0-9, texts',
    ),
    "LOG_LEVEL": (("loud", "TRACE", "10", "INFO "), "DEBUG or INFO or WARNING or ERROR or CRITICAL"),
    "LOG_FORMAT": (("xml", "json,text"), "json or text"),
    "HOST": (
        ("256.0.0.1", "1", "0x7f.1", "example.com", "127.0.0.1:80", "[127.0.0.1]", "[::1", "::1]", " ::1", ":::", "*"),
        "an IP address of this machine, e.g. 127.0.0.1 or ::1",
    ),
    "PORT": ((*WHOLE, "65536"), "a TCP port from 0 to 65535"),
    "WEB_CONCURRENCY": ((*WHOLE, "0", "1025"), "a number of processes from 1 to 1024"),
    "THREADS": ((*WHOLE, "0", "1025"), "a number of threads from 1 to 1024"),
}


@pytest.mark.parametrize(
    ("variable", "text"), [(variable, text) for variable, (texts, _) in INVALID.items() for text in texts]
)
def test_an_invalid_value_is_shown_with_what_to_set(variable: str, text: str) -> None:
    line = told(REQUIRED | WITH.get(variable, {}) | {variable: text})
    assert line.startswith((f"{variable} is '", f'{variable} is "'))
    assert line.endswith(f". Set it to {INVALID[variable][1]}")
    assert line.count("Set it to") == 1


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("FIRMWARE_REGISTRY", "https://ghcr.io/acme/", "is a URL: leave out https://"),
        (
            "FIRMWARE_REGISTRY",
            "HTTP://127.0.0.1:5000/",
            "is a URL: leave out http://, and set FIRMWARE_REGISTRY_INSECURE=true",
        ),
        ("FIRMWARE_REGISTRY", "ghcr.io*", "has no slash between the host and the *"),
        ("FIRMWARE_REGISTRY", "localhost:5000*", "has no slash between the host and the *"),
        ("SPEC_TTL_SECONDS", "-1", "is below 0"),
        ("EVENT_DEADLINE_SECONDS", "-0.5", "is below 0"),
        ("POLL_SECONDS", "-1", "is below 0"),
        ("MTU_MAX", "-1", "is below 1"),
        ("FIRMWARE_CACHE_DIR", "{0}/file", "is a file, not a folder"),
        ("FIRMWARE_CACHE_DIR", "{0}/file/below", "cannot be used: Not a directory"),
        ("FIRMWARE_DIR", "{0}/file", "is a file, not a folder"),
        ("FIRMWARE_DIR", "{0}/none", "does not exist"),
        ("DROGUE_CA_FILE", "{0}/none", "does not exist"),
        ("DROGUE_CA_FILE", "{0}/file", "has no certificates (PEM)"),
        ("FIRMWARE_REGISTRY_CA_FILE", "{0}", "cannot be used: Is a directory"),
    ],
)
def test_an_invalid_value_is_told_with_its_problem(tmp_path: Path, variable: str, value: str, problem: str) -> None:
    (tmp_path / "file").touch()
    value = value.format(tmp_path)
    assert told(REQUIRED | {variable: value}).startswith(f"{variable} is '{value}', which {problem}. Set it to ")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("oci-layout:{0}/nothere", "a folder that does not exist: '{0}/nothere'"),
        ("oci-layout:{0}/nothere/{{application}}", "a folder that does not exist: '{0}/nothere'"),
        ("oci-layout:{0}/nothere/x-{{application}}/y", "a folder that does not exist: '{0}/nothere'"),
        ("oci-layout:{0}/nothere/x-*", "a folder that does not exist: '{0}/nothere'"),
        ("oci-layout:{0}/file", "a file, not a folder: '{0}/file'"),
        ("oci-layout:{0}/file/x", "a folder that does not exist: '{0}/file/x'"),
    ],
)
def test_a_folder_of_layouts_has_to_exist(tmp_path: Path, value: str, problem: str) -> None:
    (tmp_path / "file").touch()
    value = value.format(tmp_path)
    assert told(REQUIRED | {"FIRMWARE_REGISTRY": value}).startswith(
        f"FIRMWARE_REGISTRY is '{value}', which names {problem.format(tmp_path)}. Set it to "
    )


@pytest.mark.parametrize("below", ["", "/later-{application}", "/{application}/later", "/later-*", "/*"])
def test_layouts_may_come_later(tmp_path: Path, below: str) -> None:
    prefix = f"oci-layout:{tmp_path}{below}"
    assert read(FIRMWARE_REGISTRY=prefix).firmware_registry == prefix


def test_a_cache_folder_that_another_user_owns_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    line = told(REQUIRED | {"FIRMWARE_CACHE_DIR": str(tmp_path)})
    assert line.startswith(
        f"FIRMWARE_CACHE_DIR is '{tmp_path}', which is not safe: "
        f"'{tmp_path}' belongs to user {tmp_path.stat().st_uid}. Set it to a folder that "
    )


def test_a_cache_folder_whose_files_others_may_write_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(path: Path, _: int) -> None:
        """Make a file as a file system does that has the same mode for all of them."""
        path.write_bytes(b"")
        path.chmod(0o777)

    monkeypatch.setattr(Path, "touch", touch)
    line = told(REQUIRED | {"FIRMWARE_CACHE_DIR": str(tmp_path / "new")})
    assert line.startswith(f"FIRMWARE_CACHE_DIR is '{tmp_path}/new', which is not safe: ")
    assert "can be written by other users (mode 0777). Set it to a folder that " in line
    assert not list(tmp_path.iterdir())


def test_a_volume_that_is_open_to_others_gets_a_folder_of_our_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o2777)
    assert read(FIRMWARE_CACHE_DIR=str(tmp_path)).firmware_cache_dir == f"{tmp_path}/fleet-firmware-{os.geteuid()}"


@pytest.mark.parametrize("variable", REQUIRED)
@pytest.mark.parametrize("text", [None, ""])
def test_what_is_required_is_missed(variable: str, text: str | None) -> None:
    environment = {name: value for name, value in REQUIRED.items() if name != variable}
    line = told(environment if text is None else environment | {variable: text})
    others = ", or set FIRMWARE_DIR or HAWKBIT_URL instead" if variable == "FIRMWARE_REGISTRY" else ""
    assert line == f"{variable} is not set. Set it to {INVALID[variable][1]}{others}"


def test_files_or_hawkbit_need_no_registry(tmp_path: Path) -> None:
    cloud = {"DROGUE_API_URL": "https://api.example"}
    hawkbit = {"HAWKBIT_URL": "https://hawkbit.example", "HAWKBIT_GATEWAY_TOKEN": "t"}
    for firmware in ({"FIRMWARE_DIR": str(tmp_path)}, hawkbit):
        settings = Settings.from_environment(cloud | firmware)
        assert not settings.has_images
        assert not Settings.for_operator(cloud | firmware).has_images
    assert Settings.for_operator(cloud | {"FIRMWARE_DIR": str(tmp_path)}).finds_firmware
    assert not Settings.for_operator(cloud | hawkbit).finds_firmware


def test_a_default_image_needs_a_registry(tmp_path: Path) -> None:
    cloud = {"DROGUE_API_URL": "https://api.example"}
    line = told(cloud | {"FIRMWARE_DIR": str(tmp_path), "FIRMWARE_DEFAULT_IMAGE": "pump"})
    assert line.startswith("FIRMWARE_REGISTRY is not set, although FIRMWARE_DEFAULT_IMAGE is. Set it to a prefix")


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        ("a", {"MQTT_EXCLUDE": "a"}),
        ("a,b", {"APPLICATIONS": "c"}),
        ("a,b", {"APPLICATIONS": "b,c", "MQTT_EXCLUDE": "b"}),
        ("*", {"APPLICATIONS": "b", "MQTT_EXCLUDE": "b"}),
    ],
)
def test_a_subscription_takes_events_of_an_application_at_least(wanted: str, others: dict[str, str]) -> None:
    environment = REQUIRED | {"DROGUE_MQTT_URL": "mqtts://mqtt.example", "MQTT_APPLICATIONS": wanted}
    assert told(environment | others) == (
        f"MQTT_APPLICATIONS is '{wanted}', of which APPLICATIONS and MQTT_EXCLUDE leave none. Set it to names of "
        "applications, separated by commas, or *"
    )
    with pytest.raises(SettingsError, match="leave none"):
        Settings.for_sink(environment | others)
    assert Settings.from_environment(environment | {"MQTT_EXCLUDE": "d"}).mqtt_exclude == ("d",)
    assert Settings.from_environment(environment | {"APPLICATIONS": "b,a"}).mqtt_applications


def test_all_violations_are_told_at_once() -> None:
    line = told({"PORT": "x", "PREVIEW": "x", "EVENTS_USER": "x"})
    assert re.findall(r"(?:^|; )(\w+) is ", line) == [
        "DROGUE_API_URL",
        "PREVIEW",
        "PORT",
        "EVENTS_PASSWORD",
        "FIRMWARE_REGISTRY",
    ]


def test_a_file_that_holds_no_certificate_is_not_taken(tmp_path: Path) -> None:
    for number, content in enumerate(("", "no certificate", CERTIFICATE)):
        path = tmp_path / str(number)
        path.write_text(content)
        assert "DROGUE_CA_FILE" in told(REQUIRED | {"DROGUE_CA_FILE": str(path)})


@pytest.mark.parametrize(
    ("environment", "missed", "because"),
    [
        ({"DROGUE_USER": "x"}, {"DROGUE_TOKEN"}, "DROGUE_USER"),
        ({"EVENTS_USER": "x"}, {"EVENTS_PASSWORD"}, "EVENTS_USER"),
        ({"EVENTS_PASSWORD": "x"}, {"EVENTS_USER"}, "EVENTS_PASSWORD"),
        ({"HAWKBIT_URL": "https://hawkbit.example"}, {"HAWKBIT_GATEWAY_TOKEN"}, "HAWKBIT_URL"),
        ({"FIRMWARE_REGISTRY_USER": "x"}, {"FIRMWARE_REGISTRY_TOKEN"}, "FIRMWARE_REGISTRY_USER"),
        (
            {"DROGUE_OIDC_CLIENT_ID": "x"},
            {"DROGUE_OIDC_TOKEN_URL", "DROGUE_OIDC_CLIENT_SECRET"},
            "DROGUE_OIDC_CLIENT_ID",
        ),
    ],
)
def test_half_of_a_pair_is_told_to_lack_the_other(
    environment: Mapping[str, str], missed: set[str], because: str
) -> None:
    violations = told(REQUIRED | dict(environment)).split("; ")
    takes = {setting.variable: setting.kind.takes for setting in SETTINGS.values()}
    assert set(violations) == {
        f"{name} is not set, although {because} is. Set it to {takes[name]}, or unset {because}" for name in missed
    }


def test_an_access_token_and_a_grant_exclude_each_other() -> None:
    grant = {"DROGUE_OIDC_TOKEN_URL": "https://sso.example"} | WITH["DROGUE_OIDC_TOKEN_URL"]
    line = told(REQUIRED | grant | {"DROGUE_TOKEN": "x"})
    assert line == "DROGUE_OIDC_TOKEN_URL is 'https://sso.example', although DROGUE_TOKEN is set. Unset one of them"


def test_the_largest_block_may_be_below_the_default_one() -> None:
    assert read({"MTU_MAX": "256"}).mtu_max_bytes == 256


# --- Secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_kept_out_of_the_representation() -> None:
    environment = (
        dict.fromkeys(SECRETS, "s3cr3t") | {"EVENTS_USER": "x", "DROGUE_USER": "x"} | WITH["HAWKBIT_GATEWAY_TOKEN"]
    )
    del environment["DROGUE_OIDC_CLIENT_SECRET"]
    assert "s3cr3t" not in repr(read(environment))
    grant = WITH["DROGUE_OIDC_CLIENT_SECRET"] | {"DROGUE_OIDC_CLIENT_SECRET": "s3cr3t"}
    assert "s3cr3t" not in repr(read(grant))


@pytest.mark.parametrize("variable", [*SECRETS, "DROGUE_USER", "EVENTS_USER", "DROGUE_OIDC_CLIENT_ID"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("s3cr3t\n", "contains a control character (a trailing newline?). Set it to "),
        ("s3\r\ncr3t", "contains a control character (a trailing newline?). Set it to "),
        ("s3cr3t\0", "contains a control character (a trailing newline?). Set it to "),
        ("s3cr3t\udcff", "contains a character that cannot be printed. Set it to "),
    ],
)
def test_a_credential_that_no_header_can_carry_is_refused(variable: str, text: str, problem: str) -> None:
    line = told(REQUIRED | WITH.get(variable, {}) | {variable: text})
    if variable in SECRETS:
        assert f"{variable} {problem}" in line
        assert "cr3t" not in line
    else:
        assert f"{variable} is {text!a}, which {problem}" in line


@pytest.mark.parametrize("token", ["tökén", "to ken"])
@pytest.mark.parametrize("of", ["DROGUE", "FIRMWARE_REGISTRY"])
def test_a_bearer_token_that_no_header_can_carry_is_refused_and_as_a_password_it_is_fine(of: str, token: str) -> None:
    line = told(REQUIRED | {f"{of}_TOKEN": token})
    assert line == (
        f"{of}_TOKEN contains a character that no bearer token can have (RFC 6750). "
        f"Set it to ASCII characters without spaces, or set {of}_USER as well"
    )
    assert getattr(read({f"{of}_TOKEN": token, f"{of}_USER": "x"}), f"{of.lower()}_token") == token


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": []}', '{"auths": {"": {"auth": "s3cr3t"}}}'])
def test_a_docker_config_that_makes_no_sense_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    line = told(REQUIRED | {"DOCKER_CONFIG": str(tmp_path)})
    assert line.startswith(f"DOCKER_CONFIG is '{tmp_path}'. Set it to a folder whose config.json")
    assert "s3cr3t" not in line


def test_a_token_and_a_file_of_it_exclude_each_other() -> None:
    line = told(REQUIRED | {"FIRMWARE_REGISTRY_TOKEN": "s3cr3t", "FIRMWARE_REGISTRY_TOKEN_FILE": TOKEN_FILE})
    assert line.endswith("although FIRMWARE_REGISTRY_TOKEN is set. Unset one of them")
    assert "s3cr3t" not in line
    assert read(FIRMWARE_REGISTRY_USER="x", FIRMWARE_REGISTRY_TOKEN_FILE=TOKEN_FILE).firmware_registry_user == "x"


@pytest.mark.parametrize("registry", ["ghcr.io", "ghcr.io/", "ghcr.io/acme", "ghcr.io/acme/"])
def test_a_prefix_ends_in_a_slash(registry: str, tmp_path: Path) -> None:
    assert read(FIRMWARE_REGISTRY=registry).firmware_prefix == f"{registry.rstrip('/')}/"
    assert read(FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}").firmware_prefix == f"{tmp_path}/"


@pytest.mark.parametrize("registry", ["ghcr.io/acme/fw-", "ghcr.io/", "ghcr.io/acme/", "oci-layout:/fw-"])
def test_a_prefix_before_an_asterisk_is_used_as_it_is(registry: str) -> None:
    assert read(FIRMWARE_REGISTRY=f"{registry}*").firmware_prefix == registry.removeprefix("oci-layout:")


@pytest.mark.parametrize("variable", SECRETS)
def test_secrets_are_not_told_with_what_is_wrong_elsewhere(variable: str) -> None:
    assert "s3cr3t" not in told({variable: "s3cr3t", "PORT": "x"})


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cr3t@api.example",
        "https://s3cr3t@api.example",
        "https://user:s3/cr3t@api.example/path",
        "https://user:x@s3cr3t@api.example",
        "https://user:x//s3cr3t@api.example",
        "user:s3cr3t@api.example",
        "user:s3cr3t//x@api.example",
        "https://user:s3cr3t?x@api.example",
        "https://user:s3cr3t#x@api.example",
        "https://api.example/?token=s3cr3t",
        "https://api.example/?token=s3@cr3t",
        "https://api.example/#s3cr3t",
        "https://user\n:s3cr3t@api.example",
    ],
)
@pytest.mark.parametrize("variable", ["DROGUE_API_URL", "FIRMWARE_REGISTRY", "DROGUE_OIDC_TOKEN_URL", "HAWKBIT_URL"])
def test_credentials_in_a_url_are_not_told(variable: str, text: str) -> None:
    line = told(REQUIRED | {variable: text})
    assert variable in line
    assert "s3" not in line
    assert "cr3t" not in line


@given(
    st.dictionaries(
        st.sampled_from([*VARIABLES, "DROGUE_CA_FILE"]),
        st.text(st.characters(exclude_characters="\0"), max_size=30) | st.from_regex(r"\A[0-9.]{1,6}\Z"),
    )
)
def test_whatever_the_environment_holds_it_makes_settings_or_one_line(environment: dict[str, str]) -> None:
    try:
        settings = Settings.from_environment(REQUIRED | environment)
    except SettingsError as error:
        assert str(error).isprintable()
    else:
        assert settings.drogue_api_url


@pytest.mark.parametrize(
    ("variable", "value", "known"),
    [
        ("FIRMWARE_REGISTRY", "oci-layout:/{device}", "{application}"),
        ("FIRMWARE_REGISTRY", "oci-layout:/{application", "{application}"),
        ("FIRMWARE_DEFAULT_IMAGE", "{app}:latest", "{application} and {device}"),
        ("FIRMWARE_DEFAULT_IMAGE", "x}:latest", "{application} and {device}"),
    ],
)
def test_an_unknown_placeholder_is_told_with_the_known_ones(variable: str, value: str, known: str) -> None:
    line = told(REQUIRED | {variable: value})
    assert line.startswith(f"{variable} is '{value}', which has a placeholder other than {known}. Set it to ")


def test_placeholders_are_left_to_the_reference() -> None:
    settings = read(FIRMWARE_REGISTRY="ghcr.io/{application}/", FIRMWARE_DEFAULT_IMAGE="{application}/{device}:latest")
    assert settings.firmware_prefix == "ghcr.io/{application}/"
    assert settings.firmware_default_image == "{application}/{device}:latest"


# --- Keys and the deny list -------------------------------------------------------------------------------------------

KEYS = Path(__file__).parents[1] / "support" / "signed" / "keys"
DIGEST = f"sha256:{'0f' * 32}"


def test_keys_are_a_file_or_a_folder() -> None:
    assert read(FIRMWARE_VERIFY_KEYS=str(KEYS)).firmware_verify_keys == str(KEYS)
    file = str(next(KEYS.iterdir()))
    assert read(FIRMWARE_VERIFY_KEYS=file).firmware_verify_keys == file


def test_keys_of_applications_may_be_added_later(tmp_path: Path) -> None:
    path = str(tmp_path / "{application}" / "keys.pem")
    assert read(FIRMWARE_VERIFY_KEYS=path).firmware_verify_keys == path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has no public key (PEM)"),
        (CERTIFICATE.encode(), "has a certificate; only public keys (PEM) are taken"),
        (b"-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n", "has a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nMC4C\n-----END PUBLIC KEY-----\n", "has a malformed public key"),
        (b"x" * 70_000, "is larger than 65536 bytes"),
    ],
)
def test_files_without_good_keys_stop_the_start(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    line = told(REQUIRED | {"FIRMWARE_VERIFY_KEYS": str(file)})
    assert "FIRMWARE_VERIFY_KEYS" in line
    assert problem in line
    assert "MC4C" not in line


def test_missing_keys_stop_the_start(tmp_path: Path) -> None:
    assert "No such file" in told(REQUIRED | {"FIRMWARE_VERIFY_KEYS": str(tmp_path / "none.pem")})
    assert "has no keys" in told(REQUIRED | {"FIRMWARE_VERIFY_KEYS": str(tmp_path)})
    assert "folder that does not exist" in told(REQUIRED | {"FIRMWARE_VERIFY_KEYS": "/none/{application}.pem"})
    assert "placeholder" in told(REQUIRED | {"FIRMWARE_VERIFY_KEYS": f"{tmp_path}/{{device}}.pem"})


def test_a_deny_list_is_read_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "denied"
    file.write_text(f"# bad\n\n{DIGEST} # loops\n")
    assert read(FIRMWARE_DENY=str(file)).firmware_deny == str(file)
    file.write_text(f"{DIGEST}\nsensor:1.2.3\n")
    assert "line 2: 'sensor:1.2.3' is no digest" in told(REQUIRED | {"FIRMWARE_DENY": str(file)})
    assert "No such file" in told(REQUIRED | {"FIRMWARE_DENY": str(tmp_path / "none")})
