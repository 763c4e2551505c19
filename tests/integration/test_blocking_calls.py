"""Calls of libcurl that Python cannot interrupt: they end with the deadline, and let Ctrl-C through."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

#: Seconds that the resolver takes if no test says otherwise, and that a request may take.
RESOLVER = 30
DEADLINE = 0.6

#: Hangs, but knows an IPv4 address of hosts of the domain `half`.
HANGING_RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    int (*resolve)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (strstr(host, ".half") && hints->ai_family == AF_INET) {
        resolve = dlsym(RTLD_NEXT, "getaddrinfo");
        return resolve("127.0.0.1", port, hints, found);
    }
    sleep(atoi(getenv("RESOLVER_SECONDS")));
    return EAI_AGAIN;
}
"""
SETUP = f"""
import gc, os, sys, threading, time
from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError
from fleet_fn.http import closer
from fleet_fn.http.client import HttpClient

def post(client):
    client.request("POST", "/", Deadline({DEADLINE}), body=b"x", wants_body=False)

def stream(client):
    with client.stream("/", Deadline({DEADLINE})):
        pass

def redirect(client):
    client.for_redirect("http://other.example", lambda _: True).request("GET", "/", Deadline({DEADLINE}))

def ask(send, client):
    began = time.monotonic()
    try:
        send(client)
    except TransientError as error:
        print(str(error).partition(": ")[2], error.may_have_acted, end=" ")
    gc.collect()
    took = time.monotonic() - began
    print("at once" if took < {DEADLINE / 2} else "in time" if took < {DEADLINE + 1} else took, flush=True)

def refuse_thread(_):
    raise RuntimeError("can't start new thread")

cloud = HttpClient("cloud", "http://cloud.example")
"""
#: What `ask` prints: the reason, whether the upstream may have acted, and how long it took.
HANGING = "no answer in time False in time"
AT_ONCE = "resolving the host's name takes too long False at once"
WAIT = """
from fleet_fn.deadline import Deadline
from fleet_fn.http.client import HttpClient

print("asking", flush=True)
HttpClient("cloud", "{url}").request("GET", "/", Deadline(60))
"""


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose resolver hangs, for `LD_PRELOAD`."""
    if not shutil.which("cc"):
        pytest.skip("without a C compiler there is no resolver that hangs")
    folder = tmp_path_factory.mktemp("resolver")
    (folder / "resolver.c").write_text(HANGING_RESOLVER)
    library = folder / "resolver.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "resolver.c", "-ldl"], check=True)
    return library


def run(resolver: Path, code: str, seconds: int = RESOLVER) -> list[str]:
    """Run code with a resolver that hangs for so many seconds; return its lines of output."""
    ran = subprocess.run(
        [sys.executable, "-c", SETUP + code],
        env={**os.environ, "LD_PRELOAD": str(resolver), "RESOLVER_SECONDS": str(seconds)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=RESOLVER / 2,
        check=True,
    )
    return ran.stdout.splitlines()


def test_hanging_resolver_keeps_deadline(resolver: Path) -> None:
    lines = run(
        resolver,
        """
for send in [post, redirect, stream] * 3:
    ask(send, cloud)
print(threading.active_count())
ask(HttpClient.close, cloud)
""",
    )
    assert lines == [HANGING] * 9 + ["2", "at once"]


def test_half_finished_lookup_delays_no_close(resolver: Path) -> None:
    # One address is enough for a connection, but libcurl's thread asks on for the others.
    def serve() -> None:
        for answer in (b"2\r\n\r\nok", b"3\r\n\r\nok", b"3\r\n\r\nok"):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        serving = threads.submit(serve)
        lines = run(
            resolver,
            f"""
cloud = HttpClient("cloud", "http://cloud.half:{listener.getsockname()[1]}")
get = lambda client: client.request("GET", "/", Deadline(5))
ask(get, cloud)
ask(HttpClient.close, cloud)
ask(get, cloud)
ask(stream, cloud)
""",
        )
        serving.result()
    # The other lookups take 30 s: whatever ends in time on a busy machine did not wait for them.
    assert [line.replace("in time", "at once") for line in lines] == [
        "at once",
        "at once",
        "answer cut short True at once",
        "at once",
    ]


def test_hanging_resolver_needs_no_thread(resolver: Path) -> None:
    lines = run(
        resolver,
        """
start, threading.Thread.start = threading.Thread.start, refuse_thread
for send in post, redirect, stream:
    ask(send, cloud)
threading.Thread.start = start
ask(post, cloud)
time.sleep(3)
print(threading.active_count(), len(os.listdir("/proc/self/task")))
""",
        seconds=2,
    )
    assert lines == [HANGING] * 4 + ["1 1"]


def test_hanging_lookups_are_bounded(resolver: Path) -> None:
    lines = run(
        resolver,
        """
closer.MAX_LOOKUPS = 3
for send in [post, stream] * 4:
    ask(send, cloud)
ask(post, HttpClient("other", "http://other.example"))
time.sleep(4)
ask(post, cloud)
""",
        seconds=4,
    )
    assert lines == [HANGING] * 3 + [AT_ONCE] * 5 + [HANGING] * 2


def test_bound_is_lifted_once_a_thread_can_start(resolver: Path) -> None:
    lines = run(
        resolver,
        """
closer.MAX_LOOKUPS = 2
start, threading.Thread.start = threading.Thread.start, refuse_thread
for _ in range(3):
    ask(post, cloud)
threading.Thread.start = start
time.sleep(1)
ask(post, cloud)
time.sleep(1)
ask(post, cloud)
""",
        seconds=1,
    )
    assert lines == [HANGING] * 2 + [AT_ONCE] * 2 + [HANGING]


def test_forked_process_closes_its_own_handles_only(resolver: Path) -> None:
    lines = run(
        resolver,
        """
for send in post, stream:
    ask(send, cloud)
closer.MAX_LOOKUPS = 1
if not os.fork():
    ask(post, cloud)
    ask(post, cloud)
    time.sleep(1)
    ask(post, cloud)
    sys.exit()
os.wait()
ask(post, cloud)
""",
        seconds=1,
    )
    assert lines == [HANGING] * 3 + [AT_ONCE] + [HANGING] * 2


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
