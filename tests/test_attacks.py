"""Each attack comes to what the tables in ``docs/security.md`` say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from attacks import (
    ATTACKERS,
    NO_EFFECT,
    OWN,
    SECRET,
    Attacker,
    Blocked,
    Leak,
    Leftover,
    Scene,
    attempt,
    blocked,
    execute,
    leaks,
    pooled,
    refused,
    security,
)
from attacks.__main__ import TABLES
from pages import with_tables
from servers import (
    Database,
    Server,
    bin_dir,
    fresh_database,
    lacking,
    requested_version,
)
from sqlalchemy_tenants import DML, ScopeError, TenantSession
from sqlalchemy_tenants.database.hardening import hardening_sql
from tenancy import World


def perform(session: TenantSession, scene: Scene, attack: Blocked) -> tuple[Any, str]:
    """Return what an attack gets, and everything that the attacker was told."""
    told: list[str] = []
    raw: Any = session.connection().connection.driver_connection
    raw.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
    try:
        if callable(attack.how):
            got = attack.how(session, scene)
        elif isinstance(attack.how, str):
            got = execute(session, attack.how)
        else:
            got = execute(session, *attack.how)
        told.append(str(got))
        if session.in_transaction():
            session.commit()
    except ScopeError:
        return "not sent", "\n".join(told)
    except DBAPIError as error:
        session.rollback()
        return refused(error), "\n".join([*told, str(error.orig)])
    except psycopg.Error as error:  # by the driver's own connection
        return error.sqlstate, "\n".join([*told, str(error)])
    return got, "\n".join(told)


def comes_to(expected: Any, got: Any, told: str) -> bool:
    if isinstance(expected, tuple):
        return any(comes_to(each, got, told) for each in expected)
    if expected is NO_EFFECT:
        return not isinstance(got, str)
    if expected == OWN:
        return OWN in told and not isinstance(got, str)
    if isinstance(expected, list) and isinstance(got, list):
        return sorted(expected, key=str) == sorted(got, key=str)
    return bool(expected == got)


def assert_fails(
    attack: Blocked, scene: Scene, superuser: psycopg.Connection[Any], state: str
) -> None:
    try:
        with scene.attack() as session:
            got, told = perform(session, scene, attack)
    finally:
        scene.close()
    assert comes_to(attack.gets, got, told), told
    assert SECRET not in told
    assert scene.state(superuser) == state


def cases(*, setup: bool) -> Iterator[Any]:
    for attack in blocked.ATTACKS:
        if attack.since <= requested_version() and bool(attack.setup) == setup:
            for attacker in attack.by:
                yield pytest.param(attack, attacker, id=f"{attack.name}-{attacker}")


@pytest.fixture(scope="module")
def installed(server: Server) -> Iterator[Database]:
    """A migrated database, to copy."""
    with fresh_database(server) as database:
        Scene(database).set_up()
        yield database


@contextmanager
def copy_of(database: Database) -> Iterator[tuple[Scene, psycopg.Connection[Any]]]:
    """A scene of its own, which takes less time than another migration."""
    server, name = database.server, "attacked"
    with server.connect() as postgres:
        postgres.execute(
            f"CREATE DATABASE {name} OWNER owner TEMPLATE {database.name}"
            " STRATEGY FILE_COPY"
        )
        scene = Scene(Database(name, server))
        try:
            with server.connect(name) as superuser:
                scene.fill(superuser)
                yield scene, superuser
        finally:
            scene.close()
            postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
            for login in ("app", "app_shared", "acme_login"):
                postgres.execute(f"ALTER ROLE {login} RESET ALL")


@pytest.fixture(scope="class")
def shared_copy(
    installed: Database,
) -> Iterator[tuple[Scene, psycopg.Connection[Any], str]]:
    with copy_of(installed) as (scene, superuser):
        superuser.execute("ANALYZE")
        yield scene, superuser, scene.state(superuser)


@pytest.fixture
def scene(installed: Database) -> Iterator[Scene]:
    with copy_of(installed) as (scene, _):
        yield scene


class TestBlocked:
    """One database for all, because none of them changes it."""

    @pytest.mark.parametrize(("attack", "attacker"), [*cases(setup=False)])
    def test_the_attack_fails(
        self,
        attack: Blocked,
        attacker: Attacker,
        shared_copy: tuple[Scene, psycopg.Connection[Any], str],
    ) -> None:
        scene, superuser, state = shared_copy
        scene.attacker = attacker
        scene.fill(superuser)
        assert_fails(attack, scene, superuser, state)


@pytest.mark.parametrize(("attack", "attacker"), [*cases(setup=True)])
def test_the_attack_fails_where(
    attack: Blocked, attacker: Attacker, scene: Scene
) -> None:
    scene.attacker = attacker
    scene.database.execute(attack.setup)
    with scene.database.server.connect(scene.database.name) as superuser:
        assert_fails(attack, scene, superuser, scene.state(superuser))


LEAK_CASES = [
    pytest.param(leak, attacker, id=f"{leak.name}-{attacker}")
    for leak in leaks.LEAKS
    for attacker in leak.by
]


@pytest.mark.parametrize(("leak", "attacker"), LEAK_CASES)
def test_the_leak_is_there_and_the_remedy_works(
    leak: Leak, attacker: Attacker, scene: Scene
) -> None:
    scene.attacker = attacker
    if leak.setup:
        scene.database.execute(leak.setup)
    if leak.finding is not None:
        found = {finding.code for finding in scene.manager(attacker).check()}
        assert leak.finding in found
    ((number,),) = scene.database.rows("SHOW server_version_num")
    major, minor = divmod(int(number), 10000)
    if major in leak.fixed and minor >= leak.fixed[major]:
        assert not leak.succeeds(scene)
        return
    assert leak.succeeds(scene)
    if leak.fix is None:
        return
    if callable(leak.fix):
        leak.fix(scene)
    else:
        scene.database.execute(leak.fix)
    assert not leak.succeeds(scene)
    if isinstance(leak.fix, str):
        found = {finding.code for finding in scene.manager(attacker).check()}
        assert leak.finding not in found


# --- where sessions allow DML only ---------------------------------------------------


def harden(scene: Scene) -> None:
    scene.words = DML
    for statement in hardening_sql(scene.database.name, ["owner"]):
        scene.database.execute(statement)


@pytest.mark.parametrize("attacker", ["role", "shared"])
def test_what_fails_anyway_fails_with_dml_only(
    attacker: Attacker, installed: Database
) -> None:
    with copy_of(installed) as (scene, superuser):
        scene.attacker = attacker
        harden(scene)
        state = scene.state(superuser)
        for attack in blocked.ATTACKS:
            if attack.since > requested_version() or attack.setup:
                continue
            if attacker not in attack.by:
                continue
            with scene.attack() as session:
                _, told = perform(session, scene, attack)
            assert SECRET not in told, attack.name
        assert scene.state(superuser) == state


@pytest.mark.parametrize(
    ("leak", "attacker"),
    [
        pytest.param(leak, leak.by[-1] if "shared" in leak.by else leak.by[0], id=id)
        for leak in leaks.LEAKS
        for id in [f"{leak.name}-{leak.by[0]}"]
        if set(leak.by) & {"role", "shared"}
    ],
)
def test_what_dml_only_stops(leak: Leak, attacker: Attacker, scene: Scene) -> None:
    scene.attacker = "role" if attacker == "login" else attacker
    scene.database.execute(f"BEGIN; {leak.setup or 'SELECT 1'}; COMMIT")
    harden(scene)
    try:
        succeeded = leak.succeeds(scene)
    except ScopeError:
        succeeded = False
    assert succeeded is not leak.dml


# --- what is left on a pooled connection ---------------------------------------------

LEFTOVER_CASES = [
    pytest.param(
        leftover, driver, isolation, id=f"{leftover.name}-{driver}-{isolation}"
    )
    for leftover in pooled.LEFTOVERS
    for isolation in leftover.isolations
    for driver in leftover.drivers
]


def forget_on_return(engine: Engine) -> None:
    """Run what the documentation says."""
    exec(security.blocks("python")[-1], {"engine": engine})


@pytest.mark.parametrize(("leftover", "driver", "isolation"), LEFTOVER_CASES)
def test_what_is_left_on_a_pooled_connection(
    leftover: Leftover, driver: str, isolation: str, scene: Scene
) -> None:
    world = World(scene.database, driver, isolation)

    def run() -> None:
        engine = world.engine()
        pooled.leave(world, engine, leftover.leave)
        assert leftover.affects(world, engine) is (leftover.remedy is not None)
        if leftover.remedy and leftover.forgotten:
            engine.dispose()
            engine = world.engine()
            forget_on_return(engine)
            pooled.leave(world, engine, leftover.leave)
            assert not leftover.affects(world, engine)

    world.run(run)


@pytest.mark.parametrize("isolation", pooled.ISOLATIONS)
def test_a_statement_in_place_of_one_that_the_driver_prepared(
    isolation: str, scene: Scene
) -> None:
    world = World(scene.database, "psycopg", isolation)
    assert pooled.replaces_prepared(world.engine(), world)
    unprepared = world.engine(connect_args={"prepare_threshold": None})
    assert not pooled.replaces_prepared(unprepared, world)
    for engine in world.engines:
        engine.dispose()


# --- extensions ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_extensions() -> Iterator[Database]:
    """A database on a server that has the extensions of PostgreSQL's own source."""
    for version in dict.fromkeys((requested_version(), 15, 16, 17, 18)):
        programs = bin_dir(version)
        if programs and (programs.parent / "lib" / "pg_stat_statements.so").exists():
            break
    else:
        lacking("no PostgreSQL with its contrib extensions is installed")
    settings = {"shared_preload_libraries": "pg_stat_statements"}
    with (
        pytest.MonkeyPatch.context() as patch,
        Server(version, settings) as server,
        fresh_database(server) as database,
    ):
        patch.setenv("TENANTS_PG", str(version))
        scene = Scene(database)
        scene.set_up()
        with server.connect(database.name) as superuser:
            scene.fill(superuser)
        for name in ("pg_stat_statements", "dblink", "postgres_fdw"):
            database.execute(f"CREATE EXTENSION {name}")
        yield database


