"""The build pipeline's steps for real: git repositories, a builder, a registry; and what goes wrong with them."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fleet_fn.cli.main import main
from fleet_fn.oci.signature_keys import read_keys
from fleet_fn.oci.signatures import check_bundle
from tests.support.drogue import TOKEN as TOKEN_OF_CLOUD
from tests.support.drogue import USER as USER_OF_CLOUD
from tests.support.drogue import Drogue
from tests.support.function import ROOT
from tests.support.http import Request, Response, Server
from tests.support.registry import PASSWORD, USER, DockerRegistry, need
from tests.support.tekton import Ended, PipelineRun, Value, can_mount, load

FOLDER = ROOT / "knative" / "tekton"
PIPELINE = load(FOLDER / "pipeline.yaml")
TASKS = {f"firmware-{name}": load(FOLDER / f"firmware-{name}.yaml") for name in ("clone", "build", "publish")}
TIME = 1795413600
#: What a builder's image has in its working directory.
BUILDER = """\
#!/bin/sh
set -eu
printf '%s\\n' "$1" "$2" >arguments
cd "$1"
printf '%s %s %s' "$FIRMWARE_VERSION" "$SOURCE_DATE_EPOCH" "$2" >firmware.bin
"""
TOKEN = "t0ken-of-the-repository"
SOURCE = "org.opencontainers.image.source"


@pytest.fixture(scope="module")
def _has_git() -> None:
    need("git")


class Repository:
    """A repository with one commit, on the branch `main`."""

    def __init__(self, folder: Path, template: "Repository | None" = None) -> None:
        self.folder = folder
        if template:
            shutil.copytree(template.folder, folder)
            return
        self.git("init", "--quiet", "--initial-branch=main", "--template=", str(folder))
        self.commit("first", {"README": "a firmware"})

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def git(self, *arguments: str) -> str:
        self.folder.mkdir(exist_ok=True)
        who = {f"GIT_{role}_{what}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        when = {f"GIT_{role}_DATE": f"{TIME} +0200" for role in ("AUTHOR", "COMMITTER")}
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **who,
            **when,
        }
        command = ["git", *arguments]
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=True)
        return ended.stdout.strip()

    def commit(self, message: str, files: dict[str, str] | None = None) -> str:
        """Commits the files, and all else that has changed; returns the commit's id."""
        for path, content in (files or {}).items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def tag(self, *names: str) -> None:
        for name in names:
            self.git("tag", name)


@dataclass(frozen=True)
class Built:
    """What a run of the Pipeline ended with."""

    run: PipelineRun
    #: The Task that failed; None if none did.
    failed: str | None
    log: str

    @property
    def results(self) -> dict[str, str]:
        assert self.failed is None, self.log
        return self.run.results

    @property
    def version(self) -> str:
        return self.results["version"]

    @property
    def checkout(self) -> Path:
        return self.run.volume / "source" / "checkout"

    @property
    def output(self) -> Path:
        """The repository's copy that the build worked in."""
        return self.run.volume / "output" / "build"

    def refusal(self, task: str) -> str:
        """What a Task said why it failed, without its name."""
        assert self.failed == task, self.log
        said = [line for line in self.log.splitlines() if line.startswith(f"{task}: ")]
        assert said, self.log
        return said[-1].partition(": ")[2]


@dataclass
class Pipeline:
    """Somebody's builds of one repository."""

    folder: Path
    repository: Repository
    params: dict[str, Value]
    workspaces: dict[str, Path] = field(default_factory=dict)
    count: int = 0

    @property
    def image(self) -> Path:
        """The working directory of the builder's image."""
        return self.folder / "image"

    @property
    def canary(self) -> Path:
        """What commands in parameters try to make."""
        return self.folder / "canary"

    def builder(self, script: str) -> None:
        (self.image / "build.sh").write_text(script)

    def pipeline_run(self, **params: Value) -> PipelineRun:
        """A new run."""
        self.count += 1
        folder = self.folder / f"run-{self.count}"
        folder.mkdir()
        return PipelineRun(PIPELINE, TASKS, folder, self.params | params, self.workspaces)

    def start(self, run: PipelineRun, until: str = "publish") -> Built:
        """Runs the Tasks up to one of them, or to the one that fails."""
        log = ""
        for task in run.tasks[: run.tasks.index(until) + 1]:
            ended = run.run(task, {"build": self.image, "publish": ROOT}.get(task, self.folder))
            log += ended.log
            if ended.code:
                return Built(run, task, log)
        return Built(run, None, log)

    def build(self, until: str = "publish", **params: Value) -> Built:
        return self.start(self.pipeline_run(**params), until)

    def clone(self, **params: Value) -> Built:
        return self.build("clone", **params)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, _has_git: None) -> Repository:
    return Repository(tmp_path_factory.mktemp("repositories") / "template")


@pytest.fixture
def pipeline(tmp_path: Path, template: Repository) -> Pipeline:
    repository = Repository(tmp_path / "sensor", template)
    params: dict[str, Value] = {
        "GIT_REPO": repository.url,
        "REGISTRY": "registry.example",
        "IMAGE": "sensor",
        "BUILDER_IMAGE": "builder",
    }
    pipeline = Pipeline(tmp_path, repository, params)
    pipeline.image.mkdir()
    pipeline.builder(BUILDER)
    (pipeline.image / "build.sh").chmod(0o755)
    return pipeline


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of the registry's that no other test uses."""
    return "tekton/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]


@pytest.fixture
def registry(pipeline: Pipeline, docker_registry: DockerRegistry, name: str) -> DockerRegistry:
    """The one that the pipeline publishes to."""
    pipeline.params |= {"REGISTRY": docker_registry.host, "IMAGE": name, "INSECURE": "true"}
    return docker_registry


def annotations(registry: DockerRegistry, name: str, tag: str) -> dict[str, str]:
    found: dict[str, str] = registry.manifest(name, tag).json["annotations"]
    return found


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


# --- A build ----------------------------------------------------------------------------------------------------------


