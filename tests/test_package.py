"""The package as installed: what importing it loads, and what it offers."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import sqlalchemy_tenants
from sqlalchemy_tenants import Tenancy


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "sqlalchemy_tenants",
        "sqlalchemy_tenants.managers",
        "sqlalchemy_tenants.aio",
        "sqlalchemy_tenants.aio.testing",
    ],
)
def test_an_application_loads_neither_alembic_nor_a_driver(module: str) -> None:
    python(
        f"import {module}, sys\n"
        "unwanted = {'alembic', 'alembic_ext', 'sqlglot', 'psycopg', 'asyncpg'}\n"
        "unwanted |= {'click', 'sqlalchemy_tenants.command_line'}\n"
        "assert not unwanted & set(sys.modules), unwanted & set(sys.modules)"
    )


def test_an_application_loads_the_check_only_to_check() -> None:
    python(
        "import sqlalchemy_tenants.aio.managers, sys\n"
        "assert not any('tenants.database' in name for name in sys.modules)"
    )


def test_an_application_loads_rows_only_to_move_them() -> None:
    python(
        "import sqlalchemy_tenants.aio.managers, sys\n"
        "assert not any('tenants.rows' in name for name in sys.modules)\n"
        "import sqlalchemy_tenants.rows\n"
        "unwanted = {'alembic', 'sqlglot', 'psycopg', 'asyncpg'}\n"
        "assert not unwanted & set(sys.modules)"
    )


def test_an_application_without_a_context_does_not_load_it() -> None:
    python(
        "import sqlalchemy_tenants.aio.managers, sys\n"
        "import sqlalchemy as sa, sqlalchemy_tenants as tenants\n"
        "tenants.TenantSession(tenant='acme')\n"
        "modules = {'sqlalchemy_tenants.context', 'sqlalchemy_tenants.values'}\n"
        "assert not modules & set(sys.modules)\n"
        "tenants.TenantSession(tenant='acme', context={})\n"
        "assert 'sqlalchemy_tenants.context' not in sys.modules\n"
        "tenants.context_value('user_id')"
    )


def test_alembic_does_not_load_sqlglot() -> None:
    python("import alembic.command, sys; assert 'sqlglot' not in sys.modules")


@pytest.mark.parametrize(
    "module",
    [
        "alembic",
        "alembic.op",
        "alembic.operations",
        "alembic.autogenerate.render",
        "alembic.runtime.plugins",
        "alembic_ext.plugin",
        "alembic_ext.ops",
        "alembic_ext.compare",
        "alembic_ext.directives",
        "sqlalchemy_tenants.roles",
    ],
)
def test_whichever_module_is_imported_first(module: str) -> None:
    python(
        f"import {module}\n"
        "import alembic.op, alembic.runtime.plugins as plugins\n"
        "assert 'alembic.autogenerate.tenants' in plugins._all_plugins\n"
        "assert alembic.op.create_tenant_role"
    )


def test_the_entry_point() -> None:
    (entry_point,) = metadata.entry_points(group="alembic.plugins")
    assert entry_point.name == "alembic.autogenerate.tenants"
    assert entry_point.value == "alembic_ext.plugin"


def test_public_names() -> None:
    for name in sqlalchemy_tenants.__all__:
        assert getattr(sqlalchemy_tenants, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sqlalchemy_tenants.nothing  # type: ignore[attr-defined]


def test_the_runtime_uses_no_private_name_of_another_package() -> None:
    nodes = [
        node
        for file in Path(sqlalchemy_tenants.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
    ]
    assert len(nodes) > 10_000
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ours = {node.name for node in nodes if isinstance(node, definitions)}
    used = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            (ours if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used |= {node.module or "", *(alias.name for alias in node.names)}
    private = {name for name in used - ours if re.search(r"(^|\.)_[^_]", name)}
    assert private == set()


DIRECTIVES = [
    "create_tenancy",
    "drop_tenancy",
    "replace_tenant_function",
    "create_group_role",
    "drop_group_role",
    "alter_group_role",
    "grant_membership",
    "revoke_membership",
    "create_tenant_role",
    "drop_tenant_role",
    "grant_tenant_role",
    "revoke_tenant_role",
    "enable_rls",
    "disable_rls",
    "create_policy",
    "alter_policy",
    "drop_policy",
    "alter_table_owner",
    "grant_privileges",
    "revoke_privileges",
]


@pytest.mark.parametrize("name", DIRECTIVES)
def test_operations_are_functions_of_alembic_op(name: str) -> None:
    """Their docstrings have an example, what they emit, and all of their parameters."""
    from alembic import op
    from alembic.operations import Operations

    doc = getattr(op, name).__doc__
    assert f"e.g.::\n\n        op.{name}(" in doc
    assert "\n    Emits " in doc
    assert ":raises " in doc
    parameters = list(inspect.signature(getattr(Operations, name)).parameters)[1:]
    documented = set(re.findall(r":param (\w+):", doc))
    if name in ("create_tenancy", "drop_tenancy"):
        assert "The parameters are those of :class:`sqlalchemy_tenants.Tenancy`" in doc
        documented |= set(inspect.signature(Tenancy).parameters)
    assert set(parameters) <= documented


def test_a_directive_refuses_what_it_does_not_know() -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    op: Any = Operations(MigrationContext.configure(dialect_name="postgresql"))
    for call in (
        lambda: op.enable_rls("t", existing=(True, True)),
        lambda: op.grant_privileges("t", "SELECT", "app", grant_option=True),
        lambda: op.drop_policy("p", "t", comment="x"),
        lambda: op.create_policy("p"),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()
