"""The client of the device registry, against a registry on a real socket."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.registry import Desired, Image, MalformedSpec, Registry
from fleet_fn.upstream import Fixed, Upstream, basic
from tests.support.drogue import TOKEN, USER, Drogue

APPLICATION, DEVICE = "example", "device"
IMAGE = {"container": {"image": "firmware:1"}}


@pytest.fixture
def drogue() -> Iterator[Drogue]:
    with Drogue() as cloud:
        cloud.put(APPLICATION, spec={"firmware": IMAGE})
        yield cloud


@pytest.fixture
def registry(drogue: Drogue) -> Iterator[Registry]:
    with closing(Upstream("device registry", drogue.url, authorization=Fixed(basic(USER, TOKEN)))) as upstream:
        yield Registry(upstream)


def desired(registry: Registry, max_age: float = 0.0) -> Desired:
    return registry.desired(APPLICATION, DEVICE, max_age, Deadline(4))


# --- Keys -------------------------------------------------------------------------------------------------------------


def test_mtu_and_midway_of_the_device_win_over_those_of_the_application(drogue: Drogue, registry: Registry) -> None:
    drogue.put(APPLICATION, spec={"firmware": {**IMAGE, "mtu": 2016, "rollout": {"midway": "restart"}}})
    drogue.put(APPLICATION, DEVICE, spec={"firmware": {"mtu": 512}})
    policy = desired(registry).policy
    assert (policy.mtu, policy.midway) == (512, "restart")


@pytest.mark.parametrize("section", [{"mtu": 0}, {"rollout": {"midway": "continue"}}])
def test_a_malformed_mtu_or_midway_is_the_devices_error(
    drogue: Drogue, registry: Registry, section: dict[str, Any]
) -> None:
    drogue.put(APPLICATION, DEVICE, spec={"firmware": section})
    with pytest.raises(MalformedSpec, match=r"the device.s spec\.firmware"):
        desired(registry)


@pytest.mark.parametrize("is_device", [True, False])
@pytest.mark.parametrize(
    ("core", "disabled"),
    [
        ({"disabled": True}, True),
        ({"disabled": False}, False),
        ({"disabled": None}, False),
        ({"disabled": "true"}, False),
        ({"disabled": 1}, False),
        ({}, False),
        (None, False),
        ("disabled", False),
        ([{"disabled": True}], False),
    ],
)
def test_only_a_boolean_true_disables_a_device(
    drogue: Drogue, registry: Registry, core: object, disabled: bool, is_device: bool
) -> None:
    application, device = ({}, {"core": core}) if is_device else ({"core": core}, {})
    drogue.put(APPLICATION, spec={"firmware": IMAGE, **application})
    drogue.put(APPLICATION, DEVICE, spec=device)
    found = desired(registry)
    assert found.disabled is disabled
    assert found.source == (None if disabled else Image("firmware:1"))


def test_a_disabled_device_is_disabled_whatever_its_firmware_section_says(drogue: Drogue, registry: Registry) -> None:
    drogue.put(APPLICATION, spec={"firmware": 1})
    drogue.put(APPLICATION, DEVICE, spec={"core": {"disabled": True}, "firmware": {"mtu": 0}})
    assert desired(registry).disabled


@pytest.mark.parametrize(
    ("selector", "gateways"),
    [
        ({"matchNames": ["gateway", "other"]}, ("gateway", "other")),
        ({"matchNames": ["gateway", 1, None]}, ("gateway",)),
        ({"matchNames": "gateway"}, ()),
        ({}, ()),
        (None, ()),
        (["gateway"], ()),
    ],
)
def test_the_gateways_of_a_device_are_those_that_its_selector_names(
    drogue: Drogue, registry: Registry, selector: object, gateways: tuple[str, ...]
) -> None:
    drogue.put(APPLICATION, DEVICE, spec={"gatewaySelector": selector})
    assert desired(registry).gateways == gateways
