"""The command line: as a process once, otherwise in this one, on real servers."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Identity, UniqueConstraint, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from projects import Project
from servers import SUPERUSER, Database, bin_dir, requested_version
from sqlalchemy_tenants import TenantMixin, shared_table, with_rls
from sqlalchemy_tenants.command_line import cli
from sqlalchemy_tenants.command_line.connecting import database_url
from sqlalchemy_tenants.command_line.failures import Failure
from sqlalchemy_tenants.command_line.logins import EXECUTING
from tenancy import grant_logins, migrate, migrated_fixture  # noqa: F401

ROOT = Path(__file__).parent.parent

#: The models of the module "tenancy", beside this one.
MODELS = "tenancy:Base"


class Shop(DeclarativeBase):
    """Models whose tenants are all text, so that one tenant has rows in each."""


@with_rls
class Order(TenantMixin, Shop):
    __tablename__ = "orders"
    __table_args__ = (UniqueConstraint("tenant", "id"),)
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    note: Mapped[str | None]


@shared_table
class Country(Shop):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)


#: The models above.
SHOP = "test_command_line:Shop"

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in this process, in a directory of its own, which may fail only in
    the way of a command: no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("SQLALCHEMY_TENANTS")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, status: int = 0, **kw: Any) -> Result:
        result = CliRunner().invoke(cli, arguments, **kw)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exc_info
        )
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def shop(database: Database) -> Database:
    """A database with the tables of the models above."""
    migrate(database, Shop.metadata)
    grant_logins(database)
    return database


@pytest.fixture
def tenants(run: Run, shop: Database) -> Run:
    """Run one of the commands of tenants, as the logins ``app`` and ``manager``."""
    environment = {
        "SQLALCHEMY_TENANTS_URL": shop.app_url,
        "SQLALCHEMY_TENANTS_ADMIN_URL": shop.admin_url,
        "SQLALCHEMY_TENANTS_MODELS": SHOP,
        "SQLALCHEMY_TENANTS_SCHEMA": "public",
    }
    return lambda *arguments, **kw: run("tenants", *arguments, env=environment, **kw)


def process(
    *arguments: str | Path, stdout: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=ROOT / "tests",
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


# --- the command ----------------------------------------------------------------------


def test_it_is_a_command_and_a_module(migrated: Database) -> None:
    command = Path(sys.executable).parent / "sqlalchemy-tenants"
    # behind "| head", too, which goes away
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = process(command, "setup", "--database", "shop", stdout=closed)
    assert (done.returncode, done.stderr) == (1, "")
    migrated.execute("ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
    done = process(
        *(sys.executable, "-W", "error", "-m", "sqlalchemy_tenants"),
        *("check", migrated.app_url, MODELS),
    )
    assert done.returncode == 1, done.stderr
    assert "rls-disabled" in done.stdout
    assert done.stderr == ""


def test_it_says_how_to_install_what_it_needs() -> None:
    code = (
        "import sys; sys.modules['click'] = None\n"
        "from sqlalchemy_tenants.__main__ import main; main()"
    )
    done = process(sys.executable, "-c", code)
    assert done.returncode == 2
    assert 'pip install "sqlalchemy-tenants[cli]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_its_version(run: Run) -> None:
    expected = f"sqlalchemy-tenants, version {metadata.version('sqlalchemy-tenants')}\n"
    assert run("--version").output == expected


@pytest.mark.parametrize(
    "command",
    [
        ["check"],
        ["setup"],
        ["tenants"],
        *(["tenants", name] for name in cli.commands["tenants"].commands),  # type: ignore[attr-defined]
    ],
    ids=" ".join,
)
def test_the_documentation_names_each_command_and_option(
    run: Run, command: list[str]
) -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    help_ = run(*command, "--help").output
    assert f"`{' '.join(command)}" in page
    for option in set(re.findall(r"--[a-z-]+", help_)) - {"--help"}:
        assert option in page, option


# --- check ----------------------------------------------------------------------------


def test_a_sound_database(run: Run, migrated: Database) -> None:
    result = run("check", migrated.app_url, MODELS, "--strict")
    assert result.output == "4 tables of tenants: 0 errors, 0 warnings\n"
    assert json.loads(run("check", migrated.app_url, MODELS, "--json").output) == []
    shared = ("check", migrated.shared_url, MODELS, "--isolation", "shared")
    run(*shared, "--strict")
    # the order does not matter, and the environment does where an argument is missing
    environment = {"SQLALCHEMY_TENANTS_URL": migrated.app_url}
    run("check", MODELS, env=environment)
    environment["SQLALCHEMY_TENANTS_MODELS"] = MODELS
    run("check", env=environment)
    run("check", MODELS, migrated.app_url)


def test_findings(run: Run, migrated: Database) -> None:
    arguments = ("check", migrated.app_url, MODELS)
    migrated.execute("DROP INDEX ix_counts_tenant")
    result = run(*arguments)
    assert "warning  index-missing  public.counts: " in result.output
    assert "1 warnings" in result.output
    run(*arguments, "--strict", status=1)
    migrated.execute("ALTER TABLE notes DISABLE ROW LEVEL SECURITY")
    result = run(*arguments, status=1)
    assert "error    rls-disabled   public.notes: " in result.output
    found = json.loads(run(*arguments, "--json", status=1).stdout)
    assert [each["code"] for each in found] == ["rls-disabled", "index-missing"]
    assert set(found[0]) == {"code", "object", "severity", "message", "remedy"}
    assert run(*arguments, "--schema", "nowhere", status=1)


MODULE = """
from sqlalchemy import MetaData
from sqlalchemy.orm import registry
from tenancy import Base
class Holder:
    inner = Base
