"""DeviceRegistry: precedence of firmware sections, meaning of answers, caching and back-off."""

import json
import math
import re
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.api_paths import command_path, listing_path, object_path
from fleet_fn.drogue.device_registry import DeviceNotFoundError, DeviceRegistry
from fleet_fn.drogue.spec_source import File, HawkBit, Image, Source
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.client import HttpClient
from tests.support.http import Request, Response, Server, closed_port
from tests.support.timing import Clock

APPLICATION = "/api/registry/v1alpha1/apps/fleet"
DEVICE = f"{APPLICATION}/devices/pump"
#: An object without a firmware section.
PLAIN: dict[str, Any] = {"spec": {}}
METADATA = {"application": {"name": "fleet"}, "device": {"application": "fleet", "name": "pump"}}


def image(reference: str = "pump:1.2.3", **more: object) -> dict[str, object]:
    return {"container": {"image": reference, **more}}


class Cloud:
    """A registry whose objects are given by path, and a client of it."""

    def __init__(self, server: Server, upstream: HttpClient) -> None:
        self.server = server
        self.upstream = upstream
        self.answers: dict[str, Response] = {}
        self.registry = DeviceRegistry(upstream)
        self.has(application=PLAIN, device=PLAIN)

    def has(self, **objects: object) -> None:
        """Answers with these: responses as they are, maps with the `metadata` of such an object if they have none."""
        for kind, value in objects.items():
            found = {"metadata": METADATA[kind], **value} if isinstance(value, dict) else value
            self.answers[{"application": APPLICATION, "device": DEVICE}[kind]] = (
                found if isinstance(found, Response) else Response(200, json.dumps(found).encode())
            )

    def has_sections(self, **sections: object) -> None:
        self.has(**{kind: {"spec": {"firmware": section}} for kind, section in sections.items()})

    def desired(self, max_age: float = 0.0, seconds: float = 5.0) -> Source | None:
        return self.registry.read_desired("fleet", "pump", max_age, Deadline(seconds)).source

    @property
    def asked(self) -> list[str]:
        return [request.path for request in self.server.requests]


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    def answer(request: Request) -> Response:
        return found.answers.get(request.path, Response(404))

    with Server(answer) as server:
        upstream = HttpClient("device registry", server.url)
        found = Cloud(server, upstream)
        yield found
        upstream.close()


# --- Whose section counts ---------------------------------------------------------------------------------------------


def test_the_devices_own_source_wins(cloud: Cloud) -> None:
    cloud.has_sections(device=image("own:1"), application=image("shared:1"))
    assert cloud.desired() == Image("own:1")


def test_a_device_without_a_source_gets_the_applications(cloud: Cloud) -> None:
    cloud.has_sections(device={"rollout": {"paused": True}}, application=image("shared:1"))
    assert cloud.desired() == Image("shared:1")


def test_without_any_source_nothing_is_desired(cloud: Cloud) -> None:
    assert cloud.desired() is None


@pytest.mark.parametrize(
    "empty",
    [
        {},
        {"spec": None},
        {"spec": {}},
        {"spec": {"firmware": None}},
        {"spec": {"firmware": {}}},
        {"spec": {"firmware": {"container": None, "file": None}}},
        {"spec": {"other": [], "firmware": {"x-policy": 5}}},
    ],
)
def test_what_is_missing_or_null_is_no_source(cloud: Cloud, empty: object) -> None:
    cloud.has(device=empty, application=empty)
    assert cloud.desired() is None


def test_oci_is_another_word_for_container(cloud: Cloud) -> None:
    cloud.has_sections(device={"oci": {"image": "pump:1.2.3", "imagePullPolicy": "Always"}})
    assert cloud.desired() == Image("pump:1.2.3", always=True)


@pytest.mark.parametrize(("policy", "always"), [("Always", True), ("IfNotPresent", False)])
def test_the_pull_policy_says_whether_the_tag_is_looked_up_each_time(cloud: Cloud, policy: str, always: bool) -> None:
    cloud.has_sections(device=image(imagePullPolicy=policy, build={"git": "…"}))
    assert cloud.desired() == Image("pump:1.2.3", always)


def test_a_platform_tells_which_of_an_indexs_manifests_is_meant(cloud: Cloud) -> None:
    cloud.has_sections(device=image(platform="linux/arm64"))
    assert cloud.desired() == Image("pump:1.2.3", platform="linux/arm64")


def test_other_sources_are_known_by_their_kind(cloud: Cloud) -> None:
    cloud.has_sections(device={"file": {"name": "pump"}})
    assert cloud.desired() == File("pump")


