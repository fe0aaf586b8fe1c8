"""HTML made of elements, in which every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from keras_convnets.display import printable

# In characters: a longer name is cut where it is shown.
LONGEST_NAME = 120
# Elements that have no end.
VOID = ("br", "img", "meta")


class Html(str):
    """Text that is HTML already; every other text is escaped."""


def element(tag: str, *children: Any, **attributes: str) -> Html:
    """Return an element.

    Args:
        tag: its name.
        children: texts, which are escaped, elements, and None, which is left out.
        attributes: names and values; an underscore at the end of a name falls away, others become hyphens.

    Example:
        >>> element("td", "a < b", class_="number")
        '<td class="number">a &lt; b</td>'
    """
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    head = "".join(f' {name}="{html.escape(value)}"' for name, value in named.items())
    if tag in VOID:
        return Html(f"<{tag}{head}>")
    return Html(f"<{tag}{head}>{joined(children)}</{tag}>")


def joined(children: Iterable[Any]) -> Html:
    """Return several children after each other."""
    return Html("".join(_shown(child) for child in children if child is not None))


def name(text: str) -> str:
    """Return a name from data as it is shown."""
    return printable(text, LONGEST_NAME)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], texts: Sequence[int] = (0,)) -> Html:
    """Return a table that scrolls by itself where it is too wide or long.

    Args:
        heads: of the columns.
        rows: their cells.
        texts: which columns are not numbers.
    """

    def cell(tag: str, column: int, content: Any) -> Html:
        return element(tag, content, **({} if column in texts else {"class_": "number"}))

    head = element("tr", *(cell("th", column, text) for column, text in enumerate(heads)))
    body = [element("tr", *(cell("td", column, content) for column, content in enumerate(row))) for row in rows]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="table", tabindex="0")


def _shown(child: Any) -> str:
    return child if isinstance(child, Html) else html.escape(str(child))
