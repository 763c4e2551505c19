"""The log: one line for an event, and one for each upstream that failed, with the cause."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.http import Response
from tests.support.images import metadata

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def lines(function: Function, sent: dict[str, str | None], count: int = 1) -> list[dict[str, Any]]:
    """The lines that name the event `sent`, once there are so many."""
    return [json.loads(line) for line in function.logged(str(sent["id"]), lines=count)]


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return publish(tmp_path, "app", "2", random_bytes(2000, 1))


@pytest.fixture
def layouts(tmp_path: Path, published: Published) -> Path:
    assert published.digest
    return tmp_path


@pytest.fixture
def cloud() -> Iterator[Drogue]:
    with Drogue() as drogue:
        drogue.put("logs", spec={"firmware": {"container": {"image": "app:2"}}})
        drogue.put("logs", "device", spec={})
        yield drogue


def running(cloud: Drogue, layouts: Path, **settings: str) -> Function:
    settings = {"LOG_LEVEL": "INFO", "FIRMWARE_REGISTRY": f"oci-layout:{layouts}", **settings}
    return Function({**cloud.environment, **settings})


def test_an_event_is_one_line_that_tells_all_there_is_to_know_of_it(
    cloud: Drogue, layouts: Path, published: Published
) -> None:
    sent = event("device", "logs", traceparent=PARENT)
    with running(cloud, layouts) as function:
        assert function.post(sent, b'{"version": "1", "mtu": 512}').status == 204
        (line,) = lines(function, sent)
    assert isinstance(line.pop("time"), str)
    assert 0 < line.pop("milliseconds") < 20_000
    assert line == {
        "level": "INFO",
        "message": "event",
        "outcome": "write",
        "application": "logs",
        "device": "device",
        "version": "2",
        "offset": 0,
        "checksum": published.checksum.hex(),
        "manifest": published.digest,
        "id": sent["id"],
        "trace_id": TRACE_ID,
    }


def test_the_line_of_a_swap_tells_which_bytes_the_device_was_told_to_boot(
    cloud: Drogue, layouts: Path, published: Published
) -> None:
    sent = event("device", "logs", datacontenttype="application/json")
    with running(cloud, layouts, REPORT_STATUS="false") as function:
        answer = function.post(sent, b'{"version": "1", "update": {"version": "2", "offset": 2000}}')
        (line,) = lines(function, sent)
    assert answer.headers["fleet-outcome"] == 'swap; version="2"'
    assert (line["outcome"], line["checksum"], line["manifest"]) == (
        "swap",
        published.checksum.hex(),
        published.digest,
    )


def test_the_line_of_a_block_from_a_file_has_a_checksum_and_no_manifest(
    cloud: Drogue, layouts: Path, published: Published
) -> None:
    (layouts / "app.bin").write_bytes(published.content)
    (layouts / "app.json").write_text(metadata(published.content, "2"))
    cloud.put("logs", "device", spec={"firmware": {"file": {"name": "app"}}})
    sent = event("device", "logs")
    with running(cloud, layouts, FIRMWARE_DIR=str(layouts)) as function:
        assert function.post(sent, b'{"version": "1", "mtu": 512}').outcome.startswith("write")
        (line,) = lines(function, sent)
    assert line["checksum"] == published.checksum.hex()
    assert "manifest" not in line


def test_for_people_it_is_a_line_of_words(cloud: Drogue, layouts: Path) -> None:
    sent = event("device", "logs", traceparent=PARENT)
    with running(cloud, layouts, LOG_FORMAT="text") as function:
        assert function.post(sent, b'{"version": "2"}').status == 204
        (line,) = function.logged(str(sent["id"]))
    assert " INFO event outcome=sync application=logs device=device milliseconds=" in line
    assert line.rstrip().endswith(f"id={sent['id']} trace_id={TRACE_ID}")


@pytest.mark.parametrize(("level", "count"), [("INFO", 0), ("DEBUG", 1)])
def test_of_what_is_ignored_there_is_a_line_at_debug_only(cloud: Drogue, layouts: Path, level: str, count: int) -> None:
    ignored, answered = event("device", "logs", subject="temperature"), event("device", "logs")
    with running(cloud, layouts, LOG_LEVEL=level, THREADS="1") as function:
        assert function.post(ignored, b"21").outcome == "ignored"
        assert function.post(answered, b'{"version": "2"}').outcome == "sync"
        assert lines(function, answered)  # after which no line of the other comes any more
        assert sum(str(ignored["id"]) in line for line in function.log) == count


def test_an_upstream_that_fails_an_event_is_told_once_with_the_cause(cloud: Drogue, layouts: Path) -> None:
    sent = event("device", "logs")
    cloud.command_answers["device"] = lambda _: Response(503)
    with running(cloud, layouts, LOG_LEVEL="DEBUG") as function:
        assert function.post(sent, b'{"version": "2"}').status == 503
        (line,) = lines(function, sent)
        assert (line["level"], line["outcome"], line["reason"]) == ("WARNING", "retry", "command API: answered 503")
        assert sum("answered 503" in line for line in function.log) == 1


def test_what_fails_beside_an_answer_is_told_in_a_line_of_its_own(cloud: Drogue, layouts: Path) -> None:
    sent = event("device", "logs", traceparent=PARENT)
    cloud.write_answers[("device",)] = cloud.write_answers[("logs", "device")] = lambda _: Response(500)
    with running(cloud, layouts) as function:
        assert function.post(sent, b'{"version": "2"}').outcome == "sync"
        told = lines(function, sent, 2)
    assert [line["message"] for line in told] == ["status not reported", "event"]
    assert (told[0]["reason"], told[0]["trace_id"]) == ("device registry: answered 500", TRACE_ID)


def test_a_wait_that_could_not_be_sent_is_told_beside_what_failed(cloud: Drogue, layouts: Path) -> None:
    cloud.put("logs", "device", spec={"firmware": {"container": {"image": "missing:1"}}})
    cloud.command_answers["device"] = lambda _: Response(503)
    sent = event("device", "logs", datacontenttype="application/cbor")
    with running(cloud, layouts, REPORT_STATUS="false") as function:
        assert function.post(sent, b"\xa1\x00A1").status == 422
        told = lines(function, sent, 2)
    assert [line["message"] for line in told] == ["WAIT not sent", "event"]
    assert told[0]["reason"] == "command API: answered 503"
    assert told[1]["outcome"] == "failed"
