"""Operations as source: the directive a person would have written.

Every value is rendered by ``repr()``, and long calls are wrapped as ruff wraps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    values = [repr(arg) for arg in args]
    values += [f"{name}={value!r}" for name, value in kw.items()]
    call = f"{prefix}{op.directive}"
    line = f"{call}({', '.join(values)})"
    if len(line) <= _WIDTH:
        return line
    line = _INDENT + ", ".join(values)
    if len(line) > _WIDTH:
        line = "\n".join(f"{_INDENT}{value}," for value in values)
    return f"{call}(\n{line}\n)"
