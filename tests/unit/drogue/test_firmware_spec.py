"""`spec.firmware`: version ranges, hardware and downgrades."""

from typing import Any

import pytest

from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.spec_source import Image

PATH = "spec.firmware"


def problems(section: dict[str, Any]) -> set[str]:
    return {part.reason for part in read_firmware_spec(section, PATH) if isinstance(part, Malformed)}


@pytest.mark.parametrize("kind", ["container", "oci"])
@pytest.mark.parametrize("version", [">=1.2 <2", "1.x", "^1.2", "~1.2 || 3.0.0-rc.1", "*", "1.2 - 2.3"])
def test_a_range_stands_in_the_place_of_a_tag(kind: str, version: str) -> None:
    spec = read_firmware_spec({kind: {"image": "pump", "version": version}}, PATH)
    assert spec.source == Image("pump", version=version)


def test_null_is_no_range_no_hardware_and_no_downgrades() -> None:
    section = {"container": {"image": "pump:1", "version": None}, "hardware": None, "downgrades": None}
    assert read_firmware_spec(section, PATH) == (Image("pump:1"), Policy())


@pytest.mark.parametrize(
    ("container", "problem"),
    [
        ({"version": ">=1.2,<2"}, 'version is ">=1.2,<2"; it contains ">=1.2,<2", which is no condition such as'),
        ({"version": "v1.2"}, 'version is "v1.2"; it contains "v1.2", which is no condition such as'),
        ({"version": "latest"}, 'version is "latest"; it contains "latest", which is no condition'),
        ({"version": ""}, 'version is ""; it has an empty alternative'),
        ({"version": "1" * 300}, "it has 300 characters; at most 256 are read"),
        ({"version": 1.2}, "version is 1.2; it must be a range of semantic versions in quotes"),
        ({"version": 1}, "YAML makes a number of 1.2 without quotes"),
        ({"version": ["1.x"]}, "version is a list; it must be a range"),
        ({"version": "1.x", "image": "pump:1"}, "version is set beside the tag or the digest of container.image"),
        ({"version": "1.x", "image": "pump@sha256:" + "0" * 64}, "version is set beside the tag or the digest"),
        ({"versions": "1.x"}, "container contains versions (did you mean version?)"),
        ({"hardware": "rev-a"}, "container contains hardware (did you mean spec.firmware.hardware?)"),
    ],
)
def test_a_malformed_range_names_the_key(container: dict[str, Any], problem: str) -> None:
    (found,) = problems({"container": {"image": "pump", **container}})
    assert found.startswith("spec.firmware.container")
    assert problem in found


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"hardware": "rev-a,rev-b"}, 'spec.firmware.hardware is "rev-a,rev-b"; it must be the name'),
        ({"hardware": ""}, 'spec.firmware.hardware is ""; it must be the name'),
        ({"hardware": " rev-a"}, 'spec.firmware.hardware is " rev-a"; it must be the name'),
        ({"hardware": 7}, "spec.firmware.hardware is 7; it must be the name"),
        ({"downgrades": "never"}, 'spec.firmware.downgrades is "never"; it must be allow or refuse'),
        ({"downgrades": False}, "spec.firmware.downgrades is false; it must be allow or refuse"),
        ({"downgrades": ["refuse"]}, "spec.firmware.downgrades is a list; it must be allow or refuse"),
        ({"downgrade": "refuse"}, "spec.firmware contains downgrade (did you mean downgrades?)"),
        ({"hardwares": "rev-a"}, "spec.firmware contains hardwares (did you mean hardware?)"),
        ({"version": "1.x"}, "spec.firmware contains version (did you mean container.version?)"),
        ({"rollout": {"hardware": "a"}}, "rollout contains hardware (did you mean spec.firmware.hardware?)"),
        ({"rollout": {"downgrades": "refuse"}}, "rollout contains downgrades (did you mean spec.firmware.downgrades?)"),
    ],
)
def test_malformed_hardware_and_downgrades_name_the_key(section: dict[str, Any], problem: str) -> None:
    assert any(problem in found for found in problems(section))


def test_hardware_and_downgrades_of_the_device_win_one_by_one() -> None:
    shared = read_firmware_spec({"hardware": "rev-a", "downgrades": "refuse"}, PATH).policy
    assert isinstance(shared, Policy)
    assert Policy(hardware="rev-b").over(shared) == Policy(hardware="rev-b", downgrades="refuse")
    assert Policy(downgrades="allow").over(shared) == Policy(hardware="rev-a", downgrades="allow")
