"""A DDI server for tests: a strict fake of hawkBit 1.1.0."""

from tests.support.ddi.fake import FakeHawkbit
from tests.support.ddi.model import Action, Module, module

__all__ = ["Action", "FakeHawkbit", "Module", "module"]
