"""Ends of commands that fail."""

import sys
from typing import NoReturn

import click

#: Exit codes: the command failed, or its arguments, its options or a setting are wrong.
FAILED, WRONG_USAGE = 1, 2


def fail(command: str, reason: str, code: int = FAILED) -> NoReturn:
    """Print why `command` fails, and end the process with an exit code."""
    click.echo(f"{command}: {reason}", err=True)
    sys.exit(code)


def describe_os_error(error: OSError) -> str:
    """Return the path and the problem of an error, without its number."""
    problem = error.strerror or str(error)
    return f"{error.filename}: {problem}" if error.filename else problem
