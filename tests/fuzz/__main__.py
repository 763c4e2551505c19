"""Runs targets with atheris, guided by what their inputs reach.

    python -m tests.fuzz [--seconds N] [TARGET]
    python -m tests.fuzz TARGET FILE                an input that failed, again
    python -m tests.fuzz TARGET OPTION…             libFuzzer's options instead of the usual ones

New inputs and what fails go to `.fuzz/TARGET/`.
"""

import argparse
import importlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.mutation import mutated

TARGETS: Final = ("status", "event", "manifest", "signature", "layer", "layout", "device")
#: Seeds, and what once failed, in a folder for each target.
CORPUS: Final = Path(__file__).parent / "corpus"
_WORDS: Final = Path(__file__).parent / "json.dict"
#: Share of mutations that are of an input's JSON, where it has some.
_OF_JSON: Final = 0.5
_FOUND: Final = Path(".fuzz")


def main() -> int:
    """Runs one target in this process, or each in one of its own; 0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("target", nargs="?", choices=TARGETS)
    arguments, options = parser.parse_known_args()
    if arguments.target:
        return _run(arguments.target, arguments.seconds, options)
    commands = [[sys.executable, "-m", "tests.fuzz", f"--seconds={arguments.seconds}", name] for name in TARGETS]
    failed = [command[-1] for command in commands if subprocess.run(command).returncode]
    return 1 if failed else 0


def _run(name: str, seconds: int, options: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["fleet_fn", "tests.fuzz", "tarfile", "gzip", "cloudevents"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    found, crashes = _FOUND / name / "corpus", _FOUND / name / "crashes"
    for folder in (found, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    usual = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={crashes}/",
        "-max_len=8192",
        "-timeout=5",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        f"-dict={_WORDS}",
        str(found),
        str(CORPUS / name),
    ]

    def mutate(content: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        changed = mutated(bytes(content), dice) if dice.random() < _OF_JSON else content
        return changed if len(changed) <= max_size and changed != content else bytes(atheris.Mutate(content, max_size))

    atheris.Setup([sys.argv[0], *(options or usual)], target.one_input, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
