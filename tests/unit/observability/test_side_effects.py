"""Observers that raise: each is logged once, and nothing else happens."""

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.observability import log, metrics, tracing
from fleet_fn.observability.log import logger
from fleet_fn.observability.metrics_file import ReservedDict
from fleet_fn.observability.side_effects import Guard, Guarded, guard
from tests.support.timing import Clock


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("no\nluck")


def test_first_failure_of_each_observer_is_logged(records: list[logging.LogRecord]) -> None:
    for observer in (Guarded("one", fail), Guarded("another", fail)):
        for _ in range(3):
            observer(1, two=2)
    fields: list[Any] = [getattr(record, "fields", None) for record in records]
    assert [(each["observer"], each["reason"]) for each in fields] == [
        ("one", "RuntimeError: no\N{REPLACEMENT CHARACTER}luck"),
        ("another", "RuntimeError: no\N{REPLACEMENT CHARACTER}luck"),
    ]


def test_observer_is_called_with_what_it_is_given() -> None:
    seen = []
    observe = guard("list", lambda *args, **kwargs: seen.append((args, kwargs)))
    assert observe
    observe(1, hit=True)
    assert seen == [((1,), {"hit": True})]
    assert guard("nothing", None) is None


def test_look_up_does_not_fail_for_its_count(records: list[logging.LogRecord]) -> None:
    memory: TTLCache[str, int] = TTLCache(1, count=fail)
    assert memory.get("key", 1, lambda: 7, Deadline(1)) == 7
    assert len(records) == 1


@pytest.mark.usefixtures("records")
def test_counter_that_cannot_be_made_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    tried: list[float] = []
    counted: list[int] = []
    monkeypatch.setattr(metrics, "_counters", [])
    monkeypatch.setattr(metrics, "_failed_at", None)
    monkeypatch.setattr(time, "monotonic", clock)

    def make() -> Any:
        tried.append(clock.now)
        if len(tried) == 1:
            raise FileNotFoundError("folder")
        return counted.append

    counter = metrics._Counter(make)
    for number in range(3):
        counter(number)
    assert (len(tried), counted) == (1, [])
    clock.now += metrics._BACK_OFF_SECONDS + 1
    counter(3)
    assert (len(tried), counted) == (2, [3])


def test_span_attributes_are_computed_for_a_collector_only(
    monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord]
) -> None:
    with tracing.of_event(None, fail):
        assert records == []
    monkeypatch.setattr(tracing, "_spans", object())
    monkeypatch.setattr(tracing, "_guard", Guard("tracing"))
    with tracing.of_event(None, fail):
        assert len(records) == 1  # and they may raise


def test_span_that_raises_is_none(monkeypatch: pytest.MonkeyPatch, records: list[logging.LogRecord]) -> None:
    class Span:
        __enter__ = __exit__ = set_attributes = fail

    class Spans:
        of_event = staticmethod(lambda *_: Span())
        of_request = staticmethod(fail)

    monkeypatch.setattr(tracing, "_spans", Spans())
    monkeypatch.setattr(tracing, "_guard", Guard("tracing"))
    with tracing.of_event(None, dict) as span, tracing.of_request("command", "GET", "host", 80) as other:
        span.set_attributes(outcome="sync")
        other.set_attributes(status=200)
    assert len(records) == 1
    with pytest.raises(KeyError), tracing.of_event(None, dict):
        raise KeyError  # what goes wrong within a span is not swallowed


def test_logger_never_raises(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.NullHandler()
    monkeypatch.setattr(handler, "handle", fail)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(log, "_complained", [])
    for _ in range(3):
        logger.error("event")
    assert capsys.readouterr().err.count("lines cannot be logged") == 1


def test_file_of_metrics_reserves_its_space(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    values: Any = ReservedDict(str(path))
    for number in range(1000):  # more than fit in it at first
        values.write_value(f"{number:0100}", float(number), 0.0)
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    values.close()
    again: Any = ReservedDict(str(path))
    assert again.read_value(f"{999:0100}")[0] == 999.0
    again.close()
    assert [file.name for file in tmp_path.iterdir()] == ["counter_1.db"]


def test_file_of_metrics_without_space_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counter_1.db"

    def fail(descriptor: int, *_: int) -> NoReturn:
        assert not path.exists()  # a scrape could not read it yet
        os.truncate(descriptor, 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                ReservedDict(str(path))
    assert not list(tmp_path.iterdir())
    values: Any = ReservedDict(str(path))
    values.close()
    assert [file.name for file in tmp_path.iterdir()] == ["counter_1.db"]


def test_pipe_drops_lines_until_its_reader_takes_them() -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        pipe, written = log._Pipe(writing), 0
        line = "x" * 2999 + "\n"  # not a divisor of what a pipe holds
        try:
            for written in range(1000):  # noqa: B007
                pipe.write(line)
        except BlockingIOError:
            pass
        else:
            pytest.fail("it holds any number of lines")
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(BlockingIOError):
                pipe.write(line)
        assert time.monotonic() - started < 100 * log._WRITE_TIMEOUT_SECONDS
        os.set_blocking(reading, False)
        assert len(os.read(reading, 1 << 20)) >= written * len(line)
        pipe.write("event\n")
        assert os.read(reading, 1 << 20).decode().strip() == "event"
    finally:
        os.close(reading)
        os.close(writing)
