"""A Drogue Cloud on this machine, to try devices and the function against."""

from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.sandbox.mqtt.endpoint import MqttOptions
from fleet_fn.sandbox.refusal import RefusedError

__all__ = ["MqttOptions", "RefusedError", "Sandbox"]
