"""`sandbox`: start a sandbox, print how to use it, and log its events."""

import errno
import itertools
import shlex
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import quote

import click

from fleet_fn.cli.sandbox_mqtt import mqtt_options, read_mqtt
from fleet_fn.cli.sandbox_objects import UnusableError, describe_refusal, read_objects
from fleet_fn.sandbox.cloud import CORE_DISABLED, Sandbox
from fleet_fn.sandbox.deliverers import DELIVERERS, Backoff, Policy
from fleet_fn.sandbox.mqtt.endpoint import MqttPortError
from fleet_fn.sandbox.objects import credentials, names
from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.rights import ROLES
from fleet_fn.setting_values import endpoint

if TYPE_CHECKING:
    from fleet_fn.sandbox.openid import OpenIdUsers

_EXAMPLE: Final = "example"
#: The beginning of the names of its devices, and their password.
_EXAMPLES_DEVICE, _EXAMPLES_PASSWORD = "device", "password"


@click.command("sandbox")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes a free port.")
@click.option(
    "--objects",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Applications and devices in the device registry's format: JSON, or YAML (documents or a list). Repeatable.",
)
@click.option(
    "--devices",
    "count",
    type=click.IntRange(0),
    metavar="COUNT",
    help="Number of devices of the application example, which a sandbox has without --objects.  [default: 1]",
)
@click.option("--sink", metavar="URL", help="URL of the function, which gets the events. Without it, they are dropped.")
@click.option("--sink-user", metavar="NAME", help="User name for the sink (Basic).")
@click.option("--sink-password", metavar="PASSWORD", help="Password for the sink (Basic).")
@click.option("--sink-token", metavar="TOKEN", help="Token for the sink (Bearer).")
@click.option(
    "--deliver-as",
    type=click.Choice(list(DELIVERERS)),
    default="event-source",
    show_default=True,
    help="The deliverer to imitate, see above.",
)
@click.option("--retry", type=click.IntRange(0), metavar="COUNT", help="Attempts after the first.")
@click.option("--backoff-delay", type=click.FloatRange(0), metavar="SECONDS", help="Pause before the first retry.")
@click.option("--backoff-policy", type=click.Choice(get_args(Backoff)), help="Growth of the pause.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Time-out of one attempt.")
@click.option("--user", default="sandbox", show_default=True, help="User name for the registry and command APIs.")
@click.option("--token", default="sandbox", show_default=True, help="Access token for the registry and command APIs.")
@click.option(
    "--member",
    "members",
    metavar="USER:ROLE",
    multiple=True,
    help=f"Another user of the APIs, with the same token. ROLE, in all applications: {', '.join(ROLES)}. Repeatable.",
)
@click.option(
    "--oidc-issuer",
    metavar="URL",
    help="OpenID provider whose access tokens the APIs take, too. Their users are members by preferred_username.",
)
@click.option("--oidc-client", metavar="ID", help="Client of that provider that the tokens have to be for.")
@click.option(
    "--core-disabled",
    type=click.Choice(CORE_DISABLED),
    default="as-released",
    show_default=True,
    help="How to read spec.core.disabled. The command API of released clouds inverts a device's.",
)
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Divide the pauses and time-outs of delivery.",
)
@mqtt_options
def command(
    port: int,
    files: tuple[Path, ...],
    count: int | None,
    sink: str | None,
    sink_user: str | None,
    sink_password: str | None,
    sink_token: str | None,
    deliver_as: str,
    retry: int | None,
    backoff_delay: float | None,
    backoff_policy: Backoff | None,
    timeout: float | None,
    user: str,
    token: str,
    members: tuple[str, ...],
    oidc_issuer: str | None,
    oidc_client: str | None,
    core_disabled: str,
    speed: float,
    mqtt_port: int | None,
    mqtt_partitions: int | None,
    mqtt_cert: Path | None,
    mqtt_key: Path | None,
) -> None:
    """Run a small Drogue Cloud on this machine.

    It has Drogue Cloud's device endpoint, registry API and command API on one loopback port. It delivers events to a
    sink, one at a time per application. It keeps nothing when it ends.

    --deliver-as event-source imitates drogue-event-source. Names are raw UTF-8, and Basic credentials come twice. An
    attempt lasts 5 s; 5xx and no answer are retried 5 times, 1 s apart. Then the deliverer restarts at the same event.

    --deliver-as knative imitates a KafkaSource. Names are ISO 8859-1, with ? for other characters. An attempt lasts
    600 s; 5xx, 404, 408, 409, 429 and no answer are retried 10 times, with pauses of 0.6 s, 1.2 s, 2.4 s, and so on.
    Then the event is given up.

    --deliver-as encoded follows the CloudEvents HTTP binding. Names are percent-encoded; credentials come once. Retries
    are those of event-source.

    --retry, --backoff-delay, --backoff-policy and --timeout change the retries, like a KafkaSource's spec.delivery.

    --mqtt-port serves the MQTT integration besides, from which subscribers take events without a sink.
    """
    if files and count is not None:
        raise UnusableError("--devices is for the application example: leave it out, or leave out --objects")
    mqtt = read_mqtt(mqtt_port, mqtt_partitions, mqtt_cert, mqtt_key)
    found = [named for file in files for named in read_objects(file)]
    objects = [named.given for named in found] if files else _example(1 if count is None else count)
    try:
        sandbox = Sandbox(
            objects,
            sink=sink,
            sink_user=sink_user,
            sink_password=sink_password,
            sink_token=sink_token,
            user=user,
            token=token,
            port=port,
            speed=speed,
            deliver_as=deliver_as,
            members=dict(map(_member, members)),
            core_disabled=core_disabled,
            openid=_openid(oidc_issuer, oidc_client),
            mqtt=mqtt,
            delivery=_policy(deliver_as, retry, backoff_delay, backoff_policy, timeout),
            log=_print,
        )
    except RefusedError as refusal:
        raise UnusableError(describe_refusal(refusal, found)) from refusal
    except ValueError as error:
        raise UnusableError(str(error)) from error
    _allow_many_connections()
    with _signals() as wait_for_signal:
        try:
            sandbox.start()
        except MqttPortError as error:
            raise UnusableError(_port_problem("--mqtt-port", mqtt_port, error)) from error
        except OSError as error:
            raise UnusableError(_port_problem("--port", port, error)) from error
        try:
            _welcome(sandbox, objects, user, token)
            wait_for_signal()
        finally:
            sandbox.stop()