def test_a_tagged_commit_becomes_a_firmware_of_that_version(
    pipeline: Pipeline, registry: DockerRegistry, name: str
) -> None:
    commit = pipeline.repository.commit("second")
    pipeline.repository.tag("v1.2.3")
    pipeline.repository.commit("third")
    built = pipeline.build(GIT_REVISION="v1.2.3", BUILD_ARGS="--features  x")
    digest = str(registry.digest(name, "v1.2.3"))
    assert built.results == {  # byte for byte: without newlines at the end
        "version": "v1.2.3",
        "commit": commit,
        "committer-date": str(TIME),
        "url": pipeline.repository.url,
        "reference": f"{registry.host}/{name}:v1.2.3",
        "digest": digest,
        "IMAGE_URL": f"{registry.host}/{name}:v1.2.3",
        "IMAGE_DIGEST": digest,
    }
    assert annotations(registry, name, "v1.2.3") == {
        "org.opencontainers.image.version": "v1.2.3",
        "org.opencontainers.image.created": "2026-11-23T06:00:00+00:00",
        SOURCE: pipeline.repository.url,
        "org.opencontainers.image.revision": commit,
    }
    assert registry.tags(name) == {"v1.2.3", "latest"}
    assert registry.digest(name, "latest") == digest
    content = f"v1.2.3 {TIME} --features  x".encode()
    inspect = [sys.executable, "-m", "fleet_fn", "inspect", built.results["reference"], "--insecure"]
    seen = subprocess.run(inspect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert dict(line.split(maxsplit=1) for line in seen.splitlines()) == {
        "shape": "artifact",
        "digest": digest,
        "version": "v1.2.3",
        "source": pipeline.repository.url,
        "revision": commit,
        "created": "2026-11-23T06:00:00+00:00",
        "size": str(len(content)),
        "sha256": f"{hashlib.sha256(content).hexdigest()} (verified)",
        "signature": "none",
    }


def test_a_firmware_can_be_for_some_devices_only(pipeline: Pipeline, registry: DockerRegistry, name: str) -> None:
    built = pipeline.build(HARDWARE="rev-a,rev-b", REQUIRES=">=1.4 <2")
    found = annotations(registry, name, built.version)
    assert found["io.drogue.firmware.hardware"] == "rev-a,rev-b"
    assert found["io.drogue.firmware.requires"] == ">=1.4 <2"


def test_latest_moves_unless_it_is_told_not_to(pipeline: Pipeline, registry: DockerRegistry, name: str) -> None:
    pipeline.repository.tag("1.0")
    assert pipeline.build().version == "1.0"
    first = registry.digest(name, "latest")
    pipeline.repository.commit("second")
    pipeline.repository.tag("2.0")
    assert pipeline.build(LATEST="false").version == "2.0"
    assert registry.tags(name) == {"1.0", "2.0", "latest"}
    assert registry.digest(name, "latest") == first
    pipeline.build()
    assert registry.digest(name, "latest") == registry.digest(name, "2.0")


def test_a_build_again_changes_nothing_and_other_bytes_for_a_version_are_refused(
    pipeline: Pipeline, registry: DockerRegistry, name: str
) -> None:
    pipeline.repository.tag("1.0")
    first = pipeline.build()
    assert pipeline.build().results == first.results
    refused = pipeline.build(BUILD_ARGS="--other")
    assert refused.refusal("publish").startswith("tag 1.0 has other bytes already: publish another version")
    assert set(refused.run.results) & {"digest", "reference", "IMAGE_URL", "IMAGE_DIGEST"} == set()
    assert registry.digest(name, "latest") == first.results["digest"]


@pytest.mark.usefixtures("_has_docker_registry")
def test_a_registry_that_wants_credentials_is_shown_those_of_the_workspace_or_of_the_service_account(
    pipeline: Pipeline, name: str
) -> None:
    with DockerRegistry(protected=True) as registry:
        pipeline.params |= {"REGISTRY": f"{registry.host}/", "IMAGE": name, "INSECURE": "true", "PAD_TO": "64"}
        assert pipeline.build().failed == "publish"
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        config = json.dumps({"auths": {registry.host: {"auth": auth}}})

        run = pipeline.pipeline_run()
        account = run.pod("publish") / "tekton" / "home" / ".docker"
        account.mkdir(parents=True)
        (account / "config.json").write_text(config)
        by_account = pipeline.start(run)

        pipeline.workspaces["dockerconfig"] = pipeline.folder / "dockerconfig"
        pipeline.workspaces["dockerconfig"].mkdir()
        (pipeline.workspaces["dockerconfig"] / "config.json").write_text(config)
        by_workspace = pipeline.build()

        assert by_account.results == by_workspace.results
        (layer,) = registry.manifest(name, by_workspace.version).json["layers"]
        assert layer["size"] == 64
        assert PASSWORD not in by_account.log + by_workspace.log
        assert auth not in by_account.log + by_workspace.log


#: What the builder's image of Drogue Ajour does: its build.sh runs in the project's folder, with the arguments.
AJOUR_BUILDER = """\
#!/bin/sh
set -eu
mkdir out
printf '%s|' "$FIRMWARE_VERSION" "$(cat source)" "$FEATURES" "$EMPTY" "$@" >'out/firm ware.bin'
"""


def test_what_a_build_describes_is_built(
    pipeline: Pipeline, registry: DockerRegistry, name: str, drogue: Drogue
) -> None:
    pipeline.repository.commit("project", {"boards/nrf 52/source": "of 1.3"})
    pipeline.repository.tag("v1.3")
    pipeline.repository.commit("later", {"boards/nrf 52/source": "later"})
    pipeline.builder(AJOUR_BUILDER)
    described = {
        "source": {"git": {"uri": "https://git.example.com/sensor", "rev": "v1.3", "project": "boards/nrf 52"}},
        "image": "builder",
        "args": ["--release", 'a "b" $c; `id` *', ""],
        "env": [{"name": "FEATURES", "value": "x 'y'\nz"}, {"name": "EMPTY", "value": ""}],
        "artifact": {"path": "out/firm ware.bin"},
    }
    drogue.put_image("builds", None, name, build=described)
    environment = {"DROGUE_API_URL": drogue.url, "DROGUE_USER": USER_OF_CLOUD, "DROGUE_TOKEN": TOKEN_OF_CLOUD}
    environment |= {"FIRMWARE_REGISTRY": f"{registry.host}/", "FIRMWARE_REGISTRY_INSECURE": "true"}
    ended = CliRunner(env=dict(environment)).invoke(main, ["build", "--application", "builds", "--dry-run"])
    assert ended.exit_code == 0, ended.output
    run = yaml.safe_load(ended.stdout)
    params = {param["name"]: param["value"] for param in run["spec"]["params"]}
    assert params["GIT_REPO"] == "https://git.example.com/sensor"
    pipeline.params = params | {"GIT_REPO": pipeline.repository.url}
    built = pipeline.build()
    assert built.results["reference"] == f"{registry.host}/{name}:v1.3"
    (layer,) = registry.manifest(name, "v1.3").json["layers"]
    expected = ["v1.3", "of 1.3", "x 'y'\nz", "", "--release", 'a "b" $c; `id` *', ""]
    assert registry.blob(name, layer["digest"]).decode() == "".join(f"{word}|" for word in expected)
    assert not pipeline.canary.exists()


# --- Signatures and SBOMs ---------------------------------------------------------------------------------------------


def secret(folder: Path, **files: bytes) -> Path:
    """A Secret as a pod has it: each file is a link into a folder, which is a link itself."""
    (folder / "..2026_11_29").mkdir(parents=True)
    (folder / "..data").symlink_to("..2026_11_29")
    for name, content in files.items():
        file = name.replace("_", ".")
        (folder / "..2026_11_29" / file).write_bytes(content)
        (folder / file).symlink_to(f"..data/{file}")
    return folder


def attached(registry: DockerRegistry, name: str, digest: str) -> dict[str, bytes]:
    """The documents that are attached to a manifest, by type."""
    found = {}
    for entry in registry.manifest(name, digest.replace(":", "-")).json["manifests"]:
        (layer,) = registry.manifest(name, entry["digest"]).json["layers"]
        found[entry["artifactType"]] = registry.blob(name, layer["digest"])
    return found


KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_KEY = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
KEY_PASSWORD = b"s3cret-of-the-key"


@pytest.mark.parametrize("password", [None, KEY_PASSWORD], ids=["plain", "encrypted"])
def test_a_key_in_a_workspace_signs_what_is_published(
    pipeline: Pipeline, registry: DockerRegistry, name: str, password: bytes | None
) -> None:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    files = {"key_pem": KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)}
    if password:
        files["password"] = password + b"\n"
    pipeline.workspaces["signing-key"] = secret(pipeline.folder / "signing-key", **files)
    built = pipeline.build()
    digest = built.results["digest"]
    (bundle,) = attached(registry, name, digest).values()
    (key,) = read_keys(PUBLIC_KEY, "pipeline", "pipeline.pem")
    assert check_bundle(bundle, digest, [key]) == key
    assert KEY_PASSWORD.decode() not in built.log
    assert "PRIVATE KEY" not in built.log


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "key.pem' does not exist"),
        ({"key_pem": b"none"}, "no private key (PEM)"),
        ({"key_pem": PUBLIC_KEY}, "no private key (PEM)"),
    ],
    ids=["missing", "garbage", "public"],
)
def test_nothing_is_published_if_the_key_does_not_sign(
    pipeline: Pipeline, registry: DockerRegistry, name: str, files: dict[str, bytes], reason: str
) -> None:
    pipeline.workspaces["signing-key"] = secret(pipeline.folder / "signing-key", **files)
    built = pipeline.build()
    assert built.failed == "publish"
    assert reason in built.log
    assert registry.tags(name) == set()


