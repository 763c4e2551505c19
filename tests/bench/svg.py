"""What the plots in docs/ share: how they look, in light and in dark, and the frame around them."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

#: Colors of lines and of the figures beside them, in light and in dark.
ORANGE: Final = ("#bc4c00", "#f0883e")
GREEN: Final = ("#1a7f37", "#3fb950")
BLUE: Final = ("#0969da", "#58a6ff")
PURPLE: Final = ("#8250df", "#bc8cff")
RED: Final = ("#cf222e", "#ff7b72")
GRAY: Final = ("#59636e", "#9198a1")

#: The plot brings its background, because pages do not always have the color scheme that the browser asks for.
_LIGHT: Final = """
  text {{ font: {size}px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }}
  .title {{ font-size: {title}px; font-weight: 600 }}
  .soft {{ fill: #59636e }}
  .value {{ font-weight: 600 }}
  .page {{ fill: #ffffff }}
  .grid {{ stroke: #d8dee4 }}
  .line {{ fill: none; stroke-width: 2.5; stroke-linejoin: round }}
"""
_DARK: Final = """  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .soft { fill: #9198a1 }
    .page { fill: #0d1117 }
    .grid { stroke: #2d333b }
"""


def style(size: int, colors: Mapping[str, tuple[str, str]], dashes: Mapping[str, str]) -> str:
    """Return the style of a plot.

    Lines differ in dashes too, for readers who do not see the colors apart.

    Args:
        size: of text, in pixels.
        colors: of each class of lines, in light and in dark.
        dashes: of classes of lines that are not solid.

    """
    parts = [_LIGHT.format(size=size, title=size + 3)]
    parts += [f"  .{name}.line {{ stroke-dasharray: {dash} }}\n" for name, dash in dashes.items()]
    parts += [f"  {_colored(name, light)}\n" for name, (light, _) in colors.items()]
    parts += [_DARK, *(f"    {_colored(name, dark)}\n" for name, (_, dark) in colors.items()), "  }\n"]
    return "".join(parts)


def document(size: tuple[int, int], title: str, description: str, look: str, parts: Iterable[str]) -> str:
    """Return an SVG of a width and height, with a title and a description for readers who do not see it."""
    width, height = size
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">{escape(description)}</desc>',
            f"<style>{look}</style>",
            f'<rect class="page" width="{width}" height="{height}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _colored(name: str, color: str) -> str:
    return f".{name}.line {{ stroke: {color} }} .{name}.value, .{name}.halt {{ fill: {color} }}"
