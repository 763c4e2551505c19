"""What stands around a function that is measured: an nginx that is Drogue Cloud and a registry, and wrk's devices."""

import hashlib
import http.client
import json
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

import cbor2
import click

from tests.bench.processes import cpu_of_children
from tests.support.firmware import publish, random_bytes

#: Bytes of a block, and the version that devices are at, and that they are updated to.
BLOCK: Final = 512
OLD, NEW = "1", "2"
#: The application whose devices have their new version.
DONE: Final = "done"
#: The application whose devices have their old version, and may start.
STARTING: Final = "starting"
#: Seconds by which the slow nginx delays the answers of the command API.
DELAY: Final = 0.005

_ECHO_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
_LOAD: Final = Path(__file__).with_name("events.lua")
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


def missing() -> list[str]:
    """What has to be installed, as Debian calls it."""
    programs = {"nginx": "nginx-light", "wrk": "wrk"}
    packages = [package for program, package in programs.items() if shutil.which(program) is None]
    return packages if _ECHO_MODULE.exists() else [*packages, "libnginx-mod-http-echo"]


@dataclass(frozen=True)
class Cloud:
    """Drogue Cloud and a registry, which always say the same and cost next to nothing."""

    url: str
    #: The same, but for commands, which are answered after `DELAY`.
    slow_url: str
    registry: str
    #: nginx's first process.
    pid: int

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        return sum(cpu_of_children(self.pid))

    @property
    def requests(self) -> int:
        """How many requests it has answered, this one included."""
        with urlopen(f"{self.url}/requests") as answer:
            return int(answer.read().split()[9])  # ngx_http_stub_status_module: accepted, handled, requests

    def environment(self, *, slow: bool = False) -> dict[str, str]:
        """The settings of a function that is to use them."""
        return {
            "DROGUE_API_URL": self.slow_url if slow else self.url,
            "DROGUE_USER": "service",
            "DROGUE_TOKEN": "token",
            "FIRMWARE_REGISTRY": self.registry,
            "FIRMWARE_REGISTRY_INSECURE": "true",
        }