def _example(count: int) -> list[Mapping[str, Any]]:
    """Return the objects of a sandbox without --objects.

    They are an application and `count` devices.
    """
    firmware = {"container": {"image": f"{_EXAMPLE}:latest"}}
    authentication = {"credentials": [{"pass": _EXAMPLES_PASSWORD}]}
    devices = [
        {
            "metadata": {"application": _EXAMPLE, "name": f"{_EXAMPLES_DEVICE}{number}"},
            "spec": {"authentication": authentication},
        }
        for number in range(1, count + 1)
    ]
    return [{"metadata": {"name": _EXAMPLE}, "spec": {"firmware": firmware}}, *devices]


def _port_problem(option: str, port: int | None, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            problem = f"but another process listens on 127.0.0.1:{port}. Stop it, or name a free port"
        case errno.EACCES:
            problem = "but this user may not listen there. Name a port from 1024 on"
        case _:
            problem = f"but nothing can listen there: {error.strerror}"
    return f"{option} is {port}, {problem}"


def _member(text: str) -> tuple[str, str]:
    """Return the name and the role of a `--member`."""
    name, _, role = text.rpartition(":")
    return name, role


def _openid(issuer: str | None, client: str | None) -> "OpenIdUsers | None":
    """Return the users of an OpenID provider; None if none is given."""
    if issuer is None and client is None:
        return None
    if issuer is None or client is None:
        raise UnusableError("--oidc-issuer and --oidc-client belong together: give both, or leave out both")
    from fleet_fn.openid.provider import Provider
    from fleet_fn.sandbox.openid import OpenIdUsers

    try:
        url = endpoint("").parse(issuer)
    except ValueError as error:
        raise UnusableError(
            f"--oidc-issuer is {issuer}. Give a URL, e.g. https://sso.example.com/realms/drogue"
        ) from error
    return OpenIdUsers(Provider(url, ca_file=None), client)


def _policy(
    deliver_as: str, retry: int | None, delay: float | None, backoff: Backoff | None, timeout: float | None
) -> Policy:
    """Return the deliverer's own policy, changed by the options that are given."""
    own = DELIVERERS[deliver_as].policy
    return Policy(
        own.retries if retry is None else retry,
        own.delay_seconds if delay is None else delay,
        own.backoff if backoff is None else backoff,
        own.timeout_seconds if timeout is None else timeout,
    )


def _welcome(sandbox: Sandbox, objects: list[Mapping[str, Any]], user: str, token: str) -> None:
    """Print how to use the sandbox, in lines that can be pasted into a shell."""
    _print(f"Drogue Cloud sandbox at {sandbox.url}, until Ctrl-C")
    _print(f"  events go to  {sandbox.sink or ('MQTT only' if sandbox.mqtt_url else 'nowhere: use --sink URL')}")
    mqtt = {"DROGUE_MQTT_URL": sandbox.mqtt_url} if sandbox.mqtt_url else {}
    apis = {"DROGUE_API_URL": sandbox.url, **mqtt, "DROGUE_USER": user, "DROGUE_TOKEN": token}
    _print("  the function  " + " ".join(f"{name}={shlex.quote(value)}" for name, value in apis.items()))
    named = [(*names(given), given) for given in objects]
    for application, device, _ in named:
        if device is None:
            count = sum(other is not None and of == application for of, other, _ in named)
            _print(f"  application   {application}, devices: {count}")
    passwords = {
        (application, device): password
        for application, device, given in named
        if device is not None and (password := _password(given)) is not None
    }
    for (application, device), password in passwords.items():
        _print("  simulated     " + shlex.join(_simulation(sandbox.url, application, device, passwords)))
        # The endpoint splits at @ and decodes what is before it.
        login = f"{quote(device, safe='')}@{application}:{password}"
        status = ("-H", "Content-Type: application/json", "-d", '{"version": "0.1.0", "mtu": 512}')
        _print("  as a device   " + shlex.join(("curl", "-iu", login, *status, f"{sandbox.url}/v1/dfu?ct=30")))
        break


def _simulation(url: str, application: str, device: str, passwords: Mapping[tuple[str, str], str]) -> list[str]:
    """Return the command that simulates a device, with those numbered like it.

    `device1` stands for all of device1, device2 and so on that have its password.
    """
    password = passwords[application, device]
    stem = device.removesuffix("1")
    last = next(last for last in itertools.count(1) if passwords.get((application, f"{stem}{last + 1}")) != password)
    many = stem != device and last > 1
    names = ["--device", stem, "--count", str(last)] if many else ["--device", device]
    return ["fleet-fn", "device", "--url", url, "--application", application, *names, "--password", password]


def _password(device: Mapping[str, Any]) -> str | None:
    passwords = [entry.get("pass") for entry in credentials(device) if isinstance(entry, dict)]
    plain = [password.get("plain") if isinstance(password, dict) else password for password in passwords]
    return next((password for password in plain if isinstance(password, str)), None)


@contextmanager
def _signals() -> Iterator[Callable[[], object]]:
    """Yield a function that waits for Ctrl-C or SIGTERM.

    A signal that came before the call counts, too.
    """
    # Python runs signal handlers in the main thread only. A lock or a queue would not wake that thread if a signal
    # arrives in another thread, or right before the wait. Python writes the wake-up byte in whichever thread it is.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    numbers = (signal.SIGINT, signal.SIGTERM)
    with reader, writer:
        fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        try:
            yield lambda: reader.recv(1)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(fd_before)


def _allow_many_connections() -> None:
    """Raise the limit of open files.

    A thousand devices wait on a thousand sockets, more than the default allows.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _print(line: str) -> None:
    with suppress(OSError):  # stdout's reader is gone
        click.echo(line)
