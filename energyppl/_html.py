"""Summaries of objects as small HTML tables, for notebooks."""

from collections.abc import Iterable, Mapping
from html import escape

_CELL = "text-align: left; vertical-align: top"


def summary_table(title: str, rows: Mapping[str, str], remarks: Iterable[str] = ()) -> str:
    """Return a table with a title, a line for each row, and remarks, a sentence each, beneath.

    >>> from energyppl._html import summary_table
    >>> "&lt;2" in summary_table("Chains", {"draws": "<2"}, ["run more"])
    True
    """
    lines = [
        f"<tr><th style='{_CELL}'>{escape(name)}</th><td style='{_CELL}'>{escape(text)}</td></tr>"
        for name, text in rows.items()
    ]
    notes = "".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    beneath = f"<ul>{notes}</ul>" if notes else ""
    return f"<div><strong>{escape(title)}</strong><table>{''.join(lines)}</table>{beneath}</div>"
