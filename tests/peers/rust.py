"""Sends real devices through updates against sandbox and function; the exit code tells whether all went right.

python -m tests.peers device [--board NAME] [--scenario NAME] [--seed N] [--jobs N] [--folder DIR] [--transcripts FILE]
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TextIO

import click

from tests.peers.cloud import Cloud, running
from tests.peers.courses import BOARDS, SCENARIOS, Course, Kind, Plain, Scenario, by_chance, new
from tests.peers.drive import Result, drive
from tests.peers.firmware import Shelf
from tests.peers.table import HEAD, Sum, is_right, line

_DEVICE: Final = Path(__file__).parent / "device"
#: Lets the crates name what was not stable when they were made, and is now.
_BOOTSTRAP: Final = "1"
#: Failed courses that are told in full.
_TOLD: Final = 3
#: And their lines.
_LINES: Final = 60


@click.command()
@click.option("--board", "boards", type=click.Choice(BOARDS), multiple=True, help="Only these devices. Repeatable.")
@click.option("--scenario", "scenarios", type=click.Choice(list(SCENARIOS)), multiple=True, help="Only these.")
@click.option("--seed", type=int, default=1, show_default=True, help="What chance is drawn from.")
@click.option("--jobs", type=click.IntRange(min=1), default=12, show_default=True, help="Devices at once.")
@click.option("--folder", type=click.Path(path_type=Path), help="A new folder for images and logs, which is kept.")
@click.option("--transcripts", type=click.File("w"), help="Where each course is told, moment by moment.")
def main(
    boards: Sequence[str],
    scenarios: Sequence[str],
    seed: int,
    jobs: int,
    folder: Path | None,
    transcripts: TextIO | None,
) -> None:
    """Sends real devices through updates, and tells what came out."""
    binary = _built()
    chosen: dict[str, Scenario] = {**SCENARIOS, "by chance": partial(by_chance, seed=seed)}
    began = time.monotonic()
    failed: list[tuple[str, Course, Result]] = []
    everything: list[tuple[Course, Result]] = []
    with (
        _place(folder) as place,
        running(place) as cloud,
        closing(_Driven(cloud, Shelf(place / "images"), binary, jobs)) as driven,
    ):
        click.echo(HEAD)
        rows = [
            (board, name, driven.all(list(chosen[name](Kind(board), undisturbed))))
            for board in boards or BOARDS
            for undisturbed in (driven.undisturbed(Kind(board)),)
            for name in scenarios or chosen
        ]
        for board, name, ending in rows:
            if outcomes := list(ending):
                click.echo(line(board, name, outcomes))
                everything += outcomes
                failed += [(name, *outcome) for outcome in outcomes if not is_right(*outcome)]
                for course, result in outcomes if transcripts else ():
                    print(_told(name, course, result), file=transcripts, flush=True)
    _tell(failed, everything, time.monotonic() - began)
    sys.exit(1 if failed else 0)


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    """A folder to work in: this one, or one for as long as it is needed."""
    if folder:
        folder.mkdir(parents=True)
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        yield Path(name)


class _Driven:
    """Drives courses, several at once, each as an application of its own."""

    def __init__(self, cloud: Cloud, shelf: Shelf, binary: Path, jobs: int) -> None:
        self._cloud = cloud
        self._shelf = shelf
        self._binary = binary
        self._pool = ThreadPoolExecutor(jobs)
        self._names = itertools.count(1)

    def close(self) -> None:
        """Start no more courses, and wait for those under way."""
        self._pool.shutdown(cancel_futures=True)

    def all(self, courses: Sequence[Course]) -> Iterator[tuple[Course, Result]]:
        """What comes out of each course; all of them are under way or wait for their turn at once."""
        return zip(courses, self._pool.map(self._one, courses), strict=True)

    def undisturbed(self, kind: Kind) -> Plain:
        """The moments of an update in which nothing happens."""
        return Plain(self._one(Course(kind, new(kind))).moments)

    def _one(self, course: Course) -> Result:
        return drive(course, f"course-{next(self._names)}", self._cloud, self._shelf, self._binary)


def _built() -> Path:
    """The device's program, built where it is not yet."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise click.ClickException("make peers needs cargo, Rust's build tool: https://rustup.rs")
    binary = Path(os.environ.get("CARGO_TARGET_DIR", _DEVICE / "target")) / "release" / "peer-device"
    if not binary.exists():
        click.echo("cargo builds the device: two minutes, the first time")
    build = (cargo, "build", "--release", "--locked", "--quiet")
    if subprocess.run(build, cwd=_DEVICE, env={**os.environ, "RUSTC_BOOTSTRAP": _BOOTSTRAP}).returncode:
        raise click.ClickException("cargo could not build the device")
    return binary


def _tell(failed: list[tuple[str, Course, Result]], everything: list[tuple[Course, Result]], seconds: float) -> None:
    for name, course, result in failed[:_TOLD]:
        told = _told(name, course, result).splitlines()
        if len(told) > _LINES:
            told[_LINES // 2 : -_LINES // 2] = [f"     … {len(told) - _LINES} lines …"]
        click.echo("\n" + "\n".join(told))
    row = Sum.of(everything)
    click.echo(
        f"\n{row.runs} courses in {seconds:.0f} s: {row.runs - len(failed)} as they have to be, {row.bricked} bricked, "
        f"{row.wrong} of wrong bytes"
    )
    if len(failed) > _TOLD:
        click.echo(f"{len(failed) - _TOLD} more are told with ARGS='device --transcripts FILE'")


def _told(name: str, course: Course, result: Result) -> str:
    ended = (
        "bricked"
        if result.bricked
        else "started bytes that nobody published"
        if result.wrong
        else "arrived"
        if result.arrived
        else "stayed"
        if not course.arrives
        else "did not arrive"
    )
    verdict = "ok   " if is_right(course, result) else "WRONG"
    head = f"{verdict} {name}: {course}: {ended}, {result.exchanges} exchanges, power cut {result.helped} times"
    return "\n".join((head, *result.transcript))
