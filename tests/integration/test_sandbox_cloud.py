"""The sandbox's likeness to released Drogue Clouds: each difference that real ones showed."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
import requests
from click.testing import CliRunner

from fleet_fn.cli.sandbox import command
from fleet_fn.sandbox import RefusedError, Sandbox
from tests.support.http import Request, Response, Server

PATIENCE = 10.0
APPS = "/api/registry/v1alpha1/apps"
SHOP = f"{APPS}/shop"
TILL = f"{SHOP}/devices/till"
COMMANDS = "/api/command/v1alpha1/apps/{}/devices/{}?command={}"
#: Bytes that each API takes at most.
LIMIT = 65_536


def application(name: str = "shop", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


def device(name: str, of: str = "shop", **spec: Any) -> dict[str, Any]:
    credentials = {"credentials": [{"pass": "secret"}]}
    return {"metadata": {"application": of, "name": name}, "spec": {"authentication": credentials, **spec}}


OBJECTS = [
    application(),
    device("till"),
    device("gate"),
    device("mast"),
    device("lamp", gatewaySelector={"matchNames": ["gate", "gone", "mast"]}),
]


class Events:
    """A sink that counts events by type and channel."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._more = threading.Condition()
        self.server = Server(self._take)

    def _take(self, request: Request) -> Response:
        with self._more:
            self.seen.append((request.headers["ce-subject"], request.headers["ce-device"]))
            self._more.notify_all()
        return Response(204)

    def await_count(self, count: int) -> list[tuple[str, str]]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.seen) >= count, PATIENCE), self.seen
            return list(self.seen)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(OBJECTS) as sandbox:
        yield sandbox


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def call(
    sandbox: Sandbox, method: str, path: str, value: object = None, user: str | None = "sandbox", **more: Any
) -> requests.Response:
    if value is not None:
        more["json"] = value
    auth = None if user is None else (user, "sandbox")
    return requests.request(method, sandbox.url + path, auth=auth, timeout=PATIENCE, **more)


def send(
    sandbox: Sandbox, name: str, payload: bytes = b"\xa0", content_type: str | None = "application/cbor", **more: Any
) -> requests.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    path = COMMANDS.format("shop", quote(name, safe=""), "dfu")
    return call(sandbox, "POST", path, data=payload, headers=headers, **more)


def publish(
    sandbox: Sandbox, payload: bytes = b"\xa0", query: str = "", user: str = "till", content_type: str | None = None
) -> requests.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    url = f"{sandbox.url}/v1/dfu{query}"
    return requests.post(url, payload, auth=(f"{user}@shop", "secret"), headers=headers, timeout=PATIENCE)


def waiting(sandbox: Sandbox, background: ThreadPoolExecutor, query: str, user: str) -> "Future[requests.Response]":
    """A device that waits already: a probe comes through."""
    before = sandbox.waiting
    answer = background.submit(publish, sandbox, query=query, user=user)
    end = time.monotonic() + PATIENCE
    while sandbox.waiting == before:
        assert time.monotonic() < end
        time.sleep(0.005)
    return answer


class TestCore:
    @pytest.mark.parametrize(
        ("core", "released", "documented"),
        [
            ({}, 406, 202),
            ({"disabled": False}, 406, 202),
            ({"disabled": True}, 202, 406),
            ({"disabled": "yes"}, 406, 406),
            (None, 406, 406),
        ],
    )
    def test_command_endpoint_reads_the_flag_inverted_as_released(
        self, core: object, released: int, documented: int
    ) -> None:
        objects = [application(), device("till", core=core), device("lamp")]
        with Sandbox(objects) as sandbox:
            assert (send(sandbox, "till").status_code, send(sandbox, "lamp").status_code) == (released, 202)
        with Sandbox(objects, core_disabled="as-documented") as sandbox:
            assert (send(sandbox, "till").status_code, send(sandbox, "lamp").status_code) == (documented, 202)

    def test_a_disabled_application_gets_commands_and_its_devices_are_refused(self) -> None:
        with Sandbox([application(core={"disabled": True}), device("till")]) as sandbox:
            assert send(sandbox, "till").status_code == 202
            assert publish(sandbox).status_code == 403

    def test_a_disabled_device_is_refused_only_as_documented(self) -> None:
        objects = [application(), device("till", core={"disabled": True})]
        with Sandbox(objects) as sandbox:
            assert publish(sandbox).status_code == 202
        with Sandbox(objects, core_disabled="as-documented") as sandbox:
            assert publish(sandbox).status_code == 403

    def test_a_gateway_with_a_core_section_gets_no_commands_of_its_children(
        self, background: ThreadPoolExecutor
    ) -> None:
        child = device("lamp", gatewaySelector={"matchNames": ["gate"]})
        with Sandbox([application(), device("gate", core={}), child]) as sandbox:
            answer = waiting(sandbox, background, "?ct=1", "gate")
            assert send(sandbox, "lamp").status_code == 202
            assert answer.result(PATIENCE).status_code == 202


