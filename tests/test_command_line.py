"""The command line: as a process once, otherwise in this one, on real servers."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from sqlalchemy import Identity, UniqueConstraint, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from commands import MODELS, Run, run_fixture  # noqa: F401
from servers import Database
from sqlalchemy_tenants import TenantMixin, shared_table, with_rls
from sqlalchemy_tenants.__main__ import main
from sqlalchemy_tenants.command_line import cli
from sqlalchemy_tenants.command_line.connecting import database_url
from sqlalchemy_tenants.command_line.failures import Failure
from tenancy import grant_logins, migrate, migrated_fixture  # noqa: F401

ROOT = Path(__file__).parent.parent

#: The command as a process, which takes a second to start.
MODULE_COMMAND = (sys.executable, "-W", "error", "-m", "sqlalchemy_tenants")


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


# --- the command ----------------------------------------------------------------------


def test_it_is_a_command() -> None:
    (command,) = metadata.entry_points(
        group="console_scripts", name="sqlalchemy-tenants"
    )
    assert command.load() is main


def test_it_ends_quietly_behind_head() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*MODULE_COMMAND, "setup", "--database", "shop"],
            cwd=ROOT,
            text=True,
            stdout=closed,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_it_says_how_to_install_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert 'pip install "sqlalchemy-tenants[cli]"' in capsys.readouterr().err


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


def test_a_suspended_tenant_moves(tenants: Run, shop: Database) -> None:
    shop.execute("INSERT INTO orders (tenant, note) VALUES ('acme', 'mine')")
    tenants("create", "acme")
    tenants("suspend", "acme")
    assert "suspended" in tenants("export", "acme", "acme.rows", status=1).stderr
    assert not Path("acme.rows").exists()
    tenants("export", "acme", "acme.rows", "--as-admin", "--quiet")
    result = tenants("delete", "acme", "--dry-run")
    assert re.search(r"^ +1  rows to delete$", result.output, re.MULTILINE)
    tenants("delete", "acme", "--rows", "--yes")
    # the admin role would not notice that a tenant does not exist
    for command in (
        ("export", "acme", "other.rows", "--as-admin"),
        ("import", "acme", "acme.rows", "--as-admin"),
        ("import", "globex", "acme.rows", "--as", "acme", "--as-admin"),
        ("delete", "acme", "--dry-run"),
    ):
        assert "no tenant 'acme'" in tenants(*command, status=1).stderr
    assert not Path("other.rows").exists()
    tenants("create", "acme")
    tenants("suspend", "acme")
    as_owner = ("--as-admin", "--admin-url", shop.owner_url)
    tenants("import", "acme", "acme.rows", *as_owner)
    assert shop.rows("SELECT tenant, note FROM orders") == [("acme", "mine")]
    # where the database keeps no tenants, none can be missing
    shared = ("--isolation", "shared", "--url", shop.shared_url)
    result = tenants("delete", "nobody", "--dry-run", *shared)
    assert re.search(r"^ +0  rows to delete$", result.output, re.MULTILINE)


def on_terminal(*arguments: str, cwd: Path) -> tuple[int, str]:
    """Run the command on a terminal, and return its status and what it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execv(MODULE_COMMAND[0], [*MODULE_COMMAND, *arguments])
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


def test_ctrl_c_while_it_exports(tenants: Run, shop: Database, tmp_path: Path) -> None:
    tenants("create", "acme")
    command = ("tenants", "export", "acme", str(tmp_path / "acme.rows"))
    options = ("--models", SHOP, "--url", shop.app_url)
    with (
        shop.server.connect(shop.name) as locking,
        locking.transaction(),
        subprocess.Popen(
            [*MODULE_COMMAND, *command, *options],
            cwd=ROOT / "tests",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as running,
    ):
        locking.execute("LOCK TABLE orders")
        waiting = "SELECT FROM pg_locks WHERE NOT granted"
        while locking.execute(waiting).fetchone() is None:
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130
        assert running.stderr is not None
        assert running.stderr.read().strip() == "Error: interrupted"
    assert list(tmp_path.iterdir()) == []
