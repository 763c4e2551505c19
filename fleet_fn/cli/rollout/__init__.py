"""`rollout`: show and steer the rollout of an application's firmware."""

from fleet_fn.cli.rollout.group import command

__all__ = ["command"]
