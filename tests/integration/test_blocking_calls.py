"""Calls of libcurl that Python cannot interrupt: they end with the deadline, and let Ctrl-C through."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

#: Seconds that the resolver takes, and that a request may take.
RESOLVER = 20
DEADLINE = 0.3

HANGING_RESOLVER = f"""
#include <netdb.h>
#include <unistd.h>
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {{
    sleep({RESOLVER});
    return EAI_AGAIN;
}}
"""
ASK = f"""
import os, time
from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError
from fleet_fn.http.client import HttpClient

cloud = HttpClient("cloud", "http://cloud.example")

def stream():
    with cloud.stream("/", Deadline({DEADLINE})):
        pass

asks = [
    lambda: cloud.request("POST", "/", Deadline({DEADLINE}), body=b"x", wants_body=False),
    lambda: cloud.for_redirect("http://other.example", lambda _: True).request("GET", "/", Deadline({DEADLINE})),
    stream,
]
for ask in asks:
    began = time.monotonic()
    try:
        ask()
    except TransientError as error:
        print(error, error.may_have_acted, time.monotonic() - began < {DEADLINE + 2}, flush=True)
cloud.close()
print("closed", time.monotonic() - began < {DEADLINE + 4}, flush=True)
os._exit(0)
"""
WAIT = """
from fleet_fn.deadline import Deadline
from fleet_fn.http.client import HttpClient

print("asking", flush=True)
HttpClient("cloud", "{url}").request("GET", "/", Deadline(60))
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="without a C compiler there is no resolver that hangs")
def test_a_resolver_that_hangs_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "resolver.c").write_text(HANGING_RESOLVER)
    library = tmp_path / "resolver.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "resolver.c"], check=True)
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "LD_PRELOAD": str(library)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=RESOLVER + 20,
        check=True,
    )
    *answers, closed = asked.stdout.splitlines()
    assert [answer.partition(": ")[2] for answer in answers] == ["no answer in time False True"] * 3
    assert closed == "closed True"


def test_ctrl_c_ends_a_request_that_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-c", WAIT.format(url=url)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as asking:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(3) == b"GET"
                asking.send_signal(signal.SIGINT)
                _, errors = asking.communicate(timeout=20)
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
