"""The context in SQL: the expression that answers with a value of it."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from sqlalchemy import Boolean, ColumnElement, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnClause
from sqlalchemy.types import TypeEngine, to_instance

from .identity import tenant_type
from .policies import quote_literal, quote_qualified
from .tenancy import CONTEXT_FUNCTION_NAME, Tenancy
from .values import context_parameter

_T = TypeVar("_T")


class ContextValue(ColumnClause[Any]):
    """A call of ``context_value()``, as PostgreSQL prints it."""

    inherit_cache = True


@compiles(ContextValue)
def _compile(element: ContextValue, compiler: SQLCompiler, **kw: Any) -> str:
    text: str = compiler.escape_literal_column(  # type: ignore[no-untyped-call]
        element.name
    )
    # A default knows no subselects. SQLAlchemy compiles it without a statement, and
    # Alembic as a statement of its own, or without tables.
    is_default = (
        compiler.statement is None
        or compiler.statement is element
        or not kw.get("include_table", True)
    )
    if is_default and "in_condition" not in kw:
        return text
    return f"(SELECT {text})"


@overload
def context_value(
    name: str, type_: None = None, *, tenancy: Tenancy | None = None
) -> ColumnElement[str]: ...
@overload
def context_value(
    name: str,
    type_: TypeEngine[_T] | type[TypeEngine[_T]],
    *,
    tenancy: Tenancy | None = None,
) -> ColumnElement[_T]: ...
def context_value(
    name: str, type_: Any = None, *, tenancy: Tenancy | None = None
) -> ColumnElement[Any]:
    """Return the SQL expression for a value of the session's context::

        Policy("own", using=Order.user_id == context_value("user_id", Integer))
        created_by: Mapped[int | None] = mapped_column(
            server_default=context_value("created_by", Integer))
        select(Order).where(Order.user_id == context_value("user_id", Integer))

    It is ``(SELECT tenancy.context_value('user_id')::integer)``, which a query
    evaluates once, and without the subselect as a server default. NULL where the
    session has no such value.

    :param name: the name in ``context={...}``.
    :param type_: of texts, integers, booleans or UUIDs; ``Text`` unless given. For
        another one cast the text: ``cast(context_value("day"), Date)``.
    :param tenancy: configuration, where schema or setting are not the default ones.
    :raises TypeError: for another type.
    :raises ValueError: for a name that no context can have.
    """
    tenancy = Tenancy.given(tenancy)
    context_parameter(name, tenancy.setting)
    type_ = to_instance(Text if type_ is None else type_)
    judged = tenant_type(type_)
    if isinstance(type_, Boolean):
        cast = "::boolean"
    elif judged is not None:
        cast = judged.cast
    else:
        raise TypeError(
            f"{type_!r} is not the type of a value of the context, which is text, an "
            f"integer, a boolean or a UUID; cast the text: "
            f"cast(context_value({name!r}), ...)"
        )
    function = quote_qualified(tenancy.schema, CONTEXT_FUNCTION_NAME)
    call = f"{function}({quote_literal(name)}::text)"
    return ContextValue(f"({call}){cast}" if cast else call, type_, is_literal=True)
