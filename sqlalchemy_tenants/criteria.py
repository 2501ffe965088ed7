"""Criteria: ORM statements name the tenant of their session, for PostgreSQL's planner.

One option of SQLAlchemy, :func:`~sqlalchemy.orm.with_loader_criteria`, covers all
models with a mark. SQLAlchemy asks for the models, and for the condition of each, when
it compiles a statement that it does not know yet; the tenant is a bound parameter,
which is no part of what it keeps of a statement.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
    and_,
    column,
    inspect,
    type_coerce,
)
from sqlalchemy.orm import Mapper, ORMExecuteState, registry, with_loader_criteria
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.base import ExecutableOption
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

    Rows pass the option on to what they load later, so loads of relationships have it
    already.
    """
    session = state.session
    assert isinstance(session, ScopedSession)
    scope = session.scope
    if (
        scope.tenant is not None
        and state.is_orm_statement
        and (state.is_select or state.is_update or state.is_delete)
        and not state.is_column_load
        and not state.is_relationship_load
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
    assert tenant is not None
    key, cast = tenant
    # not the column's own type, which may not compare: a domain, a decorator
    condition: ColumnElement[bool]
    condition = type_coerce(getattr(target, key), _TYPES[cast]) == typed[cast]
    return condition


def _column(mapper: Mapper[Any]) -> tuple[str, str] | None:
    """Return the attribute that holds the tenant of a class, and its cast."""
    for each in mapper.iterate_to_root():
        table = each.local_table
        mark = mark_of(table) if isinstance(table, Table) else None
        if isinstance(mark, TenantTable):
            try:
                key = mapper.get_property_by_column(table.c[mark.column]).key
            except UnmappedColumnError:
                continue
            return key, mark.cast
    return None
