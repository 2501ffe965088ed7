"""What is checked: the database, and what it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection, MetaData

from ..declare import Mark, TenantTable, casts_of, marks
from ..identity import CASTS, is_canonical
from ..policies import (
    FLOOR_POLICY,
    ISOLATION_POLICY,
    OWN_POLICIES,
    TENANT_PRIVILEGES,
    quote_grantee,
    quote_name,
    quote_qualified,
)
from ..roles import list_tenants
from ..tenancy import Isolation, Tenancy
from . import catalog
from .catalog import Catalog, TableState
from .expected import Expected, admitted, altered_policies, readers
from .reach import Reach, Start, read_reach, read_readers
from .same import compare_expressions, questions_of
from .views import View, read_views


@dataclass
class Checked:
    """What is checked, and what it is held against; the database is asked on demand.

    :param metadata: the models, ``None`` where they are not known.
    :param schema: the schema of sessions, ``None`` for the login's search path.
    """

    connection: Connection
    tenancy: Tenancy
    metadata: MetaData | None
    isolation: Isolation
    schema: str | None

    @cached_property
    def expected(self) -> Expected:
        return Expected(self.tenancy)

    @cached_property
    def database(self) -> Catalog:
        """The catalog, with its tables."""
        database = catalog.read_database(self.connection, self.tenancy)
        database.tables = catalog.read_tables(self.connection, self.tenancy)
        return database

    @cached_property
    def columns(self) -> dict[tuple[str, str], dict[str, str]]:
        """Columns and their types, by table."""
        return catalog.read_columns(self.connection)

    @cached_property
    def views(self) -> list[View]:
        return read_views(self.connection, self.tenancy)

    @cached_property
    def marked(self) -> dict[tuple[str, str], Mark | None]:
        """The tables to check.

        Without models the policies tell the mark. A table has none if its policies
        compare no column.
        """
        if self.metadata is not None:
            names = (self.schema, self.connection.dialect.default_schema_name, "public")
            default = next(filter(None, names))
            return {
                (table.schema or default, table.name): mark
                for table, mark in marks(self.metadata)
            }
        return {
            key: _mark_of(
                table, self.columns[key], self.tenancy, self.database.function_visible
            )
            for key, table in self.database.tables.items()
            if set(OWN_POLICIES) & set(table.policies)
        }

    @cached_property
    def reach(self) -> Reach:
        tables = [table for _, table, _ in self.tables()]
        owners = {table.owner for table in tables}
        holders = owners | {
            grant.role
            for table in tables
            for grant in table.grants
            if grant.privilege in TENANT_PRIVILEGES
        }
        return read_reach(self.connection, self.tenancy, holders, owners)

    @cached_property
    def readers(self) -> dict[str, frozenset[str] | None]:
        """See :func:`.read_readers`: who may read a marked table, and all dumps."""
        tables = [table for _, table, _ in self.tables()]
        return read_readers(
            self.connection,
            {role for table in tables for role in readers(table, self.expected)},
            {role for table in tables for role in admitted(table.policies.values())},
            dumps=True,
        )

    @cached_property
    def invalid(self) -> list[str]:
        """Tenants that no tenant column of the models can hold."""
        casts = frozenset[str]() if self.metadata is None else casts_of(self.metadata)
        # any text is a tenant's where a column holds text only
        if not casts - {""}:
            return []
        tenants = list_tenants(self.connection, self.tenancy)
        return [tenant for tenant in tenants if not is_canonical(tenant, casts)]

    @cached_property
    def altered(self) -> dict[tuple[str, str, str], str | None]:
        """Policies of the user's own, by schema, table and name, whose condition is
        another one, or why that cannot be told."""
        questions = [
            question
            for _, table, mark in self.tenant_tables()
            for question in questions_of(table, mark.policies(self.tenancy))
        ]
        return {
            question[:3]: answer.reason
            for question, answer in compare_expressions(
                self.connection, questions
            ).items()
            if not answer.same
        }

    @property
    def dumps(self) -> set[str]:
        """Logins that may read all tables, whatever was granted on these."""
        asked = {r for _, t, _ in self.tables() for r in readers(t, self.expected)}
        return set(self.readers) - asked

    def tables(self) -> Iterator[tuple[str, TableState, Mark | None]]:
        """Yield the marked tables that exist, with their quoted names."""
        for key, mark in self.marked.items():
            if key in self.database.tables:
                yield quote_qualified(*key), self.database.tables[key], mark

    def tenant_tables(self) -> Iterator[tuple[str, TableState, TenantTable]]:
        """Yield the tables of tenants."""
        for name, table, mark in self.tables():
            if isinstance(mark, TenantTable):
                yield name, table, mark

    def alike(self, key: tuple[str, str]) -> set[str]:
        """Return the columns of a table that have the name of a tenant column."""
        return self._tenant_columns & set(self.columns.get(key, ()))

    @cached_property
    def _tenant_columns(self) -> set[str]:
        return {mark.column for _, _, mark in self.tenant_tables()}

    @property
    def schemas(self) -> set[str]:
        """Schemas that sessions of tenants look for objects in, and the function's."""
        found = {schema for schema, name in self.marked} | {self.tenancy.schema}
        return found if self.schema is None else found | {self.schema}

    def belongs_to(self, start: Start, owner: str) -> bool:
        """Whether the login, or a tenant, is an object's owner or may act as it."""
        if owner in self.reach.of(start):
            return True
        if start == "login":
            return bool(owner == self.reach.login.rolname)
        return self.expected.is_ours(owner) and owner != self.tenancy.admin_role

    def gives_tenants(self, role: str) -> bool:
        """Whether a tenant has what is granted to a role, or may act as it."""
        return role == "public" or self.belongs_to("tenants", role)

    def opened(
        self, schema: str, holders: list[str], owner: str | None = None
    ) -> list[str]:
        """Return who lets tenants use a relation, or call a function.

        :param holders: who holds privileges on it.
        """
        # the catalog leaves out the system's schemas, which everybody may use
        state = self.database.schemas.get(schema)
        is_usable = (
            state is None
            or self.belongs_to("tenants", state.owner)
            or any(
                grant.privilege == "USAGE" and self.gives_tenants(grant.role)
                for grant in state.grants
            )
        )
        found = [owner] if owner and self.belongs_to("tenants", owner) else []
        found += filter(self.gives_tenants, holders if is_usable else ())
        return sorted(map(quote_grantee, found))


def _mark_of(
    table: TableState, columns: Iterable[str], tenancy: Tenancy, visible: bool
) -> TenantTable | None:
    """Return the mark that fits best to the policies of a table without a model."""
    for name in (FLOOR_POLICY, ISOLATION_POLICY):
        policy = table.policies.get(name)
        if policy is None or policy.using is None:
            continue
        compared = policy.using.lstrip("(")
        for column in columns:
            left = quote_name(column)
            if compared.startswith((f"{left} = ", f"{left})::")):
                possible = [
                    TenantTable(column, cast, bytewise=bytewise)
                    for cast in CASTS
                    for bytewise in (False, True)
                    if not (cast and bytewise)
                ]
                return min(
                    possible,
                    key=lambda mark: len(
                        [*altered_policies(table, mark, tenancy, visible)]
                    ),
                )
    return None
