"""Writes to the registry: the sandbox and the tests' own cloud answer alike, as Drogue Cloud does.

The answers were read from Drogue Cloud's device management service: its endpoints, `perform_update_app` and
`update_device`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from fleet_fn.sandbox import Sandbox
from tests.support.drogue import TOKEN, USER, Drogue

APPS = "/api/registry/v1alpha1/apps"
SHOP = f"{APPS}/shop"
TILL = f"{SHOP}/devices/till"
#: Bytes that a body may have at most.
LIMIT = 65_536
SPEC = {"firmware": {"container": {"image": "till:1"}}}
PATHS = pytest.mark.parametrize("path", [SHOP, TILL])
ROLLOUT = {"firmware": {"rollout": {"version": "1.1.0", "failed": {"1.1.0": {"count": 1, "devices": ["till"]}}}}}


@dataclass
class Cloud:
    """A cloud with the application `shop` and its device `till`, and a user of a role."""

    url: str
    auth: tuple[str, str]

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, auth=self.auth, timeout=10)

    def put(self, path: str, given: object, content_type: str = "application/json") -> requests.Response:
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        headers = {"Content-Type": content_type}
        return requests.put(self.url + path, body, auth=self.auth, headers=headers, timeout=10)

    def read(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def sandbox(role: str) -> Iterator[Cloud]:
    objects = [
        {"metadata": {"name": "shop"}, "spec": SPEC},
        {"metadata": {"application": "shop", "name": "till"}, "spec": SPEC},
    ]
    with Sandbox(objects, members={"user": role}) as cloud:
        yield Cloud(cloud.url, ("user", "sandbox"))


@contextmanager
def fake_cloud(role: str) -> Iterator[Cloud]:
    with Drogue() as cloud:
        cloud.put("shop", spec=SPEC)
        cloud.put("shop", "till", spec=SPEC)
        cloud.roles["shop"] = None if role == "none" else role
        yield Cloud(cloud.url, (USER, TOKEN))


@pytest.fixture(params=[sandbox, fake_cloud])
def start(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    started: Callable[[str], Any] = request.param
    return started


@pytest.fixture
def cloud(start: Callable[[str], Any]) -> Iterator[Cloud]:
    with start("manager") as cloud:
        yield cloud


@PATHS
def test_a_written_status_is_kept_and_is_no_new_generation(cloud: Cloud, path: str) -> None:
    read = cloud.read(path)
    answer = cloud.put(path, {**read, "status": ROLLOUT})
    assert (answer.status_code, answer.content) == (204, b"")
    again = cloud.read(path)
    assert (again["spec"], again["status"]) == (SPEC, ROLLOUT)
    kept = ("name", "uid", "creationTimestamp", "generation")
    assert [again["metadata"][key] for key in kept] == [read["metadata"][key] for key in kept]
    assert again["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"]


@PATHS
def test_a_write_without_a_section_drops_it(cloud: Cloud, path: str) -> None:
    cloud.put(path, {**cloud.read(path), "status": ROLLOUT})
    read = cloud.read(path)
    assert cloud.put(path, {"metadata": read["metadata"], "spec": {}}).status_code == 204
    again = cloud.read(path)
    assert not again.get("status")
    assert not again.get("spec")
    assert again["metadata"]["generation"] == read["metadata"]["generation"] + 1


@PATHS
def test_a_write_without_a_change_makes_no_version(cloud: Cloud, path: str) -> None:
    read = cloud.read(path)
    assert cloud.put(path, read).status_code == 204
    assert cloud.read(path)["metadata"] == read["metadata"]


@PATHS
@pytest.mark.parametrize("key", ["uid", "resourceVersion"])
def test_a_version_that_is_not_current_conflicts(cloud: Cloud, path: str, key: str) -> None:
    read = cloud.read(path)
    for value in ("x", "00000000-0000-4000-8000-000000000000"):
        stale = {**read, "metadata": {**read["metadata"], key: value}, "status": ROLLOUT}
        answer = cloud.put(path, stale)
        assert (answer.status_code, answer.json()["error"]) == (409, "Conflict")
    assert cloud.read(path) == read


@PATHS
def test_of_two_writers_with_one_version_the_second_conflicts(cloud: Cloud, path: str) -> None:
    read = cloud.read(path)
    statuses = [cloud.put(path, {**read, "status": {"by": name}}).status_code for name in ("first", "second")]
    assert statuses == [204, 409]
    assert cloud.read(path)["status"] == {"by": "first"}


@PATHS
@pytest.mark.parametrize("key", ["uid", "resourceVersion"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_without_a_version_any_is_overwritten(cloud: Cloud, path: str, key: str, is_empty: bool) -> None:
    read = cloud.read(path)
    del read["metadata"][key]
    if is_empty:
        read["metadata"][key] = ""
    assert cloud.put(path, {**read, "status": ROLLOUT}).status_code == 204
    assert cloud.read(path)["status"] == ROLLOUT


@PATHS
@pytest.mark.parametrize(
    ("role", "read", "of_application", "of_device"),
    [
        ("admin", (200, 200), 204, 204),
        ("manager", (200, 200), 204, 204),
        ("reader", (200, 200), 403, 404),
        ("none", (403, 404), 403, 404),
    ],
)
def test_roles_decide(
    start: Callable[[str], Any], path: str, role: str, read: tuple[int, int], of_application: int, of_device: int
) -> None:
    with start(role) as cloud:
        names = {"name": "shop"} if path == SHOP else {"application": "shop", "name": "till"}
        answer = cloud.put(path, {"metadata": names, "spec": SPEC, "status": ROLLOUT})
        assert answer.status_code == (of_application if path == SHOP else of_device)
        if answer.status_code != 204:
            expected = "AuthenticationError" if path == SHOP else "NotFound"
            assert answer.json()["error"] == expected
        assert (cloud.get(SHOP).status_code, cloud.get(TILL).status_code) == read
        # What does not exist is missing for everybody with a role, whatever that is.
        assert cloud.put(f"{APPS}/none", {"metadata": {"name": "none"}}).status_code == 404


@PATHS
def test_a_body_of_64_kib_is_the_largest(cloud: Cloud, path: str) -> None:
    read = cloud.read(path)
    room = LIMIT - len(json.dumps({**read, "status": {"text": ""}}).encode())
    assert cloud.put(path, {**read, "status": {"text": "x" * (room + 1)}}).status_code == 413
    assert cloud.read(path) == read
    assert cloud.put(path, {**read, "status": {"text": "x" * room}}).status_code == 204
    assert cloud.read(path)["status"] == {"text": "x" * room}


@PATHS
@pytest.mark.parametrize(
    "change",
    [
        {"status": None},
        {"spec": []},
        {"metadata": {"name": "other"}},
        {"metadata": {"labels": None}},
        {"metadata": {"namespace": "x"}},
    ],
)
def test_a_malformed_object_is_refused(cloud: Cloud, path: str, change: dict[str, Any]) -> None:
    read = cloud.read(path)
    metadata = {**read["metadata"], **(change.get("metadata") or {})}
    assert cloud.put(path, {**read, **change, "metadata": metadata}).status_code == 400
    assert cloud.read(path) == read


def test_an_application_and_a_device_are_not_taken_for_each_other(cloud: Cloud) -> None:
    application, device = cloud.read(SHOP), cloud.read(TILL)
    assert cloud.put(SHOP, device).status_code == 400
    assert cloud.put(TILL, application).status_code == 400


@PATHS
def test_another_content_type_is_refused(cloud: Cloud, path: str) -> None:
    assert cloud.put(path, cloud.read(path), "text/plain").status_code == 400


@PATHS
def test_a_nul_cannot_be_stored(cloud: Cloud, path: str) -> None:
    read = cloud.read(path)
    assert cloud.put(path, {**read, "status": {"firmware": "\0"}}).status_code == 503
    assert cloud.read(path) == read


def test_a_missing_object_has_no_body(cloud: Cloud) -> None:
    for path in (f"{APPS}/none", f"{SHOP}/devices/none"):
        answer = cloud.get(path)
        assert (answer.status_code, answer.content) == (404, b"")
