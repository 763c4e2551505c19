"""Environment variables: one row each, read once and checked once.

The rows are the fields of `Settings`. `SETTINGS` lists them for the documentation.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet_fn import setting_values as kinds
from fleet_fn.oci.reference import LAYOUT_SCHEME, VERBATIM
from fleet_fn.setting_table import Reader, Setting, SettingsError, required, row, rows_of
from fleet_fn.setting_values import ALL, UnfitError, cache_folder, quote

__all__ = ["MAX_WAITING", "SETTINGS", "SPARE_THREADS", "WORK_SHARE", "Settings", "SettingsError"]

#: Events that may wait in a worker while THREADS others are in progress. Further threads answer health checks, and
#: refuse further events, even if all of these hang.
MAX_WAITING: Final = 56
SPARE_THREADS: Final = 8
#: Share of EVENT_DEADLINE_SECONDS for the function's work; the rest is for the server and the network.
WORK_SHARE: Final = 0.97


# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The function's settings, in the units of their variables."""

    drogue_api_url: str = required(
        "DROGUE_API_URL",
        kinds.base_url("the base URL of Drogue Cloud, e.g. https://api.example.com"),
        "base URL of Drogue Cloud's registry and command APIs",
    )
    drogue_user: str | None = row(
        "DROGUE_USER",
        None,
        kinds.user("the user of the access token, without a colon"),
        "user of the access token: with it HTTP Basic, without it Bearer",
    )
    drogue_token: str | None = row(
        "DROGUE_TOKEN", None, kinds.secret("an access token of Drogue Cloud"), "access token"
    )
    drogue_oidc_token_url: str | None = row(
        "DROGUE_OIDC_TOKEN_URL",
        None,
        kinds.endpoint("the URL of the token endpoint, e.g. https://sso.example.com/token"),
        "token endpoint of an OpenID client, instead of an access token (client credentials grant)",
    )
    drogue_oidc_client_id: str | None = row(
        "DROGUE_OIDC_CLIENT_ID", None, kinds.identifier("the id of the OpenID client"), "its client id"
    )
    drogue_oidc_client_secret: str | None = row(
        "DROGUE_OIDC_CLIENT_SECRET", None, kinds.secret("the secret of the OpenID client"), "its secret"
    )
    drogue_ca_file: str | None = row(
        "DROGUE_CA_FILE",
        None,
        kinds.TRUST_ANCHORS,
        "PEM file of trust anchors for Drogue Cloud and for the token endpoint",
        default_text="the system's",
    )

    applications: tuple[str, ...] = row(
        "APPLICATIONS",
        (),
        kinds.APPLICATIONS,
        "applications that this function serves: names, separated by commas; events of others are `ignored`",
        default_text="all",
    )
    device_labels: Mapping[str, str] | None = row(
        "DEVICE_LABELS",
        None,
        kinds.LABELS,
        "labels that devices need to be served by this function, as in `ring=new,site=oslo`; others are `ignored`",
    )

    mqtt_url: str | None = row(
        "DROGUE_MQTT_URL",
        None,
        kinds.MQTT_URL,
        "URL of Drogue Cloud's MQTT integration, to [take events from it](run-anywhere.md): `mqtts://`, `mqtt://`, "
        "`wss://` or `ws://`",
    )
    mqtt_applications: tuple[str, ...] = row(
        "MQTT_APPLICATIONS",
        (),
        kinds.APPLICATIONS_OR_ALL,
        "applications whose events `fleet-fn serve` takes from there: names, separated by commas, or `*` for all that "
        "the token can see",
        default_text="none",
    )
    mqtt_exclude: tuple[str, ...] = row(
        "MQTT_EXCLUDE", (), kinds.APPLICATIONS, "applications that are left out of these", default_text="none"
    )
    mqtt_group: str = row(
        "MQTT_GROUP", "fleet-fn", kinds.GROUP, "group of subscribers that share the events: each event goes to one"
    )
    mqtt_connections: int = row(
        "MQTT_CONNECTIONS",
        1,
        kinds.CONNECTIONS,
        "connections of each process for each application; over each, Drogue Cloud sends one event at a time",
    )

    firmware_registry: str = row(
        "FIRMWARE_REGISTRY",
        "",
        kinds.PREFIX,
        "prefix of each reference: `ghcr.io/acme/`, or `oci-layout:/srv/firmware` for OCI image layouts in the folders "
        "below; `{application}` is replaced. Names follow a slash, or `*`: `ghcr.io/acme/fw-*`. "
        "Required, unless `FIRMWARE_DIR` or `HAWKBIT_URL` is set",
        default_text="none",
    )
    firmware_registry_user: str | None = row(
        "FIRMWARE_REGISTRY_USER",
        None,
        kinds.user("the user of the OCI registry, without a colon"),
        "user of the registry's credentials",
    )
    firmware_registry_token: str | None = row(
        "FIRMWARE_REGISTRY_TOKEN",
        None,
        kinds.secret("the password or token of the OCI registry"),
        "password or token; alone it is a bearer token",
    )
    firmware_registry_token_file: str | None = row(
        "FIRMWARE_REGISTRY_TOKEN_FILE",
        None,
        kinds.TOKEN_FILE,
        "file with that token instead, read anew each time: for tokens that are renewed, such as that of the pod's "
        "service account",
    )
    firmware_registry_insecure: bool = row(
        "FIRMWARE_REGISTRY_INSECURE", False, kinds.BOOLEAN, "talk plain HTTP to the registry"
    )
    firmware_registry_ca_file: str | None = row(
        "FIRMWARE_REGISTRY_CA_FILE",
        None,
        kinds.TRUST_ANCHORS,
        "PEM file of trust anchors for the registry",
        default_text="the system's",
    )
    docker_config: str | None = row(
        "DOCKER_CONFIG",
        None,
        kinds.DOCKER_CONFIG,
        "folder whose `config.json` has the registry's credentials, if `FIRMWARE_REGISTRY_TOKEN` is not set",
    )
    firmware_default_image: str | None = row(
        "FIRMWARE_DEFAULT_IMAGE",
        None,
        kinds.IMAGE,
        "firmware if neither device nor application names one; `{application}` and `{device}` are replaced",
    )
    firmware_verify_keys: str | None = row(
        "FIRMWARE_VERIFY_KEYS",
        None,
        kinds.KEYS,
        "file of public keys (PEM), or folder of such files; `{application}` is replaced. With it, only firmware that "
        "one of them [has signed](trust.md) is served",
    )
    firmware_deny: str | None = row(
        "FIRMWARE_DENY",
        None,
        kinds.DENY_LIST,
        "file of digests, one in a line, of firmware that no device gets, [signed or not](trust.md)",
    )
    firmware_dir: str | None = row("FIRMWARE_DIR", None, kinds.FOLDER, "folder of the firmware that `file` names")
    firmware_cache_dir: str = row(
        "FIRMWARE_CACHE_DIR",
        "",
        kinds.CACHE_FOLDER,
        "folder of fetched firmware; shared by the pod's processes, and safe to lose. No other user may own it",
        default_text="`fleet-firmware-UID` in the system's temporary directory",
    )
    firmware_cache_bytes: int = row(
        "FIRMWARE_CACHE_BYTES",
        512 * 1024 * 1024,
        kinds.CACHE_BYTES,
        "bound on that folder; the least recently used firmware goes first. Larger firmware is refused",
    )

    hawkbit_url: str | None = row(
        "HAWKBIT_URL",
        None,
        kinds.base_url("the base URL of hawkBit, e.g. https://hawkbit.example.com"),
        "base URL of the DDI server that assigns firmware to devices with a `hawkbit` source, such as "
        "[hawkBit](hawkbit.md)",
    )
    hawkbit_tenant: str = row("HAWKBIT_TENANT", "DEFAULT", kinds.text("the tenant in hawkBit"), "its tenant")
    hawkbit_gateway_token: str | None = row(
        "HAWKBIT_GATEWAY_TOKEN", None, kinds.secret("the gateway token of the tenant"), "the tenant's gateway token"
    )
    hawkbit_ca_file: str | None = row(
        "HAWKBIT_CA_FILE",
        None,
        kinds.TRUST_ANCHORS,
        "PEM file of trust anchors for the DDI server",
        default_text="the system's",
    )

    spec_ttl_seconds: float = row("SPEC_TTL_SECONDS", 10.0, kinds.SECONDS, "how long the function remembers specs")
    in_sync_ttl_seconds: float = row(
        "IN_SYNC_TTL_SECONDS",
        0.0,
        kinds.SECONDS,
        "how long it remembers the objects of devices in sync, if that is longer: "
        "[for fleets with registry events](scale.md#what-do-idle-devices-cost)",
    )
    manifest_ttl_seconds: float = row(
        "MANIFEST_TTL_SECONDS", 30.0, kinds.SECONDS, "how long it remembers tags' manifests"
    )
    poll_seconds: int = row(
        "POLL_SECONDS", 300, kinds.WHOLE_SECONDS, "when a device in sync, or one whose update failed, asks again"
    )
    wait_seconds: int = row(
        "WAIT_SECONDS", 10, kinds.WHOLE_SECONDS, "when a device asks again whose firmware is being verified"
    )
    mtu_default_bytes: int = row("MTU_DEFAULT", 512, kinds.BLOCK_BYTES, "bytes of a block if the device names no size")
    mtu_max_bytes: int = row("MTU_MAX", 65536, kinds.BLOCK_BYTES, "bytes of a block at most")
    report_seen_seconds: float = row(
        "REPORT_SEEN_SECONDS", 86400.0, kinds.SECONDS, "how often the object of a device in sync says that it was seen"
    )
    event_deadline_seconds: float = row(
        "EVENT_DEADLINE_SECONDS", 4.0, kinds.DEADLINE_SECONDS, "every event is answered within this time"
    )
    event_max_age_seconds: float = row(
        "EVENT_MAX_AGE_SECONDS", 25.0, kinds.SECONDS, "older events are `stale`; 0 answers them all"
    )

    events_user: str | None = row(
        "EVENTS_USER",
        None,
        kinds.user("the user that events present, without a colon"),
        "user of the Basic credentials that events and previews must carry",
    )
    events_password: str | None = row(
        "EVENTS_PASSWORD", None, kinds.secret("the password that events present"), "password of that user"
    )
    events_token: str | None = row(
        "EVENTS_TOKEN",
        None,
        kinds.secret("the token that events present"),
        "Bearer token that events and previews must carry",
    )
    preview: bool = row("PREVIEW", True, kinds.BOOLEAN, "serve `/preview`")
    report_status: bool = row(
        "REPORT_STATUS",
        True,
        kinds.BOOLEAN,
        "write `status.firmware`; without it there are no attempts, and nothing guards a device midway",
    )
    sink_url: str | None = row(
        "K_SINK",
        None,
        kinds.endpoint("the http or https URL of a sink for CloudEvents, which Knative's SinkBinding sets"),
        "URL that [update events](audit.md) are sent to; Knative's SinkBinding sets it",
    )
    sink_overrides: Mapping[str, str] | None = row(
        "K_CE_OVERRIDES",
        None,
        kinds.OVERRIDES,
        "extension attributes of these events, as JSON; SinkBinding sets it, too",
    )
    log_level: str = row("LOG_LEVEL", "INFO", kinds.LOG_LEVEL, "least level of the lines on stdout")
    log_format: str = row("LOG_FORMAT", "json", kinds.LOG_FORMAT, "`json`, or `text` for people")

    host: str = row("HOST", "0.0.0.0", kinds.ADDRESS, "IP address to listen on")  # noqa: S104 - a pod's is its own
    port: int = row("PORT", 8080, kinds.PORT, "TCP port to listen on")
    workers: int = row(
        "WEB_CONCURRENCY",
        1,
        kinds.PROCESSES,
        "worker processes; [each uses one CPU at most](connections.md#which-cpu-does-a-worker-run-on)",
    )
    threads: int = row("THREADS", 8, kinds.THREADS, "events that each worker works on at once")

    def serves(self, application: str) -> bool:
        """Return whether the function answers devices of an application."""
        return not self.applications or application in self.applications

    @property
    def has_images(self) -> bool:
        """Return whether images can be had: from an OCI registry, or image layouts."""
        return bool(self.firmware_registry)

    @property
    def finds_firmware(self) -> bool:
        """Return whether the operator's tools can find firmware: in images, or in files."""
        return self.has_images or self.firmware_dir is not None

    @property
    def has_layouts(self) -> bool:
        """Return whether firmware lies in image layouts rather than in an OCI registry."""
        return self.firmware_registry.startswith(LAYOUT_SCHEME)

    @property
    def is_anonymous(self) -> bool:
        """Return whether there are no credentials for Drogue Cloud."""
        return self.drogue_token is None and self.drogue_oidc_token_url is None

    @property
    def firmware_prefix(self) -> str:
        """Prefix of references, which ends in `/` unless `*` marks its end.

        Otherwise `ghcr.io/acme` would allow `ghcr.io/acme-evil`.
        """
        prefix = self.firmware_registry.removeprefix(LAYOUT_SCHEME)
        if prefix.endswith(VERBATIM):
            return prefix.removesuffix(VERBATIM)
        return prefix if prefix.endswith("/") else f"{prefix}/"

    @property
    def address(self) -> str:
        """Host and port to listen on, in the form of URLs."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings of `environment`; an empty variable counts as not set.

        Raises:
            SettingsError: a variable is missing or invalid.

        """
        read = Reader(environment, SETTINGS)
        values = {name: read.value(setting) for name, setting in SETTINGS.items()}
        values["firmware_cache_dir"] = values["firmware_cache_dir"] or _default_cache_folder(read)
        _check_drogue(read)
        _check_events(read)
        _check_subscription(read, values)
        read.check_any("FIRMWARE_REGISTRY", "FIRMWARE_DIR", "HAWKBIT_URL")
        _check_registry(read)
        read.check_together("HAWKBIT_URL", "HAWKBIT_GATEWAY_TOKEN")
        read.finish()
        return cls(**values)

    @classmethod
    def for_sink(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings of a process that takes events over MQTT and posts them.

        Those of firmware do not count; `firmware_registry` is empty.

        Raises:
            SettingsError: a variable is missing or invalid.

        """
        read = Reader(environment, SETTINGS)
        prefixes = ("DROGUE_", "APPLICATIONS", "MQTT_", "EVENT", "LOG_", "THREADS")
        rows = {name: each for name, each in SETTINGS.items() if each.variable.startswith(prefixes)}
        values = {name: read.value(each) for name, each in rows.items()}
        _check_drogue(read)
        _check_events(read)
        _check_subscription(read, values)
        read.finish()
        return cls(firmware_registry="", **values)

    @classmethod
    def for_drogue(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings for Drogue Cloud and the sink, without firmware.

        Raises:
            SettingsError: a variable is missing or invalid.

        """
        read = Reader(environment, SETTINGS)
        shown = ("DROGUE_", "K_")
        values = {name: read.value(each) for name, each in SETTINGS.items() if each.variable.startswith(shown)}
        _check_drogue(read)
        read.finish()
        return cls(**values)

    @classmethod
    def for_hawkbit(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings for the DDI server alone.

        Raises:
            SettingsError: a variable is missing or invalid.

        """
        read = Reader(environment, SETTINGS)
        values = {name: read.value(each) for name, each in SETTINGS.items() if each.variable.startswith("HAWKBIT_")}
        read.check_any("HAWKBIT_URL")
        read.check_needs("HAWKBIT_URL", "HAWKBIT_GATEWAY_TOKEN")
        read.finish()
        return cls(drogue_api_url="", **values)

    @classmethod
    def for_operator(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Return the settings for Drogue Cloud, the sink and firmware.

        Those of firmware count only if FIRMWARE_REGISTRY or FIRMWARE_DIR is set. The folder of the cache is the
        function's, so it is left out.

        Raises:
            SettingsError: a variable is missing or invalid.

        """
        if not (environment.get("FIRMWARE_REGISTRY") or environment.get("FIRMWARE_DIR")):
            return cls.for_drogue(environment)
        read = Reader(environment, SETTINGS)
        prefixes = ("DROGUE_", "K_", "FIRMWARE_", "DOCKER_CONFIG")
        rows = {name: each for name, each in SETTINGS.items() if each.variable.startswith(prefixes)}
        values = {name: read.value(each) for name, each in rows.items() if name != "firmware_cache_dir"}
        _check_drogue(read)
        _check_registry(read)
        read.finish()
        return cls(**values)


#: Each variable, by the field of `Settings` that holds its value.
SETTINGS: Final[Mapping[str, Setting]] = rows_of(Settings)


# --- Reading ----------------------------------------------------------------------------------------------------------


def _check_drogue(read: Reader) -> None:
    read.check_needs("DROGUE_USER", "DROGUE_TOKEN")
    read.check_together("DROGUE_OIDC_TOKEN_URL", "DROGUE_OIDC_CLIENT_ID", "DROGUE_OIDC_CLIENT_SECRET")
    read.check_apart("DROGUE_OIDC_TOKEN_URL", "DROGUE_TOKEN")
    read.check_bearer("DROGUE_TOKEN", unless="DROGUE_USER")


def _check_events(read: Reader) -> None:
    read.check_together("EVENTS_USER", "EVENTS_PASSWORD")
    read.check_needs("MQTT_APPLICATIONS", "DROGUE_MQTT_URL")


def _check_subscription(read: Reader, values: Mapping[str, Any]) -> None:
    """Refuse a subscription that can never take an event."""
    wanted, served = set(values["mqtt_applications"]), set(values["applications"])
    taken = [names for names in (wanted, served) if names and ALL not in names]
    if wanted and taken and set.intersection(*taken) <= set(values["mqtt_exclude"]):
        text = quote(read.text("MQTT_APPLICATIONS") or "")
        read.violate("MQTT_APPLICATIONS", f"is {text}, of which APPLICATIONS and MQTT_EXCLUDE leave none")


def _check_registry(read: Reader) -> None:
    read.check_needs("FIRMWARE_DEFAULT_IMAGE", "FIRMWARE_REGISTRY")
    read.check_apart("FIRMWARE_REGISTRY_TOKEN_FILE", "FIRMWARE_REGISTRY_TOKEN")
    if read.text("FIRMWARE_REGISTRY_TOKEN_FILE") is None:
        read.check_needs("FIRMWARE_REGISTRY_USER", "FIRMWARE_REGISTRY_TOKEN")
    read.check_bearer("FIRMWARE_REGISTRY_TOKEN", unless="FIRMWARE_REGISTRY_USER")


def _default_cache_folder(read: Reader) -> str:
    """Return the default folder for the cache; empty if the variable is set."""
    variable = SETTINGS["firmware_cache_dir"].variable
    if read.text(variable) is not None:
        return ""
    try:
        return cache_folder()
    except UnfitError as error:
        read.violate(variable, f"is not set, and the default folder {error}")
    except ValueError:
        read.violate(variable, "is not set, and the default folder cannot be written")
    return ""
