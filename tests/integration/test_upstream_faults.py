"""Each fault at each upstream: what becomes of the event, how long that takes, and what the next one notices of it."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest

from tests.support.drogue import Drogue, SentCommand
from tests.support.fake_registry import FakeRegistry, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Answer as EventAnswer
from tests.support.function import Function, event, parse_outcome
from tests.support.hostile import always, cut, flooding, hang_up, head, raw, redirect, reset, trickling
from tests.support.http import Answer, Request, Response, Server, closed_port
from tests.support.processes import descriptors, forget_peak, peak_resident, resident
from tests.support.statuses import STATUS, ago, blocks, midway, record_start, told
from tests.support.timing import SLACK

#: Seconds. What hangs costs that much, many times.
DEADLINE: Final = 1.5
#: Bytes of what is too much.
MUCH: Final = 100 * 1024 * 1024
#: Bytes that the answers that are too large may take together: less than one of them has.
ROOM: Final = 48 * 1024 * 1024

#: What an upstream does with a request; the response is what an honest one would answer.
Fault = Callable[[Request, Response], Response | None]


def answers(answer: Answer) -> Fault:
    return lambda request, _: answer(request)


def says(status: int, **headers: str) -> Fault:
    return answers(always(Response(status, b'{"error": "because"}', {"Content-Type": "application/json", **headers})))


def says_json(value: object) -> Fault:
    return answers(always(Response(200, json.dumps(value).encode(), {"Content-Type": "application/json"})))


def resets(request: Request, _: Response) -> None:
    reset(request)


def resets_midway(request: Request, honest: Response) -> None:
    request.connection.sendall(head(honest.status, {"Content-Length": "1000000"}) + honest.body[:10])
    reset(request)


def hangs(request: Request, _: Response) -> None:
    _until_the_client_goes(request)


def hangs_after_the_head(request: Request, honest: Response) -> None:
    request.connection.sendall(head(honest.status, {"Content-Length": str(len(honest.body) or 10)}))
    _until_the_client_goes(request)


def trickles(request: Request, honest: Response) -> Response | None:
    return trickling(honest, pause=0.2)(request)


def ends_early(request: Request, honest: Response) -> Response | None:
    return cut(Response(honest.status, honest.body or b"0123456789"), max(1, len(honest.body) // 2))(request)


def announces(*lengths: str) -> Fault:
    """The honest answer with other lengths announced, and no more after it."""

    def answer(request: Request, honest: Response) -> Response | None:
        own = str(len(honest.body))
        lines = "".join(f"Content-Length: {length.replace('own', own)}\r\n" for length in lengths)
        begin = f"HTTP/1.1 {honest.status} Whatever\r\nConnection: close\r\n{lines}\r\n"
        return raw(begin.encode(), honest.body)(request)

    return answer


def floods(request: Request, honest: Response) -> Response | None:
    begin = head(honest.status, {"Content-Length": str(MUCH)})
    return flooding(b'"' + b"x" * 65535, begin)(request)


def floods_the_head(request: Request, honest: Response) -> Response | None:
    return flooding(b"X-Much: " + b"x" * 60000 + b"\r\n", f"HTTP/1.1 {honest.status} Whatever\r\n".encode())(request)


def _until_the_client_goes(request: Request) -> None:
    request.connection.settimeout(30)
    try:
        request.connection.recv(1)
    except OSError:
        pass  # that is how it went


#: On a machine that is busy with other things nothing may be left of the time that is kept for sending WAIT.
WAIT: Final = "wait or retry"


@dataclass(frozen=True)
class Case:
    """A fault, and the outcome at whatever reads an answer; at the command API, where only its status counts."""

    fault: Fault
    outcome: str
    #: Where it is another one.
    of_command: str | None = None
    of_manifest: str | None = None
    of_blob: str | None = None
    #: Of the record that has to be written before the command is sent.
    of_note: str | None = None
    #: The command API has certainly not acted on a command that it answers like that.
    refuses: bool = False

    def outcome_of(self, upstream: str) -> str:
        """Return the outcome of an event whose `upstream` is that faulty."""
        others = {
            "command": self.of_command,
            "manifest": self.of_manifest,
            "blob": self.of_blob,
            "note": self.of_note,
        }
        return others.get(upstream) or self.outcome

    def outcome_of_redelivery(self, upstream: str) -> str:
        """Return the outcome of the same event once the upstream is healthy again."""
        if self.outcome_of(upstream) == "write":
            return "duplicate"
        return "duplicate" if upstream == "command" and not self.refuses else "write"


CASES: Final[dict[str, Case]] = {
    "resets": Case(resets, "retry"),
    "hangs up": Case(answers(hang_up), "retry"),
    "resets midway": Case(resets_midway, "retry", of_command="write", of_blob="failed", of_note="write"),
    "hangs": Case(hangs, "retry", of_blob=WAIT),
    "hangs after the head": Case(hangs_after_the_head, "retry", of_command="write", of_blob=WAIT),
    "trickles": Case(trickles, "retry", of_blob=WAIT),
    "ends early": Case(ends_early, "retry", of_command="write", of_note="write"),
    "announces too much": Case(announces("1000000"), "retry", of_command="write", of_blob="failed", of_note="write"),
    "announces too little": Case(announces("5"), "failed", of_command="write", of_note="write"),
    "announces nonsense": Case(announces("many"), "failed", of_command="write", of_note="write"),
    "announces two lengths": Case(announces("own", "7"), "failed", of_command="write", of_note="write"),
    "401": Case(says(401), "failed", refuses=True),
    "403": Case(says(403), "failed", refuses=True),
    "404": Case(says(404), "failed", refuses=True),
    "406": Case(says(406), "failed", refuses=True),
    "409": Case(says(409), "failed", of_note="retry", refuses=True),
    "410": Case(says(410), "failed", refuses=True),
    "429": Case(says(429), "retry", refuses=True),
    "500": Case(says(500), "retry"),
    "502": Case(says(502), "retry"),
    "503": Case(says(503), "retry"),
    "504": Case(says(504), "retry"),
    "204": Case(answers(always(Response(204))), "failed", of_command="write", of_note="write"),
    "301": Case(says(301, Location="{elsewhere}"), "failed"),
    "307": Case(says(307, Location="{elsewhere}"), "failed"),
    "308": Case(says(308, Location="{elsewhere}"), "failed"),
    "no HTTP": Case(answers(raw(b"SSH-2.0-OpenSSH_9.6\r\n")), "failed"),
    "a page": Case(answers(always(Response(200, b"<html>"))), "failed", of_command="write", of_note="write"),
    "nothing": Case(answers(always(Response(200))), "failed", of_command="write", of_note="write"),
    "NaN": Case(answers(always(Response(200, b'{"spec": NaN}'))), "failed", of_command="write", of_note="write"),
    "no UTF-8": Case(answers(always(Response(200, b'{"s": "\xff"}'))), "failed", of_command="write", of_note="write"),
    "a list": Case(says_json([]), "failed", of_command="write", of_note="write"),
    "null": Case(says_json(None), "failed", of_command="write", of_note="write"),
    "too deep": Case(
        answers(always(Response(200, b'{"spec":' + b"[" * 100_000))), "failed", of_command="write", of_note="write"
    ),
    "floods": Case(floods, "failed", of_command="write", of_note="write"),
    "floods the head": Case(floods_the_head, "failed"),
}
UPSTREAMS: Final = ["device", "application", "command", "note", "manifest", "blob"]


@dataclass
class Scene:
    """A device whose firmware is there, of which one upstream has something else to say."""

    function: Function
    drogue: Drogue
    registry: FakeRegistry
    elsewhere: Server
    firmware: Published
    device: str
    application: str

    def break_(self, upstream: str, fault: Fault, *, stores: bool = False, accepts: bool = False) -> None:
        """Have everything that this device needs of one upstream go wrong.

        Args:
            upstream: which one.
            fault: how.
            stores: whether the registry has written what it was to write, whatever it answers.
            accepts: whether the command API has accepted a command, whatever it answers.

        """

        def through(honest: Answer) -> Answer:
            def answer(request: Request) -> Response | None:
                response = honest(request)
                assert response is not None
                broken = fault(request, response)
                if broken is not None and "Location" in broken.headers:
                    return redirect(broken.headers["Location"].format(elsewhere=self.elsewhere.url), broken.status)
                if broken is not None and upstream in ("command", "note") and broken.status < 300:
                    # Told as it is: the fake would go on as if it had not been asked.
                    begin = head(broken.status, {"Connection": "close", "Content-Length": str(len(broken.body))})
                    return raw(begin, broken.body)(request)
                return broken

            return answer

        drogue, names = self.drogue, (self.application, self.device)
        if upstream == "device":
            drogue.registry_answers[names] = through(lambda _: self._object(*names))
        elif upstream == "application":
            drogue.registry_answers[names[:1]] = through(lambda _: self._object(self.application))
        elif upstream == "command":
            drogue.command_answers[self.device] = through(self._accept if accepts else lambda _: Response(202))
        elif upstream == "note":
            drogue.write_answers[names] = through(self._store if stores else lambda _: Response(200, b"{}"))
        else:
            self.registry.answers[f"{self.device}/{upstream}s"] = through(self.registry.honest)

    def mend(self) -> None:
        self.drogue.registry_answers.clear()
        self.drogue.command_answers.clear()
        self.drogue.write_answers.clear()
        self.registry.answers.clear()

    def _object(self, *names: str) -> Response:
        return Response(200, json.dumps(self.drogue.object(*names)).encode())

    def _store(self, request: Request) -> Response:
        given = json.loads(request.body)
        del given["metadata"]
        self.drogue.put(self.application, self.device, **given)
        return Response(200, b'{"written": true}')

    def _accept(self, request: Request) -> Response:
        content_type = request.headers["Content-Type"]
        command = SentCommand(self.application, self.device, "dfu", content_type, request.body)
        self.drogue.commands.append(command)
        return Response(202)

    @property
    def record(self) -> Any:
        """The record in the device's object; None if there is none."""
        return (self.drogue.reported(self.device, self.application) or {}).get("update")

    def begin(self) -> None:
        """Have the device's update be begun."""
        record_start(self.drogue, self.device, "1", self.firmware.checksum, self.application)

    def event(self, time: str | None = None) -> dict[str, str | None]:
        """Return the attributes of a status that came at some `time`; without that, now."""
        attributes = event(self.device, self.application, datacontenttype="application/cbor")
        return {**attributes, "time": time} if time else attributes

    def post(
        self, sent: dict[str, str | None] | None = None, status: dict[int, Any] = STATUS, by: Function | None = None
    ) -> tuple[EventAnswer, float]:
        """Return the answer to a status, and the seconds that it took."""
        started = time.monotonic()
        answer = (by or self.function).post(sent or self.event(), cbor2.dumps(status))
        return answer, time.monotonic() - started

    def outcome(
        self, sent: dict[str, str | None] | None = None, status: dict[int, Any] = STATUS, by: Function | None = None
    ) -> str:
        """Return the name of the outcome of a status."""
        return str(parse_outcome(self.post(sent, status, by)[0])[0])

    def post_healthy(self) -> EventAnswer:
        """The answer to the status of a device that has nothing to do with this one."""
        self.drogue.put("healthy", spec={})
        self.drogue.put("healthy", "healthy", spec={})
        return self.function.post(event("healthy", "healthy"), cbor2.dumps(STATUS))


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Function, Drogue, FakeRegistry, Server]]:
    environment = {"EVENT_DEADLINE_SECONDS": str(DEADLINE), "SPEC_TTL_SECONDS": "0"}
    with (
        Drogue() as drogue,
        FakeRegistry(tmp_path_factory.mktemp("registry")) as registry,
        Server(always(Response(200, b"{}"))) as elsewhere,
        running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function,
    ):
        yield function, drogue, registry, elsewhere


