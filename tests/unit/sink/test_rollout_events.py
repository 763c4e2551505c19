"""Events of changes to rollouts, as a sink gets them."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary
from cloudevents.core.formats.json import JSONFormat

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.settings import Settings
from fleet_fn.sink.events import rollout_event
from fleet_fn.upstreams import make_sink
from tests.support.http import Request, Response, Server, closed_port

NOON = datetime(2026, 5, 4, 14, tzinfo=timezone(timedelta(hours=2)))
CHANGE = {"spec": {"firmware": {"rollout": {"paused": True}}}}


def settings(url: str | None, **overrides: str) -> Settings:
    return Settings(
        drogue_api_url="http://cloud.example", firmware_registry="", sink_url=url, sink_overrides=overrides or None
    )


def test_event_of_a_rollout_names_action_user_and_change() -> None:
    with Server(lambda _: Response(202)) as server:
        sink = make_sink(settings(f"{server.url}/ns/broker", cluster="oslo"))
        assert sink
        sink.send(rollout_event("pause", "pümps", "jane", CHANGE, NOON), Deadline(5))
        sink.send(rollout_event("pause", "pümps", "", CHANGE, NOON), Deadline(5))
        sink.close()
        first, second = server.requests
    assert (first.method, first.path) == ("POST", "/ns/broker")
    headers = {name.lower(): value for name, value in first.headers.items()}
    attributes = dict(from_binary(HTTPMessage(headers, first.body), JSONFormat()).get_attributes())
    assert attributes.pop("id") != second.headers["ce-id"]
    assert attributes == {
        "specversion": "1.0",
        "type": "io.drogue.fleet.rollout.v1",
        "source": "drogue://p%C3%BCmps",
        "subject": "pause",
        "time": NOON.astimezone(UTC),
        "application": "pümps",
        "cluster": "oslo",
        "datacontenttype": "application/json",
    }
    assert json.loads(first.body) == {
        "action": "pause",
        "application": "pümps",
        "user": "jane",
        "change": CHANGE,
        "time": "2026-05-04T12:00:00Z",
    }
    assert json.loads(second.body)["user"] is None


def test_overrides_win_over_attributes() -> None:
    with Server(lambda _: Response(202)) as server:
        sink = make_sink(settings(server.url, application="hidden"))
        assert sink
        sink.send(rollout_event("pause", "pumps", "jane", CHANGE, NOON), Deadline(5))
        sink.close()
        assert server.requests[0].headers["ce-application"] == "hidden"
        assert server.requests[0].path == "/"


@pytest.mark.parametrize(
    ("status", "error"), [(200, None), (204, None), (307, PermanentError), (404, PermanentError), (503, TransientError)]
)
def test_anything_but_2xx_is_an_error(status: int, error: type[Exception] | None) -> None:
    def answer(_: Request) -> Response:
        return Response(status, headers={"Location": "http://elsewhere.example/"})

    with Server(answer) as server:
        sink = make_sink(settings(server.url))
        assert sink
        event = rollout_event("pause", "pumps", "jane", CHANGE, NOON)
        if error:
            with pytest.raises(error, match=f"sink: answered {status}"):
                sink.send(event, Deadline(5))
        else:
            sink.send(event, Deadline(5))
        sink.close()
        assert len(server.requests) == 1


def test_a_sink_that_is_not_there_is_a_transient_error() -> None:
    with closed_port() as port:
        sink = make_sink(settings(f"http://127.0.0.1:{port}"))
        assert sink
        with pytest.raises(TransientError, match="sink: connection refused"):
            sink.send(rollout_event("pause", "pumps", "jane", CHANGE, NOON), Deadline(5))
        sink.close()


def test_without_k_sink_there_is_none() -> None:
    assert make_sink(settings(None)) is None


def test_commands_that_need_no_firmware_know_the_sink() -> None:
    read = Settings.for_drogue({"DROGUE_API_URL": "http://cloud.example", "K_SINK": "http://sink.example/x"})
    assert read.sink_url == "http://sink.example/x"
