"""What the reference does with docstrings: fields from their comments, one page for each object, no plumbing."""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache

from reference import find_entries


@cache
def _documented() -> dict[int, str]:
    return {id(value): name for entries in find_entries().values() for name, value in entries}


@cache
def _by_bare_name() -> dict[str, str]:
    return {name.rpartition(".")[2]: name for name in _documented().values()}


def documented_name(target: str, module: str | None) -> str:
    """Return the name under which the reference has what a docstring or a signature calls ``target``."""
    for path in (target, f"{module}.{target}"):
        value, member = _look_up(path)
        if id(value) in _documented():
            return _documented()[id(value)] + member
    bare = target.split(".")
    for count in range(1, min(2, len(bare)) + 1):
        owner = bare[-count]
        if owner in _by_bare_name():
            return ".".join([_by_bare_name()[owner], *bare[len(bare) - count + 1 :]])
    return target


def _look_up(path: str) -> tuple[object, str]:
    """Return the object of a dotted path, and ``.member`` if its last part is a member of a class."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        value = sys.modules.get(".".join(parts[:end]))
        if value is None:
            continue
        for i, name in enumerate(parts[end:], end):
            if inspect.isclass(value):
                return value, "." + ".".join(parts[i:])
            value = getattr(value, name, None)
        return value, ""
    return None, ""


def fields_from_comments(app, what, name, obj, options, lines):
    """Document the fields of tuples and dataclasses by the comments that stand beside them in the source."""
    if what != "class" or any(line.strip() in {"Attributes:", "Args:"} for line in lines):
        return
    found = field_comments(obj)
    if found:
        lines += ["", "Attributes:", *(f"    {field}: {comment}" for field, comment in found.items()), ""]


def field_comments(cls: type) -> dict[str, str]:
    """Return the comments at the ends of the lines that declare a class's fields."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    body = ast.parse(source).body[0]
    lines = source.splitlines()
    declared = [node for node in getattr(body, "body", []) if isinstance(node, ast.AnnAssign)]
    found = {}
    for node in declared:
        comment = re.search(r"\s# (.*)$", lines[(node.end_lineno or 1) - 1])
        field = ast.unparse(node.target)
        if not field.startswith("_"):
            found[field] = _as_rst(comment[1]) if comment else ""
    return found if any(found.values()) else {}


def _as_rst(comment: str) -> str:
    """Set shapes such as ``(*chains, *event)`` as code, and escape what would be markup outside of code."""
    parts = re.split(r"(`+[^`]+`+|\([^()]*\*[^()]*\))", comment)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part)
        elif not part.startswith("`"):
            parts[i] = f"``{part}``"
    return "".join(parts)


def skip_member(app, what, name, obj, skip, options):
    """Leave out fields without a docstring of their own, which the class's docstring describes."""
    doc = getattr(obj, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def name_factories(app, what, name, obj, options, signature, return_annotation):
    """Write ``...`` for a default that is made anew each time: ``<factory>`` keeps Sphinx from reading a signature."""
    return (signature.replace("<factory>", "...") if signature else signature), return_annotation