_numbers = itertools.count(1)


@pytest.fixture
def scene(hasty: tuple[Function, Drogue, FakeRegistry, Server]) -> Scene:
    function, drogue, registry, elsewhere = hasty
    name = f"scene-{next(_numbers)}"
    firmware = publish(registry.folder, name, "1", random_bytes(1300, name))
    drogue.put_image(name, None, f"{name}:1")
    drogue.put(name, name, spec={})
    return Scene(function, drogue, registry, elsewhere, firmware, name, name)


@pytest.mark.parametrize(
    ("name", "upstream"),
    # Blobs may be elsewhere: that is tested with where they may be.
    [(name, upstream) for name in CASES for upstream in UPSTREAMS if (name[:2], upstream) != ("30", "blob")],
)
def test_a_fault_has_the_outcome_that_it_should_in_time_and_is_over_when_it_is(
    scene: Scene, name: str, upstream: str
) -> None:
    case = CASES[name]
    first = scene.event(ago(3))
    succeeds = case.outcome_of(upstream) == "write"
    scene.break_(upstream, case.fault, stores=succeeds, accepts=succeeds)
    answer, seconds = scene.post(first)
    outcome = parse_outcome(answer)[0]
    assert outcome in case.outcome_of(upstream).split(" or "), answer.body
    assert seconds < DEADLINE + SLACK
    assert answer.status == {"write": 204, "wait": 204, "failed": 422, "retry": 503}[outcome]
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.reason
        assert ("retry-after" in answer.headers) == (outcome == "retry")
    sent = blocks(scene.drogue, scene.device)
    assert sent == ([(0, scene.firmware.content[:512])] if outcome == "write" else [])
    assert not scene.elsewhere.requests, "requests followed a redirect"

    scene.mend()
    assert scene.post_healthy().status == 204
    if upstream in ("manifest", "blob"):
        return  # what is wrong with these is remembered for a while
    again = case.outcome_of_redelivery(upstream)
    assert scene.outcome(first) == again
    assert len(blocks(scene.drogue, scene.device)) == len(sent) + (again == "write")
    # The device's next status tells what it has: it is answered, whatever became of the last one.
    assert scene.outcome() == "write"
    assert blocks(scene.drogue, scene.device)[-1] == (0, scene.firmware.content[:512])


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_hundred_megabytes_take_no_memory(scene: Scene, upstream: str) -> None:
    assert scene.post_healthy().status == 204
    before = resident(scene.function)
    forget_peak(scene.function)
    scene.break_(upstream, floods)
    scene.post()
    assert peak_resident(scene.function) - before < ROOM
    scene.mend()


