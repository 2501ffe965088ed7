"""Declaring: which tables belong to tenants, and which all tenants share.

The marks live in ``MetaData.info``, not in ``Table.info``, which Alembic prints into
migrations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

from sqlalchemy import (
    Column,
    Connection,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy import types as sqltypes
from sqlalchemy.orm import (
    Mapped,
    MappedAsDataclass,
    MappedColumn,
    Mapper,
    declared_attr,
    mapped_column,
)
from sqlalchemy.types import TypeEngine

from .arguments import require_flag, require_name
from .exceptions import ScopeError
from .identity import TenantType, require_canonical, tenant_type
from .policies import (
    TENANT_PRIVILEGES,
    Policy,
    current_tenant_sql,
    tenant_policies,
)
from .tenancy import Tenancy, TenantId, tenant_text

_INFO_KEY = "sqlalchemy_tenants"
_CASTS_KEY = "sqlalchemy_tenants.casts"

_TYPES = (
    "it is VARCHAR or TEXT, SMALLINT, INTEGER or BIGINT, or a native UUID, or a domain "
    "over one of them"
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class TenantTable:
    """The mark of a table whose rows belong to tenants.

    :param column: name of the tenant column in the database.
    :param cast: what makes the tenant's text comparable with it, ``""`` or as in
        ``"::integer"``.
    :param extra: the user's own policies.
    :param bytewise: whether its bytes are compared, too; see :func:`.tenant_policies`.
    """

    column: str
    cast: str
    extra: tuple[Policy, ...] = ()
    bytewise: bool = False

    #: Privileges of the group roles.
    privileges = TENANT_PRIVILEGES

    def policies(self, tenancy: Tenancy) -> tuple[Policy, ...]:
        """Return every policy of the table, with roles filled in."""
        own = (
            Policy(
                policy.name,
                using=policy.using,
                with_check=policy.with_check,
                command=policy.command,
                permissive=policy.permissive,
                roles=policy.roles or (tenancy.tenants_role,),
            )
            for policy in self.extra
        )
        isolating = tenant_policies(
            self.column, self.cast, tenancy, bytewise=self.bytewise
        )
        return (*isolating, *own)


@dataclass(frozen=True)
class SharedTable:
    """The mark of a table without tenants that tenant sessions may use."""

    privileges: tuple[str, ...]


Mark: TypeAlias = TenantTable | SharedTable


def marks(metadata: MetaData) -> Iterator[tuple[Table, Mark]]:
    """Yield each marked table of ``metadata`` with its mark."""
    for key, mark in metadata.info.get(_INFO_KEY, {}).items():
        # a table may have been removed from its collection since
        if key in metadata.tables:
            yield metadata.tables[key], mark


def mark_of(table: Table) -> Mark | None:
    """Return the mark of a table, or ``None``."""
    found: Mark | None = table.metadata.info.get(_INFO_KEY, {}).get(table.key)
    return found


def casts_of(metadata: MetaData) -> frozenset[str]:
    """Return the casts of all tenant columns, kept until a table is marked."""
    size = len(metadata.tables)
    known: tuple[int, frozenset[str]] | None = metadata.info.get(_CASTS_KEY)
    if known is None or known[0] != size:
        casts = (m.cast for _, m in marks(metadata) if isinstance(m, TenantTable))
        known = metadata.info[_CASTS_KEY] = (size, frozenset(casts))
    return known[1]


def require_tenant_of(
    tenant: TenantId, metadata: MetaData | None, *, held: bool = True
) -> None:
    """Refuse a tenant whose text is not the canonical form in the models' columns, and
    what is no tenant, as a function, which only a session alone takes.

    :param metadata: the models; ``None`` where they are not known.
    :param held: see :func:`.require_canonical`.
    :raises InvalidTenant: see :func:`.require_canonical`.
    """
    if metadata is not None:
        require_canonical(tenant, casts_of(metadata), held=held)
    elif type(tenant) is not str:
        tenant_text(tenant)


@overload
def with_rls(
    model_or_table: _T,
    *,
    tenant_column: str = ...,
    index: bool = ...,
    policies: Iterable[Policy] = ...,
) -> _T: ...
@overload
def with_rls(
    model_or_table: None = None,
    *,
    tenant_column: str = ...,
    index: bool = ...,
    policies: Iterable[Policy] = ...,
) -> Callable[[_T], _T]: ...
def with_rls(
    model_or_table: Any = None,
    *,
    tenant_column: str = "tenant",
    index: bool = True,
    policies: Iterable[Policy] = (),
) -> Any:
    """Mark a mapped class or a :class:`~sqlalchemy.schema.Table`: its rows belong to
    tenants.

    ``alembic revision --autogenerate`` then writes what the database needs: row-level
    security, three policies, and privileges of the group roles.

    :param model_or_table: a mapped class, as decorator, or a table. The table of the
        class itself is marked; under joined inheritance each table needs a mark.
    :param tenant_column: name of the column that holds the tenant; in PostgreSQL it is
        text, an integer or a UUID, or a domain over one of them.
    :param index: add an index on that column unless an index, a unique constraint or
        the primary key begins with it.
    :param policies: policies on top of the tenant ones.
    :raises TypeError: for a class that is not mapped, or a table without such a
        column, or with one of another type.
    :raises ValueError: two policies have the same name, or PostgreSQL would cut the
        table's.
    """
    require_name("tenant_column", tenant_column)
    require_flag("index", index)
    policies = _policies(policies)
    if model_or_table is None:

        def decorate(target: _T) -> _T:
            return with_rls(
                target, tenant_column=tenant_column, index=index, policies=policies
            )

        return decorate

    table = _table_of(model_or_table, "with_rls")
    column = _tenant_column(table, tenant_column, model_or_table)
    type_ = _tenant_type(column, table, tenant_column)
    mark = TenantTable(column.name, type_.cast, policies, type_.bytewise)
    names = [policy.name for policy in mark.policies(Tenancy.of(table.metadata))]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"table {table.fullname!r} has two policies {name!r}")
    _set_mark(table, mark)
    if index and column.name not in leading_columns(table):
        Index(None, column)
    return model_or_table


@overload
def shared_table(model_or_table: _T, *, privileges: Iterable[str] = ...) -> _T: ...
@overload
def shared_table(
    model_or_table: None = None, *, privileges: Iterable[str] = ...
) -> Callable[[_T], _T]: ...
def shared_table(
    model_or_table: Any = None, *, privileges: Iterable[str] = ("SELECT",)
) -> Any:
    """Mark a table without tenants that every tenant session may use.

    It gets privileges of the group roles and no row-level security: each tenant sees
    all of its rows, and with ``INSERT``, ``UPDATE`` or ``DELETE`` changes them for
    all others.

    :param model_or_table: a mapped class, as decorator, or a table.
    :param privileges: of ``SELECT``, ``INSERT``, ``UPDATE`` and ``DELETE``.
    :raises TypeError: for a class that is not mapped.
    :raises ValueError: for another privilege, or none.
    """
    if isinstance(privileges, str):
        privileges = [privileges]
    elif not isinstance(privileges, Iterable):
        raise TypeError(f"privileges are a list of names, not {privileges!r}")
    given = [each.upper() if isinstance(each, str) else each for each in privileges]
    if not given or any(each not in TENANT_PRIVILEGES for each in given):
        raise ValueError(
            f"privileges of a shared table are some of "
            f"{', '.join(TENANT_PRIVILEGES)}, not {given}"
        )
    if model_or_table is None:

        def decorate(target: _T) -> _T:
            return shared_table(target, privileges=given)

        return decorate

    table = _table_of(model_or_table, "shared_table")
    _set_mark(table, SharedTable(tuple(p for p in TENANT_PRIVILEGES if p in given)))
    return model_or_table


def tenant_column(
    type_: TypeEngine[Any] | type[TypeEngine[Any]] | None = None,
    *,
    tenancy: Tenancy | None = None,
    **kw: Any,
) -> MappedColumn[Any]:
    """Return a mapped column that defaults to the tenant of the session.

    For a tenant column of another type or name than :class:`TenantMixin` has::

        class Order(Base):
            account: Mapped[int] = tenant_column(Integer)

    :param type_: column type, ``Text`` unless given.
    :param tenancy: configuration, where the schema is not ``tenancy``.
    :param kw: further arguments of :func:`sqlalchemy.orm.mapped_column`.
    :raises TypeError: for a type that cannot hold a tenant.
    """
    given, type_ = type_, Text() if type_ is None else sqltypes.to_instance(type_)
    judged = tenant_type(type_) if isinstance(type_, TypeEngine) else None
    if judged is None:
        raise TypeError(f"{given!r} is not the type of a tenant column: {_TYPES}")
    if "server_default" in kw:
        raise TypeError(
            "tenant_column has a server default, the tenant of the session; for "
            "another one use mapped_column"
        )
    default = current_tenant_sql(Tenancy.given(tenancy), judged.cast)
    kw.setdefault("nullable", False)
    kw.setdefault("index", True)
    return mapped_column(type_, server_default=text(default), **kw)


if TYPE_CHECKING:
    _declared = declared_attr
else:

    class _declared(declared_attr):
        """Hides from pydantic, which looks for attributes of a field's name in base
        classes; SQLAlchemy would warn of that."""

        def __get__(self, instance, owner):
            if owner is TenantMixin or hasattr(owner, "model_fields"):
                raise AttributeError("tenant")
            return super().__get__(instance, owner)


class TenantMixin:
    """Declares the column ``tenant``: NOT NULL, indexed, and by default the tenant of
    the session, so that rows get their tenant by themselves.

    The column is TEXT, not VARCHAR, which PostgreSQL compares as text by a cast that
    provers of policies do not see through. For another type declare it with
    :func:`tenant_column`. The class needs :func:`with_rls` all the same.

    With :class:`~sqlalchemy.orm.MappedAsDataclass` it is a field of the class, given by
    name if at all: ``Order(item="anvil", tenant="acme")``.

    On a model of SQLModel it is a field, too, ``None`` until the database has filled
    it. Type checkers do not see that; docs/other-libraries.md has another way.

    :raises TypeError: for another model of pydantic, which would ignore ``tenant=...``.
    """

    def __init_subclass__(cls, **kw: Any) -> None:
        _declare_field(cls)
        super().__init_subclass__(**kw)

    @_declared
    def tenant(cls) -> Mapped[str]:
        return tenant_column(tenancy=_tenancy_of(cls), sort_order=-1)


def _tenancy_of(model: Any) -> Tenancy | None:
    # with_loader_criteria() asks the mixin itself, which has none
    metadata: MetaData | None = getattr(model, "metadata", None)
    return None if metadata is None else Tenancy.of(metadata)


def _declare_field(model: type[Any]) -> None:
    """Declare the tenant on a class whose ``__init__()`` is made from its own fields,
    among which no attribute of a mixin is.

    :raises TypeError: its fields are pydantic's, and not SQLModel's.
    """
    declaring = [
        each
        for each in model.__mro__
        if each is not TenantMixin
        and (
            "tenant" in vars(each) or "tenant" in vars(each).get("__annotations__", ())
        )
    ]
    if declaring:
        if issubclass(model, MappedAsDataclass) and declaring[0] is not model:
            # or SQLAlchemy would take the mixin's, which is no field, for another one
            model.__annotations__ = {"tenant": Mapped[str], **get_annotations(model)}
        return
    if hasattr(model, "model_fields"):
        _declare_field_of_sqlmodel(model)
        return
    tenancy = _tenancy_of(model)  # a base class that is no model yet has none
    if issubclass(model, MappedAsDataclass) and tenancy is not None:
        column: Any = tenant_column(
            tenancy=tenancy, default=None, kw_only=True, sort_order=-1
        )
        model.__annotations__ = {"tenant": Mapped[str], **get_annotations(model)}
        model.tenant = column


def _declare_field_of_sqlmodel(model: Any) -> None:
    library: Any = sys.modules.get("sqlmodel")
    if library is None or not issubclass(model, library.SQLModel):
        raise TypeError(
            f"{model.__name__} takes pydantic's fields only, and a column of "
            f"TenantMixin is not one of them: tenant=... would be ignored; let models "
            f"of tables inherit from SQLModel or from a declarative base"
        )
    default: Any = tenant_column(tenancy=_tenancy_of(model)).column.server_default
    model.__annotations__ = {"tenant": str | None, **get_annotations(model)}
    # not sa_column: models that inherit the field have a column each
    model.tenant = library.Field(
        default=None,
        sa_type=Text,
        nullable=False,
        index=True,
        sa_column_kwargs={"server_default": default.arg},
    )


def _policies(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    if isinstance(policies, Iterable):
        policies = tuple(policies)
        if all(isinstance(policy, Policy) for policy in policies):
            return policies
    raise TypeError(
        f"policies is a list of Policy, as in [Policy('mine', using=...)], not "
        f"{policies!r}"
    )


def _table_of(target: Any, caller: str) -> Table:
    if isinstance(target, Table):
        require_name("table", target.name)
        return target
    mapper = inspect(target, raiseerr=False)
    if not isinstance(mapper, Mapper):
        if isinstance(target, type) and target.__dict__.get("__abstract__"):
            raise TypeError(
                f"{target.__name__} is abstract and has no table; put @{caller} on "
                f"each class that has one"
            )
        what = target.__name__ if isinstance(target, type) else repr(target)
        raise TypeError(
            f"{caller} takes a mapped class or a Table, and {what} is neither; if it "
            f"is a model, put @{caller} above the class and let the class inherit "
            f"from the declarative base"
        )
    table = mapper.local_table
    if not isinstance(table, Table):
        raise TypeError(
            f"{target.__name__} is mapped to {type(table).__name__}, not to a table; "
            f"mark the tables that it reads"
        )
    require_name("table", table.name)
    return table


def _tenant_column(table: Table, name: str, target: Any) -> Column[Any]:
    column = table.c.get(name)
    if column is not None:
        return column
    mapper = inspect(target, raiseerr=False)
    hint = ""
    # mapper.columns, because mapper.attrs would configure all mappers now
    if isinstance(mapper, Mapper) and name in mapper.columns:
        attribute, parent = mapper.columns[name], mapper.inherits
        if parent is not None and attribute.table is not table:
            raise TypeError(
                f"{target.__name__} inherits column {name!r} from "
                f"{parent.class_.__name__}, but its own table {table.fullname!r} has "
                f"none, and policies look at one table only; declare a tenant column "
                f"on {target.__name__}, too, and carry it in the foreign key"
            )
        hint = f"; the attribute's column is {attribute.name!r}"
    raise TypeError(
        f"table {table.fullname!r} has no tenant column {name!r}{hint}: declare it, "
        f"or name another one with tenant_column=..."
    )


def _tenant_type(column: Column[Any], table: Table, name: str) -> TenantType:
    judged = tenant_type(column.type)
    if judged is None:
        raise TypeError(
            f"column {name!r} of table {table.fullname!r} has type {column.type!r}, "
            f"which cannot hold a tenant: {_TYPES}"
        )
    return judged


def _set_mark(table: Table, mark: Mark) -> None:
    known = table.metadata.info.setdefault(_INFO_KEY, {})
    table.metadata.info.pop(_CASTS_KEY, None)
    if isinstance(known.get(table.key, mark), type(mark)):
        known[table.key] = mark
    else:
        raise TypeError(
            f"table {table.fullname!r} is marked with with_rls and with shared_table; "
            f"choose one"
        )


def leading_columns(table: Table) -> set[str]:
    """Return the columns that an index without condition begins with."""
    led: list[Sequence[Any]] = [
        constraint.columns.values()
        for constraint in table.constraints
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint)
    ]
    led += [
        list(index.expressions)
        for index in table.indexes
        if index.dialect_options["postgresql"]["where"] is None
    ]
    return {each[0].name for each in led if each and isinstance(each[0], Column)}


# One for all mappers: a listener for each model would be 22 objects more for Python's
# garbage collector.
@event.listens_for(Mapper, "mapper_configured")
def _require_mark(mapper: Mapper[Any], class_: type[Any]) -> None:
    """Refuse a class whose own table was forgotten, where that which it inherits from
    belongs to tenants.

    Such a table has neither policies nor privileges: no tenant session could use it.
    """
    table = mapper.local_table
    if mapper.inherits is None or not isinstance(table, Table) or mark_of(table):
        return
    for each in mapper.inherits.iterate_to_root():
        inherited = each.local_table
        if isinstance(inherited, Table) and isinstance(mark_of(inherited), TenantTable):
            raise TypeError(
                f"{class_.__name__} inherits from {each.class_.__name__}, whose rows "
                f"belong to tenants, but its own table {table.fullname!r} has no mark; "
                f"declare a tenant column on {class_.__name__} and put @with_rls on it"
            )


# Likewise one for all tables.
@event.listens_for(Table, "before_create")
def _require_function(table: Table, connection: Any, **kw: Any) -> None:
    """Refuse to create a table of tenants whose default asks a function that is not
    there: PostgreSQL would only say that a schema does not exist.

    The tables of a migration have no marks.
    """
    mark = mark_of(table)
    if not isinstance(mark, TenantTable) or not isinstance(connection, Connection):
        return
    default = getattr(table.c[mark.column].server_default, "arg", None)
    function = current_tenant_sql(Tenancy.of(table.metadata))
    if function not in str(default) or connection.dialect.name != "postgresql":
        return
    found = select(func.to_regprocedure(function).is_not(None))
    if not connection.scalar(found):
        raise ScopeError(
            f"table {table.fullname!r} needs the function {function}, which does not "
            f"exist: metadata.create_all() creates nothing but tables. In tests call "
            f"sqlalchemy_tenants.testing.create_all(connection, metadata), elsewhere "
            f"run the migrations: alembic upgrade head"
        )