@contextmanager
def cloud(folder: Path, sizes: Mapping[str, int], seed: int) -> Iterator[Cloud]:
    """One with an application for each of `sizes`, whose devices are on their way to a firmware of so many bytes.

    And `DONE`, whose devices have arrived, and `STARTING`, whose devices have not begun.
    """
    port, slow = free_port(), free_port()
    applications = {**sizes, DONE: BLOCK, STARTING: 2 * BLOCK}
    locations = "".join(_application(folder, name, size, seed) for name, size in applications.items())
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"""
        load_module {_ECHO_MODULE};
        daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 3600; {temporary}
            server {{
                listen 127.0.0.1:{port} backlog=1024;
                location /api/command/ {{ return 202; }}
                location = /requests {{ stub_status; }}
                {locations}
                location /v2/ {{ root {folder}/registry; }}
                location ~ /manifests/ {{ root {folder}/registry; default_type {_MANIFEST}; }}
            }}
            server {{
                listen 127.0.0.1:{slow} backlog=1024;
                location /api/command/ {{ echo_read_request_body; echo_sleep {DELAY}; echo_exec @accepted; }}
                location @accepted {{ return 202; }}
                {locations}
            }}
        }}
    """
    (folder / "nginx.conf").write_text(configuration)
    process = subprocess.Popen(["nginx", "-e", folder / "errors", "-c", folder / "nginx.conf"])
    try:
        for listening in (port, slow):
            await_port(listening, process)
        yield Cloud(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{slow}", f"127.0.0.1:{port}/", process.pid)
    finally:
        process.terminate()
        process.wait()


def latency(cloud: Cloud) -> float:
    """Seconds that the slow nginx takes for an answer to a command, on a connection that is kept: the median."""
    parts = urlsplit(cloud.slow_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    taken = []
    for _ in range(100):
        began = time.perf_counter()
        connection.request("POST", "/api/command/", b"")
        connection.getresponse().read()
        taken.append(time.perf_counter() - began)
    connection.close()
    return median(taken)


def _application(folder: Path, name: str, size: int, seed: int) -> str:
    """What nginx says of an application and of each of its devices."""
    firmware = publish(folder / "layouts", name, NEW, random_bytes(size, (seed, name)))
    blobs, repository = folder / "layouts" / name / "blobs" / "sha256", folder / "registry" / "v2" / name
    for kind in ("blobs", "manifests"):
        (repository / kind).mkdir(parents=True)
        for blob in blobs.iterdir():
            (repository / kind / f"sha256:{blob.name}").symlink_to(blob)
    (repository / "manifests" / NEW).symlink_to(blobs / firmware.digest.removeprefix("sha256:"))
    application = {"metadata": {"name": name}, "spec": {"firmware": {"container": {"image": f"{name}:{NEW}"}}}}
    reported = _reported(name, hashlib.sha256(firmware.content).hexdigest())
    device = {"metadata": {"name": "$device", "application": name}, "spec": {}, "status": {"firmware": reported}}
    return f"""
        location = /api/registry/v1alpha1/apps/{name} {{
            default_type application/json;
            return 200 '{json.dumps(application)}';
        }}
        location ~ ^/api/registry/v1alpha1/apps/{name}/devices/(?<device>[^/]+)$ {{
            default_type application/json;
            if ($request_method = PUT) {{ return 204; }}
            return 200 '{json.dumps(device)}';
        }}
    """


def _reported(name: str, checksum: str) -> dict[str, Any]:
    """What a device's object says, so that the function writes nothing of a poll, nor of a block midway."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": "InSync", "status": "True" if name == DONE else "False"}]
    times = {"reported": now, "seen": now}
    reported = {"current": NEW if name == DONE else OLD, "target": NEW, "conditions": conditions, **times}
    if name == STARTING:
        return reported
    update = {"version": NEW, "checksum": checksum, "started": "2026-01-01T00:00:00Z"}
    if name == DONE:
        update |= {"swapped": "2026-01-01T00:10:00Z", "synced": "2026-01-01T00:11:00Z"}
    else:
        conditions.append({"type": "UpdateProgress", "status": "Unknown", "message": "50.00"})
    return {**reported, "update": update}


# --- Devices ----------------------------------------------------------------------------------------------------------


def midway(size: int) -> bytes:
    """The status of a device that has half of a firmware of `size` bytes, and is not about to cross a tenth of it."""
    offset = size // 2 // BLOCK * BLOCK + 2 * BLOCK
    return cbor2.dumps({0: OLD.encode(), 1: BLOCK, 3: {0: NEW.encode(), 1: offset}})


#: That of one which has the new version, and of one which has the old one.
IN_SYNC: Final = cbor2.dumps({0: NEW.encode(), 1: BLOCK})
BEFORE: Final = cbor2.dumps({0: OLD.encode(), 1: BLOCK})


@dataclass(frozen=True)
class Answered:
    """What came of a load."""

    events: int
    seconds: float
    #: Seconds of CPU that the load itself used.
    cpu: float


@dataclass(frozen=True)
class Load:
    """Who delivers which events."""

    folder: Path
    application: str
    status: bytes
    #: 0: each event is of a new one.
    devices: int = 1000
    connections: int = 16

    def run(self, port: int, seconds: float) -> Answered:
        """Has the server at `port` answer events; if it answers some not with 2xx, a line says so."""
        body = self.folder / "status"
        body.write_bytes(self.status)
        command = ["wrk", "--threads", "1", "--connections", str(self.connections), "--duration", f"{seconds:.0f}s"]
        command += ["--script", str(_LOAD), f"http://127.0.0.1:{port}/", "--", str(body), self.application]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = subprocess.run([*command, str(self.devices)], capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if failed := re.search(r"Non-2xx.*: (\d+)", told):
            click.echo(f"  {failed[1]} events were not answered with 2xx")
        total = re.search(r"(\d+) requests in ([0-9.]+)s", told)
        assert total, told
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Answered(int(total[1]), float(total[2]), used)


def await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Returns once somebody listens at `port`, as `process` is about to."""
    while True:
        assert process.poll() is None, "it ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.002)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
