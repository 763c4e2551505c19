"""The form with which a user begins a rollout."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from werkzeug.datastructures import MultiDict

from fleet_fn.console.command_line import command_line
from fleet_fn.console.rendering import action_url
from fleet_fn.drogue.spec_policy import MAX_FAILED
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import Selection
from fleet_fn.fleet.rollout.stage_list import check_stages, parse_percent, write_stage
from fleet_fn.fleet.states import State

#: Rows of stages that the form has at least, and stages that are read.
_MIN_ROWS: Final = 5
_MAX_STAGES: Final = 100
_STAGE_KEYS: Final = ("percent", "after", "success", "over", "approval")
_MODES: Final = ("keep", "all", "percent", "stages")
_APPROVALS: Final = ("", "yes")
#: Stages that the form proposes.
_PROPOSED: Final[tuple[Mapping[str, str], ...]] = (
    {"percent": "1", "approval": "yes"},
    {"percent": "10", "after": "24h", "success": "95"},
    {"percent": "100"},
)
#: Fields that choose nothing: those that confirm a change, and the one that asks for the form.
_NO_CHOICE: Final = ("shown", "csrf_token", "edit")


@dataclass(frozen=True, slots=True)
class Form:
    """What the user has chosen."""

    values: Mapping[str, str]

    @classmethod
    def read(cls, sent: "MultiDict[str, str]") -> "Form":
        """Read the fields that choose something."""
        own = {key: value.strip() for key, value in sent.items() if key not in _NO_CHOICE}
        return cls({key: value for key, value in own.items() if value})

    def get(self, key: str) -> str:
        """Return a field; empty if it is."""
        return self.values.get(key, "")

    @property
    def image(self) -> str:
        """The firmware's reference; empty before the user has chosen one."""
        return self.get("image")

    @property
    def mode(self) -> str:
        """Who gets it: `keep` for the policy as it is, `all`, `percent` or `stages`."""
        return self.get("mode") or "keep"

    def stage_rows(self, present: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, str]]:
        """Return the rows of stages as typed, and some that are empty.

        Before any is typed, they are the present stages, or a proposal.
        """
        typed = [row for row in self._rows() if row["percent"]]
        known = typed or [_row_of(stage) for stage in present or ()] or list(_PROPOSED)
        return [*known, *[dict.fromkeys(_STAGE_KEYS, "")] * max(_MIN_ROWS - len(known), 1)]

    def check_choice(self) -> None:
        """Check that no percentage and no stages were typed that would not apply.

        Raises:
            RefusedError: there are some.

        """
        if self.mode != "percent" and self.get("percent"):
            raise RefusedError("a percentage is filled in, but not chosen: choose it, or clear it")
        typed, offered = describe_rows(self._rows()), self.get("offered")
        if self.mode != "stages" and typed and offered and typed != offered:
            raise RefusedError("the stages are changed, but not chosen: choose them, or clear their percentages")

    def _rows(self) -> list[Mapping[str, str]]:
        return [{key: self.get(f"stage.{index}.{key}") for key in _STAGE_KEYS} for index in range(_MAX_STAGES)]

    def stages(self) -> list[dict[str, Any]] | None:
        """Return the stages, as they stand in `spec.firmware`; None if others apply.

        Raises:
            RefusedError: they make no sense.

        """
        if self.mode not in _MODES:
            raise RefusedError(f"{self.mode!r} is no mode: it is {', '.join(_MODES)}")
        if self.mode != "stages":
            return None
        if self.get(f"stage.{_MAX_STAGES}.percent"):
            raise RefusedError(f"there are more than {_MAX_STAGES} stages")
        found: list[dict[str, Any]] = []
        for row in self._rows():
            if not row["percent"]:
                continue
            stage: dict[str, Any] = {"percent": parse_percent(row["percent"], row["percent"])}
            stage |= {key: row[key] for key in ("after", "over") if row[key]}
            if row["success"]:
                stage["success"] = parse_percent(row["success"], row["success"])
            if row["approval"] not in _APPROVALS:
                raise RefusedError(f"{row['approval']!r} is no approval: it is yes, or empty")
            if row["approval"]:
                stage["approval"] = True
            found.append(stage)
        if not found:
            raise RefusedError("the table of stages is empty: name at least one percentage")
        check_stages(found)
        return found

    def percent(self) -> float | None:
        """Return the percentage of devices; None if another policy applies.

        Raises:
            RefusedError: it is no percentage.

        """
        if self.mode == "all":
            return 100
        if self.mode != "percent":
            return None
        percent = parse_percent(self.get("percent"), self.get("percent"))
        if not 0 <= percent <= 100:
            raise RefusedError(f"{percent:.15g} is no percentage: it is from 0 to 100")
        return percent

    def max_failed(self) -> int | None:
        """Return after how many failures the rollout halts; None leaves it as it is.

        Raises:
            RefusedError: it is no such number.

        """
        text = self.get("max_failed")
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_FAILED:
            raise RefusedError(f"{text!r} devices: it is a number from 1 to {MAX_FAILED}")
        return int(text)

    @property
    def selection(self) -> Selection:
        """The devices that begin; all if it is empty.

        Raises:
            RefusedError: there is no such state.

        """
        states = tuple(state for state in State if state == self.get("state"))
        if self.get("state") and not states:
            raise RefusedError(f"{self.get('state')!r} is no state: it is {', '.join(State)}")
        return Selection(
            tuple(filter(None, [self.get("from_version")])), states, tuple(filter(None, [self.get("failed_version")]))
        )

    def url(self, application: str) -> str:
        """Return the path of the form with these choices."""
        query = urlencode({**self.values, "edit": "1"}, errors="replace")
        return f"{action_url(application, 'start')}?{query}"

    def equivalent(self, application: str) -> str:
        """Return the command that does the same.

        Raises:
            RefusedError: the form makes no sense.

        """
        selection = self.selection
        return command_line(
            "rollout",
            "start",
            application=application,
            image=self.image,
            stage=[write_stage(stage) for stage in self.stages() or ()],
            percent=None if self.percent() is None else f"{self.percent():.15g}",
            max_failed=self.max_failed(),
            from_version=selection.versions,
            state=selection.states,
            failed_version=selection.failed,
            replace_source=bool(self.get("replace_source")),
        )


def describe_rows(rows: Iterable[Mapping[str, str]]) -> str:
    """Return the rows with a percentage as one text."""
    return ";".join(",".join(row.get(key, "") for key in _STAGE_KEYS) for row in rows if row["percent"])


def _row_of(stage: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the row of a stage that stands in `spec.firmware`."""
    row = {key: f"{stage[key]}" for key in _STAGE_KEYS if stage.get(key) is not None}
    return {**row, "approval": "yes" if stage.get("approval") else ""}
