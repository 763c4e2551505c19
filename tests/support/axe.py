"""What axe, which checks accessibility, finds on a page."""

from collections.abc import Sequence

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

#: The rules whose result depends on layout and colors: the markup is the same at each width.
_RULES_OF_LAYOUT = (
    "button-name",
    "color-contrast",
    "label",
    "link-in-text-block",
    "link-name",
    "scrollable-region-focusable",
    "select-name",
    "th-has-data-cells",
)


def check_wide_and_narrow(page: Page) -> None:
    """Check a loaded page while it is wide and light, and again while it is narrow and dark."""
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    _check(page)
    page.set_viewport_size({"width": 390, "height": 900})
    page.emulate_media(color_scheme="dark")
    _check(page, _RULES_OF_LAYOUT)


def _check(page: Page, rules: Sequence[str] = ()) -> None:
    where = f"{page.url}, {page.viewport_size}"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), where
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = Axe().run(page, options=options).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not serious, (where, [(each["id"], [node["html"] for node in each["nodes"][:3]]) for each in serious])