@pytest.mark.parametrize(
    ("leak", "attacker"),
    [
        pytest.param(leak, attacker, id=f"{leak.name}-{attacker}")
        for leak in leaks.EXTENSIONS
        for attacker in leak.by
    ],
)
def test_the_leak_of_an_extension(
    leak: Leak, attacker: Attacker, with_extensions: Database
) -> None:
    scene = Scene(with_extensions, attacker)
    server = with_extensions.server
    setup = leak.setup.format(host=server.directory, port=server.port)
    scene.database.execute(f"BEGIN; {setup or 'SELECT 1'}; COMMIT")
    assert leak.succeeds(scene)
    assert isinstance(leak.fix, str)
    scene.database.execute(leak.fix)
    assert not leak.succeeds(scene)
    scene.close()


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_dblink_does_not_take_a_tenant_elsewhere(
    attacker: Attacker, with_extensions: Database
) -> None:
    scene = Scene(with_extensions, attacker)
    server = with_extensions.server
    address = f"host={server.directory} port={server.port} dbname=test user=superuser"
    with scene.attack() as session:
        got = attempt(
            session, f"SELECT * FROM dblink('{address}', 'TABLE notes') AS n (t text)"
        )
    assert got == "2F003"  # a password is required
    scene.close()


# --- the documentation ---------------------------------------------------------------


def test_the_documentation_has_the_tables() -> None:
    page = security.PATH.read_text()
    assert page == with_tables(page, TABLES), "cd tests; python -m attacks"


def test_each_link_in_the_documentation_leads_to_a_heading() -> None:
    page = security.PATH.read_text()
    headings = {
        re.sub(r"[^a-z _-]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    assert set(re.findall(r"\(#([^)]+)\)", page)) <= headings