metadata = Base.metadata
empty = MetaData()
number = 7
"""


def test_the_models_come_from_the_current_directory(
    run: Run, migrated: Database
) -> None:
    Path("pack").mkdir()
    Path("pack", "__init__.py").write_text("")
    Path("pack", "described.py").write_text(MODULE)
    Path("broken.py").write_text("\n\nraise RuntimeError('not today')\n")
    Path("lacking.py").write_text("import a_module_that_is_not_there\n")
    Path("leaving.py").write_text("import sys\nsys.exit('I leave')\n")
    for attribute in ("metadata", "Base", "Holder.inner"):
        run("check", migrated.app_url, f"pack.described:{attribute}")
    for models, message in {
        "pack.described": "MODULE:ATTRIBUTE",
        "pack.described:": "MODULE:ATTRIBUTE",
        ".described:Base": "MODULE:ATTRIBUTE",
        "pack.described:Bse": "pack.described has no attribute 'Bse'",
        "pack.described:Holder.outer": "Holder has no attribute 'outer'",
        "pack.described:number": "neither a declarative base nor a MetaData but a int",
        "pack.described:empty": "no table that belongs to tenants",
        "nowhere.models:Base": "there is no module 'nowhere'",
        "pack.nowhere:Base": "there is no module 'pack.nowhere'",
        "broken:Base": r"RuntimeError: not today \(.*broken.py, line 3\)",
        "lacking:Base": "No module named 'a_module_that_is_not_there'",
        "leaving:Base": "I leave",
    }.items():
        result = run("check", migrated.app_url, models, status=2)
        assert re.search(message, result.stderr.replace("\n", " ")), result.stderr


# --- URLs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://app@h/shop", "postgresql+psycopg://app@h/shop"),
        ("postgres://app@h/shop", "postgresql+psycopg://app@h/shop"),
        ("postgresql+psycopg2://app@h/shop", "postgresql+psycopg://app@h/shop"),
        ("postgresql+psycopg_async://h/shop", "postgresql+psycopg://h/shop"),
        (
            "postgresql+asyncpg://h/shop?ssl=verify-full&timeout=5"
            "&prepared_statement_cache_size=0&application_name=x",
            "postgresql+psycopg://h/shop?sslmode=verify-full&connect_timeout=5"
            "&application_name=x",
        ),
        ("postgresql:///shop?host=/tmp", "postgresql+psycopg:///shop?host=/tmp"),
    ],
)
def test_whatever_driver_a_url_names_psycopg_connects(
    given: str, expected: str
) -> None:
    assert database_url(given) == make_url(expected)


def test_a_url_needs_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Failure, match=r"pip install .*\[cli\]"):
        database_url("postgresql+asyncpg://h/shop")


SECRET = "s3cr3t"

#: Ways to get it wrong: each is an error of its own, and none shows the password.
WRONG = {
    "no-server": (f"postgresql://app:{SECRET}@127.0.0.1:1/shop", "refused"),
    "no-host": (f"postgresql://app:{SECRET}@nowhere.invalid/shop", "nowhere.invalid"),
    "at-sign": (f"postgresql://app:x@{SECRET}@127.0.0.1:1/shop", "%40"),
    "no-port": (f"postgresql://app:{SECRET}@127.0.0.1:port/shop", "no URL"),
    "bad-option": (f"postgresql://app:{SECRET}@127.0.0.1/shop?nothing=1", "nothing"),
    "in-query": (f"postgresql://127.0.0.1:1/shop?password={SECRET}", "refused"),
    "sqlite": (f"sqlite://app:{SECRET}@/shop", "PostgreSQL"),
    "mysql": (f"mysql+nothing://app:{SECRET}@h/shop", "PostgreSQL"),
    "no-backend": (f"://app:{SECRET}@h/shop", "no URL"),
}


@pytest.mark.parametrize(("url", "message"), WRONG.values(), ids=WRONG)
def test_a_url_that_does_not_work(run: Run, url: str, message: str) -> None:
    for result in (
        run("check", url, MODELS, status=2),
        run("tenants", "list", "--url", url, "--models", MODELS, status=2),
    ):
        assert message in result.stderr
        assert SECRET not in result.output


URL = f"postgresql+asyncpg://app:{SECRET}@h/shop?password={SECRET}"


@pytest.mark.parametrize(
    "arguments",
    [
        [URL],
        ["check", URL, URL],
        ["check", MODELS, MODELS, URL],
        ["setup", URL],
        ["setup", "--database", "shop", "--server", URL],
        ["tenants", URL],
        ["tenants", "list", URL],
        ["tenants", "create", URL],
        ["tenants", "list", "--models", URL],
        ["tenants", "list", "--isolation", URL],
        ["tenants", "list", "--url", f"app:{SECRET}@h"],
        ["check", f"{URL} ", MODELS],
    ],
    ids=" ".join,
)
def test_a_url_in_the_wrong_place(run: Run, arguments: list[str]) -> None:
    assert SECRET not in run(*arguments, status=2).output


def test_no_url_and_no_models(run: Run) -> None:
    assert "SQLALCHEMY_TENANTS_URL" in run("check", MODELS, status=2).stderr
    assert "SQLALCHEMY_TENANTS_MODELS" in run("check", status=2).stderr


# --- tenants --------------------------------------------------------------------------


def test_tenants_are_created_and_listed(tenants: Run) -> None:
    assert tenants("list").output == ""
    assert tenants("create", "acme", "globex").output == "2 created, 0 there already\n"
    Path("names").write_text("initech\nacme\n\nÆther \r\n", encoding="utf-8")
    result = tenants("create", "--file", "names", "umbrella")
    assert result.output == "3 created, 1 there already\n"
    result = tenants("create", "--quiet", "--file", "-", input="hooli\nacme\n")
    assert result.output == ""
    found = ["acme", "globex", "hooli", "initech", "umbrella", "Æther "]
    assert tenants("list").output.splitlines() == found
    assert json.loads(tenants("list", "--json").output) == found


def test_what_cannot_be_created(tenants: Run, shop: Database) -> None:
    tenants("create", status=2)
    tenants("create", "-", status=2)
    tenants("create", "--file", "nowhere", status=2)
    assert "56" in tenants("create", "x" * 57, status=1).stderr
    assert SECRET not in tenants("create", URL, status=2).output
    assert SECRET not in tenants("create", "--file", "-", status=2, input=URL).output
    assert tenants("list").output == ""
    shop.execute("CREATE ROLE tenant_other")
    assert "not a member" in tenants("create", "other", status=1).stderr
    result = tenants("create", "acme", "--admin-url", shop.app_url, status=1)
    assert "CREATEROLE" in result.stderr
    # the statement and its parameters are not shown, which may hold rows
    shop.execute("REVOKE CONNECT ON DATABASE test FROM PUBLIC")
    result = tenants("list", status=2)
    assert "permission denied for database" in result.stderr
    assert tenants("create", "x", "--isolation", "shared", status=1)


def test_suspending(tenants: Run) -> None:
    tenants("create", "acme", "globex")
    assert tenants("suspend", "acme").output == ""
    assert tenants("list", "--suspended").output == "acme\n"
    assert tenants("list").output == "acme\nglobex\n"
    # creating it again does not open it
    assert tenants("create", "acme").output == "0 created, 1 there already\n"
    assert tenants("list", "--suspended").output == "acme\n"
    tenants("resume", "acme")
    assert tenants("list", "--suspended").output == ""
    assert "'nobody'" in tenants("suspend", "nobody", status=1).stderr
    shared = ("--isolation", "shared")
    assert "shared" in tenants("suspend", "acme", *shared, status=1).stderr


def test_a_tenant_is_deleted_with_and_without_its_rows(
    tenants: Run, shop: Database
) -> None:
    count = "SELECT tenant, count(*) FROM orders GROUP BY tenant ORDER BY tenant"
    shop.execute(
        "INSERT INTO orders (tenant, note) VALUES ('acme', ''), ('acme', ''),"
        " ('globex', ''), ('initech', '')"
    )
    tenants("create", "acme", "globex", "initech")
    for answer, status in (("n\n", 1), ("", 2)):
        tenants("delete", "acme", "--rows", status=status, input=answer)
        assert tenants("list").output == "acme\nglobex\ninitech\n"
    result = tenants("delete", "acme", "--dry-run")
    assert re.search(r"^ +2  orders$", result.output, re.MULTILINE)
    assert shop.rows(count) == [("acme", 2), ("globex", 1), ("initech", 1)]
    result = tenants("delete", "acme", "--rows", input="y\n")
    assert "Delete tenant 'acme' and all of its rows?" in result.stderr
    assert re.search(r"^ +2  rows deleted$", result.stdout, re.MULTILINE)
    tenants("delete", "globex", "--yes")
    assert tenants("list").output == "initech\n"
    assert shop.rows(count) == [("globex", 1), ("initech", 1)]
    assert "'acme'" in tenants("delete", "acme", "--yes", status=1).stderr
    # where the database keeps no tenants there is nothing to delete but rows
    shared = ("--isolation", "shared", "--url", shop.shared_url)
    tenants("delete", "globex", "--yes", *shared, status=1)
    assert tenants("delete", "globex", "--rows", "--yes", "-q", *shared).output == ""
    assert shop.rows(count) == [("initech", 1)]


def test_a_tenant_moves(tenants: Run, shop: Database) -> None:
    shop.execute("INSERT INTO orders (tenant, note) VALUES ('acme', 'mine')")
    tenants("create", "acme", "globex")
    result = tenants("export", "acme", "acme.rows")
    assert re.search(r"^ +1  rows exported$", result.output, re.MULTILINE)
    assert "all tenants share them: countries" in result.output
    assert "acme.rows" in tenants("export", "acme", "acme.rows", status=2).stderr
    tenants("export", "acme", "acme.rows", "--overwrite", "--quiet")
    # it is there already, and another's
    tenants("import", "acme", "acme.rows", status=1)
    tenants("import", "globex", "acme.rows", status=1)
    assert "nowhere" in tenants("import", "acme", "nowhere", status=2).stderr
    tenants("delete", "acme", "--rows", "--yes")
    # whoever owns the tables sets their sequences
    as_owner = ("--admin-url", shop.owner_url)
    tenants("import", "acme", "acme.rows", "--as", "globex", *as_owner)
    tenants("rename", "globex", "umbrella")
    assert shop.rows("SELECT tenant, note FROM orders") == [("umbrella", "mine")]
    assert tenants("list").output == "umbrella\n"
    assert "umbrella" in tenants("rename", "globex", "umbrella", status=1).stderr


def on_terminal(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Run the command on a terminal, and return its status and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        command = [sys.executable, "-m", "sqlalchemy_tenants", *arguments]
        os.execv(command[0], command)
    shown = b""
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:  # Linux: the other side is closed
        pass
    finally:
        os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_progress_is_for_terminals(shop: Database) -> None:
    names = [str(i) for i in range(300)]
    arguments = (
        *("tenants", "create", *names, "--models", SHOP),
        *("--url", shop.app_url, "--admin-url", shop.admin_url),
    )
    status, shown = on_terminal(*arguments, cwd=ROOT / "tests")
    assert status == 0, shown
    assert re.search(r"tenants +\[#+-* *\] +250/300", shown), shown
    assert "300/300" in shown


@contextmanager
def interrupted(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the command, and interrupt it at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "sqlalchemy_tenants", *arguments],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        yield running
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert running.stderr is not None
        assert running.stderr.read().strip() == "Error: interrupted"


def test_ctrl_c_while_it_reads(shop: Database, tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(
        f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n"
        "from tenancy import Base; print('imported', flush=True)\n"
    )
    options = ("--models", "models:Base", "--url", shop.app_url)
    command = ("tenants", "create", "--file", "-", *options)
    with interrupted(*command, cwd=tmp_path) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "imported\n"


def test_ctrl_c_while_it_exports(tenants: Run, shop: Database, tmp_path: Path) -> None:
    tenants("create", "acme")
    command = ("tenants", "export", "acme", str(tmp_path / "acme.rows"))
    options = ("--models", SHOP, "--url", shop.app_url)
    with (
        shop.server.connect(shop.name) as locking,
        locking.transaction(),
        interrupted(*command, *options, cwd=ROOT / "tests") as running,
    ):
        locking.execute("LOCK TABLE orders")
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        while not shop.rows(waiting):
            assert running.poll() is None
    assert list(tmp_path.iterdir()) == []


# --- setup ----------------------------------------------------------------------------

SERVER = str(requested_version())


@pytest.fixture
def bare(database: Database) -> Database:
    """A server without logins, and the database that is to be there afterwards."""
    server = database.server
    database.execute(f"ALTER DATABASE {database.name} OWNER TO {SUPERUSER}")
    database.execute("DROP ROLE owner, app, app_shared, manager")
    return Database("shop", server)


def psql(database: Database, script: str) -> subprocess.CompletedProcess[str]:
    directory = bin_dir(database.server.version)
    assert directory is not None
    return subprocess.run(
        [
            *(directory / "psql", "--no-psqlrc", "--quiet", "-d", "postgres"),
            *("-h", database.server.host, "-p", str(database.server.port)),
            *("-U", SUPERUSER, "-f", "-"),
        ],
        input=script,
        text=True,
        capture_output=True,
        env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
    )


def set_up(run: Run, database: Database, *arguments: str) -> None:
    script = run(
        "setup", "--server", SERVER, "--database", database.name, *arguments
    ).output
    done = psql(database, script)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "")


CLUSTER = """
SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin,
    rolreplication, rolbypassrls, rolconfig::text
