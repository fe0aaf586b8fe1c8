"""Construction of HTML elements with escaped text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from keras_convnets.display import printable

# Maximum number of characters of a displayed name; longer names are truncated.
LONGEST_NAME = 120
# Void elements, which have no end tag.
VOID = ("br", "img", "meta")


class Html(str):
    """Markup that must not be escaped; all other text is escaped."""


def element(tag: str, *children: Any, **attributes: str) -> Html:
    """Return an element.

    Args:
        tag: tag name.
        children: elements, texts, which are escaped, and None, which is ignored.
        attributes: names and values; a trailing underscore of a name is removed, other underscores become hyphens.

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
    """Return the concatenation of several children, as in `element`."""
    return Html("".join(_shown(child) for child in children if child is not None))


def name(text: str) -> str:
    """Return a name from data in displayable form: escaped control characters, truncated to `LONGEST_NAME`."""
    return printable(text, LONGEST_NAME)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], texts: Sequence[int] = (0,)) -> Html:
    """Return a table in a scrollable container.

    Args:
        heads: column headings.
        rows: cells of each row.
        texts: indices of the columns with text; all other columns are right-aligned numbers.
    """

    def cell(tag: str, column: int, content: Any) -> Html:
        return element(tag, content, **({} if column in texts else {"class_": "number"}))

    head = element("tr", *(cell("th", column, text) for column, text in enumerate(heads)))
    body = [element("tr", *(cell("td", column, content) for column, content in enumerate(row))) for row in rows]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="table", tabindex="0")


def _shown(child: Any) -> str:
    return child if isinstance(child, Html) else html.escape(str(child))
