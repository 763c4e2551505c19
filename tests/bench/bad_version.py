"""How many devices boot a version that fails on some of them, under each policy, and what the caution costs."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import click

from fleet_fn.fleet.rollout.progress import Standing, describe_time
from tests.bench.rollout import TOLERANCE, Share
from tests.bench.simulation import FRESH_SECONDS, Course, Fleet, Simulation

DEVICES: Final = 100_000
#: The share of the devices on which the bad version fails.
FAILING: Final = 0.03
OTHER_FAILING: Final = (0.003, 0.3)
MAX_FAILED: Final = 5
AFTER: Final = timedelta(days=1)
_PERCENTS: Final = (1, 10)
#: Other fleets, for a policy that depends on which devices report first.
HASTY_FLEETS, HASTY_DEVICES = 10, 10_000

_RULE: Final = "-" * 80

Policies = Mapping[str, Mapping[str, Any]]


def _stages(**waits: str) -> list[dict[str, Any]]:
    return [*({"percent": percent, "success": 99, **waits} for percent in _PERCENTS), {"percent": 100}]


NO_POLICY: Final = "no policy"
BRAKE: Final = f"maxFailed {MAX_FAILED}"
STAGES: Final = "stages"
BOTH: Final = f"stages, maxFailed {MAX_FAILED}"
HASTY: Final = "stages without after"
#: `spec.firmware.rollout` of each.
POLICIES: Final[dict[str, Mapping[str, Any]]] = {
    NO_POLICY: {},
    BRAKE: {"maxFailed": MAX_FAILED},
    STAGES: {"stages": _stages(after=f"{AFTER // timedelta(hours=1)}h")},
    BOTH: {"stages": _stages(after=f"{AFTER // timedelta(hours=1)}h"), "maxFailed": MAX_FAILED},
    HASTY: {"stages": _stages()},
}


def run(seed: int) -> list[str]:
    """Print what each policy saves of `DEVICES` devices and costs; return what does not hold."""
    fleet = Fleet.make(DEVICES, seed)
    bad = simulate(fleet, FAILING)
    good = simulate(fleet, 0.0)
    _print_courses(bad, good, seed)
    others = {share: simulate(fleet, share) for share in OTHER_FAILING}
    _print_shares(dict(sorted({**others, FAILING: bad}.items())))
    _print_hasty(seed)
    wrong = [*_check_bad(bad, fleet), *_check_good(good)]
    for share, courses in others.items():
        wrong += [f"{100 * share:g} % failing: {line}" for line in _check_halts(courses)]
    return wrong


def simulate(fleet: Fleet, failing: float, policies: Policies = POLICIES) -> dict[str, Course]:
    """Return the course of a version under each policy."""
    return {name: Simulation(fleet, rollout, failing).run() for name, rollout in policies.items()}


def _print_courses(bad: Mapping[str, Course], good: Mapping[str, Course], seed: int) -> None:
    click.echo(f"a version that fails on {100 * FAILING:g} % of {DEVICES:,} devices, seed {seed}\n")
    click.echo(
        f"{'policy':<23} {'booted it':>9} {'failed on':>9} {'last boot':>11} {'stopped':>11} {'good one':>11}\n{_RULE}"
    )
    for name, course in bad.items():
        click.echo(
            f"{name:<23} {len(course.boots):>9,} {course.rolled_back:>9,} {_time(course.last_boot):>11} "
            f"{_stop(course):>11} {_time(good[name].last_in_sync):>11}"
        )
    click.echo(
        f"\nstages: 1, 10 and 100 percent, success 99, and {describe_time(AFTER)} for each but the last"
        "\nstopped: when the rollout halted, or the stage that success made it stay at"
        "\ngood one: time after which a version that fails nowhere is on all devices"
    )


def _print_shares(courses: Mapping[float, Mapping[str, Course]]) -> None:
    click.echo("\ndevices that boot a version that fails on\n")
    shares = [f"{100 * share:g} %" for share in courses]
    click.echo(_row("policy", *shares) + f"\n{_RULE}")
    for name in POLICIES:
        click.echo(_row(name, *(f"{len(each[name].boots):,}" for each in courses.values())))


def _row(name: str, *cells: str) -> str:
    return " ".join([f"{name:<23}", *(f"{cell:>9}" for cell in cells)])


def _print_hasty(seed: int) -> None:
    """Print how far the bad version comes if stages do not wait: too few results say nothing."""
    reached = [0] * (len(_PERCENTS) + 1)
    for number in range(HASTY_FLEETS):
        fleet = Fleet.make(HASTY_DEVICES, seed + number)
        reached[len(Simulation(fleet, POLICIES[HASTY], FAILING).run().advances)] += 1
    click.echo(
        f"\n{HASTY}, {HASTY_FLEETS} fleets of {HASTY_DEVICES:,} devices, {100 * FAILING:g} % of them failing:"
        f"\nthe last stage is {_list(reached)}"
    )


def _list(reached: list[int]) -> str:
    return ", ".join(f"{percent} % in {count}" for percent, count in zip((*_PERCENTS, 100), reached, strict=True))


def _check_bad(courses: Mapping[str, Course], fleet: Fleet) -> Iterator[str]:
    failing = sum(luck < FAILING for luck in fleet.luck)
    if (booted := len(courses[NO_POLICY].boots)) != len(fleet.uids):
        yield f"{NO_POLICY}: {booted:,} devices booted it, of {len(fleet.uids):,}"
    if (failed := courses[NO_POLICY].rolled_back) != failing:
        yield f"{NO_POLICY}: it failed on {failed:,} devices, not on {failing:,}"
    yield from _check_halts(courses)
    for name in (STAGES, BOTH):
        course = courses[name]
        if course.advances:
            yield f"{name}: it left its first stage"
        share = Share(len(course.boots), len(fleet.uids), _PERCENTS[0] / 100)
        if share.deviations > TOLERANCE:
            yield f"{name}: {share.found:,} devices booted it, more than {_PERCENTS[0]} %"
    if not _fails(courses[STAGES]):
        yield f"{STAGES}: the last pass did not see that it fails"
    if len(courses[BOTH].boots) > len(courses[STAGES].boots):
        yield f"{BOTH}: more devices booted it than without maxFailed"


def _check_halts(courses: Mapping[str, Course]) -> Iterator[str]:
    for name in (BRAKE, BOTH):
        course = courses[name]
        if course.halted_at is None:
            if not _fails(course):
                yield f"{name}: it neither halted nor stayed at a stage"
            continue
        if course.rolled_back > MAX_FAILED + course.in_flight:
            yield f"{name}: it failed on {course.rolled_back:,} devices, {course.in_flight:,} of them in flight"
        if course.last_boot >= course.halted_at + FRESH_SECONDS:
            yield f"{name}: a device booted it after the halt was known"


def _check_good(courses: Mapping[str, Course]) -> Iterator[str]:
    for name, course in courses.items():
        if course.in_sync != DEVICES:
            yield f"{name}: only {course.in_sync:,} devices took a good version"
    least = len(_PERCENTS) * AFTER.total_seconds()
    for name in (STAGES, BOTH):
        if courses[name].last_in_sync < least:
            yield f"{name}: a good version was on all devices before its stages were over"


def _stop(course: Course) -> str:
    if course.halted_at is not None:
        return _time(course.halted_at)
    return f"stage {len(course.advances) + 1}" if _fails(course) else "never"


def _fails(course: Course) -> bool:
    """Return whether the last pass of `rollout advance` saw too few devices in sync."""
    return course.progress is not None and course.progress.standing is Standing.FAILING


def _time(seconds: float) -> str:
    return describe_time(timedelta(seconds=seconds))