def test_a_source_that_is_not_built_is_known_too(cloud: Cloud) -> None:
    cloud.has_sections(application={"hawkbit": {"controller": "x"}})
    assert cloud.desired() == HawkBit("x")


@pytest.mark.parametrize("whose", ["device", "application"])
@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ([], "the {}'s spec.firmware is not a map"),
        ("pump:1", "the {}'s spec.firmware is not a map"),
        (
            image() | {"oci": {"image": "x"}},
            "the {}'s spec.firmware.container is set beside oci; only one source may be set",
        ),
        (
            image() | {"file": {"name": "x"}},
            "the {}'s spec.firmware.container is set beside file; only one source may be set",
        ),
        ({"file": {}, "hawkbit": {}}, "the {}'s spec.firmware.file is set beside hawkbit; only one source may be set"),
        ({"container": []}, "the {}'s spec.firmware.container is an empty list; it must be a map"),
        ({"container": "pump:1"}, 'the {}\'s spec.firmware.container is "pump:1"; it must be a map'),
        ({"container": False}, "the {}'s spec.firmware.container is false; it must be a map"),
        ({"file": [1]}, "the {}'s spec.firmware.file is a list; it must be a map"),
        (
            {"file": {}},
            "the {}'s spec.firmware.file.name is missing; it must be the name of a firmware in FIRMWARE_DIR",
        ),
        (
            {"file": {"name": 5}},
            "the {}'s spec.firmware.file.name is 5; it must be the name of a firmware in FIRMWARE_DIR",
        ),
        (
            image(platform=["linux/arm64"]),
            "the {}'s spec.firmware.container.platform is a list; it must be a platform, such as linux/arm64",
        ),
        (
            image(platform=""),
            'the {}\'s spec.firmware.container.platform is ""; it must be a platform, such as linux/arm64',
        ),
        (
            {"container": {}},
            "the {}'s spec.firmware.container.image is missing; it must be name, name:tag or name@sha256:…",
        ),
        (
            {"oci": {"image": ""}},
            'the {}\'s spec.firmware.oci.image is ""; it must be name, name:tag or name@sha256:…',
        ),
        (
            {"container": {"image": None}},
            "the {}'s spec.firmware.container.image is missing; it must be name, name:tag or name@sha256:…",
        ),
        (
            {"container": {"image": ["pump"]}},
            "the {}'s spec.firmware.container.image is a list; it must be name, name:tag or name@sha256:…",
        ),
        (
            image(imagePullPolicy="Never"),
            'the {}\'s spec.firmware.container.imagePullPolicy is "Never"; it must be IfNotPresent or Always',
        ),
        (
            image(imagePullPolicy=["Always"]),
            "the {}'s spec.firmware.container.imagePullPolicy is a list; it must be IfNotPresent or Always",
        ),
    ],
)
def test_a_section_that_cannot_be_understood_is_an_error(
    cloud: Cloud, whose: str, section: object, reason: str
) -> None:
    cloud.has_sections(**{whose: section})
    for max_age in (0.0, math.inf):  # as read, and as remembered
        with pytest.raises(MalformedSpecError) as caught:
            cloud.desired(max_age)
        assert caught.value.reason == reason.format(whose)
    assert len(cloud.asked) == 2


def test_malformed_device_section_does_not_fall_back(cloud: Cloud) -> None:
    cloud.has_sections(device={"container": {}}, application=image("shared:1"))
    with pytest.raises(MalformedSpecError, match="the device's"):
        cloud.desired()


def test_own_section_hides_malformed_application_section(cloud: Cloud) -> None:
    cloud.has_sections(device=image("own:1"), application=[])
    assert cloud.desired() == Image("own:1")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["spec", "firmware", "container", "oci", "file", "hawkbit", "image", "imagePullPolicy"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, json_values)
@example({"spec": {"firmware": {"container": {"image": "x"}}}}, [])
def test_whatever_the_registry_says_it_is_a_source_or_none_or_a_failure(device: object, application: object) -> None:
    class Scripted(HttpClient):
        def request(self, method: str, path: str, *_: Any, **__: Any) -> Any:  # noqa: ARG002
            kind = "device" if "/devices/" in path else "application"
            found = device if kind == "device" else application
            found = {"metadata": METADATA[kind], **found} if isinstance(found, dict) else found
            return Response(200, json.dumps(found).encode())

    registry = DeviceRegistry(Scripted("registry", "http://127.0.0.1"))
    try:
        source = registry.read_desired("fleet", "pump", 0, Deadline(5)).source
    except PermanentError as error:
        assert error.reason
    else:
        assert source is None or isinstance(source, Image | File | HawkBit)


