"""What the options of `build` say together."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Final

import click

from fleet_fn.builds.description import check_text
from fleet_fn.builds.pipeline_run import FREE_PARAMS, Secrets
from fleet_fn.builds.trigger import Event
from fleet_fn.drogue.spec_values import MalformedSpecError, join_words
from fleet_fn.oci.reference import is_tag

#: Value of `--watch` that names no run.
CREATED: Final = "\0"
#: Names of Kubernetes objects (RFC 1123), and quantities such as 2Gi.
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY: Final = re.compile(r"[1-9][0-9]{0,5}(?:Ki|Mi|Gi|Ti|k|M|G|T)?")


class KubernetesName(click.ParamType[str]):
    """The name of an object in Kubernetes: no other text becomes part of a URL."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; anything else is a usage error."""
        if value != CREATED and not _NAME.fullmatch(value):
            self.fail(f"{value!r} is no name of a Kubernetes object", param, ctx)
        return str(value)


class Quantity(click.ParamType[str]):
    """A quantity of Kubernetes, such as 2Gi."""

    name = "quantity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the quantity; anything else is a usage error."""
        if not _QUANTITY.fullmatch(value):
            self.fail(f"{value!r} is no quantity, such as 2Gi", param, ctx)
        return str(value)


class Version(click.ParamType[str]):
    """A version that can be a tag in an OCI registry."""

    name = "version"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the version; anything else is a usage error."""
        if not is_tag(value) or value == "latest":
            self.fail(f"{value!r} can be no version: letters, digits, and _ . - inside; not latest", param, ctx)
        return str(value)


class PipelineParam(click.ParamType[tuple[str, str]]):
    """NAME=VALUE, a parameter of the Pipeline that no build describes."""

    name = "param"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return name and value; anything else is a usage error."""
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        if name not in FREE_PARAMS:
            near = difflib.get_close_matches(name.upper(), FREE_PARAMS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.fail(f"{name!r} is none of {join_words(FREE_PARAMS)}{hint}", param, ctx)
        if name == "BUILD_COMMAND":  # a shell's, and the caller's own
            return name, text
        try:
            return name, check_text(text, name)
        except MalformedSpecError as error:
            self.fail(error.reason, param, ctx)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `build`."""

    application: str | None
    device: str | None
    namespace: str | None
    context: str | None
    version: str | None
    params: tuple[tuple[str, str], ...]
    registry_secret: str | None
    git_secret: str | None
    ssh_secret: str | None
    signing_secret: str | None
    service_account: str | None
    storage: str
    dry_run: bool
    #: A run's name; `CREATED` for the one that is created; None not to watch.
    watch: str | None
    list_runs: bool
    cancel: str | None
    #: The forge whose webhooks begin builds; None creates a run.
    trigger: str | None
    #: What begins them; empty for all.
    events: tuple[str, ...]
    webhook_secret: str | None

    def check(self) -> None:
        """Refuse options that exclude or need each other.

        Raises:
            click.UsageError: they do.

        """
        modes = {
            "--list": self.list_runs,
            "--cancel": self.cancel is not None,
            "--trigger": self.trigger is not None,
            "--dry-run": self.dry_run,
            "--watch": self.watch is not None,
        }
        chosen = [name for name, is_chosen in modes.items() if is_chosen]
        if len(chosen) > 1:
            raise click.UsageError(f"{join_words(chosen)} exclude each other.")
        if self.trigger is None and (self.events or self.webhook_secret):
            raise click.UsageError("--on and --webhook-secret are for --trigger.")
        if self.trigger is not None and self.version is not None:
            raise click.UsageError("--trigger takes no --version: each push has its own.")
        if self.device is not None and self.application is None:
            raise click.UsageError("--device needs --application.")
        if self.creates and self.application is None:
            raise click.UsageError("Name the application to build for: --application NAME. Or --list shows builds.")
        if not self.creates and not self.list_runs and self.application is not None:
            raise click.UsageError(f"{chosen[0]} RUN takes no --application: it names one run.")

    @property
    def creates(self) -> bool:
        """Return whether a run is to be created, or printed."""
        return not self.list_runs and self.cancel is None and self.watch in (None, CREATED)

    @property
    def trigger_events(self) -> frozenset[Event]:
        """Return what begins builds."""
        return frozenset(map(Event, self.events)) or frozenset(Event)

    @property
    def secrets(self) -> Secrets:
        """Return the names of the Secrets."""
        return Secrets(self.registry_secret, self.git_secret, self.ssh_secret, self.signing_secret)
