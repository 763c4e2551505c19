"""The command line: each command's module is loaded only when it is used."""

import importlib

import click

from fleet_fn import __version__

_COMMANDS = (
    "serve",
    "subscribe",
    "publish",
    "inspect",
    "fleet",
    "rollout",
    "console",
    "build",
    "device",
    "sandbox",
    "demo",
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"fleet_fn.cli.{cmd_name}").command
        return command


@click.version_option(__version__, message="%(prog)s %(version)s")
@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Firmware updates for devices on Drogue IoT Cloud."""
