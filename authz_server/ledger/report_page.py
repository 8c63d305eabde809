"""A page of headings, paragraphs and tables, written as Markdown or as HTML.

SECURITY: cells hold names out of requests. They are made printable and then escaped for the form,
so that nothing a record holds is markup, a link or a script (CWE-79, CWE-117).
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from authz_server.ledger.printable import printable

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{border:1px solid #999;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "td{overflow-wrap:anywhere}"
)
# Whatever CommonMark or a table could take for markup.
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]()#+!|<>~&])")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; every row has as many cells as there are headings."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Heading | Paragraph | Grid


def markdown(blocks: Sequence[Block]) -> str:
    """Return the page as GitHub-flavoured Markdown."""
    return "\n\n".join(map(_markdown_block, blocks)) + "\n"


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """Return the page as one HTML document that loads and runs nothing."""
    body = "\n".join(map(_html_block, blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="content-security-policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(level=level, text=text):
            return f"{'#' * level} {_markdown(text)}"
        case Paragraph(text=text):
            return _markdown(text)
        case Grid(headings=headings, rows=rows):
            escaped = [[_markdown(cell) for cell in row] for row in (headings, *rows)]
            lines = [escaped[0], ["---"] * len(headings), *escaped[1:]]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html_block(block: Block) -> str:
    match block:
        case Heading(level=level, text=text):
            return f"<h{level}>{_html(text)}</h{level}>"
        case Paragraph(text=text):
            return f"<p>{_html(text)}</p>"
        case Grid(headings=headings, rows=rows):
            head = "".join(f"<th>{_html(cell)}</th>" for cell in headings)
            lines = ("".join(f"<td>{_html(cell)}</td>" for cell in row) for row in rows)
            body = "".join(f"<tr>{line}</tr>\n" for line in lines)
            return f"<table>\n<tr>{head}</tr>\n{body}</table>"


def _markdown(text: str) -> str:
    # `://` is what makes a bare address a link.
    return _MARKDOWN.sub(r"\\\1", printable(text)).replace("://", ":\u200b//")


def _html(text: str) -> str:
    return html.escape(printable(text))
