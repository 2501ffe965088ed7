"""The templates of ``alembic init``, with nothing filled in but the metadata."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from projects import Project, snapshot
from servers import Database


@pytest.mark.parametrize(
    "template", ["generic", "async", "pyproject", "pyproject_async", "multidb"]
)
def test_templates_of_alembic_with_nothing_but_the_metadata(
    database: Database, tmp_path: Path, template: str
) -> None:
    project = Project.__new__(Project)
    project.path, project.database = tmp_path, database
    assert project.spawn("init", "-t", template, "migrations").status == 0
    env = tmp_path / "migrations" / "env.py"
    text = env.read_text()
    models = "from sqlalchemy import *; from sqlalchemy_tenants import with_rls\n"
    models += (
        "metadata = MetaData()\n"
        "with_rls(Table('t', metadata, Column('id', Uuid, primary_key=True),"
        " Column('tenant', Text, nullable=False)))\n"
    )
    (tmp_path / "models.py").write_text(models)
    metadata = (
        "{'engine1': metadata, 'engine2': MetaData()}"
        if template == "multidb"
        else "metadata"
    )
    text = re.sub(
        "^target_metadata = .*$",
        f"from models import MetaData, metadata\ntarget_metadata = {metadata}",
        text,
        flags=re.MULTILINE,
    )
    env.write_text(text)
    url = database.url("owner", "asyncpg" if "async" in template else "psycopg")
    ini = tmp_path / "alembic.ini"
    text = ini.read_text()
    text = text.replace(
        "driver://user:pass@localhost/dbname2", f"sqlite:///{tmp_path}/x"
    )
    ini.write_text(text.replace("driver://user:pass@localhost/dbname", url))

    before = snapshot(database)
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}

    def run(*arguments: str) -> str:
        result = project.spawn(*arguments, environment=environment)
        assert result.status == 0, result.output
        return result.output

    # Alembic's own logging configuration shows what was detected
    output = run("revision", "--autogenerate", "-m", "x")
    assert "[alembic.autogenerate.tenants] Detected missing policy" in output
    run("upgrade", "head")
    assert any(line.startswith("policy | public.t.") for line in snapshot(database))
    run("check")
    run("downgrade", "base")
    assert snapshot(database) == before
