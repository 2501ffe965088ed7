"""Criteria: ORM statements name the tenant of their session, for PostgreSQL's planner.

One option of SQLAlchemy, :func:`~sqlalchemy.orm.with_loader_criteria`, covers all
models with a mark. SQLAlchemy asks for the models, and for the condition of each, when
it compiles a statement that it does not know yet; the tenant is a bound parameter,
which is no part of what it keeps of a statement.

The conditions only help the planner, so they are left out wherever they could change
the result: see :class:`_Condition` and :func:`_holds_rows_of`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import (
    BigInteger,
    BinaryExpression,
    ColumnClause,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Join,
    SelectBase,
    SmallInteger,
    Table,
    Text,
    Uuid,
    and_,
    column,
    inspect,
    true,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper, ORMExecuteState, registry, with_loader_criteria
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.base import ExecutableOption
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from .declare import TenantTable, mark_of
from .identity import canonical_text
from .session import ScopedSession
from .tenancy import tenant_text

# Those whose models were met in statements, and those of related models.
_registries: WeakSet[registry] = WeakSet()


class _TenantValue(TypeDecorator[Any]):
    """The text of a tenant, sent as the type of a column.

    :param cast: that type, as of :class:`.TenantTable`.
    """

    impl = Text
    cache_ok = True

    def __init__(self, cast: str) -> None:
        super().__init__()
        self.cast = cast

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(_IMPLS[self.cast])

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        # NULL where no row can be of this tenant
        text = canonical_text(value, self.cast)
        if text is None or not self.cast:
            return text
        return UUID(text) if self.cast == "::uuid" else int(text)


_IMPLS: dict[str, TypeEngine[Any]] = {
    "": Text(),
    "::smallint": SmallInteger(),
    "::integer": Integer(),
    "::bigint": BigInteger(),
    "::uuid": Uuid(),
}
_TYPES = {cast: _TenantValue(cast) for cast in _IMPLS}


class _AnyClass(type):
    """A class whose subclasses are whatever belongs to tenants."""

    def __subclasses__(cls) -> list[type[Any]]:
        mappers = {
            mapper
            for each in list(_registries)
            for mapper in each.mappers
            if _column(mapper) is not None
        }
        # of a hierarchy its topmost class, which stands for all below
        return [
            mapper.class_
            for mapper in mappers
            if not mappers.intersection(list(mapper.iterate_to_root())[1:])
        ]


class _Marked(metaclass=_AnyClass):
    pass


def add_criteria(state: ORMExecuteState) -> None:
    """Let a statement name the tenant of its session for each model with a mark.

    Lazy loads get the option of the session that they happen in. Statements of eager
    loads have it from the statement that they belong to; joins of joined loads have
    none.
    """
    session = state.session
    assert isinstance(session, ScopedSession)
    scope = session.scope
    if (
        scope.tenant is not None
        and state.is_orm_statement
        and (state.is_select or state.is_update or state.is_delete)
        and not state.is_column_load
        and (not state.is_relationship_load or state.lazy_loaded_from is not None)
    ):
        mapper = state.bind_mapper
        if mapper is not None and mapper.registry not in _registries:
            _meet(mapper.registry)
        option = _option(tenant_text(scope.tenant))
        state.statement = state.statement.options(option)


def _meet(found: registry) -> None:
    """Take in the models of a registry, and those that they are related to."""
    _registries.add(found)
    for mapper in list(found.mappers):
        for relationship in mapper.relationships:
            if relationship.mapper.registry not in _registries:
                _meet(relationship.mapper.registry)


@lru_cache(maxsize=1024)
def _option(text: str) -> ExecutableOption:
    # A variable for each type: SQLAlchemy makes one parameter of each, with one type.
    smallint = integer = bigint = uuid = text
    return with_loader_criteria(
        _Marked,
        lambda cls: _condition(cls, text, smallint, integer, bigint, uuid),
        include_aliases=True,
        # Objects would keep the option. One of a shared table may move to a session of
        # another tenant, or of all, and would load rows with this tenant's condition.
        propagate_to_loaders=False,
    )


def _condition(target: Any, *values: Any) -> ColumnElement[bool]:
    """Return the condition on a class or an alias.

    :param target: something else when SQLAlchemy looks for the parameters.
    :param values: the parameters, in the order of the types.
    """
    typed = {
        cast: type_coerce(value, _TYPES[cast])
        for cast, value in zip(_TYPES, values, strict=True)
    }
    found: Any = inspect(target, raiseerr=False)
    if found is None:
        return and_(*(column("tenant") == value for value in typed.values()))
    mapper: Mapper[Any] = found.mapper
    tenant = _column(mapper)
    if tenant is None or not _holds_rows_of(found.selectable, tenant[0]):
        return true()
    _, key, cast = tenant
    # not the column's own type, which may not compare: a domain, a decorator
    compared = type_coerce(getattr(target, key), _TYPES[cast]) == typed[cast]
    assert isinstance(compared, BinaryExpression)
    return _Condition(
        compared.left,
        compared.right,
        compared.operator,
        type_=compared.type,
        negate=compared.negate,
        modifiers=compared.modifiers,
    )


def _holds_rows_of(selectable: FromClause, table: Table) -> bool:
    """Whether a class or an alias reads a table itself. A subquery need not have the
    tenant's column, and may have NULL in it; it names the tenant inside.
    """
    return selectable.is_derived_from(table) and not any(
        isinstance(each, SelectBase) for each in visitors.iterate(selectable)
    )


class _Condition(BinaryExpression[bool]):
    """A condition that is left out where a join may have put NULL into the column.

    SQLAlchemy adds it to ``ON`` for what :meth:`~sqlalchemy.Select.join` joined, and
    else to ``WHERE``. There it would remove the rows that an outer join is meant to
    keep.
    """

    inherit_cache = True


@compiles(_Condition)
def _compile(element: _Condition, compiler: SQLCompiler, **kw: Any) -> str:
    if _may_be_null(element, compiler):
        return compiler.process(true(), **kw)
    text: str = compiler.visit_binary(element, **kw)  # type: ignore[no-untyped-call]
    return text


def _may_be_null(element: _Condition, compiler: SQLCompiler) -> bool:
    """Whether an outer join of the statement being compiled, or of one around it,
    yields rows without those that ``element`` is about."""
    columns = visitors.iterate(element.left)
    tables = [each.table for each in columns if isinstance(each, ColumnClause)]
    optional: list[FromClause] = []
    for join in compiler.stack[-1]["correlate_froms"]:
        if isinstance(join, Join) and (join.isouter or join.full):
            if any(each is element for each in visitors.iterate(join.onclause)):
                return False
            optional += (join.left, join.right) if join.full else (join.right,)
    return any(
        side.is_derived_from(table)
        for side in optional
        for table in tables
        if table is not None
    )


def _column(mapper: Mapper[Any]) -> tuple[Table, str, str] | None:
    """Return the table and the attribute that hold the tenant of a class, and the
    cast."""
    for each in mapper.iterate_to_root():
        table = each.local_table
        if not isinstance(table, Table):
            continue
        mark = mark_of(table)
        if isinstance(mark, TenantTable):
            try:
                key = mapper.get_property_by_column(table.c[mark.column]).key
            except UnmappedColumnError:
                continue
            return table, key, mark.cast
    return None
