"""sqlalchemy-declarative-extensions: roles, grants, functions, views, schemas.

It drops what is in the database and not declared, unless ``ignore_unspecified=True``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from foreign import ForeignProject

MODELS = """
@with_rls
class Note(TenantMixin, Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()
"""

DECLARE = """
from sqlalchemy_declarative_extensions import (
    Function, Functions, Grants, Role, Roles, Schemas, View, Views, declare_database,
    register_alembic_events,
)
from sqlalchemy_declarative_extensions.dialects import postgresql as pg

register_alembic_events()
declare_database(Base.metadata, {})
"""


def declare(**what: str) -> str:
    arguments = [f"{name}={value}" for name, value in what.items()]
    return DECLARE.format(", ".join(arguments))


@pytest.mark.parametrize(
    "what",
    [
        pytest.param({"roles": "['reporting']"}, id="roles"),
        pytest.param({"functions": "[Function('one', 'SELECT 1')]"}, id="functions"),
        pytest.param({"schemas": "Schemas().are('other')"}, id="schemas"),
        pytest.param(
            {
                "grants": "Grants(only_defined_roles=False).are("
                "pg.Grant.new('select', to='tenants').on_tables('notes'))"
            },
            id="grants",
        ),
    ],
)
def test_what_drops_ours_is_refused(
    make_project: Callable[..., ForeignProject], what: dict[str, str]
) -> None:
    project = make_project(MODELS)
    project.write_models(MODELS + declare(**what))
    message = project.refusal()
    assert "sqlalchemy_declarative_extensions" in message
    assert "ignore_unspecified=True" in message


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            {
                "roles": "Roles(ignore_unspecified=True).are("
                "pg.Role('tenants', bypass_rls=True))"
            },
            id="role",
        ),
        pytest.param(
            {
                "functions": "Functions(ignore_unspecified=True).are(Function("
                "'current_tenant', 'SELECT 1', schema='tenancy', returns='text'))"
            },
            id="function",
        ),
        pytest.param(
            {
                "grants": "Grants(ignore_unspecified=True, only_defined_roles=False)"
                ".are("
                "pg.Grant.new('truncate', to='tenants').on_tables('notes'))"
            },
            id="grant",
        ),
    ],
)
def test_what_replaces_ours_is_refused(
    make_project: Callable[..., ForeignProject], what: dict[str, str]
) -> None:
    project = make_project(MODELS)
    project.write_models(MODELS + declare(**what))
    assert "sqlalchemy_declarative_extensions" in project.refusal()


def test_ignore_unspecified(
    make_project: Callable[..., ForeignProject], assert_isolated: Callable[..., None]
) -> None:
    project = make_project(MODELS)
    models = MODELS + declare(
        schemas="Schemas(ignore_unspecified=True).are('other')",
        roles="Roles(ignore_unspecified=True).are('reporting')",
        grants="Grants(ignore_unspecified=True).are("
        "pg.Grant.new('select', to='reporting').on_tables('notes'))",
        functions="Functions(ignore_unspecified=True).are("
        "Function('one', 'SELECT 1', returns='integer'))",
        views="Views(ignore_unspecified=True).are("
        "View('note_names', 'SELECT name FROM notes'))",
    )
    project.write_models(models)
    source = project.migrate()
    for expected in (
        'CreateSchema("other")',
        'CREATE ROLE "reporting"',
        "GRANT SELECT",
        "CREATE FUNCTION",
        "CREATE VIEW note_names",
    ):
        assert expected in source
    assert project.is_up_to_date(), project.run("check").output
    assert_isolated("notes")