def test_no_fault_leaves_anything_open(scene: Scene) -> None:
    def all_faults() -> int:
        for case in CASES.values():
            if case.outcome == "retry" and case.fault not in (resets, resets_midway, ends_early):
                continue  # nothing but waiting
            scene.break_("device", case.fault)
            scene.post()
            scene.mend()
        return descriptors(scene.function)

    assert all_faults() >= all_faults() - 2


# --- Commands that start or end an update: their acceptance got lost, or they were certainly not accepted

#: The status that asks for it, and the command, by whether that starts the update or ends it.
ORDERS: Final = {"start": (STATUS, "write"), "end": (midway("1", 1300), "swap")}
#: How the command API answers, so that nobody knows whether it has accepted a command.
LOSSES: Final[dict[str, Fault]] = {"late": hangs, "reset": resets, "502": says(502), "no HTTP": CASES["no HTTP"].fault}
#: How it refuses one.
REFUSALS: Final = [name for name, case in CASES.items() if case.refuses]


@pytest.fixture(scope="module")
def others(
    hasty: tuple[Function, Drogue, FakeRegistry, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    """A second process, which remembers what it has read for long."""
    _, drogue, registry, _ = hasty
    environment = {"SPEC_TTL_SECONDS": "3600", "MANIFEST_TTL_SECONDS": "3600"}
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


@pytest.fixture(params=["start", "end"])
def order(request: pytest.FixtureRequest, scene: Scene, others: Function) -> tuple[dict[int, Any], str]:
    """A status and the command for it; of a device that both processes know."""
    status, command = ORDERS[request.param]
    if command == "swap":
        scene.begin()
    preview = others.post(scene.event(), cbor2.dumps(status), path="/preview").json
    assert preview["outcome"] == command
    return status, command


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_order_whose_acceptance_is_unknown_is_sent_once(
    scene: Scene, others: Function, order: tuple[dict[int, Any], str], loss: str, accepts: bool
) -> None:
    status, command = order
    first = scene.event(ago(3))
    scene.break_("command", LOSSES[loss], accepts=accepts)
    assert scene.outcome(first, status) in ("retry", "failed")
    sent = [command] if accepts else []
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == sent
    assert scene.record["answered"]["events"]
    scene.mend()
    for process in (scene.function, others, scene.function):
        assert scene.outcome(first, status, by=process) == "duplicate"
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == sent

    # An order that got lost is given again with the next status, at any process.
    if command == "write":
        assert scene.outcome(status=status, by=others) == "write"
        assert blocks(scene.drogue, scene.device)[-1] == (0, scene.firmware.content[:512])
    else:
        assert scene.outcome(status=status, by=others) == "swap"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_device_whose_first_block_was_accepted_in_spite_of_that_gets_the_rest(
    scene: Scene, others: Function, loss: str
) -> None:
    first = scene.event(ago(3))
    scene.break_("command", LOSSES[loss], accepts=True)
    scene.outcome(first)
    scene.mend()
    assert scene.outcome(first, by=others) == "duplicate"
    flash = blocks(scene.drogue, scene.device)[-1][1]
    for process in (others, scene.function):
        assert scene.outcome(status=midway("1", len(flash)), by=process) == "write"
        offset, block = blocks(scene.drogue, scene.device)[-1]
        assert offset == len(flash)
        flash += block
    assert scene.outcome(status=midway("1", len(flash)), by=others) == "swap"
    assert flash == scene.firmware.content


@pytest.mark.parametrize("by_another", [False, True])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_an_order_that_was_refused_is_sent_when_its_event_is_delivered_again(
    scene: Scene, others: Function, order: tuple[dict[int, Any], str], refusal: str, by_another: bool
) -> None:
    status, command = order
    before = scene.record
    first = scene.event(ago(3))
    scene.break_("command", CASES[refusal].fault)
    answer, _ = scene.post(first, status)
    outcome = parse_outcome(answer)[0]
    assert outcome == ("retry" if refusal == "429" else "failed")
    assert scene.record == before
    if outcome == "failed":
        condition = scene.drogue.reported(scene.device, scene.application)["conditions"][0]
        assert (condition["type"], condition["status"], condition["reason"]) == ("InSync", "False", answer.reason)
    scene.mend()
    again, later = (others, scene.function) if by_another else (scene.function, others)
    assert scene.outcome(first, status, by=again) == command
    assert scene.outcome(first, status, by=later) == "duplicate"
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == [command]


@pytest.mark.parametrize("fault", [resets, hangs, says(502), says(403), says(409)])
def test_an_order_whose_record_may_not_have_been_written_is_not_sent(
    scene: Scene, others: Function, order: tuple[dict[int, Any], str], fault: Fault
) -> None:
    status, command = order
    first = scene.event(ago(3))
    scene.break_("note", fault)
    assert scene.outcome(first, status) in ("retry", "failed")
    assert not told(scene.drogue, scene.device)
    scene.mend()
    assert scene.outcome(first, status, by=others) == command
    assert scene.outcome(first, status) == "duplicate"
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == [command]


@pytest.mark.parametrize("fault", [resets, says(502)])
def test_an_order_is_sent_if_its_record_was_written_after_all(
    scene: Scene, others: Function, order: tuple[dict[int, Any], str], fault: Fault
) -> None:
    status, command = order
    first = scene.event(ago(3))
    scene.break_("note", fault, stores=True)
    assert scene.outcome(first, status) == command
    scene.mend()
    for process in (others, scene.function):
        assert scene.outcome(first, status, by=process) == "duplicate"
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == [command]


@pytest.mark.parametrize("by_another", [False, True])
def test_an_order_whose_record_was_written_too_late_is_sent_by_the_process_that_knows(
    scene: Scene, others: Function, order: tuple[dict[int, Any], str], by_another: bool
) -> None:
    status, command = order
    first = scene.event(ago(3))
    scene.break_("note", hangs, stores=True)
    assert scene.outcome(first, status) == "retry"
    scene.mend()
    if by_another:  # which cannot know: the device waits for its next status
        assert scene.outcome(first, status, by=others) == "duplicate"
        assert not told(scene.drogue, scene.device)
        assert scene.outcome(status=status, by=others) == command
    else:
        assert scene.outcome(first, status) == command
    for process in (others, scene.function):
        assert scene.outcome(first, status, by=process) == "duplicate"
    assert [variant for variant, _ in told(scene.drogue, scene.device)] == [command]


def test_a_start_whose_record_cannot_be_put_back_is_sent_by_the_process_that_knows(
    tmp_path: Path,
) -> None:
    """The registry and the command API are one host: where one refuses connections, so does the other."""

    def closing(honest: Answer) -> Answer:
        """Stop listening once a record is written, so that the command's connection is refused."""

        def answer(request: Request) -> Response | None:
            response = honest(request)
            if request.method == "PUT" and response and not writes:
                writes.append(request)
                drogue.stop_listening()
                return replace(response, headers={**response.headers, "Connection": "close"})
            return Response(502) if request.method == "POST" and loses_answers.is_set() else response

        return answer

    writes: list[Request] = []
    loses_answers = threading.Event()
    with Drogue(through=closing) as drogue, FakeRegistry(tmp_path / "registry") as registry:
        drogue.put_image("example", None, "app:1")
        drogue.put("example", "lamp", spec={})
        publish(registry.folder, "app", "1", random_bytes(1300))
        with (
            running(drogue, registry, tmp_path / "one") as one,
            running(drogue, registry, tmp_path / "another") as another,
        ):
            first = event("lamp", datacontenttype="application/cbor", time=ago(3))
            answer = one.post(first, cbor2.dumps(STATUS))
            drogue.listen_again()
            assert (answer.status, answer.reason) == (503, "command API: connection refused")
            assert not drogue.commands
            assert another.post(first, cbor2.dumps(STATUS)).outcome == "duplicate"
            assert not drogue.commands
            # Accepted, and the answer gets lost: that is not sent once more.
            loses_answers.set()
            assert one.post(first, cbor2.dumps(STATUS)).outcome.startswith("retry")
            loses_answers.clear()
            assert len(drogue.commands) == 1
            for process in (one, another):
                assert process.post(first, cbor2.dumps(STATUS)).outcome == "duplicate"
            assert len(drogue.commands) == 1


@pytest.mark.parametrize("upstream", ["Drogue Cloud", "registry"])
def test_where_nobody_listens_events_are_to_be_retried(
    drogue: Drogue, device: str, tmp_path: Path, upstream: str
) -> None:
    drogue.put_image("example", device, "app:1")
    with closed_port() as port:
        environment = {
            **drogue.environment,
            "FIRMWARE_REGISTRY": f"127.0.0.1:{port}/",
            "FIRMWARE_REGISTRY_INSECURE": "true",
            "FIRMWARE_CACHE_DIR": str(tmp_path),
        }
        if upstream == "Drogue Cloud":
            environment["DROGUE_API_URL"] = f"http://127.0.0.1:{port}"
        with Function(environment) as function:
            started = time.monotonic()
            answer = function.post(event(device), cbor2.dumps(STATUS))
            assert time.monotonic() - started < SLACK
    name = "device registry" if upstream == "Drogue Cloud" else f"OCI registry 127.0.0.1:{port}"
    assert (answer.status, answer.reason) == (503, f"{name}: connection refused")
    assert not drogue.commands_for(device)
