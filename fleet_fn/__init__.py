"""Firmware updates for devices on Drogue IoT Cloud: one stateless function."""

#: The same as in pyproject.toml: an image has no metadata of this project.
__version__ = "0.1.0"
