"""The demo's second part: a bad rollout halts by itself, and its fix follows.

The operator's commands run as an operator would run them, in processes of their own.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.status_report import CONFIRMING
from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.sandbox.device_run import DeviceOptions, run_device

APPLICATION: Final = "street"
IMAGE: Final = "street-light"
OLD_VERSION: Final = "1.0.0"
BAD_VERSION: Final = "1.1.0"
FIXED_VERSION: Final = "1.1.1"
VERSIONS: Final = (OLD_VERSION, BAD_VERSION, FIXED_VERSION)
SIZE_BYTES: Final = 4096
DEVICES: Final = tuple(f"light{number:02}" for number in range(1, 21))
#: The bad version does not come up on each third device, and halts once it failed on this many.
MAX_FAILED: Final = 3
#: Devices that report at the same time. So many more than `MAX_FAILED` may boot the bad version, and fail.
_AT_ONCE: Final = 2
#: How long a round of all devices may take, and a command.
_ROUND_SECONDS: Final = 60.0
_COMMAND_SECONDS: Final = 60.0
#: How long the function may take to answer the events of all devices.
_REPORT_SECONDS: Final = 20.0
#: How often a device may have to be told to keep its version, and once more.
_MAX_RUNS: Final = 6
#: Divides the devices' pauses.
_SPEED: Final = 1000.0


class RolloutDemoError(Exception):
    """An operator's command, or a report, did not end as it should."""


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """The end of the second part."""

    #: Devices that rolled back from the bad version, and those that never got any of it.
    rolled_back: int
    untouched: int
    #: Devices that run the fixed version in the end.
    fixed: int

    @property
    def is_right(self) -> bool:
        """The bad rollout halted in time, and the fix reached every device."""
        most = MAX_FAILED + _AT_ONCE - 1
        return MAX_FAILED <= self.rolled_back <= most and self.untouched > 0 and self.fixed == len(DEVICES)


class _Round(NamedTuple):
    """What a device did until it was told to stay."""

    version: bytes
    rollbacks: int
    blocks: int


class RolloutDemo:
    """Lights of a street, and their operator."""

    def __init__(
        self, sandbox: Sandbox, password: str, settings: Mapping[str, str], on_line: Callable[[str], None]
    ) -> None:
        """Begin with the old version.

        Args:
            sandbox: has the application and its devices.
            password: the devices'.
            settings: environment of the operator's commands.
            on_line: takes the lines that tell how far the demo is.

        """
        self._sandbox, self._password, self._settings, self._on_line = sandbox, password, settings, on_line
        self._versions = dict.fromkeys(DEVICES, OLD_VERSION.encode())

    def run(self) -> RolloutResult:
        """Roll out the bad version, and then its fix.

        Raises:
            RolloutDemoError: a command of the operator's did not end as it should.

        """
        self._operate("rollout", "start", "--image", f"{IMAGE}:{BAD_VERSION}", "--max-failed", str(MAX_FAILED))
        bad = self.report(BAD_VERSION)
        self._operate("fleet", "--summary", code=1)
        stages = ("--stage", "25,approval", "--stage", "100")
        self._operate("rollout", "start", "--image", f"{IMAGE}:{FIXED_VERSION}", *stages)
        self.report(FIXED_VERSION)
        self._operate("rollout", "approve")
        self._operate("rollout", "advance")
        self.report(FIXED_VERSION)
        self._operate("fleet", "--summary")
        fixed = sum(version == FIXED_VERSION.encode() for version in self._versions.values())
        return RolloutResult(sum(end.rollbacks > 0 for end in bad), sum(end.blocks == 0 for end in bad), fixed)

    def report(self, version: str) -> list[_Round]:
        """Let each device report until it is told to stay with its version."""
        stop = threading.Event()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            runs = [pool.submit(self._run, device, stop) for device in DEVICES]
            try:
                rounds = [run.result(_ROUND_SECONDS) for run in runs]
            finally:
                stop.set()
        new = sum(end.version == version.encode() for end in rounds)
        rolled_back = sum(end.rollbacks > 0 for end in rounds)
        rest = len(rounds) - new - rolled_back
        self._on_line(
            f"devices   {len(rounds)} report: {new} run {version}, {rolled_back} rolled back, {rest} were held back\n"
        )
        return rounds

    def _run(self, device: str, stop: threading.Event) -> _Round:
        """Let a device report until it is told to stay with its version.

        A device whose target moved soon after it came up is told to keep that version first.

        Raises:
            RolloutDemoError: it is never told to stay.

        """
        rollbacks = blocks = 0
        for _ in range(_MAX_RUNS):
            report = run_device(self._options(device), on_line=_drop, stop=stop)
            self._versions[device] = report.version
            rollbacks, blocks = rollbacks + report.rollbacks, blocks + report.blocks
            if not self._sandbox.wait_for_deliveries(APPLICATION, _REPORT_SECONDS):
                break
            firmware = self._sandbox.get(APPLICATION, device).get("status", {}).get("firmware", {})
            if not any(condition.get("reason") == CONFIRMING for condition in firmware.get("conditions", ())):
                return _Round(report.version, rollbacks, blocks)
        raise RolloutDemoError(f"{device} was not told to stay with its version")

    def _options(self, device: str) -> DeviceOptions:
        fails = DEVICES.index(device) % 3 == 2
        return DeviceOptions(
            url=self._sandbox.url,
            application=APPLICATION,
            device=device,
            password=self._password,
            version=self._versions[device],
            mtu=1024,
            reject_versions=frozenset({BAD_VERSION.encode()} if fails else ()),
            once=True,
            speed=_SPEED,
        )

    def _operate(self, *words: str, code: int = 0) -> None:
        """Run a command of the operator's, and show it."""
        command = (*words, "--application", APPLICATION)
        self._on_line(f"$ fleet-fn {' '.join(command)}")
        done = subprocess.run(  # noqa: S603 - this interpreter, and nothing from outside
            [sys.executable, "-m", "fleet_fn", *command],
            env=self._settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        for line in done.stdout.splitlines():
            self._on_line(f"  {line}".rstrip())
        self._on_line("")
        if done.returncode != code:
            raise RolloutDemoError(f"fleet-fn {' '.join(command)} ended with {done.returncode}")


def objects(authentication: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the application and its devices, on the old version."""
    application = {
        "metadata": {"name": APPLICATION},
        "spec": {"firmware": {"container": {"image": f"{IMAGE}:{OLD_VERSION}"}, "maxAttempts": 1}},
    }
    devices = [
        {"metadata": {"application": APPLICATION, "name": device}, "spec": {"authentication": dict(authentication)}}
        for device in DEVICES
    ]
    return [application, *devices]


def _drop(_: str) -> None:
    """Show nothing of single devices."""
