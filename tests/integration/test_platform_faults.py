"""What the platform does to the function: it ends it under load, kills its workers, has pods share a folder."""

import http.client
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, running
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT, Function, event, serving
from tests.support.http import Response
from tests.support.processes import workers
from tests.support.statuses import STATUS, blocks, post, told
from tests.support.timing import Gate


def wait_until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.01)


def connect(function: Function) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", function.port, timeout=20)


def kept_alive(function: Function) -> http.client.HTTPConnection:
    """A connection on which something was answered already."""
    connection = connect(function)
    connection.request("GET", "/readyz")
    connection.getresponse().read()
    return connection


def answer_on(connection: http.client.HTTPConnection, device: str) -> int:
    """The status of the answer to a device's event."""
    attributes = event(device, datacontenttype="application/cbor")
    headers = {"content-type" if name == "datacontenttype" else f"ce-{name}": str(v) for name, v in attributes.items()}
    connection.request("POST", "/", cbor2.dumps(STATUS), headers)
    with connection.getresponse() as response:
        response.read()
        return response.status


@pytest.mark.parametrize("processes", [1, 2])
def test_events_in_flight_are_answered_when_the_function_is_told_to_go(
    drogue: Drogue, device: str, tmp_path: Path, processes: int
) -> None:
    names = [f"{device}-{number}" for number in range(6)]
    gates = [Gate(Response(202)) for _ in names]
    drogue.put("example", spec={})
    for name, gate in zip(names, gates, strict=True):
        drogue.put("example", name, spec={})
        drogue.command_answers[name] = gate
    environment = {"FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "WEB_CONCURRENCY": str(processes)}
    with ExitStack() as stack, Function({**drogue.environment, **environment}) as function:
        connections = [kept_alive(function) for _ in names[:3]] + [connect(function) for _ in names[3:]]
        idle = kept_alive(function)
        for connection in [*connections, idle]:
            stack.enter_context(closing(connection))
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))
        answers = [pool.submit(answer_on, *pair) for pair in zip(connections, names, strict=True)]
        assert all(gate.reached.wait(10) for gate in gates)
        function.process.terminate()
        wait_until(lambda: "Handling signal: term" in function.errors)
        assert not any(answer.done() for answer in answers)
        assert answer_on(idle, device) == 204, "who kept a connection may use it once more"
        for gate in gates:
            gate.opened.set()
        assert [answer.result() for answer in answers] == [204] * len(names)
        assert function.process.wait(10) == 0
    assert all(len(drogue.commands_for(name)) == 1 for name in names)


