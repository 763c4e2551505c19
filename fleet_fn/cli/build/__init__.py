"""`build`: build firmware in a cluster with Tekton."""

from fleet_fn.cli.build.command import command

__all__ = ["command"]
