"""A Drogue Cloud on this machine, to try devices and the function against."""

from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.sandbox.refusal import Refused

__all__ = ["Refused", "Sandbox"]