class TestLimits:
    @pytest.mark.parametrize(("size", "status"), [(LIMIT, 202), (LIMIT + 1, 413)])
    def test_commands(self, sandbox: Sandbox, size: int, status: int) -> None:
        assert send(sandbox, "till", bytes(size)).status_code == status

    @pytest.mark.parametrize(("size", "status"), [(LIMIT, 202), (LIMIT + 1, 413)])
    def test_device_endpoint(self, sandbox: Sandbox, size: int, status: int) -> None:
        assert publish(sandbox, bytes(size)).status_code == status

    @pytest.mark.parametrize(("size", "status"), [(LIMIT, 204), (LIMIT + 1, 413)])
    def test_registry(self, sandbox: Sandbox, size: int, status: int) -> None:
        body = json.dumps(device("till")).encode()
        headers = {"Content-Type": "application/json"}
        answer = call(sandbox, "PUT", TILL, data=body + b" " * (size - len(body)), headers=headers)
        assert answer.status_code == status

    def test_wrong_credentials_come_before_the_limit(self, sandbox: Sandbox) -> None:
        for path, method in ((TILL, "PUT"), (COMMANDS.format("shop", "till", "dfu"), "POST")):
            url = sandbox.url + path
            answer = requests.request(method, url, data=bytes(LIMIT + 1), auth=("sandbox", "x"), timeout=PATIENCE)
            assert answer.status_code == 403


class TestVersions:
    def test_generation_counts_changes_of_spec_only(self, sandbox: Sandbox) -> None:
        def change(**sections: Any) -> tuple[int, str]:
            known = sandbox.get("shop", "till")
            metadata = {**known["metadata"], **sections.pop("metadata", {})}
            sandbox.put({**known, **sections, "metadata": metadata})
            metadata = sandbox.get("shop", "till")["metadata"]
            return metadata["generation"], metadata["resourceVersion"]

        generations, versions = zip(
            change(),
            change(status={"firmware": {"current": "1"}}),
            change(metadata={"labels": {"a": "b"}}),
            change(metadata={"annotations": {"a": "b"}}),
            change(spec={"firmware": {}}),
            change(spec={"firmware": {}}),
            change(spec={}, status={}),
            strict=True,
        )
        assert generations == (0, 0, 0, 0, 1, 1, 2)
        assert len(set(versions)) == 6  # the one without a change has no version of its own

    @pytest.mark.parametrize(
        ("sections", "count"),
        [
            ({}, 0),
            ({"status": {"a": 1}}, 1),
            ({"status": {"a": 1, "b": 2}}, 2),
            ({"spec": {}}, 2),
            ({"spec": {"core": {}, "x": {"y": 2}}, "status": {"c": None}, "labels": {"a": "b"}}, 5),
            ({"spec": {"authentication": {}, "x": {"y": 1}}}, 1),
            ({"labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e"]}, 1),
        ],
    )
    def test_each_changed_section_makes_one_event(self, sections: dict[str, Any], count: int) -> None:
        events = Events()
        before = {**device("till"), "spec": {"authentication": {"credentials": []}, "x": {"y": 1}}}
        with events.server, Sandbox([application(), before, device("last")], sink=events.server.url) as sandbox:
            known = sandbox.get("shop", "till")
            kinds = {key: value for key, value in sections.items() if key in ("spec", "status")}
            metadata = {key: value for key, value in sections.items() if key not in kinds}
            changed = {**known, **kinds, "metadata": {**known["metadata"], **metadata}}
            assert call(sandbox, "PUT", TILL, changed).status_code == 204
            sandbox.delete("shop", "last")
            assert events.await_count(count + 1) == [("devices", "till")] * count + [("devices", "last")]

    def test_applications_make_no_events(self) -> None:
        events = Events()
        with events.server, Sandbox(OBJECTS, sink=events.server.url) as sandbox:
            assert call(sandbox, "PUT", SHOP, application(a=1)).status_code == 204
            assert call(sandbox, "POST", APPS, application("third")).status_code == 201
            assert call(sandbox, "DELETE", f"{APPS}/third").status_code == 204
            sandbox.delete("shop", "till")
            assert events.await_count(1) == [("devices", "till")]