def test_a_document_of_the_build_is_attached(pipeline: Pipeline, registry: DockerRegistry, name: str) -> None:
    document = '{"bomFormat": "CycloneDX", "specVersion": "1.6"}'
    pipeline.builder(BUILDER + f"mkdir out; printf '%s' '{document}' >out/bom.json\n")
    built = pipeline.build(SBOM_PATH="out/bom.json")
    assert attached(registry, name, built.results["digest"]) == {"application/vnd.cyclonedx+json": document.encode()}
    assert pipeline.build(SBOM_PATH="bom.json").refusal("publish") == (
        "the build left no file 'bom.json' (SBOM_PATH) in '.' (PROJECT_PATH)"
    )


# --- Revisions and versions -------------------------------------------------------------------------------------------


def test_a_commit_without_a_tag_has_twelve_digits_of_its_id_as_version(pipeline: Pipeline) -> None:
    pipeline.repository.tag("v1")
    commit = pipeline.repository.commit("second")
    built = pipeline.clone()
    assert built.results == {
        "version": commit[:12],
        "commit": commit,
        "committer-date": str(TIME),
        "url": pipeline.repository.url,
    }
    assert pipeline.build("build", BUILD_COMMAND='git -C "$PROJECT_DIR" rev-parse --short HEAD').log.endswith(
        f"\n{commit[:12]}\n"
    )


@pytest.mark.parametrize(
    ("tags", "revision", "version"),
    [
        (["v1.9", "v1.10"], "main", "v1.10"),
        (["v1.9", "v1.10"], "v1.9", "v1.9"),
        (["v1.9", "v1.10"], "refs/tags/v1.9", "v1.9"),
        (["1.0", "1.0-rc1", "1.0-rc2"], "main", "1.0"),
        (["1.0", "latest"], "main", "1.0"),
        (["1.0", "latest"], "latest", "1.0"),
        (["latest"], "main", None),
    ],
    ids=str,
)
def test_of_several_tags_the_one_that_is_asked_for_is_the_version_else_the_highest(
    pipeline: Pipeline, tags: list[str], revision: str, version: str | None
) -> None:
    pipeline.repository.tag(*tags)
    built = pipeline.clone(GIT_REVISION=revision)
    assert built.version == (version or built.results["commit"][:12])