# --- What answers mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whose", "status", "causes"),
    [
        ("device", 401, "our credentials were refused"),
        ("device", 403, "our credentials were refused"),
        ("device", 404, "no such device, wrong DROGUE_API_URL, or not a member of the application"),
        ("application", 401, "our credentials were refused, or not a member"),
        ("application", 403, "our credentials were refused, or not a member"),
        ("application", 404, "wrong name, wrong DROGUE_API_URL, or not a member"),
    ],
)
def test_a_refusal_names_the_object_and_all_possible_causes(cloud: Cloud, whose: str, status: int, causes: str) -> None:
    cloud.has(**{whose: Response(status, b"secret")})
    with pytest.raises(DeviceNotFoundError) as caught:
        cloud.desired()
    what = {"device": "device pump of application fleet", "application": "application fleet"}[whose]
    assert caught.value.reason == f"device registry: {status} for {what} ({causes})"


@pytest.mark.parametrize("whose", ["device", "application"])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_says_that_there_are_no_credentials(cloud: Cloud, whose: str, status: int) -> None:
    cloud.registry = DeviceRegistry(cloud.upstream, anonymous=True)
    cloud.has(**{whose: Response(status)})
    with pytest.raises(DeviceNotFoundError) as caught:
        cloud.desired()
    assert caught.value.reason.endswith("); no DROGUE_TOKEN is set")


@pytest.mark.parametrize("status", [201, 204, 301, 400, 405, 409, 418])
@pytest.mark.parametrize("whose", ["device", "application"])
def test_other_statuses_are_a_failure(cloud: Cloud, whose: str, status: int) -> None:
    cloud.has(**{whose: Response(status)})
    with pytest.raises(PermanentError) as caught:
        cloud.desired()
    assert caught.value.reason == f"device registry: answered {status} for the {whose}"
    # Where it is not certain that the cloud knows the device, nothing is sent to it.
    assert isinstance(caught.value, DeviceNotFoundError) == (whose == "device")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"<html>", "not JSON"),
        (b"\xff", "UTF-8"),
        (b'{"spec": {}, "spec": {}}', "twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "is no {} object"),
        (b"null", "is no {} object"),
        (b'{"spec": {}}', "is no {} object"),
        (b'{"metadata": [], "spec": {}}', "is no {} object"),
        (b'{"metadata": {}, "spec": {}}', "is another object"),
        (b'{"metadata": {"name": "lamp", "application": "fleet"}, "spec": {}}', "is another object"),
    ],
)
@pytest.mark.parametrize("whose", ["device", "application"])
def test_an_answer_that_makes_no_sense_is_a_failure(cloud: Cloud, whose: str, body: bytes, reason: str) -> None:
    cloud.has(**{whose: Response(200, body)})
    with pytest.raises(
        PermanentError, match=rf"^device registry: answer for the {whose}.*{reason.format(whose)}"
    ) as caught:
        cloud.desired()
    assert isinstance(caught.value, DeviceNotFoundError) == (whose == "device")
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize("spec", [[], "x"])
@pytest.mark.parametrize("whose", ["device", "application"])
def test_a_spec_that_is_no_map_is_a_failure(cloud: Cloud, whose: str, spec: object) -> None:
    cloud.has(**{whose: {"spec": spec}})
    with pytest.raises(PermanentError, match=rf"^device registry: answer for the {whose} is no {whose} object$"):
        cloud.desired()


@pytest.mark.parametrize(
    ("whose", "metadata"),
    [
        ("device", {"application": "fleet", "name": "lamp"}),
        ("device", {"application": "shop", "name": "pump"}),
        ("device", {"name": "pump"}),
        ("device", {"application": "fleet", "name": ["pump"]}),
        ("application", {"name": "shop"}),
        ("application", {}),
    ],
)
def test_answer_for_another_object_fails_and_closes_connection(cloud: Cloud, whose: str, metadata: object) -> None:
    cloud.has(**{whose: {"metadata": metadata, "spec": {"firmware": image()}}})
    for _ in range(2):
        with pytest.raises(PermanentError, match=rf"^device registry: answer for the {whose} is another object$"):
            cloud.desired()
    assert cloud.server.connections == 2


