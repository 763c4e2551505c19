"""A Drogue Cloud on this machine, to try devices and the function against."""

from fleet_fn.cli.sandbox.cloud import Sandbox
from fleet_fn.cli.sandbox.main import command
from fleet_fn.cli.sandbox.refusal import Refused

__all__ = ["Refused", "Sandbox", "command"]
