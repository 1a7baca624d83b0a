"""One model of a table, which rich draws in a terminal and `to_html` on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

#: How a terminal shows each mood of a cell; a page has a class of the same name in its style sheet.
MOODS = {"": "", "good": "green", "known": "yellow", "bad": "bold red", "faint": "dim"}


@dataclass(frozen=True)
class Cell:
    """One place in a table."""

    text: str = ""
    #: A second line, less prominent.
    detail: str = ""
    #: One of `MOODS`.
    mood: str = ""
    #: More words, which a page shows where one points.
    title: str = ""
    #: 0 to 1: how much of what is allowed was used. It deepens the colour on a page.
    share: float = 0.0


#: What is empty, or says nothing.
NONE = Cell("–", mood="faint")


@dataclass(frozen=True)
class Table:
    """A title, a caption, the columns' names, and rows of cells or plain strings.

    ``grid`` tells that the cells are numbers with a colour each, and not sentences.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    grid: bool = False


def short(number: float) -> str:
    """Return a number in few characters."""
    if number == 0:
        return "0"
    if number != number or number == float("inf"):
        return "∞"
    if number < 0.01:
        return "<.01"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}" if number < 1e5 else f"{number:.0e}"


def to_rich(table: Table) -> RichTable:
    """Return the table for a terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=table.title, caption=table.caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left",
        title_style="bold", caption_style="dim",
    )  # fmt: skip
    for column in table.columns:
        drawn.add_column(column, overflow="fold")
    for row in table.rows:
        cells = []
        for cell in _cells(row):
            text = Text(cell.text, style=MOODS[cell.mood])
            cells.append(text.append(f"\n{cell.detail}", style="dim") if cell.detail else text)
        drawn.add_row(*cells)
    return drawn


def to_html(table: Table) -> str:
    """Return the table for a page, with its title as a heading and its caption as a paragraph."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.columns)
    body = "".join(f"<tr>{''.join(_html(cell, i) for i, cell in enumerate(_cells(row)))}</tr>" for row in table.rows)
    kind = "grid" if table.grid else "rows"
    return (
        f"<h2>{escape(table.title)}</h2><p>{escape(table.caption)}</p>"
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cells(row: Sequence[Cell | str]) -> Iterable[Cell]:
    return (Cell(cell) if isinstance(cell, str) else cell for cell in row)


def _html(cell: Cell, column: int) -> str:
    tag = "td" if column else "th"
    attributes = ' scope="row"' if tag == "th" else ""
    attributes += f' class="{cell.mood}"' if cell.mood else ""
    attributes += f' style="--share:{cell.share:.2f}"' if cell.share else ""
    attributes += f' title="{escape(cell.title)}"' if cell.title else ""
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    return f"<{tag}{attributes}>{escape(cell.text)}{detail}</{tag}>"
