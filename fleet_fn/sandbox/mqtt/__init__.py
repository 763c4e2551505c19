"""Drogue Cloud's MQTT integration, as the sandbox has it."""
