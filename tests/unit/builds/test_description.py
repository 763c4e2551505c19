"""`container.build`: what it may say, and what is refused before a cluster hears of it."""

from typing import Any

import pytest

from fleet_fn.builds.description import Build, read_build
from fleet_fn.builds.labels import label_value
from fleet_fn.drogue.spec_values import MalformedSpecError

PATH = "container.build"


def build(**changes: Any) -> dict[str, Any]:
    minimal = {
        "source": {"git": {"uri": "https://git.example.com/acme/sensor"}},
        "image": "builder",
        "artifact": {"path": "firmware.bin"},
    }
    return {key: value for key, value in (minimal | changes).items() if value is not ...}


def git(**keys: Any) -> dict[str, Any]:
    return {"git": {"uri": "https://git.example.com/x", **keys}}


def refusal(section: object) -> str:
    with pytest.raises(MalformedSpecError) as error:
        read_build(section, PATH)
    return error.value.reason


def test_a_build_says_little_at_least() -> None:
    assert read_build(build(), PATH) == Build(
        "https://git.example.com/acme/sensor", None, None, "builder", (), {}, "firmware.bin", None
    )


def test_a_build_may_say_more() -> None:
    section = build(
        source=git(rev="refs/tags/v1", project="boards/nrf 52"),
        args=["--release", ""],
        env=[{"name": "A", "value": "b=c"}, {"name": "_x1", "value": ""}],
        timeout="1h30m",
    )
    section["x-owner"] = {"anything": True}
    read = read_build(section, PATH)
    assert (read.revision, read.project, read.timeout) == ("refs/tags/v1", "boards/nrf 52", "1h30m")
    assert read.arguments == ("--release", "")
    assert read.environment == {"A": "b=c", "_x1": ""}
    assert read_build(build(args=[], env=None), PATH).arguments == ()


@pytest.mark.parametrize(
    "uri",
    [
        "https://git.example.com/a.git",
        "http://localhost:8080/a",
        "ssh://git@git.example.com:22/a",
        "git://git.example.com/a",
        "git@git.example.com:acme/sensor.git",
    ],
)
def test_addresses_of_repositories(uri: str) -> None:
    assert read_build(build(source=git(uri=uri)), PATH).repository == uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:pa55word@git.example.com/a",
        "https://pa55word@git.example.com/a",
        "ssh://git:pa55word@git.example.com/a",
        "https://user:pa55/word@git.example.com/a",
        "https://a b:pa55word@git.example.com/a",
        "user:pa55word@host:path",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(uri: str) -> None:
    reason = refusal(build(source=git(uri=uri)))
    assert "name a Secret with --git-secret" in reason
    assert "pa55" not in reason


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (None, "container.build is null; it must be a map with source, image, args, env, artifact, timeout"),
        ([], "container.build is an empty list"),
        (build(source=...), "container.build.source.git is missing; it must be a map with uri, rev and project"),
        (build(source={"git": None}), "container.build.source.git is missing"),
        (build(source={"hg": {}}), 'container.build.source is "hg"; it must be git: firmware is built from no other'),
        (build(source={"git": {}, "hg": {}}), "container.build.source contains hg; it may contain git"),
        (build(source=git(url="x")), "container.build.source.git contains url (did you mean uri?)"),
        (build(source=git(revision="x")), "container.build.source.git contains revision"),
        (build(source=git(uri="/srv/git")), 'container.build.source.git.uri is "/srv/git"; it must be the URL'),
        (build(source=git(uri="file:///srv/git")), "container.build.source.git.uri is"),
        (build(source=git(uri="ext::sh -c x")), "container.build.source.git.uri is"),
        (build(source=git(uri="https://")), "container.build.source.git.uri is"),
        (build(source=git(uri="https://[x")), "container.build.source.git.uri is"),
        (build(source=git(uri="-oProxyCommand=x")), "container.build.source.git.uri is"),
        (build(source=git(rev="-h")), 'container.build.source.git.rev is "-h"; it must be a branch, a tag'),
        (build(source=git(rev="a b")), "container.build.source.git.rev is"),
        (build(source=git(rev=12)), "container.build.source.git.rev is 12"),
        (build(source=git(rev="a\nb")), "container.build.source.git.rev is"),
        (build(source=git(project="../x")), 'container.build.source.git.project is "../x"; it must be a path inside'),
        (build(source=git(project="/x")), "container.build.source.git.project is"),
        (build(image=...), "container.build.image is missing"),
        (build(image="a b"), "container.build.image is"),
        (build(image="$(context.x)"), "container.build.image is"),
        (build(artifact=...), "container.build.artifact is missing; it must be a map with path"),
        (build(artifact={}), "container.build.artifact.path is missing"),
        (build(artifact={"file": "x"}), "container.build.artifact contains file"),
        (build(artifact={"path": "a/../../b"}), "container.build.artifact.path is"),
        (build(args="x"), 'container.build.args is "x"; it must be a list of texts'),
        (build(args=[1]), "container.build.args[0] is 1; it must be a text: write it in quotes"),
        (build(args=["a", "$(params.X)"]), 'container.build.args[1] is "$(params.X)"; it must not contain $( or $$'),
        (build(args=["$$"]), "container.build.args[0] is"),
        (build(args=["a\0b"]), "container.build.args[0] is"),
        (build(args=["a" * 10_001]), "container.build.args[0] has 10001 characters; it may have 10000"),
        (build(args=["a"] * 201), "container.build.args has 201 entries; it may have 200"),
        (build(env={"A": "b"}), "container.build.env is a map; it must be a list of maps with name and value"),
        (build(env=[{"name": "A"}]), "container.build.env[0].value is missing"),
        (build(env=[{"name": "A", "value": ["b"]}]), "container.build.env[0].value is a list; it must be a text"),
        (build(env=[{"name": "A", "value": True}]), "container.build.env[0].value is true"),
        (build(env=[{"name": "A B", "value": ""}]), 'container.build.env[0].name is "A B"; it must be the name'),
        (build(env=[{"name": "--", "value": ""}]), "container.build.env[0].name is"),
        (build(env=[{"name": "A=B", "value": ""}]), "container.build.env[0].name is"),
        (build(env=[{"name": "A", "value": ""}] * 2), "container.build.env[1].name is A again"),
        (build(env=[{"name": "FIRMWARE_VERSION", "value": ""}]), "is FIRMWARE_VERSION, which the pipeline sets"),
        (build(env=[{"name": "A", "values": ""}]), "container.build.env[0] contains values (did you mean value?)"),
        (build(timeout="1 hour"), 'container.build.timeout is "1 hour"; it must be a time such as 1h30m, above 0'),
        (build(timeout=60), "container.build.timeout is 60"),
        (build(timeout="0s"), "container.build.timeout is"),
        (build(timeout="1d"), "container.build.timeout is"),
        (build(command="make"), "container.build contains command; it may contain source, image, args, env"),
    ],
)
def test_what_is_no_build_is_refused(section: object, reason: str) -> None:
    said = refusal(section)
    assert reason in said
    assert said.isprintable()


def test_names_become_labels_that_no_two_share() -> None:
    names = ["acme", "a" * 63, "a" * 64, "a" * 65, "-a", "a-", "", "a/b", "ä", label_value("ä"), label_value("a/b")]
    assert label_value("acme") == "acme"
    assert label_value("a" * 63) == "a" * 63
    values = [label_value(name) for name in names]
    assert len(set(values)) == len(names)
    assert all(len(value) <= 63 for value in values)
