"""Stages as an operator writes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet_fn.drogue.spec_policy import read_policy
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.fleet.rollout.application import RefusedError

#: A key of a stage in the function's reasons.
_PATH: Final = re.compile(r"rollout\.stages\[(?P<index>\d+)\]\.(?P<key>\w+)")


def parse_stage(text: str) -> dict[str, Any]:
    """Return a stage such as `10,after=24h`, as it stands in `spec.firmware`.

    Raises:
        RefusedError: it is malformed.

    """
    percent, *rest = text.split(",")
    stage: dict[str, Any] = {"percent": parse_percent(percent, text)}
    for part in rest:
        key, equals, value = part.strip().partition("=")
        if key == "approval" and not equals:
            stage[key] = True
        elif key in ("after", "over") and value:
            stage[key] = value
        elif key == "success" and value:
            stage[key] = parse_percent(value, text)
        else:
            raise RefusedError(f"{part!r} in {text!r}: expected approval, after=TIME, success=PERCENT or over=TIME")
    return stage


def write_stage(stage: Mapping[str, Any]) -> str:
    """Return a stage in the form that `parse_stage` takes."""
    parts = [f"{stage['percent']}"]
    parts += [key if stage[key] is True else f"{key}={stage[key]}" for key in stage if key != "percent" and stage[key]]
    return ",".join(parts)


def parse_percent(text: str, whole: str) -> float:
    """Return a percentage; an integer if it is whole.

    Raises:
        RefusedError: the text is no number; `whole` is what it is a part of.

    """
    try:
        number = float(text)
    except ValueError as error:
        where = "" if text == whole else f" in {whole!r}"
        raise RefusedError(f"{text!r}{where} is no percentage") from error
    return int(number) if number.is_integer() else number


def check_stages(stages: Sequence[Mapping[str, Any]]) -> None:
    """Check stages as the function would.

    Raises:
        RefusedError: the function would refuse them. People count stages from 1.

    """
    try:
        read_policy({"rollout": {"stages": list(stages) or None}})
    except MalformedSpecError as error:
        raise RefusedError(_PATH.sub(_name_stage, error.reason)) from error


def _name_stage(path: re.Match[str]) -> str:
    return f"{path['key']} of stage {int(path['index']) + 1}"
