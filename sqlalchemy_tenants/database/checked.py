"""What is checked: the database, and what it is held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
from .catalog import Catalog, TableState, View
from .expected import Expected, admitted, altered_policies, readers
from .reach import Reach, Start, read_reach
from .readers import read_readers
from .same import compare_expressions, questions_of


@dataclass
class Checked:
    """What is checked: the database, and what it is held against.

    :param marked: tables to check. A table has no mark where there are no models, and
        its policies compare no column.
    :param has_models: whether marks come from models.
    :param schema: the schema of sessions, ``None`` for the login's search path.
    :param invalid: tenants that no tenant column of the models can hold.
    :param altered: policies of the user's own, by schema, table and name, whose
        condition is another one, or why that cannot be told.
    """

    expected: Expected
    isolation: Isolation
    schema: str | None
    database: Catalog
    reach: Reach
    views: list[View]
    marked: dict[tuple[str, str], Mark | None]
    has_models: bool
    readers: dict[str, frozenset[str] | None]
    invalid: list[str]
    altered: dict[tuple[str, str, str], str | None]

    @property
    def tenancy(self) -> Tenancy:
        return self.expected.tenancy

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
        # everybody may use the schemas that are not read: those of the system
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


def read(
    connection: Connection,
    tenancy: Tenancy,
    metadata: MetaData | None,
    isolation: Isolation,
    schema: str | None,
) -> Checked:
    expected = Expected(tenancy)
    database = catalog.read_database(connection, tenancy)
    database.tables = catalog.read_tables(connection, tenancy)
    default_schema = schema or connection.dialect.default_schema_name or "public"
    marked: dict[tuple[str, str], Mark | None]
    if metadata is not None:
        marked = {
            (table.schema or default_schema, table.name): mark
            for table, mark in marks(metadata)
        }
    else:
        marked = {
            key: _mark_of(table, tenancy, database.function_visible)
            for key, table in database.tables.items()
            if set(OWN_POLICIES) & set(table.policies)
        }
    tables = [database.tables[key] for key in marked if key in database.tables]
    owners = {table.owner for table in tables}
    holders = owners | {
        grant.role
        for table in tables
        for grant in table.grants
        if grant.privilege in TENANT_PRIVILEGES
    }
    return Checked(
        expected,
        isolation,
        schema,
        database,
        read_reach(connection, tenancy, holders, owners),
        catalog.read_views(connection, tenancy),
        marked,
        metadata is not None,
        read_readers(
            connection,
            {role for table in tables for role in readers(table, expected)},
            {r for table in tables for r in admitted(table.policies.values())},
            dumps=True,
        ),
        _invalid_tenants(connection, tenancy, metadata),
        _altered_conditions(connection, tenancy, marked, database),
    )


def _altered_conditions(
    connection: Connection,
    tenancy: Tenancy,
    marked: Mapping[tuple[str, str], Mark | None],
    database: Catalog,
) -> dict[tuple[str, str, str], str | None]:
    questions = [
        question
        for key, mark in marked.items()
        if key in database.tables and isinstance(mark, TenantTable)
        for question in questions_of(database.tables[key], mark, tenancy)
    ]
    return {
        question[:3]: answer.reason
        for question, answer in compare_expressions(connection, questions).items()
        if not answer.same
    }


def _invalid_tenants(
    connection: Connection, tenancy: Tenancy, metadata: MetaData | None
) -> list[str]:
    casts = frozenset[str]() if metadata is None else casts_of(metadata)
    # any text is a tenant's where a column holds text only
    if not casts - {""}:
        return []
    tenants = list_tenants(connection, tenancy)
    return [tenant for tenant in tenants if not is_canonical(tenant, casts)]


def _mark_of(table: TableState, tenancy: Tenancy, visible: bool) -> TenantTable | None:
    """Return the mark that fits best to the policies of a table without a model."""
    for name in (FLOOR_POLICY, ISOLATION_POLICY):
        policy = table.policies.get(name)
        if policy is None or policy.using is None:
            continue
        compared = policy.using.lstrip("(")
        for column in table.columns:
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
