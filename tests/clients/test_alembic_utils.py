"""alembic_utils: policies, grants, functions and views as entities of its own.

It drops each entity in the database that is not registered, of every type that it
knows, even where nothing was registered: importing it is enough.
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

class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

REGISTER = """
from alembic_utils.pg_function import PGFunction
from alembic_utils.pg_grant_table import PGGrantTable
from alembic_utils.pg_policy import PGPolicy
from alembic_utils.pg_view import PGView
from alembic_utils.replaceable_entity import register_entities

register_entities({})
"""

VIEW = """PGView("public", "note_names", "SELECT name FROM notes")"""

MINE = """PGPolicy("public", "mine", on_entity="public.notes",
    definition="AS RESTRICTIVE FOR SELECT TO tenants USING (name <> 'x')")"""

# An entity has a signature; what else is filtered has none.
LEAVE_WHAT_IS_THERE = """
OPTIONS = {"include_object": lambda object, name, type_, reflected, compare_to: not (
    reflected and type_ in ("policy", "grant_table") and hasattr(object, "signature")
)}
"""

ALL_SCHEMAS = """
OPTIONS = {"include_schemas": True}
"""


def register(*entities: str, **options: str) -> str:
    arguments = [f"[{', '.join(entities)}]"]
    arguments += [f"{name}={value}" for name, value in options.items()]
    return REGISTER.format(", ".join(arguments))


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(register() + ALL_SCHEMAS, id="nothing registered"),
        pytest.param(register(VIEW), id="a view"),
        pytest.param(register(MINE), id="a policy of the user's"),
        pytest.param(
            register(MINE, entity_types="[PGPolicy]"), id="policies that are not theirs"
        ),
        pytest.param(
            register(MINE, entity_types="[PGGrantTable]"),
            id="grants not theirs",
        ),
        pytest.param(
            register(
                """PGPolicy("public", "tenant_floor", on_entity="public.notes",
                definition="AS RESTRICTIVE FOR ALL TO tenants USING (true)")""",
            ),
            id="a policy that replaces ours",
        ),
        pytest.param(
            register(
                """PGFunction("tenancy", "current_tenant()",
                "RETURNS text LANGUAGE sql AS $$SELECT 'acme'$$")""",
                entity_types="[PGFunction]",
            ),
            id="a function that replaces ours",
        ),
        pytest.param(
            register(VIEW, entity_types="[PGFunction, PGView]") + ALL_SCHEMAS,
            id="a function that is not theirs",
        ),
    ],
)
def test_what_drops_or_replaces_ours_is_refused(
    make_project: Callable[..., ForeignProject], models: str
) -> None:
    project = make_project(MODELS)
    project.write_models(MODELS + models)
    message = project.refusal()
    assert "alembic_utils" in message
    assert "entity_types" in message


def test_no_revision_is_written(make_project: Callable[..., ForeignProject]) -> None:
    project = make_project(MODELS)
    project.write_models(MODELS + register(VIEW))
    before = list(project.path.rglob("*.py"))
    project.refusal("revision", "--autogenerate")
    assert list(project.path.rglob("*.py")) == before


# TRUNCATE is not subject to row-level security.
def test_a_grant_to_tenants_is_refused(
    make_project: Callable[..., ForeignProject],
) -> None:
    project = make_project(MODELS)
    grant = """PGGrantTable("public", "notes", "tenants", "TRUNCATE")"""
    project.write_models(MODELS + register(grant) + LEAVE_WHAT_IS_THERE)
    message = project.refusal().lower()
    assert "alembic_utils" in message
    assert "grant truncate on public.notes to tenants" in message
    assert "revoke" not in message


def test_entity_types(
    make_project: Callable[..., ForeignProject], assert_isolated: Callable[..., None]
) -> None:
    project = make_project(MODELS)
    models = MODELS.replace(
        "@with_rls",
        """@with_rls(policies=[
    Policy("mine", using="name <> 'x'", permissive=False, command="SELECT")
])""",
    )
    project.write_models(models + register(VIEW, entity_types="[PGFunction, PGView]"))
    source = project.migrate()
    assert "op.create_entity(public_note_names)" in source
    assert "op.create_policy(" in source
    assert project.is_up_to_date(), project.run("check").output
    assert_isolated("notes")


def test_include_object(
    make_project: Callable[..., ForeignProject], assert_isolated: Callable[[str], None]
) -> None:
    project = make_project(MODELS)
    project.write_models(MODELS + register(VIEW) + LEAVE_WHAT_IS_THERE)
    assert "op.create_entity(public_note_names)" in project.migrate()
    assert project.is_up_to_date(), project.run("check").output
    assert_isolated("notes")


def test_tables_without_tenants_are_its_own(
    make_project: Callable[..., ForeignProject],
) -> None:
    project = make_project(MODELS)
    policy = """PGPolicy("public", "anyone", on_entity="public.plain",
        definition="AS PERMISSIVE FOR SELECT TO public USING (true)")"""
    project.write_models(MODELS + register(policy) + LEAVE_WHAT_IS_THERE)
    assert "op.create_entity(public_plain_anyone)" in project.autogenerate()


def test_without_tenants_it_does_as_it_likes(
    make_project: Callable[..., ForeignProject],
) -> None:
    models = MODELS.replace("@with_rls", "").replace("TenantMixin, ", "")
    project = make_project(models)
    mine = MINE.replace("TO tenants", "TO public")
    project.write_models(models + register(mine))
    assert "op.create_entity(public_notes_mine)" in project.autogenerate()
