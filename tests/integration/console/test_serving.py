"""The console's server under attack: slow senders, hanging upstreams, and signals."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Form, environment_of
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.served_console import Console, console

#: More than the server has threads.
SENDERS = 60
APPLICATION = {"metadata": {"name": "shop"}, "spec": {"firmware": {"container": {"image": "pump:1.0.0"}}}}
POST = (
    b"POST /applications/shop/rollout/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\nshown="
)
PATIENCE = 20.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with (
        Sandbox([APPLICATION]) as sandbox,
        console(lambda _: environment_of(sandbox.url), tmp_path_factory.mktemp("console")) as found,
    ):
        yield found


@pytest.mark.parametrize("sent", [b"", b"GET / HT", POST], ids=["nothing", "part of a head", "part of a form"])
def test_slow_senders_do_not_keep_a_user_from_pausing(running: Console, sent: bytes) -> None:
    address = urlsplit(running.url)
    senders = [socket.create_connection((address.hostname, address.port)) for _ in range(SENDERS)]
    try:
        for sender in senders:
            sender.sendall(sent)
        with requests.Session() as session:
            for action in ("pause", "resume"):
                url = f"{running.url}/applications/shop/rollout/{action}"
                fields = Form(session.get(url, timeout=5).text).fields
                assert session.post(url, data=fields, timeout=5, allow_redirects=False).status_code == 303
    finally:
        for sender in senders:
            sender.close()


def test_a_form_that_is_too_large_is_answered(running: Console) -> None:
    answer = requests.post(f"{running.url}/applications/shop/rollout/pause", data={"shown": "x" * 200_000}, timeout=10)
    assert answer.status_code == 413


def test_it_ends_with_its_terminal(tmp_path: Path) -> None:
    with console(lambda _: environment_of("http://127.0.0.1:9"), tmp_path) as running:
        running.process.send_signal(signal.SIGHUP)
        assert running.process.wait(PATIENCE) == 0, running.output


def test_it_ends_within_seconds_though_the_cloud_hangs(tmp_path: Path) -> None:
    release, asked = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        release.wait(PATIENCE)

    with Drogue() as cloud:
        cloud.put("shop")
        cloud.registry_answers[("shop",)] = hang
        environment = environment_of(cloud.url) | {"DROGUE_USER": USER, "DROGUE_TOKEN": TOKEN}
        with console(lambda _: environment, tmp_path) as running:
            try:
                with pytest.raises(requests.Timeout):
                    requests.get(f"{running.url}/applications/shop", timeout=0.5)
                assert asked.wait(PATIENCE)
                began = time.monotonic()
                running.process.terminate()
                assert running.process.wait(PATIENCE) == 0, running.output
                assert time.monotonic() - began < 10
                assert "Traceback" not in running.output
            finally:
                release.set()


def test_an_address_that_others_can_reach_is_refused_without_sign_in() -> None:
    ended = CliRunner().invoke(main, ["console", "--host", "0.0.0.0"], env={"DROGUE_API_URL": "http://127.0.0.1:1"})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("console: --host is 0.0.0.0, so others could act with your credentials. ")
    assert "CONSOLE_OIDC_ISSUER" in ended.stderr


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = CliRunner().invoke(main, ["console", "--port", port], env={"DROGUE_API_URL": "http://127.0.0.1:1"})
    assert (ended.exit_code, ended.stdout) == (1, "")
    problem = f"cannot listen on 127.0.0.1, port {port}: Address already in use"
    assert ended.stderr == f"console: {problem}. Name others with --host and --port\n"
