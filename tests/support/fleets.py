"""Fleets of any size in the registry's form, with devices in each state.

Their `status.firmware` is made by the code that the function writes it with, and an application's rollout by that of
the operator's commands. The same seed makes the same fleet.
"""

import hashlib
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fleet_fn.drogue.rollout_status import RolloutStatus, with_failure
from fleet_fn.drogue.spec_policy import Policy, read_policy
from fleet_fn.drogue.status_report import (
    BLOCK_REFUSED,
    CONFIRMING,
    FAILED,
    GIVEN_UP,
    IN_SYNC,
    PROGRESS,
    UNKNOWN,
    Condition,
    HoldReport,
    Report,
)
from fleet_fn.drogue.update_record import LastAnswered, Record
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor, Start, Target
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.update.policy import Candidate, hold_draw

Object = dict[str, Any]

NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
STAGES: Final[tuple[Mapping[str, Any], ...]] = (
    {"percent": 1, "after": "2h", "success": 95},
    {"percent": 10, "after": "6h", "success": 95},
    {"percent": 50, "after": "12h", "success": 97, "approval": True},
    {"percent": 100, "over": "6h"},
)
#: Names that must show as they are, and do nothing.
HOSTILE: Final = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(2)</script>",
    "a/b?c=d&e=f#g",
    "%2e%2e/%3Cb%3E",
    "../../etc/passwd",
    "{{ 7*7 }}{% if 1 %}",
    "javascript:alert(3)",
    "\N{ROCKET} lamp \N{BLACK HEART SUIT}",
    "\N{RIGHT-TO-LEFT OVERRIDE}evas\N{POP DIRECTIONAL FORMATTING} \N{HEBREW LETTER ALEF}",
    "line\nbreak\ttab",
    " spaces  around ",
    "x" * 255,
    "\N{SNOWMAN}" * 85,
)
_SITES: Final = ("oslo", "bergen", "porto", "lyon", "graz")


@dataclass(frozen=True, slots=True)
class Story:
    """How an application and its rollout came to be as they are."""

    application: str = "thermostats"
    devices: int = 400
    seed: int = 1
    before: str = "1.4.2"
    version: str = "1.5.0"
    #: Stages of the rollout, and the index of the one that it has reached; None for no stages.
    stages: tuple[Mapping[str, Any], ...] | None = STAGES
    stage: int = 2
    #: How long ago the rollout began, and reached its stage.
    began: timedelta = timedelta(hours=21)
    reached: timedelta = timedelta(hours=9)
    max_failed: int | None = 20
    #: Share of the devices let in on which the version does not come up.
    failing: float = 0.02
    paused: bool = False
    #: Devices with names, versions and reasons that a page must not take for its own.
    hostile: bool = False
    #: Begun with `rollout start`; else the application only names an image.
    started: bool = True
    now: datetime = NOON
    #: Name of its firmware below FIRMWARE_REGISTRY.
    image: str = "thermostat"


def make_fleet(story: Story) -> list[Object]:
    """Return the application and its devices; each has the UID that goes with its name."""
    teller = _Teller(story)
    devices = list(teller.devices())
    return [teller.application(), *devices]


