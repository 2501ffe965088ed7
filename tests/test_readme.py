"""The README: every block in it is run, in the order of an installation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import Database

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_blocks_are_the_ones_that_are_run_here() -> None:
    counts = {name: len(blocks(name)) for name in ("console", "python", "sql")}
    assert counts == {"console": 3, "python": 2, "sql": 4}
    assert len(re.findall(r"^```\w", README, re.MULTILINE)) == sum(counts.values())


def test_the_commands_to_try_it_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in blocks("console")[0].splitlines():
        assert re.search(
            rf"^{command.removeprefix('$ make ')}:", makefile, re.MULTILINE
        )


def test_the_quickstart(database: Database, tmp_path: Path) -> None:
    models, application = blocks("python")
    superuser_sql, owner_sql, owner_sql_15, shared_sql = (
        re.sub(r"--.*", "", block) for block in blocks("sql")
    )
    install, migrate = blocks("console")[1:]
    assert install.startswith('$ pip install "sqlalchemy-tenants[')

    # the fixture's logins make room for those of the README
    server = database.server
    with server.connect() as connection:
        connection.execute(f"ALTER DATABASE {database.name} OWNER TO superuser")
        connection.execute("DROP ROLE owner, app, app_shared, manager")
        for statement in superuser_sql.split(";"):
            connection.execute(statement)
        connection.execute(shared_sql.partition(";")[0])

    def localhost(text: str) -> str:
        return text.replace("@localhost/shop", f"@{server.host}:{server.port}/shop")

    (tmp_path / "models.py").write_text(models)
    (tmp_path / "application.py").write_text(localhost(application))
    bin_ = Path(sys.executable).parent

    def run(*command: str) -> None:
        result = subprocess.run(
            [bin_ / command[0], *command[1:]],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, result.stdout

    run("alembic", "init", "migrations")
    env = tmp_path / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "target_metadata = None",
            "from models import Base\ntarget_metadata = Base.metadata",
        )
    )
    ini = tmp_path / "alembic.ini"
    url = "postgresql+psycopg://owner@localhost/shop"
    ini.write_text(
        re.sub(
            r"sqlalchemy.url = .*",
            f"sqlalchemy.url = {localhost(url)}",
            ini.read_text(),
        )
    )
    for line in migrate.splitlines():
        run(*re.findall(r'"[^"]*"|\S+', line.removeprefix("$ ")))
    run("alembic", "check")

    grants = owner_sql_15 if server.version == 15 else owner_sql
    with server.connect("shop", "owner") as connection:
        for statement in (grants + shared_sql.partition(";")[2]).split(";"):
            if statement.strip():
                connection.execute(statement)
    run("python", "application.py")


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
