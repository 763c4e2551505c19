"""Drives peers one after the other, and makes a table of what came out."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import click

from tests.peers.catalog import MARK, PEERS, Entry
from tests.peers.workshop import MissingError, Peer, Workshop
from tests.support.function import ROOT

_HEAD: Final = ("peer", "version", "driven", "result", "seconds")
_GRACE_SECONDS: Final = 10
_PASSED: Final = "passed"
_MISSING: Final = "missing"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    version: str
    driven: str
    result: str
    seconds: float
    #: Why a peer is missing, or what was left out.
    note: str = ""

    @property
    def is_failure(self) -> bool:
        return self.result not in (_PASSED, _MISSING)


def drive(entries: Sequence[Entry], workshop: Workshop) -> Iterator[Row]:
    """Get and drive peers, one after the other."""
    for entry in entries:
        try:
            peers = [entry.get(workshop), *(other.get(workshop) for other in PEERS if other.name in entry.needs)]
        except MissingError as reason:
            yield Row(entry.name, "", entry.driven, _MISSING, 0, str(reason))
            continue
        click.echo(f"\n{entry.name} {peers[0].version}: {entry.driven}")
        began = time.monotonic()
        result, note = _run(entry, peers)
        yield Row(entry.name, peers[0].version, entry.driven, result, time.monotonic() - began, note)


def table(rows: Sequence[Row]) -> str:
    """Return the table, and what there is to say besides."""
    cells = [_HEAD, *((row.name, row.version, row.driven, row.result, f"{row.seconds:.0f}") for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, *(f"{row.name}: {row.note}" for row in rows if row.note)])


def _run(entry: Entry, peers: Sequence[Peer]) -> tuple[str, str]:
    """Run what drives a peer; return the result, and a note."""
    folders = [str(folder) for peer in peers for folder in peer.folders]
    environment = {**os.environ, MARK: "1", "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}
    with tempfile.TemporaryDirectory(prefix="fleet-peers-") as place:
        report = Path(place) / "report.xml"
        command = [*entry.arguments, *([f"--junit-xml={report}"] if entry.is_tests else [])]
        # A group of its own: all that it has started ends with it.
        with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
            try:
                code = process.wait(entry.seconds)
            except subprocess.TimeoutExpired:
                _end(process)
                return f"more than {entry.seconds:.0f} s", ""
            except BaseException:
                _end(process)
                raise
        if code:
            return "failed", ""
        return _judged(report) if entry.is_tests else (_PASSED, "")


def _judged(report: Path) -> tuple[str, str]:
    """Return the result of tests that have passed: if all were skipped, they have shown nothing."""
    skipped = [found.get("message", "") for found in ElementTree.parse(report).iter("skipped")]
    total = sum(1 for _ in ElementTree.parse(report).iter("testcase"))
    if len(skipped) == total:
        return "nothing ran", "; ".join(sorted(set(skipped)))
    return _PASSED, "; ".join(f"left out: {re.sub(r'^Skipped: ', '', why)}" for why in sorted(set(skipped)))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