class _Teller:
    """Makes the objects of a story; the devices first, because the application counts those that failed."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._random = random.Random(story.seed)
        self._policy: Policy = read_policy({"rollout": self._rollout_policy()})
        self._status = RolloutStatus(story.version if story.started else None, story.stage, story.now - story.reached)
        self._failed: list[str] = []

    def _rollout_policy(self) -> Object:
        story = self._story
        return {
            **({"stages": [dict(stage) for stage in story.stages]} if story.stages else {}),
            **({"maxFailed": story.max_failed} if story.max_failed is not None else {}),
            **({"paused": True} if story.paused else {}),
        }

    # --- The application ----------------------------------------------------------------------------------------------

    def application(self) -> Object:
        story = self._story
        found: Object = {
            "metadata": {"name": story.application, "uid": _uid(story.application)},
            "spec": {"firmware": {"container": {"image": f"{story.image}:{story.before}"}}},
        }
        if story.started:
            found = self._start(found)
        elif policy := self._rollout_policy():
            found["spec"]["firmware"] = {"container": {"image": f"{story.image}:{story.version}"}, "rollout": policy}
        section = found.get("status", {}).get("firmware", {}).get("rollout")
        for device in self._failed:
            section = with_failure(section, story.version, device, is_first=True, room_bytes=32_768) or section
        if section:
            found["status"] = {"firmware": {"rollout": section}}
        return found

    def _start(self, found: Object) -> Object:
        story = self._story
        source = ("container", found["spec"]["firmware"]["container"])
        target = Target(story.version, f"{self._story.image}@sha256:{_digest(story.version)}")
        before = Target(story.before, f"{self._story.image}@sha256:{_digest(story.before)}")
        wanted = Start(
            f"{story.image}:{story.version}", target, source, before, stages=story.stages, max_failed=story.max_failed
        )
        began = story.now - story.began
        found = actions.start(Application.read(found), wanted, Actor("ada", began)) or found
        for stage in range(story.stage if story.stages else 0):
            share = (stage + 1) / story.stage
            moved = began + (story.began - story.reached) * share
            found = actions.advance(Application.read(found), story.version, stage, Actor("cron", moved)) or found
        if story.paused:
            found = actions.pause(Application.read(found), Actor("grace", story.now - timedelta(minutes=12))) or found
        return found

    # --- Devices ------------------------------------------------------------------------------------------------------

    def devices(self) -> Iterator[Object]:
        story = self._story
        hostile = HOSTILE if story.hostile else ()
        width = len(str(story.devices))
        for number in range(story.devices):
            site = _SITES[number % len(_SITES)]
            name = hostile[number] if number < len(hostile) else f"{site}-{number:0{width}}"
            yield self._device(name, site, number)

    def _device(self, name: str, site: str, number: int) -> Object:
        uid = _uid(f"{self._story.application}/{name}")
        labels = {"site": site, "ring": str(min(self._random.randrange(10), 3))}
        metadata = {"application": self._story.application, "name": name, "uid": uid, "labels": labels}
        section = self._section(name, uid, labels)
        status = {"status": {"firmware": section}} if section else {}
        gateway = {"gatewaySelector": {"matchNames": [f"{site}-gateway"]}} if number % 17 == 5 else {}
        return {"metadata": metadata, **({"spec": gateway} if gateway else {}), **status}

    def _section(self, name: str, uid: str, labels: Mapping[str, str]) -> Object | None:
        story, chance = self._story, self._random.random()
        if chance < 0.01:
            return None
        old = story.before if chance > 0.06 else _older(story.before, self._random)
        if story.hostile and chance < 0.1:
            old = self._random.choice(HOSTILE[:7])
        past = _Past(story, self._random, old)
        candidate = Candidate(uid, labels)
        hold = hold_draw(self._policy, candidate, story.version, story.now, self._status)
        if hold is not None:
            return past.held(HoldReport(hold.reason, hold.message, hold.until))
        return self._let_in(name, past)

    def _let_in(self, name: str, past: "_Past") -> Object:
        """Return the section of a device that may have the version."""
        story, roll = self._story, self._random.random()
        if roll < story.failing:
            self._failed.append(name)
            how = self._random.choice((past.rolled_back, past.rolled_back, past.gave_up))
            return how()
        others: tuple[tuple[float, Callable[[], Object]], ...] = (
            (0.005, past.refusing),
            (0.005, past.unresolved),
            (0.01, past.stalled),
            (0.03, past.writing),
            (0.01, past.swapping),
            (0.005, past.confirming),
            (0.01, past.in_window),
        )
        if story.paused and roll < story.failing + 0.1:
            return past.held(HoldReport("paused", "updates are paused"))
        bound = story.failing
        for share, how in others:
            bound += share
            if roll < bound:
                return how()
        return past.in_sync()


class _Past:
    """What a device reported until now, and what the function wrote of it."""

    def __init__(self, story: Story, chance: random.Random, old: str) -> None:
        self._story = story
        self._random = chance
        self._old = old
        self._now = story.now
        #: When the device began with the version: most of them soon after they were let in.
        wait = min(chance.expovariate(3.0), 0.95)
        stage_began = chance.choice((story.began, story.reached)) if story.stage else story.began
        self._started = story.now - stage_began * (1 - wait)
        installed = story.now - timedelta(days=chance.randrange(30, 90))
        first = Report(old, old, (Condition(IN_SYNC, "True"),), None, self._record(old, installed))
        self._section = first.merge_into(None, installed)

    def _record(self, version: str, time: datetime, **fields: Any) -> Record:
        answered = LastAnswered((f"{self._random.getrandbits(64):016x}",), time)
        return Record(version, _digest(version), answered=answered, **fields)

    def _write(self, at: datetime, *conditions: Condition, **fields: Any) -> Object:
        before = Record.read(self._section["update"])
        current = fields.pop("current", self._old)
        target = fields.pop("target", self._story.version)
        report = Report(current, target, conditions, before, fields.pop("record", before), **fields)
        self._section = report.merge_into(self._section, at)
        return self._section

    def _behind(self, at: datetime, reason: str = "", message: str = "", **fields: Any) -> Object:
        percent = fields.pop("percent", None)
        progress = [] if percent is None else [Condition(PROGRESS, "Unknown", message=f"{percent:.2f}")]
        more = fields.pop("more", ())
        return self._write(at, Condition(IN_SYNC, "False", reason, message), *progress, *more, **fields)

    def _begin(self, started: datetime | None = None, **fields: Any) -> Record:
        """Write the first block."""
        started = started or self._started
        record = self._record(self._story.version, started, **fields).with_start(started)
        self._behind(started, percent=0.25, record=record)
        return record

    def _ago(self, most: timedelta) -> datetime:
        return self._now - most * self._random.random()

    # --- How it went --------------------------------------------------------------------------------------------------

    def held(self, hold: HoldReport) -> Object:
        at = self._now - self._story.began * self._random.uniform(0.7, 1.0)
        return self._behind(at, hold.reason, hold.message, hold=hold)

    def in_sync(self) -> Object:
        record = self._begin()
        swapped = self._started + timedelta(minutes=self._random.uniform(2, 30))
        ended = min(swapped + timedelta(seconds=self._random.uniform(20, 90)), self._now)
        record = record.with_swap(swapped)
        self._behind(swapped, percent=100, record=record)
        version = self._story.version
        return self._write(
            ended, Condition(IN_SYNC, "True"), current=version, target=version, record=record.with_sync(ended)
        )

    def writing(self) -> Object:
        record = self._begin(self._ago(timedelta(minutes=12)))
        return self._behind(self._ago(timedelta(seconds=50)), percent=self._random.uniform(1, 99), record=record)

    def stalled(self) -> Object:
        silent = self._now - timedelta(minutes=self._random.uniform(75, 500))
        record = self._begin(silent - timedelta(minutes=4))
        return self._behind(silent, percent=self._random.uniform(1, 99), record=record)

    def swapping(self) -> Object:
        record = self._begin(self._ago(timedelta(minutes=10))).with_swap(self._ago(timedelta(minutes=1)))
        return self._behind(self._now, percent=100, record=record)

    def confirming(self) -> Object:
        at = self._ago(timedelta(minutes=2))
        message = "it came up with its new version, and is told to keep it before the next update"
        return self._behind(at, CONFIRMING, message)

    def in_window(self) -> Object:
        opens = (self._now + timedelta(hours=9)).replace(minute=0)
        return self._behind(
            self._started,
            "window",
            f"the window opens at {opens.isoformat(timespec='minutes')}",
            hold=HoldReport("window", f"the window opens at {opens.isoformat(timespec='minutes')}", opens),
        )

    def rolled_back(self) -> Object:
        record = self._fail(self._begin().with_swap(self._started), self._started)
        message = f"{self._story.version} did not come up, attempts: 1 of 3"
        hold = HoldReport("backoff", message, self._now + timedelta(minutes=7))
        return self._behind(
            min(self._started + timedelta(minutes=3), self._now), "backoff", message, hold=hold, record=record
        )

    def gave_up(self) -> Object:
        record, at = self._begin(), self._started
        for _ in range(3):
            record, at = self._fail(record.with_swap(at), at), at + timedelta(minutes=10)
        advice = "a new version, or fleet-fn rollout retry, starts afresh"
        message = f"{self._story.version} did not come up, attempts: 3; {advice}"
        failed = Condition(FAILED, "True", GIVEN_UP, message)
        return self._behind(
            min(at, self._now), GIVEN_UP, message, more=(failed,), hold=HoldReport(GIVEN_UP, message), record=record
        )

    def _fail(self, record: Record, at: datetime) -> Record:
        return record.with_failed_swap(min(at + timedelta(minutes=3), self._now).replace(microsecond=0))

    def refusing(self) -> Object:
        record = self._begin(self._ago(timedelta(minutes=30)))
        message = (
            "refuses the block at 2048, or never gets it: asked for it 4 times in a row; firmware should be padded to "
            "32 bytes (publish --pad-to 32)"
        )
        return self._behind(self._ago(timedelta(minutes=2)), BLOCK_REFUSED, message, percent=2.5, record=record)

    def unresolved(self) -> Object:
        reason = "unsigned" if not self._story.hostile else HOSTILE[1]
        return self._behind(
            self._ago(timedelta(hours=3)),
            reason,
            f"no key of FIRMWARE_VERIFY_KEYS has signed {self._story.image}",
            target=UNKNOWN,
            record=replace(Record.read(self._section["update"]) or Record("", "")),
        )


def _older(version: str, chance: random.Random) -> str:
    major, minor, _ = version.split(".")
    return f"{major}.{max(int(minor) - chance.randrange(1, 4), 0)}.{chance.randrange(3)}"


def _digest(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