class TestStrictness:
    @pytest.mark.parametrize(
        ("metadata", "status"),
        [
            ({"labels": None}, 400),
            ({"annotations": None}, 400),
            ({"finalizers": None}, 400),
            ({"labels": {"a": 1}}, 400),
            ({"annotations": {"a": True}}, 400),
            ({"finalizers": "a"}, 400),
            ({"namespace": "x"}, 400),
            ({"ownerReferences": []}, 400),
            ({"uid": None}, 400),
            ({"resourceVersion": None}, 400),
            ({"resourceVersion": 7}, 400),
            ({"generation": -1}, 400),
            ({"generation": None}, 400),
            ({"generation": True}, 400),
            ({"generation": "1"}, 400),
            ({"creationTimestamp": "yesterday"}, 400),
            ({"creationTimestamp": "2026-11-28T18:00:00"}, 400),
            ({"creationTimestamp": None}, 400),
            ({"deletionTimestamp": "never"}, 400),
            ({"deletionTimestamp": None}, 204),
            ({"deletionTimestamp": "2026-11-28T18:00:00Z"}, 204),
            ({"creationTimestamp": "2026-11-28T18:00:00.123456789+01:00", "generation": 77}, 204),
            ({"uid": "", "resourceVersion": ""}, 204),
            ({"uid": "x"}, 409),
            ({"resourceVersion": "x"}, 409),
        ],
    )
    def test_metadata_is_read_strictly(self, sandbox: Sandbox, metadata: dict[str, Any], status: int) -> None:
        given = device("till")
        assert (
            call(sandbox, "PUT", TILL, {**given, "metadata": {**given["metadata"], **metadata}}).status_code == status
        )
        of_application = {"metadata": {"name": "shop", **metadata}, "spec": {}}
        assert call(sandbox, "PUT", SHOP, of_application).status_code == status

    @pytest.mark.parametrize("key", ["spec", "status"])
    @pytest.mark.parametrize("value", [None, [], "x"])
    def test_sections_are_maps(self, sandbox: Sandbox, key: str, value: object) -> None:
        assert call(sandbox, "PUT", TILL, {**device("till"), key: value}).status_code == 400
        assert call(sandbox, "PUT", SHOP, {**application(), key: value}).status_code == 400

    def test_other_keys_of_an_object_are_left_out(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "PUT", TILL, {**device("till"), "apiVersion": "x", "more": None}).status_code == 204
        assert set(call(sandbox, "GET", TILL).json()) == {"metadata", "spec"}

    def test_an_application_is_in_no_application(self, sandbox: Sandbox) -> None:
        given = {"metadata": {"name": "shop", "application": "shop"}}
        assert call(sandbox, "PUT", SHOP, given).status_code == 400
        assert call(sandbox, "PUT", TILL, {"metadata": {"name": "till"}}).status_code == 400

    @pytest.mark.parametrize(
        ("content_type", "status"),
        [
            (None, 400),
            ("text/plain", 400),
            ("application/octet-stream", 400),
            ("application/json-patch", 400),
            ("json", 400),
            ("application/json", 204),
            ("Application/JSON; charset=utf-8", 204),
            ("application/merge-patch+json", 204),
            ("text/json", 204),
        ],
    )
    @pytest.mark.parametrize("path", [TILL, SHOP])
    def test_what_is_written_has_a_json_content_type(
        self, sandbox: Sandbox, path: str, content_type: str | None, status: int
    ) -> None:
        given = device("till", a=1) if path == TILL else application(a=1)
        headers = {} if content_type is None else {"Content-Type": content_type}
        answer = call(sandbox, "PUT", path, data=json.dumps(given).encode(), headers=headers)
        assert answer.status_code == status
        if status == 400:
            assert answer.text == "Content type error"

    @pytest.mark.parametrize(
        ("name", "status"),
        [
            ("a" * 63, 201),
            ("a" * 64, 400),
            ("my-app-2", 201),
            ("a.b-c.d", 201),
            ("a" * 31 + "." + "b" * 32, 201),
            ("a" * 32 + "." + "b" * 32, 503),
            ("My-app", 400),
            ("-a", 400),
            ("a-", 400),
            ("a-.b", 400),
            ("a..b", 400),
            (".a", 400),
            ("a.", 400),
            ("a_b", 400),
            ("ä", 400),
            ("", 400),
        ],
    )
    def test_application_names_are_lower_case_host_names(self, sandbox: Sandbox, name: str, status: int) -> None:
        assert call(sandbox, "POST", APPS, application(name)).status_code == status

    @pytest.mark.parametrize(("name", "status"), [("ü" * 127, 201), ("ü" * 128, 400), ("", 400)])
    def test_device_names_have_up_to_255_bytes(self, sandbox: Sandbox, name: str, status: int) -> None:
        assert call(sandbox, "POST", f"{SHOP}/devices", device(name)).status_code == status

    @pytest.mark.parametrize(
        "given",
        [
            {**device("till"), "status": {"firmware": {"current": "1\0"}}},
            {**device("till"), "status": {"a": [{"b\0": 1}]}},
            device("till", a="\0"),
            {"metadata": {"application": "shop", "name": "till", "labels": {"a": "\0"}}},
            {"metadata": {"application": "shop", "name": "till", "annotations": {"\0": "a"}}},
            {"metadata": {"application": "shop", "name": "till", "finalizers": ["\0"]}},
        ],
    )
    def test_u_0000_is_answered_with_503(self, sandbox: Sandbox, given: dict[str, Any]) -> None:
        before = sandbox.get("shop", "till")
        for _ in range(2):
            answer = call(sandbox, "PUT", TILL, given)
            assert (answer.status_code, answer.json()["error"]) == (503, "DatabaseError")
        assert sandbox.get("shop", "till") == before
        named = {**given, "metadata": {**given["metadata"], "name": "new"}}
        assert call(sandbox, "POST", f"{SHOP}/devices", named).status_code == 503

    def test_u_0000_in_a_name_is_answered_with_503(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "POST", f"{SHOP}/devices", device("a\0b")).status_code == 503
        assert call(sandbox, "GET", f"{SHOP}/devices/a%00b").status_code == 503
        assert call(sandbox, "PUT", f"{SHOP}/devices/a%00b", device("a\0b")).status_code == 503


