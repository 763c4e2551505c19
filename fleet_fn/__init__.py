"""Firmware updates for devices on Drogue IoT Cloud: one stateless function."""
