"""The group of rollout commands."""

import click

from fleet_fn.cli.rollout import advance, retry, show, simple, start


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)


@click.group("rollout", cls=_InOrder)
def command() -> None:
    """Show and steer the rollout of an application's firmware.

    Each command reads and changes the application in the device registry, through DROGUE_API_URL and your own
    credentials, whose role has to be manager or admin. It prints the difference that it makes; with --dry-run it makes
    none. If another process changes the application at the same time, the change is made again on top of that.

    If K_SINK is set, it gets an event for each change.
    """


for _part in (
    show.command,
    start.command,
    simple.pause,
    simple.resume,
    advance.command,
    simple.approve,
    simple.abort,
    retry.command,
):
    command.add_command(_part)
