"""Operations as source: the directive a person would have written.

Calls are wrapped as ruff wraps them, and long expressions are cut into lines, between
words, as implicitly concatenated strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import renderers

from .ops import TenancyOp

if TYPE_CHECKING:
    # Alembic loads this module halfway through its own import
    from alembic.autogenerate.api import AutogenContext

# ruff's default line length, less the indentation of a function's body
_WIDTH = 88 - 4
_INDENT = "    "


@renderers.dispatch_for(TenancyOp)
def render(autogen_context: AutogenContext, op: TenancyOp) -> str:
    """Return the source of an operation."""
    prefix = autogen_context.opts["alembic_module_prefix"] or ""
    args, kw = op.arguments()
    items = [("", value) for value in args]
    items += [(f"{name}=", value) for name, value in kw.items()]
    call = f"{prefix}{op.directive}"
    parts = [name + _literal(value) for name, value in items]
    line = f"{call}({', '.join(parts)})"
    if len(line) <= _WIDTH:
        return line
    line = _INDENT + ", ".join(parts)
    if len(line) <= _WIDTH:
        return f"{call}(\n{line}\n)"
    lines = (line for name, value in items for line in _wrapped(name, value))
    return "\n".join([f"{call}(", *(_INDENT + line for line in lines), ")"])


def _wrapped(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one argument, that has a line of its own."""
    line = f"{name}{_literal(value)},"
    if len(line) <= _WIDTH - len(_INDENT):
        yield line
    elif isinstance(value, str):
        pieces = list(_pieces(value, _WIDTH - 2 * len(_INDENT) - len("''")))
        if len(pieces) == 1:
            yield line
            return
        yield f"{name}("
        yield from (_INDENT + _literal(piece) for piece in pieces)
        yield "),"
    elif isinstance(value, list):
        yield f"{name}["
        yield from (f"{_INDENT}{_literal(each)}," for each in value)
        yield "],"
    else:
        yield line


def _pieces(text: str, width: int) -> Iterator[str]:
    """Cut a string at its line ends, and between words where it is too long."""
    for line in text.splitlines(keepends=True):
        piece = ""
        for word in re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", line):
            if piece and len(_literal(piece + word)) > width:
                yield piece
                piece = ""
            piece += word
        if piece:
            yield piece


def _literal(value: Any) -> str:
    """Return the source of a value, with the quotes that ruff prefers."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    text = repr(value)
    if isinstance(value, str) and value.count("'") <= value.count('"'):
        # repr() takes double quotes around a single one, whatever else there is
        if text.startswith('"'):
            text = "'" + text[1:-1].replace("'", "\\'") + "'"
    elif isinstance(value, str) and text.startswith("'"):
        text = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
    return text
