"""Locked dependencies, compared with the ranges that they are made from. Asks no network."""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.function import ROOT

#: Where the locks have to be valid.
PLACES = [
    {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine}
    | {"sys_platform": "linux", "platform_system": "Linux", "implementation_name": "cpython"}
    | {"platform_python_implementation": "CPython", "os_name": "posix"}
    for python in ("3.11", "3.12", "3.13", "3.14")
    for machine in ("x86_64", "aarch64")
]
_PIN = re.compile(r"([a-z0-9-]+)==([^ ;]+)(?: ; ([^\\]+?))?((?: --hash=sha256:[0-9a-f]{64})*)")


@dataclass(frozen=True)
class Pin:
    """One line of a lock."""

    version: str
    marker: Marker | None
    hashes: int

    def holds(self, place: Mapping[str, str]) -> bool:
        return self.marker is None or self.marker.evaluate(dict(place))


def runtime() -> list[Requirement]:
    """The ranges of what the function needs."""
    return _read(re.sub(r"#.*", "", (ROOT / "requirements.txt").read_text()).splitlines())


def tools() -> list[Requirement]:
    """The ranges of what the command line needs."""
    return runtime() + _extras("tools", "build")


def development() -> list[Requirement]:
    """The ranges of what `make test` and `make lint` need."""
    return runtime() + _extras("tools", "build", "sandbox", "tracing", "dev")


def _extras(*names: str) -> list[Requirement]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return _read(line for name in names for line in extras[name])


def _read(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines if line.strip()]


def disagreements(ranges: Iterable[Requirement], lock: str) -> list[str]:
    """What is wrong with a lock, a line each."""
    ranges = list(ranges)
    pins: dict[str, Pin] = {}
    problems = []
    for line in re.sub(r" \\\n +", " ", re.sub(r"(?m)^ *#.*\n", "", lock)).splitlines():
        parsed = _PIN.fullmatch(line)
        if not parsed:
            problems.append(f"not a pin: {line}")
        elif parsed[1] in pins:
            problems.append(f"{parsed[1]} is pinned twice")
        else:
            pins[parsed[1]] = Pin(parsed[2], Marker(parsed[3]) if parsed[3] else None, parsed[4].count("sha256"))
    problems += [f"{name} has no hash" for name, pin in pins.items() if not pin.hashes]
    for requirement in ranges:
        problems += _unsatisfied(requirement, pins, "the ranges")
    needed = set()
    for name, requirement in _closure(ranges):
        needed.add(canonicalize_name(requirement.name))
        if name:
            problems += _unsatisfied(requirement, pins, name)
    problems += [f"nothing needs {name}" for name in pins if name not in needed]
    return problems


def _unsatisfied(requirement: Requirement, pins: Mapping[str, Pin], by: str) -> Iterator[str]:
    pin = pins.get(canonicalize_name(requirement.name))
    wanted = [
        place for place in PLACES if not requirement.marker or requirement.marker.evaluate({**place, "extra": ""})
    ]
    if not pin:
        if wanted:
            yield f"{requirement.name} is not pinned, but {by} need it"
    elif not requirement.specifier.contains(pin.version, prereleases=True):
        yield f"{requirement.name} is pinned to {pin.version}, but {by} need {requirement.specifier}"
    elif not all(pin.holds(place) for place in wanted):
        yield f"{requirement.name} is not pinned everywhere that {by} need it"


def _closure(ranges: Iterable[Requirement]) -> Iterator[tuple[str, Requirement]]:
    """The ranges and what they need, with the name of the package that needs it, by what is installed here.

    A requirement whose marker holds nowhere that we support is one, too: a lock may be valid for more places.
    """
    left = [("", requirement) for requirement in ranges]
    seen = set()
    while left:
        by, requirement = left.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        yield by, requirement
        if key in seen:
            continue
        seen.add(key)
        try:
            lines = requires(requirement.name) or []
        except PackageNotFoundError:
            continue  # its marker does not hold here
        for inner in map(Requirement, lines):
            if not inner.marker or "extra" not in str(inner.marker):
                left.append((f"{requirement.name} {version(requirement.name)}", inner))
            elif any(inner.marker.evaluate({"extra": extra}) for extra in requirement.extras):
                inner.marker = None
                left.append((f"{requirement.name} {version(requirement.name)}", inner))
