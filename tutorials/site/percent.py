"""Percent scripts (``# %%`` cells, text in Markdown) as notebooks, and as the scripts that sphinx-gallery reads.

``python tutorials/site/percent.py FOLDER`` writes every tutorial as a notebook into FOLDER.
"""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

TUTORIALS = Path(__file__).resolve().parents[1]


class Cell(NamedTuple):
    """A cell of a notebook: Markdown without its ``#``, or code."""

    kind: str  # "markdown" or "code"
    text: str


def read_cells(text: str) -> list[Cell]:
    """Split a percent script into its cells; empty ones are left out."""
    cells = []
    for header, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text, re.MULTILINE | re.DOTALL):
        if "[markdown]" in header:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        cells.append(Cell("markdown" if "[markdown]" in header else "code", body.strip()))
    return [cell for cell in cells if cell.text]


def notebook(text: str) -> str:
    """Turn a percent script into a notebook's JSON (format 4.5)."""
    cells = []
    for number, cell in enumerate(read_cells(text)):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": cell.text}
        cells.append(entry if cell.kind == "markdown" else entry | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def to_rst(markdown: str) -> str:
    """Turn the Markdown that tutorials use (headings, emphasis, code, links, lists, fences) into reStructuredText."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            lines += [f".. code-block:: {line[3:] or 'text'}", ""] if fenced else [""]
        elif fenced:
            lines.append(f"   {line}" if line else "")
        elif heading := re.match(r"(#+) (.*)", line):
            title = _inline(heading[2])
            lines += [title, {1: "=", 2: "-", 3: "~"}[len(heading[1])] * len(title)]
        else:
            lines.append(_inline(line))
    return "\n".join(lines)


def _inline(text: str) -> str:
    """Convert code spans, links and what reStructuredText would read as markup, outside of code."""
    parts = re.split(r"(`[^`]+`|\[[^\]]+\]\([^)]+\))", text)
    for i, part in enumerate(parts):
        if link := re.fullmatch(r"\[([^\]]+)\]\(([^)]+)\)", part):
            parts[i] = f"`{link[1].replace('`', '')} <{link[2]}>`__"
        elif part.startswith("`"):
            parts[i] = f"`{part}`"
        else:
            parts[i] = re.sub(r"(\w)_(?=\W|$)", r"\1\\_", part).replace("|", "\\|")
    for i in range(1, len(parts), 2):  # a code span must not touch a letter
        if parts[i + 1][:1].isalnum():
            parts[i + 1] = "\\ " + parts[i + 1]
        if parts[i - 1][-1:].isalnum():
            parts[i - 1] += "\\ "
    return "".join(parts)


def gallery_script(text: str, pictures: dict[str, str], thumbnail: str | None, number: str = "") -> str:
    """Turn a percent script into one that sphinx-gallery reads.

    Args:
        text: the percent script.
        pictures: paths by name: pictures that are shown beneath the cells that make them, where cells are not run.
        thumbnail: path of the picture in the gallery, if there is one.
        number: of the tutorial, put before its title.
    """
    first, *rest = read_cells(text)
    title = re.sub(r"^# ", f"# {number}. ", first.text) if number else first.text
    parts = [f'r"""\n{to_rst(title)}\n"""\n']
    if thumbnail:
        parts.append(f"# sphinx_gallery_thumbnail_path = {thumbnail!r}\n")
    for cell in rest:
        if cell.kind == "code":
            parts.append(f"\n# %%\n{cell.text}\n" if parts[-1].startswith("\n# %%") else f"\n{cell.text}\n")
            shown = [pictures[name] for name in re.findall(r'"(\d\d_\w+)"', cell.text) if name in pictures]
            parts += [_comment("\n\n".join(f".. image:: {path}\n   :alt: {Path(path).stem}" for path in shown))] * bool(
                shown
            )
        else:
            parts.append(_comment(to_rst(cell.text)))
    return "".join(parts)


def _comment(rst: str) -> str:
    return "\n# %%\n" + "".join(f"# {line}\n" if line else "#\n" for line in rst.splitlines()) + "\n"


def main() -> None:
    """Write the notebooks of all tutorials into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(TUTORIALS.glob("[0-9]*.py")):
        target = folder / path.with_suffix(".ipynb").name
        target.write_text(notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