class TestConflicts:
    def test_the_error_is_conflict(self, sandbox: Sandbox) -> None:
        stale = call(sandbox, "GET", TILL).json()
        sandbox.put({**stale, "status": {"a": 1}})
        conflict = {"error": "Conflict", "message": "Conflict"}
        for answer in (
            call(sandbox, "PUT", TILL, stale),
            call(sandbox, "POST", f"{SHOP}/devices", device("till")),
            call(sandbox, "POST", APPS, application()),
            call(sandbox, "PUT", TILL, {**device("till"), "metadata": {**stale["metadata"], "resourceVersion": "x"}}),
        ):
            assert (answer.status_code, answer.json()) == (409, conflict)

    @pytest.mark.parametrize("path", [TILL, SHOP])
    @pytest.mark.parametrize("key", ["uid", "resourceVersion"])
    def test_deletion_has_preconditions(self, sandbox: Sandbox, path: str, key: str) -> None:
        known = call(sandbox, "GET", path).json()["metadata"]
        for value in ("x", "00000000-0000-4000-8000-000000000000"):
            answer = call(sandbox, "DELETE", path, {"preconditions": {key: value}})
            assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
        assert call(sandbox, "DELETE", path, {"preconditions": {key: known[key]}}).status_code == 204
        assert call(sandbox, "GET", path).status_code == 404

    @pytest.mark.parametrize("content_type", [None, "text/plain"])
    def test_preconditions_without_a_json_content_type_are_not_read(
        self, sandbox: Sandbox, content_type: str | None
    ) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        body = b'{"preconditions": {"uid": "x"}}'
        assert call(sandbox, "DELETE", TILL, data=body, headers=headers).status_code == 204

    def test_finalizers_hold_a_device_that_is_deleted(self) -> None:
        events = Events()
        held = {**device("till"), "metadata": {"application": "shop", "name": "till", "finalizers": ["a"]}}
        with events.server, Sandbox([application(), held, device("last")], sink=events.server.url) as sandbox:
            assert call(sandbox, "DELETE", TILL).status_code == 204
            known = call(sandbox, "GET", TILL).json()
            assert "deletionTimestamp" in known["metadata"]
            assert call(sandbox, "DELETE", TILL).status_code == 404
            assert publish(sandbox).status_code == 403
            assert call(sandbox, "PUT", TILL, {**known, "status": {"a": 1}}).status_code == 204
            kept = call(sandbox, "GET", TILL).json()
            assert kept["metadata"]["deletionTimestamp"] == known["metadata"]["deletionTimestamp"]
            kept["metadata"].pop("finalizers")
            assert call(sandbox, "PUT", TILL, kept).status_code == 204
            assert call(sandbox, "GET", TILL).status_code == 404
            sandbox.delete("shop", "last")
            # One for each of deletion and status; none for the end.
            assert [name for _, name in events.await_count(3)] == ["till", "till", "last"]

    def test_finalizers_of_devices_hold_their_application(self) -> None:
        held = {**device("till"), "metadata": {"application": "shop", "name": "till", "finalizers": ["a"]}}
        with Sandbox([application(), held, device("lamp")]) as sandbox:
            assert call(sandbox, "DELETE", SHOP).status_code == 204
            known = call(sandbox, "GET", SHOP).json()["metadata"]
            assert known["finalizers"] == ["has-devices"]
            assert "deletionTimestamp" in known
            assert [found["metadata"]["name"] for found in call(sandbox, "GET", f"{SHOP}/devices").json()] == ["till"]
            refused = call(sandbox, "POST", f"{SHOP}/devices", device("new"))
            assert (refused.status_code, refused.json()["error"]) == (404, "ReferenceNotFound")
            assert call(sandbox, "PUT", TILL, device("till")).status_code == 204
            assert call(sandbox, "GET", SHOP).status_code == 404


