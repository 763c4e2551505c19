"""`demo`: run and print the demo; tell whether every device ended as it should."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from fleet_fn.cli.fleet import print_fleet
from fleet_fn.cli.signals import end_on_sigterm
from fleet_fn.errors import UpstreamError
from fleet_fn.http.client import HttpClient
from fleet_fn.sandbox.demo import DEVICES, NEW_VERSION, DemoResult, UpdateResult, run_demo
from fleet_fn.sandbox.demo_function import DemoError
from fleet_fn.sandbox.demo_rollout import BAD_VERSION, FIXED_VERSION, RolloutDemoError
from fleet_fn.sandbox.demo_rollout import DEVICES as LIGHTS
from fleet_fn.sandbox.local_registry import PROGRAM

_HELP: Final = f"""Update {len(DEVICES)} simulated devices on this machine.

Publishes a generated firmware into an OCI image layout, and starts a sandbox of Drogue Cloud and the function. Then
devices of all dialects go through a real update. One of them needs three attempts, and one is held back. At the end,
prints the fleet as the device registry has it.

Then an operator rolls out a version that fails on each third of {len(LIGHTS)} devices. The rollout halts by itself, and
a fix follows in two stages. With --console, a console shows both fleets until Ctrl-C. Leaves nothing behind.

Exits with 0 only if every device that is not held back runs the new version with the right bytes, the bad rollout
halted in time, and the fix reached all devices.
"""


@click.command("demo", help=_HELP)
@click.option("--registry", "in_registry", is_flag=True, help=f"Publish into a local OCI registry; needs {PROGRAM}.")
@click.option("--subscribe", "subscribes", is_flag=True, help="Let the function take the events over MQTT, not HTTP.")
@click.option("--console", "with_console", is_flag=True, help="Serve the console at the end, until Ctrl-C.")
def command(in_registry: bool, subscribes: bool, with_console: bool) -> None:
    """Run the demo."""
    end_on_sigterm()
    os.environ["NO_PROXY"] = "127.0.0.1"  # else the simulated devices would use the environment's proxy
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-demo-") as folder:
            result = run_demo(
                Path(folder),
                in_registry=in_registry,
                subscribes=subscribes,
                on_line=click.echo,
                show_updates=_print_updates,
                stay=_serve_console if with_console else lambda _: None,
            )
    except (DemoError, RolloutDemoError, UpstreamError) as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("\ninterrupted", err=True)
        sys.exit(130)
    _print_result(result, time.monotonic() - started)
    sys.exit(0 if result.is_right else 1)


def _print_updates(result: UpdateResult, cloud: HttpClient, application: str) -> None:
    click.echo()
    for device, report, success in zip(DEVICES, result.reports, result.successes, strict=True):
        click.echo(f"{'ok   ' if success else 'WRONG'}  {report}")
        click.echo(f"       {device.about}")
    click.echo("\nwhat the device registry knows (fleet-fn fleet):\n")
    print_fleet(cloud, application)
    click.echo(f"\nA rollout that halts by itself: {BAD_VERSION} fails on each third device, which gets one attempt.\n")


def _serve_console(environment: Mapping[str, str]) -> None:
    """Run the console in a process of its own, until a signal ends it."""
    click.echo("\nboth fleets in a browser:\n")
    command = (sys.executable, "-m", "fleet_fn", "console", "--port", "0")
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603 - this interpreter, and nothing from outside
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            click.echo()


def _print_result(result: DemoResult, seconds: float) -> None:
    if result.log_tail:
        click.echo(f"\nthe function's last lines:\n{result.log_tail}", err=True)
    updated = [
        success
        for device, success in zip(DEVICES, result.successes, strict=True)
        if device.expected_version == NEW_VERSION
    ]
    rollout = result.rollout
    click.echo(
        f"{sum(updated)} of {len(updated)} devices run {NEW_VERSION} with the right bytes, "
        f"{len(DEVICES) - len(updated)} held back"
    )
    click.echo(
        f"{BAD_VERSION} halted after {rollout.rolled_back} devices rolled back, and {rollout.untouched} got nothing of "
        f"it; {rollout.fixed} of {len(LIGHTS)} run {FIXED_VERSION}; {seconds:.0f} s in all"
    )