@pytest.mark.parametrize("whose", ["device", "application"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_is_not_well_is_to_be_asked_again(cloud: Cloud, whose: str, status: int) -> None:
    cloud.has(**{whose: Response(status, headers={"Retry-After": "3"})})
    with pytest.raises(TransientError) as caught:
        cloud.desired(math.inf)
    assert caught.value.retry_after == 3
    cloud.has(**{whose: PLAIN})
    assert cloud.desired(math.inf) is None  # such an answer is not remembered


def test_a_registry_that_is_not_there_is_to_be_asked_again() -> None:
    with closed_port() as port, pytest.raises(TransientError, match="refused"):
        DeviceRegistry(HttpClient("device registry", f"http://127.0.0.1:{port}")).read_desired(
            "fleet", "pump", 0, Deadline(5)
        )


# --- Paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("a%2Fb", "a%252Fb"),
        ("a b", "a%20b"),
        ("Gerät", "Ger%C3%A4t"),
        ("a?b#c", "a%3Fb%23c"),
        ("...", "..."),
        ("a\r\nb", "a%0D%0Ab"),
    ],
)
def test_names_are_percent_encoded_in_paths(cloud: Cloud, name: str, encoded: str) -> None:
    with pytest.raises(DeviceNotFoundError):
        cloud.registry.read_desired("fleet", name, 0, Deadline(5))
    with pytest.raises(DeviceNotFoundError):
        cloud.registry.read_desired(name, "pump", 0, Deadline(5))
    assert cloud.asked == [f"{APPLICATION}/devices/{encoded}", f"/api/registry/v1alpha1/apps/{encoded}/devices/pump"]
    assert listing_path(name) == f"/api/registry/v1alpha1/apps/{encoded}/devices"
    path = command_path(name, name, name)
    assert path == f"/api/command/v1alpha1/apps/{encoded}/devices/{encoded}?command={encoded}"


@pytest.mark.parametrize("name", [".", ".."])
def test_names_that_a_path_would_swallow_fail_before_anything_is_asked(cloud: Cloud, name: str) -> None:
    for application, device in (("fleet", name), (name, "pump")):
        reason = rf"^device registry: no URL can carry the name {re.escape(name)}$"
        with pytest.raises(PermanentError, match=reason):
            cloud.registry.read_desired(application, device, 0, Deadline(5))
        with pytest.raises(PermanentError, match=reason):
            object_path((application, device))
    with pytest.raises(PermanentError, match=reason):
        listing_path(name)
    assert not cloud.asked


# --- How often it is asked --------------------------------------------------------------------------------------------


def test_what_is_remembered_is_not_asked_for_again(cloud: Cloud) -> None:
    cloud.has_sections(application=image())
    for _ in range(3):
        cloud.desired(max_age=60)
    assert cloud.asked == [DEVICE, APPLICATION]


def test_with_no_age_allowed_it_is_asked_each_time(cloud: Cloud) -> None:
    cloud.desired(max_age=60)
    cloud.has_sections(device=image("new:1"))
    assert cloud.desired(max_age=60) is None
    assert cloud.desired(max_age=0) == Image("new:1")
    assert cloud.asked == [DEVICE, APPLICATION] * 2


def test_devices_of_one_application_share_what_is_known_of_it(cloud: Cloud) -> None:
    other = {"metadata": {**METADATA["device"], "name": "other"}}
    cloud.answers[f"{APPLICATION}/devices/other"] = Response(200, json.dumps(other).encode())
    cloud.desired(60)
    cloud.registry.read_desired("fleet", "other", 60, Deadline(5))
    assert cloud.asked.count(APPLICATION) == 1


def test_a_change_of_a_device_makes_its_spec_forgotten_and_no_other(cloud: Cloud) -> None:
    cloud.desired(60)
    cloud.registry.forget("fleet", "other")
    cloud.registry.forget("other", "pump")
    cloud.desired(60)
    assert len(cloud.asked) == 2
    cloud.registry.forget("fleet", "pump")
    cloud.desired(60)
    assert cloud.asked[2:] == [DEVICE]


def test_a_change_that_names_no_device_is_the_applications(cloud: Cloud) -> None:
    cloud.desired(60)
    cloud.registry.forget("fleet", "")
    cloud.desired(60)
    assert cloud.asked[2:] == [APPLICATION]


def test_change_during_look_up_prevents_caching(cloud: Cloud) -> None:
    reading, changed = threading.Event(), threading.Event()

    def slowly(request: Request) -> Response:
        response = cloud.answers[request.path]
        if request.path == DEVICE:
            reading.set()
            changed.wait(10)
        return response

    cloud.server.answer = slowly
    with ThreadPoolExecutor() as threads:
        before = threads.submit(cloud.desired, 60, 10)
        assert reading.wait(10)
        cloud.has_sections(device=image("new:1"))
        cloud.registry.forget("fleet", "pump")
        changed.set()
        assert before.result() is None
    assert cloud.desired(60) == Image("new:1")


