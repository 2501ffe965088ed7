"""What the comparators know: one configuration, and the database as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Table

from sqlalchemy_tenants.database import catalog
from sqlalchemy_tenants.database.catalog import (
    Catalog,
    Dependency,
    Grant,
    ObjectType,
    SequenceState,
)
from sqlalchemy_tenants.database.expected import Expected
from sqlalchemy_tenants.database.same import (
    Answer,
    Question,
    compare_expressions,
    questions_of,
)
from sqlalchemy_tenants.declare import Mark, TenantTable
from sqlalchemy_tenants.policies import Policy
from sqlalchemy_tenants.tenancy import Tenancy

# A child of Alembic's logger: shown where Alembic's own lines are, and not disabled by
# the logging.config.fileConfig() of its env.py, as loggers unknown to it are.
log = logging.getLogger("alembic.autogenerate.tenants")


@dataclass
class Comparison:
    """What is compared with what, for one set of names.

    :param expected: what the configuration needs.
    :param configured: the configurations with those names.
    :param marked: the tables that models mark, and their marks, by schema and name.
    :param answers: which conditions of the users' own policies are the same.
    :param settled: marks and fingerprints of tables that were compared and found
        equal; of 1,000 tables most are alike.
    """

    expected: Expected
    database: Catalog
    connection: Connection
    default_schema: str
    configured: tuple[Tenancy, ...]
    marked: dict[tuple[str, str], tuple[Table, Mark]]
    settled: set[Any] = field(default_factory=set)
    answers: dict[Question, Answer] = field(default_factory=dict)
    _policies: dict[TenantTable, tuple[Policy, ...]] = field(default_factory=dict)

    @property
    def tenancy(self) -> Tenancy:
        """The names."""
        return self.expected.tenancy

    def may_own(self, role: str) -> bool:
        """Whether a role may own tables of tenants, and so becomes an admin.

        An application's login may not, even where somebody made it the owner.
        """
        return role == self.database.current_user or any(
            role in each.owners for each in self.configured
        )

    def advice_to_name(self, owner: str) -> str:
        """Return the end of a refusal: how the models allow an owner, if they may."""
        if self.expected.is_ours(owner):
            return ""  # as an admin, it would open everything to tenants
        return (
            f", or name the owner, unless it is a login of the application: "
            f"Tenancy(owners=[{owner!r}])"
        )

    @property
    def wanted(self) -> bool:
        """Whether a model is marked or a tenant declared."""
        return bool(self.marked or self.declared)

    @property
    def declared(self) -> list[Tenancy]:
        """The configurations that declare tenants."""
        return [each for each in self.configured if each.tenants is not None]

    @cached_property
    def dependencies(self) -> dict[tuple[str, str, str], frozenset[Dependency]]:
        """What each policy mentions, read when first asked for."""
        return catalog.read_dependencies(self.connection)

    @cached_property
    def sequences(self) -> dict[tuple[str, str], SequenceState]:
        """Sequences that belong to no column, read when first asked for."""
        return catalog.read_sequences(self.connection)

    def answer(self, question: Question) -> Answer:
        """Tell whether a condition of the models is the one of the database."""
        if question not in self.answers:
            self.answers.update(compare_expressions(self.connection, [question]))
        return self.answers[question]

    def ask(self) -> None:
        """Answer the questions of all users' own policies at once."""
        questions = [
            question
            for key, (_, mark) in self.marked.items()
            if key in self.database.tables and isinstance(mark, TenantTable)
            for question in self.questions_of(key, mark)
        ]
        self.answers = compare_expressions(self.connection, questions)

    def questions_of(
        self, key: tuple[str, str], mark: TenantTable
    ) -> Iterator[Question]:
        """Return the questions of a table that the database has."""
        return questions_of(self.database.tables[key], self.policies_of(mark))

    def policies_of(self, mark: TenantTable) -> tuple[Policy, ...]:
        """Return the policies of a table with that mark."""
        if mark not in self._policies:
            self._policies[mark] = mark.policies(self.tenancy)
        return self._policies[mark]

    def schema_name(self, schema: str | None) -> str | None:
        """Return a schema as operations name it: ``None`` is the default one."""
        return None if schema == self.default_schema else schema

    def default_grants(self, schema: str) -> frozenset[Grant]:
        """Return what PUBLIC gets by default on a table that is created."""
        key: tuple[str, ObjectType] = (self.database.current_user, "DEFAULT TABLES")
        state = self.database.schemas.get(schema)
        found = self.database.defaults.get(key, frozenset())
        if state is not None:
            found |= state.defaults.get(key, frozenset())
        return frozenset(
            grant._replace(grantor=None) for grant in found if grant.role == "public"
        )