class TestRefusedDevices:
    @pytest.mark.parametrize(
        ("login", "query", "line"),
        [
            ("till@none", "", "none/till refused: no such application"),
            ("gone@shop", "", "shop/gone refused: no such device"),
            ("%0a@shop", "", r"shop/\n refused: no such device"),
            ("till@off", "", "off/till refused: disabled by spec.core"),
            ("old@shop", "", "shop/old refused: being deleted"),
            ("bare@shop", "", "shop/bare refused: wrong credentials"),
            ("till@shop", "?as=gone", "shop/gone refused: no such device"),
            ("till@shop", "?as=old", "shop/old refused: being deleted"),
            ("till@shop", "?as=lamp", "shop/lamp refused: its spec.gatewaySelector does not name till"),
        ],
    )
    def test_the_log_says_what_the_answer_does_not(self, login: str, query: str, line: str) -> None:
        lines: list[str] = []
        off = application("off", core={"disabled": True})
        old = device("old")
        old["metadata"]["finalizers"] = ["x"]
        bare = {"metadata": {"application": "shop", "name": "bare"}}
        with Sandbox([*OBJECTS, off, device("till", of="off"), old, bare], log=lines.append) as sandbox:
            sandbox.delete("shop", "old")
            url = f"{sandbox.url}/v1/dfu{query}"
            answer = requests.post(url, b"\xa0", auth=(login, "secret"), timeout=PATIENCE)
        assert (answer.status_code, answer.json()["message"]) == (403, "Authentication failed")
        assert [each for each in lines if "refused" in each] == [line]


