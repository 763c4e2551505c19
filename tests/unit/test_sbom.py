"""What the lists of the images' packages are made from."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.sbom import IMAGES, python_version, root_component
from tests.support.function import ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()


def test_each_image_has_a_list() -> None:
    targets = set(re.findall(r"^FROM base AS (\S+)$", CONTAINERFILE, re.MULTILINE))
    assert {f"fleet-{target}" for target in targets} == set(IMAGES)
    installed = set(re.findall(r"-r (\S+\.lock)", CONTAINERFILE))
    assert installed == {lock for lock, _ in IMAGES.values()}


def test_the_python_is_that_of_the_images() -> None:
    assert f"python:{python_version()}-" in CONTAINERFILE


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_needs_only_packages_that_its_lock_has(name: str) -> None:
    lock, extras = IMAGES[name]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    component = tomllib.loads(root_component(name, extras))["project"]
    assert (component["name"], component["version"]) == (name, "0.1.0")
    direct = {canonicalize_name(Requirement(line).name) for line in component["dependencies"]}
    assert "cbor2" in direct
    assert direct <= locked
    assert ("oras" in direct) == bool(extras)
