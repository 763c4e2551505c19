"""Drives whole updates through programs of others, and prints a table of what came out.

python -m tests.peers [NAME ...] [--build-seconds N] [--list]
python -m tests.peers device [--board NAME] [--scenario NAME] [--seed N] …
"""

import sys
from collections.abc import Sequence

import click

from tests.peers.catalog import PEERS
from tests.peers.run import drive, table
from tests.peers.rust import main as device
from tests.peers.workshop import Workshop

_NAMES = {entry.name.lower(): entry for entry in PEERS}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", type=click.Choice(list(_NAMES), case_sensitive=False))
@click.option("--list", "lists", is_flag=True, help="Print the names, and end.")
@click.option(
    "--build-seconds", type=click.IntRange(min=1), default=1800, show_default=True, help="Bound on all builds."
)
def main(names: Sequence[str], lists: bool, build_seconds: int) -> None:
    """Drive whole updates through the peers of these names, or through all.

    What a peer needs is built or fetched first. The name `device` and options
    after it run the Rust devices only: see `device --help`.

    Exits with 1 if a peer fails. One that cannot be had is named.
    """
    if lists:
        for entry in PEERS:
            click.echo(f"{entry.name.lower():16} {entry.driven or 'cannot be had'}")
        return
    chosen = [entry for name, entry in _NAMES.items() if not names or name in {each.lower() for each in names}]
    rows = list(drive(chosen, Workshop(build_seconds)))
    click.echo("\n" + table(rows))
    sys.exit(1 if any(row.is_failure for row in rows) else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["device"]:
        device(sys.argv[2:], prog_name="python -m tests.peers device")
    main(prog_name="python -m tests.peers")
