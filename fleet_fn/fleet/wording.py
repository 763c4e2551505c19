"""Numbers of a fleet in words, as all displays have them."""

import math


def describe_devices(count: int) -> str:
    """Return a number of devices, with its noun."""
    return f"{count} device" if count == 1 else f"{count} devices"


def describe_percent(percent: float) -> str:
    """Return a percentage to two places, rounded down: only all devices are 100 %."""
    return f"{math.floor(percent * 100) / 100:.15g} %"