class TestAliases:
    def test_they_are_a_list(self) -> None:
        objects = [application(), device("till", alias=["0042", "tür"]), device("lamp", alias={"aliases": ["x"]})]
        with Sandbox(objects) as sandbox:
            users = ("0042", "t%C3%BCr", "till", "x", "0043")
            assert [publish(sandbox, user=user).status_code for user in users] == [202, 202, 202, 403, 403]

    @pytest.mark.parametrize("alias", ["lamp", "0042", "new"])
    def test_they_are_unique_in_an_application(self, alias: str) -> None:
        objects = [application(), application("other"), device("lamp", alias=["0042"]), device("till")]
        with Sandbox(objects) as sandbox:
            new = device("new", alias=[alias])
            assert call(sandbox, "POST", f"{SHOP}/devices", new).status_code == 409
            if alias != "new":
                assert call(sandbox, "PUT", TILL, device("till", alias=[alias])).status_code == 409
                new["metadata"]["application"] = "other"
                assert call(sandbox, "POST", f"{APPS}/other/devices", new).status_code == 201

    def test_they_are_free_again_when_nobody_has_them(self, sandbox: Sandbox) -> None:
        sandbox.put(device("till", alias=["0042"]))
        sandbox.put(device("till", alias=["0043"]))
        sandbox.put(device("lamp", alias=["0042"]))
        sandbox.delete("shop", "till")
        sandbox.put(device("gate", alias=["0043", "till"]))
        assert publish(sandbox, user="till").status_code == 202


class TestWaiting:
    def test_the_answer_has_no_content_type(self, sandbox: Sandbox, background: ThreadPoolExecutor) -> None:
        answer = waiting(sandbox, background, "?ct=30", "till")
        send(sandbox, "till", b"\xa1\x00\x00")
        got = answer.result(PATIENCE)
        assert (got.status_code, got.content, got.headers["command"]) == (200, b"\xa1\x00\x00", "dfu")
        assert "Content-Type" not in got.headers

    @pytest.mark.parametrize("content_type", [None, "application/json", "text/json", "application/x+json"])
    def test_json_is_written_anew(
        self, sandbox: Sandbox, background: ThreadPoolExecutor, content_type: str | None
    ) -> None:
        answer = waiting(sandbox, background, "?ct=30", "till")
        send(sandbox, "till", b'{ "write": {"b": 1.50,\n "a": "\\u00fc"} }', content_type)
        assert answer.result(PATIENCE).content == '{"write":{"b":1.5,"a":"ü"}}'.encode()

    @pytest.mark.parametrize(("content_type", "status"), [("application/json", 406), (None, 202), ("text/x", 202)])
    def test_what_claims_to_be_json_has_to_be(self, sandbox: Sandbox, content_type: str | None, status: int) -> None:
        assert send(sandbox, "till", b"{", content_type).status_code == status

    @pytest.mark.parametrize("gateway", ["gate", "mast"])
    def test_a_gateway_that_waits_for_itself_gets_its_childrens_commands(
        self, sandbox: Sandbox, background: ThreadPoolExecutor, gateway: str
    ) -> None:
        answer = waiting(sandbox, background, "?ct=30", gateway)
        assert send(sandbox, "lamp", b"of the child").status_code == 202
        got = answer.result(PATIENCE)
        assert (got.content, got.headers["command"]) == (b"of the child", "dfu")
        assert "lamp" not in str(got.headers)

    def test_everybody_who_may_wait_gets_it_and_nobody_else(
        self, sandbox: Sandbox, background: ThreadPoolExecutor
    ) -> None:
        reached = [
            waiting(sandbox, background, "?ct=30", "lamp"),
            waiting(sandbox, background, "?ct=30&as=lamp", "gate"),
            waiting(sandbox, background, "?ct=30&as=mast", "mast"),
        ]
        other = waiting(sandbox, background, "?ct=30", "till")
        send(sandbox, "lamp", b"1")
        assert [answer.result(PATIENCE).content for answer in reached] == [b"1"] * 3
        send(sandbox, "till", b"2")
        assert other.result(PATIENCE).content == b"2"

    def test_a_gateway_that_waits_for_a_child_gets_nothing_of_its_own(
        self, sandbox: Sandbox, background: ThreadPoolExecutor
    ) -> None:
        answer = waiting(sandbox, background, "?ct=30&as=lamp", "gate")
        send(sandbox, "gate", b"own")
        send(sandbox, "lamp", b"child's")
        assert answer.result(PATIENCE).content == b"child's"


