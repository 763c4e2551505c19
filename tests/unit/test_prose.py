"""How docstrings and pages read: short first lines, verbs first, and actors by their names."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support.function import ROOT

MODULES: Final = (
    *(path for folder in ("fleet_fn", "function") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "gunicorn.conf.py",
)
PAGES: Final = (
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(path for path in sorted((ROOT / "knative").rglob("*")) if path.is_file()),
)
MAX_FIRST_LINE_CHARACTERS: Final = 80
#: The share of functions whose docstrings may open with one of `OPENINGS` instead of a verb.
MAX_SHARE: Final = 0.1
OPENINGS: Final = frozenset(["a", "an", "the", "what", "who", "which", "how", "where", "why", "whether", "when"])
#: Words that name no actor.
UNNAMED: Final = re.compile(r"\b(?:(?:some|any|every)(?:body|one)|nobody|no one|whoever)\b", re.IGNORECASE)
#: Tokens with text for people. From Python 3.12 on, an f-string's text has tokens of its own.
TEXTS: Final = frozenset({tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)})


class Docstring(NamedTuple):
    """The first line of a docstring, and where it stands."""

    place: str
    first: str
    is_of_function: bool

    @property
    def is_long(self) -> bool:
        return len(self.first) > MAX_FIRST_LINE_CHARACTERS

    @property
    def opens_with_noun(self) -> bool:
        words = re.findall(r"\w+", self.first.lower())
        return bool(words) and words[0] in OPENINGS


def docstrings(source: str, name: str) -> Iterator[Docstring]:
    """Yield the docstrings of a module, of its classes and of its functions."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text is not None:
            first, *_ = text.splitlines() or [""]
            is_of_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield Docstring(f"{name}:{node.body[0].lineno}", first, is_of_function)


def unnamed_in_code(source: str, name: str) -> list[str]:
    """Return where the comments and strings of a module name no actor."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"{name}:{token.start[0] + offset}: {line.strip()}"
        for token in tokens
        if token.type in TEXTS
        for offset, line in enumerate(token.string.splitlines())
        if UNNAMED.search(line)
    ]


def unnamed_in_page(text: str, name: str) -> list[str]:
    """Return where a page names no actor."""
    return [
        f"{name}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if UNNAMED.search(line)
    ]


def local(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def all_docstrings() -> list[Docstring]:
    return [docstring for path in MODULES for docstring in docstrings(path.read_text(), local(path))]


def test_first_lines_are_short(all_docstrings: list[Docstring]) -> None:
    found = [f"{docstring.place}: {docstring.first}" for docstring in all_docstrings if docstring.is_long]
    assert not found, "\n".join(found)


def test_functions_open_with_a_verb(all_docstrings: list[Docstring]) -> None:
    of_functions = [docstring for docstring in all_docstrings if docstring.is_of_function]
    others = [f"{docstring.place}: {docstring.first}" for docstring in of_functions if docstring.opens_with_noun]
    assert len(others) < MAX_SHARE * len(of_functions), "\n".join(others)


def test_code_names_its_actors() -> None:
    found = [place for path in MODULES for place in unnamed_in_code(path.read_text(), local(path))]
    assert not found, "\n".join(found)


def test_pages_name_their_actors() -> None:
    found = [place for path in PAGES for place in unnamed_in_page(path.read_text(), local(path))]
    assert not found, "\n".join(found)


# --- The checks themselves --------------------------------------------------------------------------------------------


def test_a_long_first_line_is_found() -> None:
    source = f'class Cache:\n    def get(self):\n        """{"x" * 81}\n\n        More.\n        """\n'
    (found,) = docstrings(source, "cache.py")
    assert (found.place, found.is_long, found.is_of_function) == ("cache.py:3", True, True)
    assert not Docstring("", "x" * 80, is_of_function=True).is_long


@pytest.mark.parametrize(
    ("first", "noun"),
    [
        ("The bytes.", True),
        ("Whether it is.", True),
        ("Return the bytes.", False),
        ("`a`: b", True),
        ("Then it is.", False),
    ],
)
def test_an_opening_is_told_by_its_first_word(first: str, noun: bool) -> None:
    assert Docstring("", first, is_of_function=True).opens_with_noun is noun


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = 1  # nobody knows\n", [1]),
        ('"""One.\n\nSomebody else.\n"""\n', [3]),
        ('f"{x} for anybody"\n', [1]),
        ('x = (\n    "a"\n    "whoever"\n)\n', [3]),
        ("curl.NOBODY\n", []),
        ('"nobodys"\n', []),
    ],
)
def test_an_unnamed_actor_is_found_in_text_only(source: str, lines: list[int]) -> None:
    assert [int(place.split(":")[1]) for place in unnamed_in_code(source, "module.py")] == lines
