"""Scrapes: sums over all worker processes, which never fall and have no device's name."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import cbor2
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.hostile import always, hang_up, reset
from tests.support.http import Answer, Response, Server, closed_port
from tests.support.processes import workers
from tests.support.statuses import STATUS, in_sync, post, update

VERSION, SIZE = "0.1.1", 1300
#: The contract's.
OUTCOMES: Final = frozenset(
    {"sync", "write", "swap", "withheld", "wait", "ignored"}
    | {"stale", "duplicate", "invalid", "denied", "failed", "retry"}
)
RESULTS: Final = frozenset({"started", "swapped", "succeeded", "rolled-back", "gave-up", "held", "failed", "halted"})
#: What a label may say.
VALUES: Final[Mapping[str, re.Pattern[str]]] = {
    "outcome": re.compile("|".join(OUTCOMES)),
    "upstream": re.compile("registry|command|oci|hawkbit|sink"),
    "status": re.compile(r"error|\d{3}"),
    "cache": re.compile("spec|manifest|firmware|signature"),
    "result": re.compile("|".join(("hit", "miss", *RESULTS))),
    "le": re.compile(r"\d+\.\d+|\+Inf"),
}
#: The slots of two workers, and of two more that replace them.
SLOTS: Final = range(4)
#: What a worker counts, a file each.
KINDS: Final = ("counter", "histogram")
#: Seconds for what takes time.
LIMIT: Final = 20.0

#: Values by name and labels, these sorted.
Sums = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scrape:
    """What `/metrics` said."""

    def __init__(self, function: Function) -> None:
        answer = function.request("GET", "/metrics")
        assert answer.status == 200, answer.body
        self.text = answer.body.decode()
        samples = [sample for family in read_text(self.text) for sample in family.samples]
        self.sums: Sums = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
        assert len(self.sums) == len(samples)

    def __call__(self, name: str, **labels: str) -> float:
        return self.sums.get((name, tuple(sorted(labels.items()))), 0.0)

    def events(self, outcome: str) -> float:
        return self("fleet_events_total", outcome=outcome)

    @property
    def all_events(self) -> float:
        return sum(map(self.events, OUTCOMES))


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit, "it never came to that"
        time.sleep(0.02)


def counted_in(folder: Path, slot: int) -> float:
    """The events that the workers of one slot have answered."""
    file = folder / f"counter_{slot}.db"
    if not file.exists():
        return 0.0
    values = MmapedDict.read_all_values_from_file(str(file))
    return sum(float(value) for key, value, _, _ in values if "fleet_events" in key)


def ignored(function: Function) -> None:
    """An event that costs nothing."""
    assert function.post(event(subject="other"), b"").outcome == "ignored"


def have_all_workers_count(function: Function, folder: Path) -> int:
    """Posts events until each of two workers has answered one; how many those were."""
    posted = 0
    before = [counted_in(folder, slot) for slot in SLOTS]

    def have() -> bool:
        nonlocal posted
        for _ in range(4):
            ignored(function)
            posted += 1
        return len(workers(function)) == 2 and sum(counted_in(folder, slot) > before[slot] for slot in SLOTS) == 2

    until(have)
    return posted


@pytest.fixture(scope="module")
def cloud(firmware: Path) -> Iterator[Drogue]:
    publish(firmware, "metered", VERSION, random_bytes(SIZE, "metered"))
    with Drogue() as cloud:
        cloud.put("example", spec={})
        yield cloud


@pytest.fixture(scope="module")
def settings(cloud: Drogue, firmware: Path) -> dict[str, str]:
    return {**cloud.environment, "FIRMWARE_REGISTRY": f"oci-layout:{firmware}", "WEB_CONCURRENCY": "2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def two(settings: dict[str, str], folder: Path) -> Iterator[Function]:
    """A function of two workers, which count in `folder`."""
    with running({**settings, "PROMETHEUS_MULTIPROC_DIR": str(folder)}) as function:
        yield function


# --- What there is


def test_everything_is_there_at_the_first_scrape_and_at_0(settings: dict[str, str]) -> None:
    with Function(settings) as function:
        answer = function.request("GET", "/metrics")
        first = Scrape(function)
        post(function, "nobody's")
        later = Scrape(function)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = {
        "fleet_events": "counter",
        "fleet_event_duration_seconds": "histogram",
        "fleet_upstream_duration_seconds": "histogram",
        "fleet_firmware_sent_bytes": "counter",
        "fleet_cache_requests": "counter",
        "fleet_updates": "counter",
    }
    assert {family.name: family.type for family in read_text(answer.body.decode())} == types
    # Which statuses upstreams answer with nobody knows before.
    types["fleet_upstream_requests"] = "counter"
    assert {family.name: family.type for family in read_text(later.text)} == types
    assert later("fleet_upstream_requests_total", upstream="registry", status="404") >= 1
    names = {name for name, _ in first.sums}
    assert {"fleet_events_total", "fleet_firmware_sent_bytes_total", "fleet_cache_requests_total"} <= names
    assert {labels for name, labels in first.sums if name == "fleet_events_total"} == {
        (("outcome", outcome),) for outcome in OUTCOMES
    }
    assert {labels for name, labels in first.sums if name == "fleet_updates_total"} == {
        (("result", result),) for result in RESULTS
    }
    for cache in ("spec", "manifest", "firmware"):
        for result in ("hit", "miss"):
            assert ("fleet_cache_requests_total", (("cache", cache), ("result", result))) in first.sums
    assert not any(first.sums.values())


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4"),
        ("application/json", "text/plain; version=0.0.4"),
        ("application/openmetrics-text", "application/openmetrics-text; version="),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
            "application/openmetrics-text; version=1.0.0",
        ),
        # What makes no sense is still somebody who asks.
        ("application/openmetrics-text; version=nonsense", ""),
        ("text/plain; version=nonsense", "text/plain; version=0.0.4"),
        ("text/plain; version=\u00b2.\u00b2.\u00b2", ""),
        ("text/plain; version", ""),
        ("text/plain;;version==;escaping", ""),
        (",;=,", ""),
    ],
)
def test_a_scrape_has_the_format_that_it_asks_for(two: Function, accept: str, content_type: str) -> None:
    ignored(two)
    answer = two.request("GET", "/metrics", [("Accept", accept)] if accept else [])
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith(content_type)
    is_openmetrics = answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {
        family.name: family for family in (read_openmetrics if is_openmetrics else read_text)(answer.body.decode())
    }
    assert {sample.name for sample in families["fleet_events"].samples} == {"fleet_events_total"}
    assert answer.body.endswith(b"# EOF\n") == is_openmetrics


# --- Sums


def test_sums_over_two_workers_are_exact_after_many_events_on_many_connections(
    two: Function, cloud: Drogue, folder: Path
) -> None:
    devices = [f"summed-{number}" for number in range(8)]
    for device in devices:
        cloud.put_image("example", device, f"metered:{VERSION}")
    before, commands = Scrape(two), len(cloud.commands)

    def live(device: str) -> None:
        assert update(two, cloud, device)[0] == VERSION
        assert post(two, device, in_sync(VERSION)).outcome == "sync"
        for _ in range(10):
            ignored(two)
        assert two.post(event(device, datacontenttype="application/cbor"), b"nonsense").outcome == "invalid"
        assert post(two, device, STATUS, time="2026-01-01T00:00:00Z").outcome == "stale"

    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(live, devices))
    more = have_all_workers_count(two, folder)
    after = Scrape(two)
    counts = {outcome: after.events(outcome) - before.events(outcome) for outcome in OUTCOMES}
    assert {outcome: count / len(devices) for outcome, count in counts.items() if count and outcome != "ignored"} == {
        "write": 3,
        "swap": 1,
        "sync": 1,
        "invalid": 1,
        "stale": 1,
    }
    assert counts["ignored"] == 10 * len(devices) + more
    for result in RESULTS:
        ended = after("fleet_updates_total", result=result) - before("fleet_updates_total", result=result)
        assert ended == (len(devices) if result in ("started", "swapped", "succeeded") else 0)
    sent = "fleet_firmware_sent_bytes_total"
    assert after(sent) - before(sent) == SIZE * len(devices)
    accepted = [scrape("fleet_upstream_requests_total", upstream="command", status="202") for scrape in (before, after)]
    assert accepted[1] - accepted[0] == len(cloud.commands) - commands == 5 * len(devices)
    asked = "fleet_upstream_duration_seconds_count"
    assert after(asked, upstream="command") - before(asked, upstream="command") == 5 * len(devices)
    for scrape in (before, after):
        assert scrape("fleet_event_duration_seconds_count") == scrape.all_events
        assert scrape("fleet_event_duration_seconds_bucket", le="+Inf") == scrape.all_events
    assert after("fleet_event_duration_seconds_sum") > before("fleet_event_duration_seconds_sum")


def test_what_a_killed_worker_has_counted_stays_and_others_go_on_from_there(two: Function, folder: Path) -> None:
    for _ in range(3):
        have_all_workers_count(two, folder)
        before, victim = Scrape(two), workers(two)[0]
        os.kill(victim, signal.SIGKILL)

        def is_replaced(before: Scrape = before, victim: int = victim) -> bool:
            with suppress(OSError):  # the victim may have taken the connection before it went
                assert Scrape(two).sums == before.sums
            return victim not in workers(two) and len(workers(two)) == 2

        until(is_replaced)
        assert Scrape(two).sums == before.sums
        posted = have_all_workers_count(two, folder)
        assert Scrape(two).events("ignored") == before.events("ignored") + posted
    assert "counts of worker" not in two.errors
    # No file for each worker that ever was.
    assert {file.name for file in folder.glob("*.db")} == {f"{kind}_{slot}.db" for kind in KINDS for slot in (0, 1)}


def test_sums_stay_when_the_server_replaces_all_workers(settings: dict[str, str], tmp_path: Path) -> None:
    with Function({**settings, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}) as function:
        for _ in range(2):
            have_all_workers_count(function, tmp_path)
            before, replaced = Scrape(function), workers(function)
            function.process.send_signal(signal.SIGHUP)

            def are_replaced(replaced: list[int] = replaced) -> bool:
                now = workers(function)
                return len(now) == 2 and not set(now) & set(replaced)

            until(are_replaced)
            assert Scrape(function).sums == before.sums
            for _ in range(8):
                ignored(function)
            assert Scrape(function).events("ignored") == before.events("ignored") + 8


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/preview"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/x")],
)
def test_what_is_no_event_is_not_counted_as_one(two: Function, cloud: Drogue, method: str, path: str) -> None:
    cloud.put_image("example", "previewed", f"metered:{VERSION}")
    before = Scrape(two)
    if method == "POST":
        attributes = event("previewed", datacontenttype="application/cbor")
        assert two.post(attributes, cbor2.dumps(STATUS), path=path).json["outcome"] == "write"
    else:
        two.request(method, path)
    after = Scrape(two)
    assert after.all_events == before.all_events
    for name in ("fleet_event_duration_seconds_count", "fleet_firmware_sent_bytes_total"):
        assert after(name) == before(name)


# --- Upstreams


@pytest.mark.parametrize(
    ("answer", "status"),
    [(reset, "error"), (hang_up, "error"), (always(Response(503)), "503"), (always(Response(429)), "429")],
)
@pytest.mark.parametrize("upstream", ["registry", "command"])
def test_a_request_to_drogue_cloud_is_counted_by_its_answer_or_as_an_error(
    two: Function, cloud: Drogue, upstream: str, answer: Answer, status: str
) -> None:
    device = f"faulty-{upstream}-{status}-{id(answer)}"
    cloud.put_image("example", device, f"metered:{VERSION}")
    if upstream == "registry":
        cloud.registry_answers["example", device] = answer
    else:
        cloud.command_answers[device] = answer
    before = Scrape(two)
    assert post(two, device).outcome.startswith("retry")
    after = Scrape(two)
    requests, seconds = "fleet_upstream_requests_total", "fleet_upstream_duration_seconds_count"
    assert (
        after(requests, upstream=upstream, status=status) - before(requests, upstream=upstream, status=status) == 1
    ), after.text
    assert after(seconds, upstream=upstream) > before(seconds, upstream=upstream)
    assert after.events("retry") - before.events("retry") == 1


def test_a_drogue_cloud_that_refuses_the_connection_counts_as_an_error(settings: dict[str, str]) -> None:
    with closed_port() as port, Function({**settings, "DROGUE_API_URL": f"http://127.0.0.1:{port}"}) as function:
        assert post(function, "device1").outcome.startswith("retry")
        scrape = Scrape(function)
    assert scrape("fleet_upstream_requests_total", upstream="registry", status="error") >= 1
    assert scrape("fleet_upstream_requests_total", upstream="command", status="error") == 0
    assert scrape("fleet_upstream_duration_seconds_count", upstream="registry") >= 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [(None, "error"), (reset, "error"), (always(Response(503)), "503")],
    ids=["refused", "reset", "503"],
)
def test_a_request_to_an_image_registry_is_counted_by_its_answer_or_as_an_error(
    settings: dict[str, str], cloud: Drogue, answer: Answer | None, status: str
) -> None:
    cloud.put_image("example", "pulling", "some/image:1")
    with closed_port() as closed, Server(answer or reset) as server:
        port = server.port if answer else closed
        registry = {"FIRMWARE_REGISTRY": f"127.0.0.1:{port}", "FIRMWARE_REGISTRY_INSECURE": "true"}
        with Function({**settings, **registry}) as function:
            assert post(function, "pulling").outcome.startswith("retry")
            scrape = Scrape(function)
    counted = {
        dict(labels)["status"]: value
        for (name, labels), value in scrape.sums.items()
        if name == "fleet_upstream_requests_total" and dict(labels)["upstream"] == "oci"
    }
    assert set(counted) == {status}
    assert scrape("fleet_upstream_duration_seconds_count", upstream="oci") == counted[status]


# --- Labels


@pytest.mark.parametrize(
    "name", ["marked", 'marked "} 1', "marked\\", "marked-ü☃", "marked{outcome='sync'}", "marked 7"]
)
def test_no_label_ever_has_the_name_of_a_device_or_an_application(two: Function, cloud: Drogue, name: str) -> None:
    cloud.put(name, spec={})
    cloud.put_image(name, name, f"metered:{VERSION}")
    attributes = event(name, name, datacontenttype="application/cbor")
    assert two.post_structured({**attributes, "datacontenttype": "application/json", "data": {"version": "1"}}).outcome
    two.post(event(name, f"{name}-unknown", datacontenttype="application/cbor"), cbor2.dumps(STATUS))
    two.post(event(f"{name}-unknown", name, datacontenttype="application/cbor"), cbor2.dumps(STATUS))
    scrape = Scrape(two)
    assert "marked" not in scrape.text
    for _, labels in scrape.sums:
        for label, value in labels:
            assert VALUES[label].fullmatch(value)


# --- Caches


def test_the_first_look_up_of_a_spec_is_a_miss_and_the_next_a_hit(settings: dict[str, str], cloud: Drogue) -> None:
    cloud.put("example", "looked-up", spec={})  # of which nothing is noted
    with Function({**settings, "WEB_CONCURRENCY": "1"}) as function:
        counts = []
        for _ in range(2):
            assert post(function, "looked-up").outcome == 'withheld; reason="unmanaged"'
            scrape = Scrape(function)
            counts.append(
                [scrape("fleet_cache_requests_total", cache="spec", result=result) for result in ("miss", "hit")]
            )
    (missed, _), (still, found) = counts
    assert missed == still > 0
    assert found >= missed


# --- The folder


def test_a_server_leaves_no_folder_of_its_own_behind(settings: dict[str, str]) -> None:
    with Function(settings) as function:
        ignored(function)
        descriptors = Path(f"/proc/{function.process.pid}/fd")
        [life] = [path for path in (link.readlink() for link in descriptors.iterdir()) if path.name == ".life"]
        assert life.parent.name.startswith("fleet-metrics-")
        assert life.parent.parent == Path("/dev/shm")
        assert life.parent.stat().st_mode & 0o777 == 0o700
        until(lambda: any(life.parent.glob("counter_*.db")))
    assert not life.parent.exists()
    assert function.process.returncode == 0


def test_a_folder_that_somebody_names_is_emptied_of_what_was_counted_and_stays(
    settings: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "metrics"
    for _ in range(2):  # the second finds what the first has left
        with Function({**settings, "PROMETHEUS_MULTIPROC_DIR": str(folder)}) as function:
            assert Scrape(function).all_events == 0
            ignored(function)
            assert Scrape(function).all_events == 1
        assert list(folder.glob("*.db"))
        (folder / "counter_1.db").write_bytes(b"\x00")
        (folder / "notes.txt").write_text("somebody else's")
    assert (folder / "notes.txt").exists()