class TestRights:
    @pytest.fixture
    def sandbox(self) -> Iterator[Sandbox]:
        members = {"reader": "reader", "manager": "manager", "admin": "admin", "stranger": "none"}
        with Sandbox(OBJECTS, members=members) as sandbox:
            yield sandbox

    @pytest.mark.parametrize(
        ("user", "statuses"),
        [
            # GET application, device, devices; PUT device, application; POST device; command
            ("sandbox", [200, 200, 200, 204, 204, 201, 202]),
            ("admin", [200, 200, 200, 204, 204, 201, 202]),
            ("manager", [200, 200, 200, 204, 204, 201, 202]),
            ("reader", [200, 200, 200, 404, 403, 404, 202]),
            ("stranger", [403, 404, 404, 404, 403, 404, 404]),
            (None, [403, 404, 404, 404, 403, 404, 404]),
        ],
    )
    def test_roles(self, sandbox: Sandbox, user: str | None, statuses: list[int]) -> None:
        answers = [
            call(sandbox, "GET", SHOP, user=user),
            call(sandbox, "GET", TILL, user=user),
            call(sandbox, "GET", f"{SHOP}/devices", user=user),
            call(sandbox, "PUT", TILL, {**device("till"), "status": {"a": 1}}, user=user),
            call(sandbox, "PUT", SHOP, application(a=1), user=user),
            call(sandbox, "POST", f"{SHOP}/devices", device("new"), user=user),
            send(sandbox, "till", user=user),
        ]
        assert [answer.status_code for answer in answers] == statuses

    @pytest.mark.parametrize(
        ("user", "of_application", "of_device"),
        [("admin", 204, 204), ("manager", 403, 204), ("reader", 403, 404), ("stranger", 403, 404), (None, 403, 404)],
    )
    def test_deletion(self, sandbox: Sandbox, user: str | None, of_application: int, of_device: int) -> None:
        assert call(sandbox, "DELETE", TILL, user=user).status_code == of_device
        assert call(sandbox, "DELETE", SHOP, user=user).status_code == of_application

    def test_listings_show_what_may_be_read(self, sandbox: Sandbox) -> None:
        assert call(sandbox, "POST", APPS, application("own"), user="stranger").status_code == 201
        for user, names in (("stranger", ["own"]), ("reader", ["own", "shop"]), (None, [])):
            listed = call(sandbox, "GET", APPS, user=user)
            assert [found["metadata"]["name"] for found in listed.json()] == names
        assert call(sandbox, "PUT", f"{APPS}/own", application("own", a=1), user="stranger").status_code == 204

    def test_refusals_are_worded_as_drogue_cloud_words_them(self, sandbox: Sandbox) -> None:
        def told(answer: requests.Response) -> tuple[int, Any]:
            return answer.status_code, answer.json() if answer.content else None

        missing = {"error": "NotFound", "message": "Not found"}
        assert told(call(sandbox, "GET", SHOP, user="stranger")) == (
            403,
            {"error": "AuthenticationError", "message": "Not authorized"},
        )
        assert told(call(sandbox, "GET", TILL, user="stranger")) == (404, missing)
        assert told(call(sandbox, "GET", f"{APPS}/none/devices/x")) == (404, missing)
        assert told(call(sandbox, "GET", f"{SHOP}/devices/none")) == (404, None)
        assert told(call(sandbox, "GET", f"{APPS}/none")) == (404, None)
        assert told(call(sandbox, "PUT", TILL, device("gate"))) == (400, None)
        for user, name in (("stranger", "shop"), ("sandbox", "none")):
            answer = call(sandbox, "POST", COMMANDS.format(name, "till", "dfu"), data=b"x", user=user)
            message = f"Resource not found: Application / {name}"
            assert told(answer) == (404, {"error": "NotFound", "message": message})
        assert told(publish(sandbox, user="nobody")) == (
            403,
            {"code": 403, "error": "AuthenticationError", "message": "Authentication failed"},
        )

    @pytest.mark.parametrize("path", [SHOP, TILL, COMMANDS.format("shop", "till", "dfu")])
    @pytest.mark.parametrize(
        "auth", [("sandbox", "x"), ("nobody", "sandbox"), ("reader", "x"), "Bearer x", "Basic c2FuZGJveA=="]
    )
    def test_wrong_tokens_are_403_never_401(self, sandbox: Sandbox, path: str, auth: Any) -> None:
        method = "POST" if "command" in path else "GET"
        headers = {"Authorization": auth} if isinstance(auth, str) else {}
        basic = None if isinstance(auth, str) else auth
        answer = requests.request(method, sandbox.url + path, auth=basic, headers=headers, timeout=PATIENCE)
        assert (answer.status_code, answer.json()["error"]) == (403, "Forbidden")

    def test_a_members_openid_token_has_its_role(self, sandbox: Sandbox) -> None:
        grant = {"grant_type": "client_credentials", "client_id": "reader", "client_secret": "sandbox"}
        token = requests.post(f"{sandbox.url}/auth/token", grant, timeout=PATIENCE).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        assert call(sandbox, "GET", TILL, user=None, headers=headers).status_code == 200
        assert call(sandbox, "PUT", TILL, device("till", a=1), user=None, headers=headers).status_code == 404

    @pytest.mark.parametrize("members", [{"x": "publisher"}, {"sandbox": "reader"}, {"a:b": "reader"}])
    def test_members_that_make_no_sense_are_refused(self, members: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            Sandbox(members=members)


class TestSelectors:
    @pytest.fixture
    def sandbox(self) -> Iterator[Sandbox]:
        labels: dict[str, dict[str, str]] = {
            "none": {},
            "oslo": {"site": "oslo", "ring": "1"},
            "bergen": {"site": "bergen", "acme.org/floor": "2"},
        }
        devices = [{"metadata": {"application": "shop", "name": name, "labels": of}} for name, of in labels.items()]
        with Sandbox([application(), *devices]) as sandbox:
            yield sandbox

    @pytest.mark.parametrize(
        ("selector", "names"),
        [
            ("", ["bergen", "none", "oslo"]),
            ("site!=oslo", ["bergen"]),
            ("site notin (oslo)", ["bergen"]),
            ("site notin (oslo,bergen)", []),
            ("site notin ()", ["bergen", "none", "oslo"]),
            ("site in ()", []),
            ("site in (oslo, bergen )", ["bergen", "oslo"]),
            ("site in(oslo)", ["oslo"]),
            ("site = oslo , ring=1 ", ["oslo"]),
            ("!site", ["none"]),
            ("! site", ["none"]),
            ("site,!ring", ["bergen"]),
            ("acme.org/floor=2", ["bergen"]),
        ],
    )
    def test_labels_that_are_absent_are_unequal_to_nothing(
        self, sandbox: Sandbox, selector: str, names: list[str]
    ) -> None:
        answer = call(sandbox, "GET", f"{SHOP}/devices", params={"labels": selector})
        assert [found["metadata"]["name"] for found in answer.json()] == names

    @pytest.mark.parametrize(
        ("selector", "rest"),
        [
            ("site=oslo,", ","),
            (",site", ",site"),
            ("site,,ring", ",,ring"),
            ("site ", " "),
            ("site , ring", " , ring"),
            ("site, !ring", ", !ring"),
            ("site==oslo", "==oslo"),
            ("site in (oslo", " in (oslo"),
            ("site in ( )", " in ( )"),
            ("sité", "é"),
            ("a/b/c", "/c"),
        ],
    )
    def test_what_is_no_selector_is_400(self, sandbox: Sandbox, selector: str, rest: str) -> None:
        for path in (f"{SHOP}/devices", APPS):
            answer = call(sandbox, "GET", path, params={"labels": selector})
            message = f"ParserError: Unparsable remaining content: '{rest}'"
            assert (answer.status_code, answer.json()) == (400, {"error": "InvalidRequest", "message": message})


class TestCommandLine:
    @pytest.mark.parametrize(
        "arguments",
        [["--member", "eve"], ["--member", "eve:king"], ["--member", ":reader"], ["--core-disabled", "sometimes"]],
    )
    def test_options_that_make_no_sense_are_refused(self, arguments: list[str]) -> None:
        assert CliRunner().invoke(command, arguments).exit_code == 2

    def test_help_names_the_options(self) -> None:
        told = CliRunner().invoke(command, ["--help"]).stdout
        assert "--core-disabled" in told
        assert "--member" in told

    @pytest.mark.parametrize(
        "change",
        [
            lambda given: {**given, "status": None},
            lambda given: {**given, "metadata": {**given["metadata"], "labels": None}},
            lambda given: {**given, "metadata": {**given["metadata"], "namespace": "x"}},
        ],
    )
    def test_objects_are_read_as_strictly_as_by_the_api(
        self, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        with pytest.raises(RefusedError):
            Sandbox([change(application())])