def test_unknown_devices_are_asked_for_each_time(cloud: Cloud) -> None:
    cloud.has(device=Response(404))
    for _ in range(2):
        with pytest.raises(DeviceNotFoundError):
            cloud.desired(math.inf)
    assert cloud.asked.count(DEVICE) == 2


def test_one_that_is_to_remember_nothing_remembers_nothing(cloud: Cloud) -> None:
    cloud.registry = DeviceRegistry(cloud.upstream, remember=False)
    for _ in range(2):
        cloud.desired(math.inf)
    assert cloud.asked == [DEVICE, APPLICATION] * 2


LARGE: dict[str, dict[str, Any]] = {
    "in spec": {"spec": {"other": [{f"key-{number}": number} for number in range(4000)]}},
    "in others' status": {"status": {"other": {f"key-{number}": [number] for number in range(3500)}}},
    "in labels": {"metadata": {"labels": {f"label-{number}": f"value-{number}" for number in range(1800)}}},
    "in a message": {
        "status": {"firmware": {"conditions": [{"type": "InSync", "status": "False", "message": "m" * 58_000}]}}
    },
}


@pytest.mark.parametrize("where", LARGE)
def test_devices_with_large_objects_take_bounded_memory(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of about 58 KiB; some take five times as much once they are parsed."""
    bounds = ("device_registry._MAX_OBJECTS_BYTES", "device_registry._MAX_JUST_READ_BYTES")
    for bound in (*bounds, "report_backoff._MAX_FAILURES_BYTES"):
        monkeypatch.setattr(f"fleet_fn.drogue.{bound}", 1024 * 1024)
    found = LARGE[where]
    found = {"spec": {}, **found, "metadata": {**METADATA["device"], **found.get("metadata", {}), "name": "NAME"}}
    device = json.dumps(found).encode()
    assert 45_000 < len(device) < 90_000
    application = json.dumps({"metadata": METADATA["application"]}).encode()

    class Scripted(HttpClient):
        def request(self, method: str, path: str, *_: Any, **__: Any) -> Any:  # noqa: ARG002
            name = path.rpartition("/devices/")[2].encode()
            return Response(200, device.replace(b"NAME", name) if "/devices/" in path else application)

    registry = DeviceRegistry(Scripted("device registry", "http://127.0.0.1"))
    tracemalloc.start()
    try:
        for number in range(40):
            registry.read_desired("fleet", f"pump-{number}", 60, Deadline(30))
            registry.give_up_reporting("fleet", f"pump-{number}")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 4 * 1024 * 1024


def test_both_look_ups_together_keep_the_deadline(cloud: Cloud) -> None:
    over = threading.Event()

    def slowly(request: Request) -> Response:
        over.wait(0.25)
        return cloud.answers[request.path]

    cloud.server.answer = slowly
    deadline = Deadline(0.4)
    with pytest.raises(TransientError, match="no answer in time"):
        cloud.registry.read_desired("fleet", "pump", 0, deadline)
    assert deadline.elapsed < 0.9
    over.set()


def test_events_that_come_at_once_share_the_look_ups(cloud: Cloud) -> None:
    began, may_end = threading.Event(), threading.Event()

    def slowly(request: Request) -> Response:
        began.set()
        may_end.wait(10)
        return cloud.answers[request.path]

    cloud.server.answer = slowly
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(cloud.desired, 60, 10) for _ in range(8)]
        assert began.wait(10)
        may_end.set()
        assert [result.result() for result in results] == [None] * 8
    assert sorted(cloud.asked) == [APPLICATION, DEVICE]


def test_failed_report_backs_off_until_object_changes(cloud: Cloud) -> None:
    clock = Clock()
    registry = DeviceRegistry(cloud.upstream, clock=clock)

    def gives_up(after: float, **spec: object) -> bool:
        cloud.has(device={"spec": spec})
        clock.now += after
        registry.read_desired("fleet", "pump", 0, Deadline(5))
        return registry.has_given_up_reporting("fleet", "pump")

    assert not gives_up(0)
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        registry.give_up_reporting("fleet", "pump")
        assert gives_up(pause - 0.1)
        assert not gives_up(0.2)
    registry.give_up_reporting("fleet", "pump")
    assert gives_up(1)
    other = {"container": {"image": "app:2"}}
    assert not gives_up(1, firmware=other)
    registry.give_up_reporting("fleet", "pump")
    assert gives_up(0.9, firmware=other)
    assert not gives_up(0.2, firmware=other)