FROM pg_roles WHERE rolname !~ '^pg_'
UNION ALL
SELECT m.roleid::regrole || ' to ' || m.member::regrole, admin_option,
    (to_jsonb(m) ->> 'inherit_option')::boolean,
    (to_jsonb(m) ->> 'set_option')::boolean,
    null, null, null, null, m.grantor::regrole::text
FROM pg_auth_members m ORDER BY 1, 9
"""

PROJECT = """
@with_rls(policies=[
    Policy("recent", using="lower(note) <> 'x' AND id > 5", permissive=False)
])
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    note: Mapped[str]
"""


@pytest.mark.parametrize("hardened", [[], ["--hardened"]], ids=["plain", "hardened"])
@pytest.mark.parametrize("isolation", ["role", "shared"])
def test_setup_and_migrations_give_a_sound_database(
    run: Run, bare: Database, isolation: str, hardened: list[str]
) -> None:
    arguments = ("--isolation", isolation, *hardened)
    set_up(run, bare, *arguments)
    before = bare.rows(CLUSTER)
    set_up(run, bare, *arguments)
    assert bare.rows(CLUSTER) == before
    project = Project(Path.cwd() / "project", bare, PROJECT)
    project.migrate()
    assert project.is_up_to_date()
    (project.path / "models.py").rename("ordering.py")
    check = ("check", bare.app_url, "ordering:Base", "--isolation", isolation)
    result = run(*check, "--schema", "public")
    # The application's login may not ask the server how a condition is printed.
    expected = "0 errors, 1 warnings" if hardened else "0 errors, 0 warnings"
    assert expected in result.output
    assert ("policy-unknown" in result.output) is bool(hardened)
    # again, with tables in place
    migrated = bare.rows(CLUSTER)
    set_up(run, bare, *arguments)
    assert bare.rows(CLUSTER) == migrated
    assert run(*check, "--schema", "public").output == result.output


def test_setup_is_what_the_readme_says(run: Run, bare: Database) -> None:
    text = (ROOT / "README.md").read_text()
    superuser_sql, owner_sql, owner_sql_15, shared_sql = re.findall(
        r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    by_hand = Database("postgres", bare.server)
    for statement in superuser_sql.splitlines():
        by_hand.execute(statement)
    by_hand.execute(shared_sql.partition("\n")[0])
    migrate(bare)
    grants = owner_sql_15 if requested_version() == 15 else owner_sql
    bare.execute(grants + shared_sql.partition("\n")[2], login="owner")
    expected = bare.rows(CLUSTER)
    by_hand.execute("DROP DATABASE shop")
    by_hand.execute(
        "DROP ROLE owner, app, app_shared, manager, tenants, tenants_admin,"
        " tenants_shared"
    )
    set_up(run, bare, "--app", "app")
    set_up(run, bare, "--app", "app_shared", "--isolation", "shared")
    migrate(bare)
    assert bare.rows(CLUSTER) == expected


def test_a_setup_by_migrations_is_repaired(run: Run, bare: Database) -> None:
    """What was installed by hand goes on working; what a login must not have goes."""
    by_hand = Database("postgres", bare.server)
    by_hand.execute(
        "CREATE ROLE owner LOGIN CREATEROLE; CREATE ROLE app LOGIN CREATEROLE;"
        "CREATE ROLE manager LOGIN"
    )
    by_hand.execute("CREATE DATABASE shop OWNER owner")
    migrate(bare)
    set_up(run, bare)
    attributes = "SELECT rolinherit, rolcreaterole FROM pg_roles WHERE rolname = %s"
    assert bare.rows(attributes, ["app"]) == [(False, False)]
    assert bare.rows(attributes, ["manager"]) == [(False, True)]
    # as the owner, who has to see the rows of all tenants
    bare.execute("INSERT INTO notes (tenant, body) VALUES ('acme', '')", login="owner")
    assert bare.rows("SELECT tenant FROM notes", login="owner") == [("acme",)]
    tenants = ("--url", bare.app_url, "--admin-url", bare.admin_url, "--models", MODELS)
    run("tenants", "create", "acme", *tenants)
    assert run("tenants", "list", *tenants).output == "acme\n"


def test_what_the_owner_inherits_stays(run: Run, bare: Database) -> None:
    """Without it, migrations would see no row."""
    postgres = Database("postgres", bare.server)
    postgres.execute(
        "CREATE ROLE owner LOGIN CREATEROLE; CREATE ROLE tenants_admin;"
        "GRANT tenants_admin TO owner"
    )
    set_up(run, bare)
    query = "SELECT pg_has_role('owner', %s, 'USAGE')"
    assert postgres.rows(query, ["tenants_admin"]) == [(True,)]
    assert postgres.rows(query, ["tenants"]) == [(False,)]


NAMES = {
    "database": 'Sh\'o\\p "x"',
    "owner": "o'w\\ner",
    "app": 'a"pp:x',
    "manager": ":'mana$tenancy$ger' -- x",
}


def test_names_that_need_quotes(run: Run, bare: Database) -> None:
    shop = Database(NAMES["database"], bare.server)
    options = [f"--{what}={name}" for what, name in NAMES.items() if what != "database"]
    for _ in range(2):
        set_up(run, shop, *options, "--hardened")
    migrate(shop, login=NAMES["owner"])
    (owner,) = shop.rows(
        "SELECT datdba::regrole = quote_ident(%s)::regrole FROM pg_database"
        " WHERE datname = current_database()",
        [NAMES["owner"]],
    )
    assert owner == (True,)
    url = make_url(shop.url(NAMES["app"])).render_as_string(hide_password=False)
    result = run("check", url, MODELS)
    assert "0 errors, 0 warnings" in result.output
    run(
        *("tenants", "create", "acme", "--models", MODELS),
        *("--url", url, "--admin-url", shop.url(NAMES["manager"])),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--app", "owner"], "three logins"),
        (["--app", "manager"], "three logins"),
        (["--app", "tenants"], "group role"),
        (["--manager", "tenant_x"], "group role or a tenant's"),
        (["--owner", "tenants_admin"], "group role"),
        (["--owner", "pg_owner"], "reserves"),
        (["--app", "a\nb"], "cannot be printed"),
        (["--app", "a\x1b[2J"], "cannot be printed"),
        (["--database", "x" * 64], "63 bytes"),
        (["--app", ""], "empty"),
        (["--server", "14"], "14"),
    ],
)
def test_names_that_are_refused(run: Run, options: list[str], message: str) -> None:
    result = run("setup", "--database", "shop", *options, status=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_names_of_a_tenancy(run: Run) -> None:
    Path("named_shop.py").write_text(
        "from sqlalchemy import MetaData\n"
        "from sqlalchemy_tenants import Tenancy\n"
        "metadata = MetaData(info={'tenancy': Tenancy.named('shop')})\n"
    )
    options = ("--database", "shop", "--models", "named_shop:metadata")
    script = run("setup", *options).output
    assert "GRANT shop_tenants_admin TO manager" in script
    assert not re.search(r"\btenants_admin", script)


def test_the_script_stops_where_it_is_not_meant_for(run: Run, bare: Database) -> None:
    postgres = Database("postgres", bare.server)

    def refused(script: str) -> str:
        before = postgres.rows(CLUSTER)
        done = psql(bare, script)
        assert done.returncode == 3
        assert postgres.rows(CLUSTER) == before
        return done.stderr

    other = "17" if SERVER != "17" else "16"
    script = run("setup", "--database", "shop", "--server", other).output
    assert f"this was printed for PostgreSQL {other}" in refused(script)
    script = run("setup", "--database", "shop", "--server", SERVER).output
    postgres.execute("CREATE ROLE somebody LOGIN CREATEROLE")
    script_of_somebody = f"SET SESSION AUTHORIZATION somebody;\n{script}"
    assert "a superuser has to run this" in refused(script_of_somebody)
    with_superuser = ("--server", SERVER, "--app", SUPERUSER)
    script = run("setup", "--database", "shop", *with_superuser).output
    assert f"{SUPERUSER} is a superuser" in refused(script)
    # logins are harmless, but another's database is not taken
    script = run("setup", "--database", "test", "--server", SERVER).output
    done = psql(bare, script)
    assert done.returncode == 3
    assert "database test has another owner" in done.stderr
    assert "ALTER DATABASE test OWNER TO owner" in done.stderr


def test_passwords_are_asked_for(run: Run) -> None:
    script = run("setup", "--database", "shop", "--app", "App").output
    assert script.endswith(
        '\\if :{?passwords}\n\\password "owner"\n\\password "App"\n'
        '\\password "manager"\n\\endif\n'
    )


# --- setup --hardened -----------------------------------------------------------------


@pytest.fixture
def hardened(run: Run, bare: Database) -> Database:
    """A database with a tenant, and functions that execute text, before it is
    hardened."""
    set_up(run, bare)
    bare.execute(
        "CREATE LANGUAGE untrusted HANDLER plpgsql_call_handler;"
        "CREATE FUNCTION anything() RETURNS text LANGUAGE untrusted"
        " AS $$BEGIN RETURN 'done'; END$$;"
    )
    for (name,) in bare.rows(
        "SELECT name FROM pg_available_extensions"
        " WHERE name IN ('dblink', 'tablefunc', 'xml2')"
    ):
        bare.execute(f"CREATE EXTENSION {name}")
    set_up(run, bare, "--hardened")
    migrate(bare)
    arguments = ("--url", bare.app_url, "--admin-url", bare.admin_url)
    run("tenants", "create", "acme", *arguments, "--models", MODELS)
    return bare


def test_what_tenants_may_execute_in_a_hardened_database(hardened: Database) -> None:
    executable = "has_function_privilege(%s, p.oid, 'EXECUTE')"
    rows = hardened.rows(
        f"SELECT p.oid::regprocedure::text FROM pg_proc p WHERE {executable}"
        " AND (proname ~ '^(query|cursor)_to_xml|^dblink|^crosstab|^connectby'"
        " OR proname IN ('set_config', 'ts_stat', 'xpath_table', 'anything')"
        " OR oid = 'ts_rewrite(tsquery, text)'::regprocedure)",
        ["tenant_acme"],
    )
    assert rows == []
    (count,) = hardened.rows(
        f"SELECT count(*) FROM pg_proc p WHERE {executable}"
        " AND p.oid = ANY (%s::regprocedure[])",
        ["owner", list(EXECUTING)],
    )
    assert count == (len(EXECUTING),)
    for role in ("tenant_acme", "tenants_shared", "app"):
        query = "SELECT has_database_privilege(%s, 'shop', 'TEMPORARY')"
        assert hardened.rows(query, [role]) == [(False,)]
    # only the overload that executes text
    with hardened.server.connect("shop", "app") as connection:
        connection.execute("SET ROLE tenant_acme")
        row = connection.execute("SELECT ts_rewrite('a & b', 'a', 'c'::tsquery)")
        assert row.fetchone() == ("'b' & 'c'",)


@pytest.mark.parametrize(
    "attack",
    [
        "SELECT set_config('role', 'tenant_globex', false)",
        "UPDATE pg_settings SET setting = 'x' WHERE name = 'role'",
        "SELECT query_to_xml('SELECT 1', true, true, '')",
        "SELECT * FROM ts_stat('SELECT ''a''::tsvector')",
        "SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, ''b''::tsquery')",
        "SELECT anything()",
        "CREATE TEMPORARY TABLE t (id integer)",
        "CREATE TABLE public.t (id integer)",
    ],
)
def test_injected_sql_is_denied(hardened: Database, attack: str) -> None:
    with hardened.server.connect("shop", "app") as connection:
        connection.execute("SET ROLE tenant_acme")
        with pytest.raises(Exception, match="permission denied"):
            connection.execute(attack)


def test_the_owner_can_dump_a_hardened_database(hardened: Database) -> None:
    directory = bin_dir(hardened.server.version)
    assert directory is not None
    hardened.execute("INSERT INTO notes (tenant, body) VALUES ('acme', 'in the dump')")
    done = subprocess.run(
        [
            *(directory / "pg_dump", "--enable-row-security", "-U", "owner"),
            *("-h", hardened.server.host, "-p", str(hardened.server.port), "shop"),
            *("--exclude-extension=*",) * (hardened.server.version >= 17),
        ],
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "in the dump" in done.stdout