@pytest.mark.parametrize("keeps", [True, False], ids=["kept connections", "fresh connections"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_under_load_a_function_that_is_told_to_go_leaves_no_event_half_done(
    drogue: Drogue, device: str, tmp_path: Path, processes: str, keeps: bool
) -> None:
    names = [f"{device}-{number}" for number in range(8)]
    drogue.put("example", spec={})
    for name in names:
        drogue.put("example", name, spec={})
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    settings = {"FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "WEB_CONCURRENCY": processes}
    # On a socket of its own: what nobody accepts any more is cut off when it goes.
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "fleet_fn.app:create_app()"]
    with serving(command, {**inherited, **drogue.environment, **settings}, ROOT) as function:
        answered: dict[str, int] = dict.fromkeys(names, 0)

        def send(name: str) -> bool:
            """Sends events until one is not answered; whether that was one on a kept connection."""
            while True:
                with closing(http.client.HTTPConnection("127.0.0.1", function.port, timeout=20)) as connection:
                    for number in itertools.count():
                        try:
                            status = answer_on(connection, name)
                        except OSError:
                            return number > 0
                        assert status == 204
                        answered[name] += 1
                        if not keeps or connection.sock is None:  # told to close it
                            break

        with ThreadPoolExecutor(len(names)) as pool:
            lost = [pool.submit(send, name) for name in names]
            wait_until(lambda: all(count > 10 for count in answered.values()))
            function.end()
            assert not any(one.result() for one in lost), "who keeps a connection is told before it goes"
    # So whatever was not answered may be delivered again: nothing was done for it.
    assert {name: len(drogue.commands_for(name)) for name in names} == answered


def test_a_start_whose_process_is_killed_during_the_command_is_sent_again_with_the_next_status_only(
    drogue: Drogue, device: str, tmp_path: Path
) -> None:
    firmware = publish(tmp_path, device, "1", random_bytes(1300, device))
    drogue.put_image("example", device, f"{device}:1")
    gate = drogue.command_answers[device] = Gate(Response(202))
    with Function({**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}) as function:
        earlier = (datetime.now(UTC) - timedelta(seconds=10)).isoformat()
        attributes = event(device, datacontenttype="application/cbor", time=earlier)
        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(function.post, attributes, cbor2.dumps(STATUS))
            assert gate.reached.wait(10)
            (worker,) = workers(function)
            os.kill(worker, signal.SIGKILL)
            assert isinstance(lost.exception(), OSError)
        gate.opened.set()
        del drogue.command_answers[device]
        # Whether it was accepted, only the cloud knows. Most devices erase what they wrote if they hear it twice.
        wait_until(lambda: len(blocks(drogue, device)) == 1)
        assert function.post(attributes, cbor2.dumps(STATUS)).outcome == "duplicate"
        assert len(blocks(drogue, device)) == 1
        assert post(function, device).outcome.startswith("write")
    assert set(blocks(drogue, device)) == {(0, firmware.content[:512])}


def test_a_disk_that_is_full_fails_events_until_there_is_room_again(
    drogue: Drogue, device: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=128k none "$0"; exec "$@"', str(disk)]
    if not shutil.which("unshare") or subprocess.run([*mounting, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    drogue.put_image("example", device, f"{device}:1")
    with ExitStack() as stack:
        registry = stack.enter_context(FakeRegistry(tmp_path / "registry"))
        firmware = publish(registry.folder, device, "1", random_bytes(40_000, device))
        environment = {**drogue.environment, **registry.environment, "FIRMWARE_CACHE_DIR": str(disk)}
        function = stack.enter_context(Function(environment, within=mounting))
        filler = Path(f"/proc/{function.process.pid}/root{disk}/filler")
        filler.write_bytes(bytes(100_000))
        answer = post(function, device)
        assert (answer.status, answer.reason) == (422, "firmware cache: No space left on device")
        assert not blocks(drogue, device)
        filler.unlink()
        assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, firmware.content[:512])]


def test_pods_that_evict_each_others_firmware_serve_the_right_bytes_all_the_same(
    drogue: Drogue, device: str, tmp_path: Path
) -> None:
    size, folder = 40_000, tmp_path / "cache"
    names = [f"{device}-{number}" for number in range(6)]
    with ExitStack() as stack:
        registry = stack.enter_context(FakeRegistry(tmp_path / "registry"))
        contents = {name: random_bytes(size, name) for name in names}
        for name in names:
            publish(registry.folder, name, "1", contents[name])
            drogue.put_image("example", name, f"{name}:1")
        room = {"FIRMWARE_CACHE_BYTES": str(3 * size), "WAIT_SECONDS": "0"}
        pods = [stack.enter_context(running(drogue, registry, folder, **room)) for _ in range(2)]
        pool = stack.enter_context(ThreadPoolExecutor(len(names)))

        def flash(number: int) -> bytes:
            return flashed(pods, drogue, names[number], size)

        for name, image in zip(names, pool.map(flash, range(len(names))), strict=True):
            assert image == contents[name]
        blobs = [asked for name in names for asked in registry.asked(name) if asked.startswith("GET blobs/")]
        assert len(blobs) > len(names), "nothing was evicted"
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 3 * size


def flashed(pods: Sequence[Function], drogue: Drogue, device: str, size: int) -> bytes:
    """What a device has written that is answered by one pod after the other, until it is to swap."""
    image, limit = b"", time.monotonic() + 20
    for pod in itertools.cycle(pods):
        assert time.monotonic() < limit
        progress = {0: b"1", 1: len(image)} if image else None
        answer = post(pod, device, {**STATUS, 1: 4096, 3: progress})
        assert answer.status == 204, answer.body
        variant, fields = told(drogue, device)[-1]
        if variant == "swap":
            break
        if variant == "write":
            assert fields[2] == len(image)
            image += fields[3]
    assert len(image) == size
    return image
