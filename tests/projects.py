"""Throw-away Alembic projects, and snapshots of a catalog.

A :class:`Project` is a directory with models and an ``env.py``, as ``alembic init``
would make it, and runs the ``alembic`` command line: in this process, which takes a
tenth of the time of a new one, or in a new one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import alembic
from alembic.config import CommandLine, Config

from servers import SUPERUSER, Database

TEMPLATE = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"

ENV = """
import os
import runpy

from alembic import context
from sqlalchemy import create_engine, pool

models = runpy.run_path({models!r})
options = {{
    "target_metadata": models["metadata"] if "metadata" in models
    else models["Base"].metadata,
}}
options.update(models.get("OPTIONS", {{}}))
{options}
URL = {url!r}

if context.is_offline_mode():
    context.configure(
        url=URL, literal_binds=True, dialect_opts={{"paramstyle": "named"}}, **options
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(URL, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

#: What most models begin with.
HEADER = """
from decimal import Decimal
from uuid import UUID
import sqlalchemy as sa
from sqlalchemy import *
from sqlalchemy.orm import *
from sqlalchemy_tenants import *

class Base(DeclarativeBase):
    pass
"""


@dataclass(frozen=True)
class Result:
    """What a run of ``alembic`` left: its exit status and what it printed."""

    status: int
    output: str


class Project:
    """An Alembic project in a directory of its own.

    :param path: an empty directory.
    :param database: where its migrations run.
    :param models: source of the models, after ``HEADER``.
    :param login: whom the migrations run as.
    :param options: statements of ``env.py`` that change the dictionary ``options``,
        the arguments of ``context.configure()``.
    :param env: the whole ``env.py``, instead.
    """

    def __init__(
        self,
        path: Path,
        database: Database,
        models: str,
        *,
        login: str = "owner",
        options: str = "",
        env: str | None = None,
    ) -> None:
        self.path = path
        self.database = database
        self.url = database.url(login)
        migrations = path / "migrations"
        (migrations / "versions").mkdir(parents=True)
        (migrations / "script.py.mako").write_text(TEMPLATE.read_text())
        (path / "alembic.ini").write_text(
            f"[alembic]\nscript_location = {migrations}\npath_separator = os\n"
        )
        self.env = migrations / "env.py"
        self.write_env(options, env)
        self.write_models(models)
        self._revisions = 0

    def write_env(self, options: str = "", env: str | None = None) -> None:
        """Replace ``env.py``."""
        models = str(self.path / "models.py")
        self.env.write_text(
            env or ENV.format(models=models, url=self.url, options=options)
        )

    def write_models(self, models: str) -> None:
        """Replace the models."""
        (self.path / "models.py").write_text(HEADER + models)

    def run(self, *arguments: str) -> Result:
        """Run the command line in this process."""
        output = StringIO()
        command_line = CommandLine()
        options = command_line.parser.parse_args(arguments)
        config = Config(
            self.path / "alembic.ini",
            stdout=output,
            output_buffer=output,
            cmd_opts=options,
        )
        status = 0
        try:
            command_line.run_cmd(config, options)
        except SystemExit as error:
            status = int(error.code or 0)
        return Result(status, output.getvalue())

    def spawn(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> Result:
        """Run the command line in a process of its own, with the installed package."""
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.path,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Result(done.returncode, done.stdout)

    def must(self, *arguments: str) -> str:
        """Run the command line, and return what it printed.

        :raises AssertionError: it failed.
        """
        result = self.run(*arguments)
        assert result.status == 0, result.output
        return result.output

    def autogenerate(self, *arguments: str) -> str:
        """Write a revision, and return its source without comments and head."""
        self._revisions += 1
        rev_id = f"r{self._revisions:03}"
        self.must(
            "revision", "--autogenerate", "--rev-id", rev_id, "-m", "x", *arguments
        )
        return self.source(rev_id)

    def source(self, rev_id: str) -> str:
        """Return the body of a revision: its imports are not of interest."""
        (path,) = (self.path / "migrations" / "versions").glob(f"{rev_id}_*.py")
        return path.read_text().partition("def upgrade")[2]

    def migrate(self) -> str:
        """Autogenerate, upgrade, and return the revision's body."""
        source = self.autogenerate()
        self.must("upgrade", "heads")
        return source

    def is_up_to_date(self) -> bool:
        """Whether ``alembic check`` finds nothing."""
        result = self.run("check")
        assert (result.status == 0) is ("No new upgrade operations" in result.output)
        return result.status == 0


def upgrade_of(source: str) -> str:
    """Return the upgrade's part of a revision's body."""
    return source.partition("def downgrade")[0]


def downgrade_of(source: str) -> str:
    """Return the downgrade's part of a revision's body."""
    return source.partition("def downgrade")[2]


_SYSTEM = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"


def _acl(kind: str, acl: str, owner: str) -> str:
    return (
        "(SELECT array_agg(x ORDER BY x) FROM (SELECT pg_catalog.concat_ws(' ', "
        "CASE WHEN a.grantee = 0 THEN 'public' ELSE a.grantee::regrole::text END, "
        "a.privilege_type, a.is_grantable, a.grantor::regrole::text) AS x "
        f"FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) a) y)"
    )


SNAPSHOT = f"""
SELECT 'role', rolname, concat_ws(' ', rolsuper, rolinherit, rolcreaterole, rolcreatedb,
    rolcanlogin, rolreplication, rolbypassrls, rolconfig,
    shobj_description(oid, 'pg_authid'))
FROM pg_roles
UNION ALL
SELECT 'membership', m.roleid::regrole || ' to ' || m.member::regrole,
    (to_jsonb(m) - '{{oid,roleid,member,grantor}}'::text[])::text || m.grantor::regrole
FROM pg_auth_members m
UNION ALL
SELECT 'schema', n.nspname, concat_ws(' ', n.nspowner::regrole,
    obj_description(n.oid, 'pg_namespace'), {_acl("n", "n.nspacl", "n.nspowner")})
FROM pg_namespace n WHERE {_SYSTEM}
UNION ALL
SELECT 'default privileges', concat_ws(' ', d.defaclrole::regrole,
    d.defaclnamespace::regnamespace, d.defaclobjtype),
    {_acl("r", "d.defaclacl", "d.defaclrole")}::text
FROM pg_default_acl d
UNION ALL
SELECT 'function', p.oid::regprocedure::text, concat_ws(' ', p.proowner::regrole,
    pg_get_functiondef(p.oid), {_acl("f", "p.proacl", "p.proowner")},
    obj_description(p.oid, 'pg_proc'))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE {_SYSTEM} AND p.prokind = 'f'
UNION ALL
SELECT 'relation', c.oid::regclass::text, concat_ws(' ', c.relkind, c.relowner::regrole,
    c.relrowsecurity, c.relforcerowsecurity, CASE
        WHEN c.relkind = 'S' THEN {_acl("s", "c.relacl", "c.relowner")}
        WHEN c.relkind <> 'i' THEN {_acl("r", "c.relacl", "c.relowner")} END,
    CASE WHEN c.relkind IN ('i', 'I') THEN pg_get_indexdef(c.oid) END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_SYSTEM} AND c.relname !~ '^alembic_version'
UNION ALL
SELECT 'column', c.oid::regclass || '.' || a.attname, concat_ws(' ',
    format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
    (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        WHERE adrelid = a.attrelid AND adnum = a.attnum),
    CASE WHEN a.attacl IS NOT NULL THEN {_acl("c", "a.attacl", "c.relowner")} END)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE {_SYSTEM} AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v')
UNION ALL
SELECT 'constraint', k.conrelid::regclass || '.' || k.conname,
    concat_ws(' ', pg_get_constraintdef(k.oid), k.convalidated)
FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
WHERE {_SYSTEM} AND k.conrelid <> 0
UNION ALL
SELECT 'policy', p.polrelid::regclass || '.' || p.polname, concat_ws(' ', p.polcmd,
    p.polpermissive, ARRAY(SELECT r::regrole FROM unnest(p.polroles) r ORDER BY 1),
    pg_get_expr(p.polqual, p.polrelid), 'WITH CHECK',
    pg_get_expr(p.polwithcheck, p.polrelid), obj_description(p.oid, 'pg_policy'))
FROM pg_policy p
"""


def snapshot(database: Database) -> list[str]:
    """Return everything in the catalog that a migration here could change.

    Privileges are listed with those that an object has by default, so that a privilege
    that was granted and revoked leaves no trace.
    """
    with database.server.connect(database.name, SUPERUSER) as connection:
        connection.execute("SET search_path = ''")
        rows = connection.execute(SNAPSHOT).fetchall()
    lines = (" | ".join(str(value) for value in row) for row in rows)
    return sorted(line for line in lines if not re.search("alembic_version", line))


def assert_migrates(project: Project, models: str) -> str:
    """Go over to other models and back: both ways exact, and nothing left to do.

    :return: the revision's body.
    """
    database = project.database
    before = snapshot(database)
    project.write_models(models)
    source = project.autogenerate()
    assert "op." in upgrade_of(source)
    project.must("upgrade", "heads")
    assert project.is_up_to_date(), source
    after = snapshot(database)
    project.must("downgrade", "-1")
    assert snapshot(database) == before, downgrade_of(source)
    project.must("upgrade", "heads")
    assert snapshot(database) == after
    return source
