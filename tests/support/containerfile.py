"""Runs a Containerfile's instructions in a folder, as far as that goes without an engine."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

#: Where instructions may put things: each of these is a folder of the image's, all else is the machine's.
_FOLDERS: Final = ("opt", "app")


@dataclass
class Image:
    """What a Containerfile has made, and what it says about running that."""

    #: The folder that stands for the image's root.
    root: Path
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def moved(self, root: Path) -> "Image":
        """The same elsewhere."""
        self.root.rename(root)
        return self._at(root)

    def copied(self, root: Path) -> "Image":
        """Another one that begins as this does."""
        shutil.copytree(self.root, root, symlinks=True)
        return self._at(root)

    def _at(self, root: Path) -> "Image":
        environment = {key: value.replace(str(self.root), str(root)) for key, value in self.environment.items()}
        return replace(self, root=root, environment=environment)

    def path(self, text: str) -> str:
        """`text`, with the image's absolute paths replaced by where they are on this machine."""
        return re.sub(rf"(?<![\w./-])/({'|'.join(_FOLDERS)})\b", rf"{self.root}/\1", text)


def instructions(containerfile: Path) -> Iterator[tuple[str, str]]:
    """Each instruction and its arguments, continued lines joined."""
    lines = [line for line in containerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, arguments = line.partition(" ")
        yield name, arguments.strip()


def build(
    containerfile: Path, context: Path, bases: Mapping[str, Path], scratch: Path, **environment: str
) -> dict[str, Image]:
    """The stages, by name; the last one is what an engine makes if nothing else is asked for.

    Args:
        containerfile: what to do.
        context: the folder that COPY takes from.
        bases: for each image that FROM names, a folder whose `bin` stands for its programs.
        scratch: an empty folder to work in. While a stage is made, its root is always the same folder below it: what
            names a path there works until the stage is moved out of the way.
        environment: what RUN has besides the image's own environment.

    """
    stages: dict[str, Image] = {}
    arguments: dict[str, str] = {}
    image = None
    name = ""
    for instruction, text in instructions(containerfile):
        expanded = re.sub(r"\$\{?(\w+)\}?", lambda found: arguments.get(found[1], found[0]), text)
        if instruction == "ARG":
            key, _, default = text.partition("=")
            arguments[key] = default
        elif instruction == "FROM":
            if image:
                stages[name] = image.moved(scratch / f"stage-{name}")
            base, _, name = expanded.partition(" AS ")
            if base in stages:
                image = stages[base].copied(scratch / "root")
            else:
                (scratch / "root").mkdir()
                programs = f"{bases[base] / 'bin'}:{os.environ['PATH']}"
                image = Image(scratch / "root", {"PATH": programs, "HOME": "/nonexistent"})
        else:
            assert image, f"{instruction} before FROM"
            _follow(image, instruction, text, context, stages, environment)
    assert image
    stages[name] = image.moved(scratch / f"stage-{name}")
    return stages


def _follow(
    image: Image,
    instruction: str,
    text: str,
    context: Path,
    stages: Mapping[str, Image],
    environment: Mapping[str, str],
) -> None:
    match instruction:
        case "WORKDIR":
            image.folder = text
            Path(image.path(text)).mkdir(parents=True, exist_ok=True)
        case "ENV":
            for pair in shlex.split(text):
                key, _, value = pair.partition("=")
                image.environment[key] = image.path(value.replace("$PATH", image.environment["PATH"]))
        case "COPY":
            *sources, target = text.split()
            origin = context
            if sources[0].startswith("--from="):
                origin = stages[sources.pop(0).removeprefix("--from=")].root
            for source in sources:
                _copy(origin / source.lstrip("/"), Path(image.path(image.folder)) / image.path(target), target)
        case "RUN":
            subprocess.run(
                ["/bin/sh", "-ec", image.path(text)],
                cwd=image.path(image.folder),
                env={**image.environment, **environment},
                check=True,
            )
        case "USER":
            image.user = text
        case "EXPOSE":
            image.ports.append(int(text))
        case "ENTRYPOINT":
            image.entrypoint = _words(text)
        case "CMD":
            image.command = _words(text)
        case _:
            raise AssertionError(f"{instruction} is not known here")


def _copy(source: Path, target: Path, written: str) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        if written.endswith("/"):
            target = target / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _words(text: str) -> list[str]:
    assert text.startswith("["), f"{text}: a shell would stand between the platform's signals and the program"
    return re.findall(r'"([^"]*)"', text)