@pytest.mark.parametrize("form", ["old", "refs/heads/old", "v1", "annotated", "refs/tags/v1", "{commit}", "HEAD"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(pipeline: Pipeline, form: str) -> None:
    first = pipeline.repository.git("rev-parse", "HEAD")
    pipeline.repository.tag("v1")
    pipeline.repository.git("tag", "--annotate", "annotated", "--message", "x")
    pipeline.repository.git("branch", "old")
    second = pipeline.repository.commit("second")
    expected = second if form == "HEAD" else first
    built = pipeline.clone(GIT_REVISION=form.format(commit=first))
    assert built.results["commit"] == expected
    head = built.checkout / ".git" / "HEAD"
    assert head.read_text().strip() == expected


def test_a_commit_that_no_branch_has_is_asked_for(pipeline: Pipeline) -> None:
    pipeline.repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    commit = pipeline.repository.commit("of a pull request")
    pipeline.repository.git("reset", "--quiet", "--hard", "HEAD~")
    assert pipeline.clone(GIT_REVISION=commit).results["commit"] == commit


def test_a_branch_is_meant_where_its_whole_name_is_given_even_if_a_tag_has_the_same(pipeline: Pipeline) -> None:
    pipeline.repository.tag("both")
    tagged = pipeline.repository.git("rev-parse", "HEAD")
    branched = pipeline.repository.commit("second")
    pipeline.repository.git("branch", "both")
    assert pipeline.clone(GIT_REVISION="refs/heads/both").results["commit"] == branched
    assert pipeline.clone(GIT_REVISION="both").results["commit"] == tagged


@pytest.mark.parametrize("revision", ["nowhere", "main~0", "refs/pull/1/head", "0" * 40, "f" * 7])
def test_a_revision_that_is_none_is_refused(pipeline: Pipeline, revision: str) -> None:
    refusal = pipeline.clone(GIT_REVISION=revision).refusal("clone")
    assert revision in refusal
    assert pipeline.repository.url in refusal


def test_a_branch_whose_name_could_be_an_option_is_refused(pipeline: Pipeline) -> None:
    pipeline.repository.git("update-ref", "refs/heads/-h", "HEAD")
    assert pipeline.clone(GIT_REVISION="-h").refusal("clone").startswith("GIT_REVISION '-h' is no branch")


@pytest.mark.parametrize("tag", ["release/1.0", "1.0+debug", "-1", "ü", "a" * 129])
def test_a_tag_that_a_registry_cannot_have_is_refused(pipeline: Pipeline, tag: str) -> None:
    pipeline.repository.git("update-ref", f"refs/tags/{tag}", "HEAD")
    refusal = pipeline.clone().refusal("clone")
    assert refusal.startswith(f"the git tag '{tag}' cannot be a tag in a registry: that has ")


def test_a_version_that_is_asked_for_wins(pipeline: Pipeline) -> None:
    pipeline.repository.tag("v1")
    assert pipeline.clone(VERSION="1.0-rc1").version == "1.0-rc1"
    assert pipeline.clone(VERSION="latest").refusal("clone") == "VERSION is latest, a tag that moves: no version"
    for version in ("release/1", "-1", "a" * 129, "$(id)"):
        assert f"VERSION '{version}' cannot be a tag" in pipeline.clone(VERSION=version).refusal("clone")
    assert "control characters" in pipeline.clone(VERSION="1\n2").refusal("clone")


def test_submodules_are_part_of_the_checkout(pipeline: Pipeline, template: Repository, tmp_path: Path) -> None:
    library = Repository(tmp_path / "library", template)
    with served(library) as server:
        url = f"{server.url}/library.git"
        pipeline.repository.git("submodule", "--quiet", "add", url, "library")
        pipeline.repository.commit("with a library")
        built = pipeline.clone()
    assert (built.checkout / "library" / "README").read_text() == "a firmware"


# --- The build --------------------------------------------------------------------------------------------------------


def test_the_builder_runs_in_its_own_folder_with_the_project_and_the_arguments(pipeline: Pipeline) -> None:
    pipeline.repository.commit("projects", {"boards/nrf 52/Cargo.toml": ""})
    built = pipeline.build("build", PROJECT_PATH="boards/nrf 52", BUILD_ARGS='--release "$(id)" *')
    project = built.output / "boards" / "nrf 52"
    assert (pipeline.image / "arguments").read_text().splitlines() == [str(project), '--release "$(id)" *']
    assert (project / "firmware.bin").read_text().startswith(built.version)


def test_arguments_for_cargo_are_the_builds_where_there_are_no_others(pipeline: Pipeline) -> None:
    for expected, params in {"cargo": {}, "other": {"BUILD_ARGS": "other"}}.items():
        assert pipeline.build("build", CARGO_BUILD_ARGS="cargo", **params).failed is None
        assert (pipeline.image / "arguments").read_text().splitlines()[1] == expected


def test_a_repository_can_bring_its_own_build(pipeline: Pipeline) -> None:
    pipeline.repository.commit("build", {"Makefile.sh": 'echo "$FIRMWARE_VERSION $BUILD_ARGS" >own.bin'})
    built = pipeline.build("build", BUILD_COMMAND='cd "$PROJECT_DIR" && sh Makefile.sh', BUILD_ARGS="x")
    assert (built.output / "own.bin").read_text() == f"{built.version} x\n"
    assert not (pipeline.image / "arguments").exists()


WORDS = ["--release", "", "two  words", '"$(id)" `id` ; touch {0}', "a\nb", "--", "X=1", "*", "-c", "ü"]


def test_arguments_and_variables_reach_the_build_word_by_word(pipeline: Pipeline) -> None:
    words = [word.format(pipeline.canary) for word in WORDS]
    values = {f"V{number}": word for number, word in enumerate(words)} | {"PATH": os.environ["PATH"], "OUTPUT": "o"}
    show = (
        'printf "%s\\0" "$@" >"$PROJECT_DIR/args"; '
        f'{sys.executable} -c \'import json, os; json.dump(dict(os.environ), open("env", "w"))\''
    )
    env = [f"{name}={value}" for name, value in values.items()]
    built = pipeline.build("build", BUILD_COMMAND=show, ARGS=words, ENV=env)
    assert built.failed is None, built.log
    assert (built.output / "args").read_text().split("\0")[:-1] == words
    seen = json.loads((pipeline.image / "env").read_text())
    assert {name: seen[name] for name in values} == values
    assert seen["FIRMWARE_VERSION"] == built.run.results["version"]
    assert not pipeline.canary.exists()


@pytest.mark.parametrize("pair", ["X", "=x", "1X=x", "A B=x", "-i=x", "a-b=c", "--", "-u"])
def test_a_variable_without_a_name_is_refused(pipeline: Pipeline, pair: str) -> None:
    built = pipeline.build("build", ENV=[pair, "Y=y"], BUILD_COMMAND="echo started")
    if pair == "--":  # ends the variables: what follows are arguments
        assert built.failed is None
    else:
        assert built.refusal("build") == f"ENV '{pair}' is not NAME=VALUE"
        assert "started" not in built.log


@pytest.mark.parametrize("name", ["PROJECT_DIR", "BUILD_ARGS", "FIRMWARE_VERSION", "SOURCE_DATE_EPOCH"])
def test_variables_that_the_task_sets_are_not_set_otherwise(pipeline: Pipeline, name: str) -> None:
    assert pipeline.build("build", ENV=[f"{name}=x"]).refusal("build") == f"ENV sets {name}, which the Task sets"


def test_variables_of_the_script_are_the_builds_to_set(pipeline: Pipeline) -> None:
    pairs = [f"{name}=touch {pipeline.canary}" for name in ("BUILD_COMMAND", "SOURCE", "words", "place", "IFS", "ENV")]
    built = pipeline.build("build", ENV=pairs, BUILD_COMMAND='printf "%s\\n" "$SOURCE" "$words" "$@"', ARGS=["last"])
    assert built.log.splitlines()[-3:] == [f"touch {pipeline.canary}"] * 2 + ["last"]
    assert not pipeline.canary.exists()


def test_a_build_that_fails_fails_the_run(pipeline: Pipeline) -> None:
    pipeline.builder("#!/bin/sh\necho no memory left\nexit 7\n")
    run = pipeline.pipeline_run()
    assert run.run("clone", pipeline.folder).code == 0
    assert run.run("build", pipeline.image) == Ended(7, "no memory left\n")


def test_a_volume_can_be_used_again(pipeline: Pipeline) -> None:
    run = pipeline.pipeline_run()
    assert pipeline.start(run, "build").failed is None
    left = run.volume / "output" / "build" / "left"
    left.touch()
    assert pipeline.start(run, "build").failed is None
    assert not left.exists()


def test_each_step_may_run_as_a_user_of_its_own(template: Repository) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run steps as several users")
    with tempfile.TemporaryDirectory(prefix="fleet-tekton-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        repository = Repository(folder / "sensor", template)
        repository.tag("v1")
        for path in [repository.folder, *repository.folder.rglob("*")]:
            os.chown(path, 1000, 1000)
        params = {
            "GIT_REPO": repository.url,
            "REGISTRY": "registry.example",
            "IMAGE": "sensor",
            "BUILDER_IMAGE": "builder",
            "BUILD_COMMAND": 'umask 022; cd "$PROJECT_DIR" && git describe --tags >firmware.bin && touch README',
        }
        (folder / "run").mkdir()
        run = PipelineRun(PIPELINE, TASKS, folder / "run", params, {})
        for task, user in {"clone": 1000, "build": 1001}.items():
            ended = run.run(task, folder, user)
            assert ended.code == 0, ended.log
        read = ["cat", str(run.volume / "output" / "build" / "firmware.bin")]
        seen = subprocess.run(read, user=65532, group=65532, extra_groups=[], capture_output=True, check=True).stdout
        assert seen == b"v1\n"


# --- A build that is not to be trusted -------------------------------------------------------------------------------


#: What Tekton keeps in the build's own pod, as seen from the home of the builder's user.
POD = '"$HOME/../tekton"'
FORGERIES = {
    "results": f"""
        mkdir -p {POD}/results
        for name in version commit committer-date url reference digest IMAGE_URL IMAGE_DIGEST; do
            printf forged >{POD}/results/"$name"
        done
        """,
    "files": """
        for name in VERSION COMMIT URL version commit url committer-date .version; do
            printf forged >"$name"
            printf forged >"$OUTPUT/$name"
            printf forged >"$OUTPUT/../$name" || true
        done
        FIRMWARE_VERSION=9.9.9 SOURCE_DATE_EPOCH=0
        export FIRMWARE_VERSION SOURCE_DATE_EPOCH
        """,
    "git": """
        git -c user.name=x -c user.email=x commit --quiet --allow-empty --message forged
        git tag 9.9.9
        git config remote.origin.url https://forged.example/x
        git config core.fsmonitor "touch {canary}"
        git config core.hooksPath "$PWD/hooks"
        git config alias.rev-parse "!touch {canary}"
        mkdir hooks
        for hook in post-checkout pre-push reference-transaction fsmonitor-watchman; do
            printf '#!/bin/sh\\ntouch "{canary}"\\n' | tee "hooks/$hook" >".git/hooks-$hook"
            chmod 755 hooks/$hook
        done
        """,
    "code": """
        for name in json.py os.py sitecustomize.py usercustomize.py; do
            printf 'open("{canary}", "w")\\n' | tee "$name" >"$OUTPUT/$name"
        done
        mkdir -p fleet_fn "$OUTPUT/fleet_fn"
        printf 'open("{canary}", "w")\\n' | tee fleet_fn/__main__.py >"$OUTPUT/fleet_fn/__main__.py"
        """,
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_build_cannot_change_what_its_firmware_is_said_to_be(
    pipeline: Pipeline, registry: DockerRegistry, name: str, forgery: str
) -> None:
    pipeline.repository.tag("1.0")
    commit = pipeline.repository.git("rev-parse", "HEAD")
    pipeline.builder(BUILDER + FORGERIES[forgery].replace("{canary}", str(pipeline.canary)))
    built = pipeline.build()
    assert {key: built.results[key] for key in ("version", "commit", "committer-date", "url")} == {
        "version": "1.0",
        "commit": commit,
        "committer-date": str(TIME),
        "url": pipeline.repository.url,
    }
    digest = str(registry.digest(name, "1.0"))
    assert (built.results["digest"], built.results["IMAGE_DIGEST"]) == (digest, digest)
    assert annotations(registry, name, "1.0") == {
        "org.opencontainers.image.version": "1.0",
        "org.opencontainers.image.created": "2026-11-23T06:00:00+00:00",
        SOURCE: pipeline.repository.url,
        "org.opencontainers.image.revision": commit,
    }
    assert registry.tags(name) == {"1.0", "latest"}
    assert not pipeline.canary.exists()


@pytest.mark.skipif(not can_mount(), reason="a folder cannot be made read-only for root here")
def test_a_build_cannot_write_to_the_checkout(pipeline: Pipeline) -> None:
    pipeline.builder(BUILDER + 'echo forged >"$SOURCE/checkout/.git/HEAD"\n')
    built = pipeline.build()
    assert built.failed == "build"
    assert "Read-only file system" in built.log
    assert "forged" not in (built.checkout / ".git" / "HEAD").read_text()


SECRET = json.dumps({"auths": {"registry.example": {"auth": "dXNlcjpzZWNyZXQ="}}})


@pytest.mark.parametrize(
    ("script", "path", "reason"),
    [
        ('ln -s {secret} "$1/firmware.bin"', "firmware.bin", "ARTIFACT_PATH 'firmware.bin' leads out"),
        ('ln -s {folder} "$1/out"', "out/config.json", "ARTIFACT_PATH 'out/config.json' leads out"),
        ('rm -rf "$1"; ln -s {folder} "$1"', "config.json", "ARTIFACT_PATH 'config.json' leads out"),
        ('rm -rf "$1"; ln -s / "$1"', "etc/passwd", "ARTIFACT_PATH 'etc/passwd' leads out"),
        ('ln -s /proc/self/environ "$1/firmware.bin"', "firmware.bin", "ARTIFACT_PATH 'firmware.bin' leads out"),
        ('ln -s /dev/zero "$1/firmware.bin"', "firmware.bin", "ARTIFACT_PATH 'firmware.bin' leads out"),
        ('ln -s /dev/stdin "$1/firmware.bin"', "firmware.bin", "ARTIFACT_PATH 'firmware.bin' leads out"),
        ('ln -s firmware.bin "$1/firmware.bin"', "firmware.bin", "the build left no file 'firmware.bin'"),
        (': >"$1/firmware.bin"; ln -s {secret} "$1/firmware.json"', "firmware.bin", "the description 'firmware.json'"),
        (': >"$1/firmware.bin"; ln -s {secret} "$1/bom.json"', "firmware.bin", "SBOM_PATH 'bom.json' leads out"),
    ],
)
def test_a_build_cannot_have_credentials_published(pipeline: Pipeline, script: str, path: str, reason: str) -> None:
    folder = pipeline.workspaces["dockerconfig"] = pipeline.folder / "dockerconfig"
    folder.mkdir()
    (folder / "config.json").write_text(SECRET)
    pipeline.builder("#!/bin/sh\n" + script.format(secret=folder / "config.json", folder=folder))
    built = pipeline.build(ARTIFACT_PATH=path, SBOM_PATH="bom.json" if "bom.json" in script else "")
    assert built.refusal("publish").startswith(reason)
    assert "dXNlcjpzZWNyZXQ=" not in built.log


@pytest.mark.parametrize(
    "description",
    ['mkfifo "$1/firmware.json"', 'mkdir "$1/firmware.json"', "yes '[' | head -c 400000 >\"$1/firmware.json\""],
)
def test_a_description_that_is_none_holds_nothing_up(
    pipeline: Pipeline, registry: DockerRegistry, name: str, description: str
) -> None:
    pipeline.builder(BUILDER + description.replace("$1", "."))
    assert pipeline.build().failed is None
    assert registry.tags(name)


def test_a_build_sees_no_credentials(pipeline: Pipeline) -> None:
    for workspace in ("dockerconfig", "signing-key", "basic-auth", "ssh-directory"):
        pipeline.workspaces[workspace] = pipeline.folder / workspace
        pipeline.workspaces[workspace].mkdir()
    pipeline.builder("#!/bin/sh\nenv >seen\n")
    assert pipeline.build("build").failed is None
    seen = (pipeline.image / "seen").read_text()
    assert not [workspace for workspace in pipeline.workspaces if workspace in seen]


def test_a_volume_that_pods_do_not_share_is_told(pipeline: Pipeline) -> None:
    run = pipeline.pipeline_run()
    assert pipeline.start(run, "clone").failed is None
    shutil.rmtree(run.volume / "source" / "checkout")  # each pod has an emptyDir of its own
    ended = run.run("build", pipeline.image)
    assert (ended.code, ended.log) == (
        1,
        "build: there is no checkout here: give the workspace build a volume that pods share, not an emptyDir\n",
    )


# --- A repository that is not to be trusted ---------------------------------------------------------------------------


def add_submodule(repository: Repository, url: str, path: str, commit: str) -> None:
    """Adds a submodule to what is to be committed, whatever git's porcelain would say to it."""
    (repository.folder / ".gitmodules").write_text(f'[submodule "sub"]\n\tpath = "{path}"\n\turl = {url}\n')
    repository.git("add", ".gitmodules")
    repository.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")


def test_a_submodule_cannot_bring_hooks(pipeline: Pipeline, template: Repository, tmp_path: Path) -> None:
    """CVE-2025-48384: a path that ends in CR is written without quotes, and read without CR."""
    library = Repository(tmp_path / "library", template)
    hook = library.folder / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {pipeline.canary}\n")
    hook.chmod(0o755)
    commit = library.commit("a hook")
    with served(library) as server:
        add_submodule(pipeline.repository, f"{server.url}/library.git", "sub\r", commit)
        (pipeline.repository.folder / "sub").symlink_to(".git/modules/sub/hooks")
        pipeline.repository.git("add", "sub")
        pipeline.repository.git("commit", "--quiet", "--message", "a trap")
        pipeline.clone()
        assert server.requests
    assert not pipeline.canary.exists()


def test_hooks_do_not_run_whatever_put_them_there(pipeline: Pipeline, template: Repository, tmp_path: Path) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {pipeline.canary}\n")
        (hooks / name).chmod(0o755)
    workspace = pipeline.workspaces["basic-auth"] = pipeline.folder / "basic-auth"
    workspace.mkdir()
    core = f"[core]\n\thooksPath = {hooks}\n\tfsmonitor = touch {pipeline.canary}\n"
    (workspace / ".gitconfig").write_text(f"[init]\n\ttemplateDir = {hooks.parent}\n{core}")
    library = Repository(tmp_path / "library", template)
    with served(library) as server:
        add_submodule(pipeline.repository, f"{server.url}/library.git", "library", library.git("rev-parse", "HEAD"))
        pipeline.repository.git("commit", "--quiet", "--message", "with a library")
        built = pipeline.clone()
    assert (built.checkout / "library" / "README").exists()
    assert (built.checkout / ".git" / "modules" / "sub" / "hooks" / "post-checkout").exists()
    assert not pipeline.canary.exists()


@pytest.mark.parametrize("url", ["{folder}", "file://{folder}", "ext::sh -c touch% {canary}", "../library"])
def test_submodules_come_by_network_or_not_at_all(
    pipeline: Pipeline, template: Repository, tmp_path: Path, url: str
) -> None:
    library = Repository(tmp_path / "library", template)
    commit = library.git("rev-parse", "HEAD")
    add_submodule(pipeline.repository, url.format(folder=library.folder, canary=pipeline.canary), "library", commit)
    pipeline.repository.git("commit", "--quiet", "--message", "with a library")
    workspace = pipeline.workspaces["basic-auth"] = pipeline.folder / "basic-auth"
    workspace.mkdir()
    (workspace / ".gitconfig").write_text("[protocol]\n\tallow = always\n")
    built = pipeline.clone()
    assert built.failed == "clone"
    assert "not allowed" in built.log
    assert not pipeline.canary.exists()


def test_commands_of_a_submodule_do_not_run(pipeline: Pipeline, template: Repository, tmp_path: Path) -> None:
    library = Repository(tmp_path / "library", template)
    commit = library.git("rev-parse", "HEAD")
    with served(library) as server:
        add_submodule(pipeline.repository, f"{server.url}/library.git", "library", commit)
        modules = pipeline.repository.folder / ".gitmodules"
        modules.write_text(modules.read_text() + f"\tupdate = !touch {pipeline.canary}\n")
        pipeline.repository.git("add", ".gitmodules")
        pipeline.repository.git("commit", "--quiet", "--message", "with a command")
        pipeline.clone()
    assert not pipeline.canary.exists()


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../..", "..", "a/../..", "/etc", ""])
@pytest.mark.parametrize("param", ["PROJECT_PATH", "ARTIFACT_PATH"])
def test_paths_that_lead_out_of_the_repository_are_refused(pipeline: Pipeline, param: str, path: str) -> None:
    built = pipeline.clone(**{param: path})
    assert built.refusal("clone") == f"{param} '{path}' names nothing inside the repository"
    assert not built.checkout.exists()


@pytest.mark.parametrize("target", ["/etc", "../../source/checkout", "../build-other"])
def test_a_project_that_is_a_link_out_of_the_repository_is_refused(pipeline: Pipeline, target: str) -> None:
    (pipeline.repository.folder / "project").symlink_to(target)
    pipeline.repository.commit("a link")
    run = pipeline.pipeline_run(PROJECT_PATH="project")
    (run.volume / "output" / "build-other").mkdir(parents=True)
    assert pipeline.start(run, "build").refusal("build") == "PROJECT_PATH 'project' leads out of the repository"
    assert not (pipeline.image / "arguments").exists()


def test_a_project_that_is_not_there_is_refused(pipeline: Pipeline) -> None:
    refusal = pipeline.build("build", PROJECT_PATH="nowhere").refusal("build")
    assert refusal == "PROJECT_PATH 'nowhere' is no folder in the repository"


@pytest.mark.parametrize("link", ["firmware.bin", "target"])
def test_an_artifact_that_is_a_link_out_of_the_repository_is_refused(pipeline: Pipeline, link: str) -> None:
    target = {"firmware.bin": "/etc/passwd", "target": "/etc"}[link]
    pipeline.builder(f'#!/bin/sh\nln -s {target} "$1/{link}"\n')
    path = {"firmware.bin": "firmware.bin", "target": "target/passwd"}[link]
    assert pipeline.build(ARTIFACT_PATH=path).refusal("publish") == (
        f"ARTIFACT_PATH '{path}' leads out of the repository"
    )


@pytest.mark.parametrize("script", ["true", 'mkdir "$1/firmware.bin"', 'mkfifo "$1/firmware.bin"'])
def test_a_build_that_leaves_no_file_is_refused(pipeline: Pipeline, script: str) -> None:
    pipeline.builder(f"#!/bin/sh\n{script}\n")
    assert pipeline.build().refusal("publish") == (
        "the build left no file 'firmware.bin' (ARTIFACT_PATH) in '.' (PROJECT_PATH)"
    )


def test_an_artifact_may_be_a_link_within_the_repository(
    pipeline: Pipeline, registry: DockerRegistry, name: str
) -> None:
    pipeline.builder('#!/bin/sh\nmkdir "$1/out"\nprintf abcd >"$1/out/a"\nln -s out/a "$1/firmware.bin"\n')
    version = pipeline.build().version
    (layer,) = registry.manifest(name, version).json["layers"]
    assert layer["digest"] == f"sha256:{hashlib.sha256(b'abcd').hexdigest()}"


def test_a_description_of_another_version_is_refused(pipeline: Pipeline, registry: DockerRegistry, name: str) -> None:
    pipeline.repository.tag("1.0")
    describing = BUILDER + """printf '{"version": "%s"}' "${2:-$FIRMWARE_VERSION}" >firmware.json\n"""
    pipeline.builder(describing)
    assert pipeline.build(BUILD_ARGS="0.9").refusal("publish") == (
        "firmware.json has version '0.9', not '1.0': build with $FIRMWARE_VERSION"
    )
    assert registry.tags(name) == set()
    assert pipeline.build().version == "1.0"


COMMANDS = "\"; touch {0}; $(touch {0}) `touch {0}` '; touch {0} #"


@pytest.mark.parametrize("value", [COMMANDS, "--upload-pack=touch {0}", "-h", "", "main\ntouch {0}", "main\x1b[2J"])
@pytest.mark.parametrize("param", ["GIT_REVISION", "GIT_REPO"])
def test_commands_and_options_in_what_the_clone_is_given_do_nothing(pipeline: Pipeline, param: str, value: str) -> None:
    refusal = pipeline.clone(**{param: value.format(pipeline.canary)}).refusal("clone")
    assert param in refusal
    assert refusal.isprintable()
    assert not pipeline.canary.exists()


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% {canary}",
        "ext::sh%20-c@x:touch {canary}",
        "ext::touch@{canary}:x",
        "file:///a\ttouch",
        "-oProxyCommand=touch {canary}@host:path",
        "user:token@host:path",
        "/srv/git/sensor",
        "ftp://host/sensor",
        "https://",
        "https://127.0.0.1:1/a b",
    ],
)
def test_what_is_no_address_of_a_repository_is_refused(pipeline: Pipeline, url: str) -> None:
    refusal = pipeline.clone(GIT_REPO=url.format(canary=pipeline.canary)).refusal("clone")
    assert refusal.startswith("GIT_REPO")
    assert "token" not in refusal
    assert not pipeline.canary.exists()


@pytest.mark.parametrize(
    ("param", "reason"),
    [
        ("PROJECT_PATH", "is no folder in the repository"),
        ("ARTIFACT_PATH", "(ARTIFACT_PATH) in"),
        ("REGISTRY", "expected HOST/NAME:TAG"),
        ("IMAGE", "invalid reference"),
        ("LATEST", "LATEST is neither true nor false"),
        ("INSECURE", "INSECURE is neither true nor false"),
        ("PAD_TO", "Invalid value for '--pad-to'"),
        ("REQUIRES", "--requires"),
    ],
)
def test_commands_in_what_the_other_steps_are_given_do_nothing(pipeline: Pipeline, param: str, reason: str) -> None:
    built = pipeline.build(**{param: COMMANDS.format(pipeline.canary)})
    assert built.failed == ("build" if param == "PROJECT_PATH" else "publish")
    assert reason in built.log
    assert not pipeline.canary.exists()


# --- Credentials for the repository -----------------------------------------------------------------------------------


class GitServer(Server):
    """Serves a repository by plain HTTP, to those who know the password if there is one."""

    def __init__(self, repository: Repository, password: str | None) -> None:
        repository.git("update-server-info")
        self._files = repository.folder / ".git"
        self._allowed = password and "Basic " + base64.b64encode(password.encode()).decode()
        super().__init__(self._serve)

    def _serve(self, request: Request) -> Response:
        if self._allowed and request.headers.get("Authorization") != self._allowed:
            return Response(401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        file = self._files / re.sub(r"^/[^/]*/|\?.*", "", request.path)
        return Response(body=file.read_bytes()) if file.is_file() else Response(404)


def served(repository: Repository, password: str | None = None) -> GitServer:
    return GitServer(repository, password)


def test_credentials_in_the_address_are_told_nobody(pipeline: Pipeline, registry: DockerRegistry, name: str) -> None:
    with served(pipeline.repository, f"acme:{TOKEN}") as server:
        built = pipeline.build(GIT_REPO=server.url.replace("://", f"://acme:{TOKEN}@") + "/sensor.git")
    assert annotations(registry, name, built.version)[SOURCE] == f"{server.url}/sensor.git" == built.results["url"]
    assert TOKEN not in built.log
    assert TOKEN not in str(built.results) + registry.manifest(name, built.version).body.decode()
    assert TOKEN.encode() not in everything_in(built.run.volume)
    assert (built.run.task_run("clone").home("clone") / ".git-credentials").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("userinfo", "password"),
    [(TOKEN, f"{TOKEN}:"), (f"a%40b:{TOKEN}%2F", f"a@b:{TOKEN}/"), (f"a:@{TOKEN}", f"a:@{TOKEN}")],
)
def test_credentials_in_the_address_are_used_however_they_are_written(
    pipeline: Pipeline, userinfo: str, password: str
) -> None:
    with served(pipeline.repository, password) as server:
        built = pipeline.clone(GIT_REPO=server.url.replace("://", f"://{userinfo}@") + "/sensor.git")
    assert built.results["url"] == f"{server.url}/sensor.git"
    assert TOKEN not in built.log


@pytest.mark.parametrize(
    ("path", "said"), [("/sensor.git", "Authentication failed"), ("/s%20ensor@x/y", "GIT_REPO has an @")]
)
def test_credentials_that_are_refused_are_told_nobody_either(pipeline: Pipeline, path: str, said: str) -> None:
    with served(pipeline.repository, "other:password") as server:
        built = pipeline.clone(GIT_REPO=server.url.replace("://", f"://acme:{TOKEN}@") + path)
    assert built.failed == "clone"
    assert said in built.log
    assert TOKEN not in built.log


def test_a_password_with_a_slash_is_not_taken_for_a_path(pipeline: Pipeline) -> None:
    built = pipeline.clone(GIT_REPO=f"https://acme:x/{TOKEN}@127.0.0.1:1/sensor.git")
    assert "write / as %2F" in built.refusal("clone")
    assert TOKEN not in built.log


@pytest.mark.parametrize("form", ["files", "secret"])
def test_credentials_come_from_a_workspace(pipeline: Pipeline, form: str) -> None:
    workspace = pipeline.workspaces["basic-auth"] = pipeline.folder / "basic-auth"
    workspace.mkdir()
    with served(pipeline.repository, f"acme:{TOKEN}") as server:
        if form == "files":
            address = server.url.replace("://", f"://acme:{TOKEN}@")
            (workspace / ".git-credentials").write_text(address)
            (workspace / ".gitconfig").write_text(f'[credential "{server.url}"]\n\thelper = store\n')
        else:
            (workspace / "username").write_text("acme")
            (workspace / "password").write_text(TOKEN)
        built = pipeline.clone(GIT_REPO=f"{server.url}/sensor.git")
    assert built.results["url"] == f"{server.url}/sensor.git"
    assert TOKEN not in built.log
    assert TOKEN.encode() not in everything_in(built.run.volume)


def test_a_password_is_shown_to_no_other_host(pipeline: Pipeline, template: Repository, tmp_path: Path) -> None:
    workspace = pipeline.workspaces["basic-auth"] = pipeline.folder / "basic-auth"
    workspace.mkdir()
    (workspace / "username").write_text("acme")
    (workspace / "password").write_text(TOKEN)
    library = Repository(tmp_path / "library", template)
    with served(library) as open_server:
        pipeline.repository.git("submodule", "--quiet", "add", f"{open_server.url}/library.git", "library")
    pipeline.repository.commit("with a library")
    with served(library, "other:password") as other, served(pipeline.repository, f"acme:{TOKEN}") as server:
        pipeline.repository.git("config", "--file", ".gitmodules", "submodule.library.url", f"{other.url}/library.git")
        pipeline.repository.commit("elsewhere")
        pipeline.repository.git("update-server-info")
        assert pipeline.clone(GIT_REPO=f"{server.url}/sensor.git").failed == "clone"
    assert other.requests
    assert not [request for request in other.requests if "Authorization" in request.headers]


def test_a_user_without_a_home_can_have_credentials(pipeline: Pipeline) -> None:
    with served(pipeline.repository, f"acme:{TOKEN}") as server:
        run = pipeline.pipeline_run(GIT_REPO=server.url.replace("://", f"://acme:{TOKEN}@") + "/sensor.git")
        home = run.task_run("clone").home("clone")
        home.rmdir()
        home.symlink_to(pipeline.folder / "nowhere")
        assert pipeline.start(run, "clone").failed is None


@pytest.mark.parametrize("form", ["git@git.example.com:{path}", "ssh://git:{token}@git.example.com{path}"])
def test_a_repository_is_reached_by_ssh_with_the_keys_of_a_workspace(pipeline: Pipeline, form: str) -> None:
    keys = pipeline.workspaces["ssh-directory"] = pipeline.folder / "keys"
    keys.mkdir()
    (keys / "id_ed25519").write_text("a key")
    (keys / "known_hosts").write_text("a host")
    run = pipeline.pipeline_run(GIT_REPO=form.format(path=pipeline.repository.folder, token=TOKEN))
    # Stands for ssh: there is no other end.
    ssh = ('echo "$@"', "ls -ld ~/.ssh ~/.ssh/*", "cat ~/.ssh/*")
    run.task_run("clone").program("ssh", f'{{ {"; ".join(ssh)}; }} >&2\nfor last; do :; done\nexec sh -c "$last"')
    built = pipeline.start(run, "clone")
    assert built.results["url"] == f"ssh://git.example.com/{str(pipeline.repository.folder).lstrip('/')}"
    assert " git@git.example.com " in f" {built.log}"
    assert "a keya host" in built.log
    modes = re.findall(r"^([d-][rwx-]{9}).*\.ssh", built.log, re.MULTILINE)
    assert modes == ["drwx------", "-rw-------", "-rw-------"]
    assert TOKEN not in built.log
