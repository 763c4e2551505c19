"""HTML as a browser reads it: elements with their attributes and texts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final, Self

#: Elements without content.
_VOID: Final = frozenset(("meta", "link", "img", "input", "br", "hr"))


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            yield from [child] if isinstance(child, str) else child._texts()

    def all(self, tag: str = "", **attributes: str) -> "list[Self]":
        """All elements in it of this tag, with these attributes; `class_` is one of several classes."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (not tag or child.tag == tag) and all(child._has(*each) for each in attributes.items()):
                    found.append(child)
                found.extend(child.all(tag, **attributes))
        return found  # type: ignore[return-value]

    def one(self, tag: str = "", **attributes: str) -> Self:
        """The only such element."""
        (found,) = self.all(tag, **attributes)
        return found

    def _has(self, name: str, value: str) -> bool:
        if name == "class_":
            return value in self.attributes.get("class", "").split()
        return self.attributes.get(name.replace("_", "-")) == value


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in _VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if any(element.tag == tag for element in self.open):
            while self.open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_html(text: str) -> Element:
    """Return the document in a text."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    return parser.open[0]
