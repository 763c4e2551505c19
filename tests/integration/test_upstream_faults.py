"""Each fault at each upstream: what becomes of the event, how long that takes, and what the next one notices of it."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest

from tests.integration.registries.conftest import running
from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Answer as EventAnswer
from tests.support.function import Function, event, parse_outcome
from tests.support.hostile import always, cut, flooding, hang_up, head, raw, redirect, reset, trickling
from tests.support.http import Answer, Request, Response, Server, closed_port
from tests.support.processes import descriptors, forget_peak, peak_resident, resident
from tests.support.statuses import STATUS, blocks, midway
from tests.support.timing import SLACK

#: Seconds. What hangs costs that much, many times.
DEADLINE: Final = 1.0
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
    #: Of a report that has to be written before the command goes out.
    of_note: str | None = None


CASES: Final[dict[str, Case]] = {
    "resets": Case(resets, "retry"),
    "hangs up": Case(answers(hang_up), "retry"),
    "resets midway": Case(resets_midway, "retry", of_command="write", of_blob="failed", of_note="write"),
    "hangs": Case(hangs, "retry", of_blob=WAIT),
    "hangs after the head": Case(hangs_after_the_head, "retry", of_command="write", of_blob=WAIT, of_note="write"),
    "trickles": Case(trickles, "retry", of_blob=WAIT),
    "ends early": Case(ends_early, "retry", of_command="write", of_note="write"),
    "announces too much": Case(announces("1000000"), "retry", of_command="write", of_blob="failed", of_note="write"),
    "announces too little": Case(announces("5"), "failed", of_command="write", of_note="write"),
    # What is whole in spite of that is as good as any.
    "announces nonsense": Case(announces("many"), "write", of_blob="failed"),
    "announces two lengths": Case(announces("own", "7"), "write"),
    "401": Case(says(401), "failed"),
    "403": Case(says(403), "failed"),
    "404": Case(says(404), "failed"),
    "406": Case(says(406), "failed"),
    "409": Case(says(409), "failed", of_note="retry"),
    "410": Case(says(410), "failed"),
    "429": Case(says(429), "retry"),
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

    def break_(self, upstream: str, fault: Fault) -> None:
        """Everything that this device needs of one upstream goes wrong."""

        def through(honest: Answer) -> Answer:
            def answer(request: Request) -> Response | None:
                response = honest(request)
                assert response is not None
                broken = fault(request, response)
                if broken is not None and "Location" in broken.headers:
                    return redirect(broken.headers["Location"].format(elsewhere=self.elsewhere.url), broken.status)
                return broken

            return answer

        drogue, names = self.drogue, (self.application, self.device)
        if upstream == "device":
            drogue.registry_answers[names] = through(lambda _: self._object(*names))
        elif upstream == "application":
            drogue.registry_answers[names[:1]] = through(lambda _: self._object(self.application))
        elif upstream == "command":
            drogue.command_answers[self.device] = through(lambda _: Response(202))
        elif upstream == "note":
            drogue.write_answers[names] = through(lambda _: Response(200, b'{"written": true}'))
        else:
            self.registry.answers[f"{self.device}/{upstream}s"] = through(self.registry.honest)

    def mend(self) -> None:
        self.drogue.registry_answers.clear()
        self.drogue.command_answers.clear()
        self.drogue.write_answers.clear()
        self.registry.answers.clear()

    def _object(self, *names: str) -> Response:
        return Response(200, json.dumps(self.drogue.object(*names)).encode())

    def post(self, status: dict[int, Any] = STATUS) -> tuple[EventAnswer, float]:
        """The answer to a status, and the seconds that it took."""
        attributes = event(self.device, self.application, datacontenttype="application/cbor")
        started = time.monotonic()
        return self.function.post(attributes, cbor2.dumps(status)), time.monotonic() - started

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


def expected(case: Case, upstream: str) -> str:
    other = {"command": case.of_command, "manifest": case.of_manifest, "blob": case.of_blob, "note": case.of_note}
    return other.get(upstream) or case.outcome


@pytest.mark.parametrize(
    ("name", "upstream"),
    # Blobs may be elsewhere: that is tested with where they may be.
    [(name, upstream) for name in CASES for upstream in UPSTREAMS if (name[:2], upstream) != ("30", "blob")],
)
def test_a_fault_has_the_outcome_that_it_should_in_time_and_is_over_when_it_is(
    scene: Scene, name: str, upstream: str
) -> None:
    case = CASES[name]
    status = midway("0.9", 512) if upstream == "note" else STATUS
    scene.break_(upstream, case.fault)
    answer, seconds = scene.post(status)
    outcome = parse_outcome(answer)[0]
    assert outcome in expected(case, upstream).split(" or "), answer.body
    assert seconds < DEADLINE + SLACK
    assert answer.status == {"write": 204, "wait": 204, "failed": 422, "retry": 503}[outcome]
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.reason
        assert ("retry-after" in answer.headers) == (outcome == "retry")
    for offset, block in blocks(scene.drogue, scene.device):
        assert scene.firmware.content[offset:].startswith(block)
    assert not scene.elsewhere.requests, "requests followed a redirect"

    scene.mend()
    assert scene.post_healthy().status == 204
    if upstream not in ("manifest", "blob"):  # what is wrong with these is remembered for a while
        assert parse_outcome(scene.post(status)[0])[0] == "write"
        assert blocks(scene.drogue, scene.device)[-1] == (0, scene.firmware.content[:512])


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_a_hundred_megabytes_take_no_memory(scene: Scene, upstream: str) -> None:
    assert scene.post_healthy().status == 204
    before = resident(scene.function)
    forget_peak(scene.function)
    scene.break_(upstream, floods)
    scene.post(midway("0.9", 512) if upstream == "note" else STATUS)
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
