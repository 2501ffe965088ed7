"""Few tenants beside many: creating one, new connections and warm ones, migrations."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import plot
import psycopg
from database import (
    Note,
    create_roles,
    fill,
    first_id,
    tenant_name,
    tenants_database,
)
from measure import Aim, Candidate, interleave, milliseconds, ratio, say, spread, table
from peers import Program, prepare
from sqlalchemy import Engine, NullPool, create_engine, select

from servers import CREATE_LOGINS, Database, Server
from sqlalchemy_tenants.managers import PostgresManager

EARLIER = "sqlalchemy-tenants 0.2.0"
SCHEMAS = "schema per tenant"

#: How many tenants each way has.
SIZES = {
    "role": [10, 100, 1_000, 10_000],
    "shared": [10, 100, 1_000, 10_000, 100_000],
    EARLIER: [10, 100, 1_000, 2_400],
    SCHEMAS: [10, 100, 1_000],
}
#: The same for the documentation, where three versions are measured.
FULL_SIZES = {
    "role": [10, 1_000, 3_000, 10_000],
    "shared": [10, 1_000, 10_000, 100_000],
    EARLIER: [10, 100, 1_000, 2_400],
    SCHEMAS: [10, 100, 1_000, 3_000],
}

#: What is measured, by the method of :class:`Case`; how often, by default and in full.
MEASURES = {
    "create": ("creating a tenant", 15, 100),
    "create_many": ("creating many, each", 3, 3),
    "connect": ("first row of a new connection", 25, 60),
    "after_grant": ("transaction after a grant", 15, 60),
    "transact": ("transaction, warm", 150, 600),
    "migrate": ("adding a column for all", 5, 15),
}

#: What counts as flat: the aim of shared tenants, as a ratio to 10.
FLAT = 1.10

#: After how many seconds no other round of a measure begins.
SECONDS = 10

_MANY = 25
#: Tables of a schema.
_TABLES = 10


class Case(ABC):
    """One way to keep tenants apart, with one number of tenants.

    Each measure is a method that does it once, and returns the seconds that it took.
    """

    #: Those of ``MEASURES`` that it has.
    measures: tuple[str, ...] = ("connect", "transact")

    def __init__(self, way: str, size: int, database: Database) -> None:
        self.way = way
        self.size = size
        self.name = f"{way}, {size}"
        self.database = database
        self._superuser: psycopg.Connection[Any] | None = None
        self._granted = False

    @property
    def superuser(self) -> psycopg.Connection[Any]:
        if self._superuser is None:
            self._superuser = self.database.server.connect(self.database.name)
        return self._superuser

    def close(self) -> None:
        if self._superuser is not None:
            self._superuser.close()

    def described(self) -> dict[str, Any]:
        """What is known without timing."""
        return {"isolation": self.way, "tenants": self.size}

    def connect(self) -> float:
        """Open a connection and read a row of a random tenant."""
        return self._read(new=True)

    def transact(self) -> float:
        """A transaction of a random tenant on a warm connection."""
        return self._read(new=False)

    def after_grant(self) -> float:
        """A transaction on a warm connection, after somebody's membership changed."""
        self._granted = not self._granted
        verb, preposition = ("GRANT", "TO") if self._granted else ("REVOKE", "FROM")
        self.superuser.execute(f"{verb} pg_monitor {preposition} owner")
        return self._read(new=False)

    @abstractmethod
    def _read(self, *, new: bool) -> float:
        """Read a row of a random tenant, as seconds."""

    def _alter(self, alter: str) -> float:
        """Add a column, as the owner; it is dropped again."""
        with self.database.server.connect(self.database.name, "owner") as connection:
            started = time.perf_counter()
            connection.execute(alter.format(change="ADD COLUMN more integer"))
            seconds = time.perf_counter() - started
            connection.execute(alter.format(change="DROP COLUMN more"))
        return seconds


class Ours(Case):
    """Our tables."""

    measures: tuple[str, ...] = ("connect", "after_grant", "transact", "migrate")

    def __init__(self, isolation: Any, size: int, database: Database) -> None:
        super().__init__(isolation, size, database)
        self._engines: list[Engine] = []
        login = "app" if isolation == "role" else "app_shared"
        admin = self._engine("manager", pool_size=1)

        def manager(engine: Engine) -> PostgresManager:
            return PostgresManager.from_engine(
                engine, schema="public", isolation=isolation, admin_engine=admin
            )

        self._new = manager(self._engine(login, poolclass=NullPool))
        self._warm = manager(self._engine(login, pool_size=1))

    def _engine(self, login: str, **kw: Any) -> Engine:
        engine = create_engine(self.database.url(login), **kw)
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        super().close()
        for engine in self._engines:
            engine.dispose()

    def described(self) -> dict[str, Any]:
        ((acl,),) = self.database.rows(
            "SELECT pg_column_size(relacl) FROM pg_class WHERE relname = 'notes'"
        )
        return {**super().described(), "acl": acl}

    def migrate(self) -> float:
        return self._alter("ALTER TABLE notes {change}")

    def _read(self, *, new: bool) -> float:
        number = random.randint(1, self.size)
        id = first_id(number)
        started = time.perf_counter()
        with (self._new if new else self._warm).new_session(
            tenant_name(number), create_if_missing=False
        ) as session:
            assert session.scalar(select(Note.id).where(Note.id == id)) == id
            session.commit()
        return time.perf_counter() - started


class OurRoles(Ours):
    """Our tables, with a role for each tenant; shared tenants need not be created."""

    measures = (*Ours.measures, "create", "create_many")

    def create(self) -> float:
        """Create one tenant more; it is deleted again, so that the number stays."""
        started = time.perf_counter()
        self._warm.create_tenant("more")
        seconds = time.perf_counter() - started
        self.superuser.execute("DROP ROLE tenant_more")
        return seconds

    def create_many(self) -> float:
        """The same with many at once, as seconds for each."""
        more = [f"more {number}" for number in range(_MANY)]
        started = time.perf_counter()
        self._warm.create_tenants(more)
        seconds = time.perf_counter() - started
        roles = ", ".join(f'"tenant_{tenant}"' for tenant in more)
        self.superuser.execute(f"DROP ROLE {roles}")
        return seconds / _MANY


class Earlier(Case):
    """sqlalchemy-tenants 0.2.0, whose manager has one engine: the owner's."""

    measures = ("connect", "after_grant", "transact", "create")

    def __init__(self, size: int, database: Database, program: Program) -> None:
        super().__init__(EARLIER, size, database)
        self._program = program

    def described(self) -> dict[str, Any]:
        ((acl,),) = self.database.rows(
            "SELECT pg_column_size(relacl) FROM pg_class WHERE relname = 'notes'"
        )
        return {**super().described(), "acl": acl}

    def create(self) -> float:
        seconds: float = self._program.call(
            "create", url=self.database.owner_url, tenant="more"
        )
        self.superuser.execute("DROP OWNED BY tenant_more; DROP ROLE tenant_more")
        return seconds

    def refused(self) -> tuple[int, str]:
        """How many tenants there can be, and what happens then."""
        more, error = self._program.call(
            "create_until_refused",
            url=self.database.owner_url,
            prefix="more",
            most=100,
        )
        return self.size + more, error

    def _read(self, *, new: bool) -> float:
        number = random.randint(1, self.size)
        seconds: float = self._program.call(
            "read",
            url=self.database.owner_url,
            tenant=tenant_name(number),
            id=first_id(number),
            new=new,
        )
        return seconds


class Schemas(Case):
    """A schema with ten tables for each tenant, on the search path."""

    measures = ("connect", "transact", "create", "migrate")

    def __init__(self, size: int, database: Database) -> None:
        super().__init__(SCHEMAS, size, database)
        url = database.url("owner")
        self._new = create_engine(url, poolclass=NullPool)
        self._warm = create_engine(url, pool_size=1)

    def close(self) -> None:
        super().close()
        self._new.dispose()
        self._warm.dispose()

    def create(self) -> float:
        with self.database.server.connect(self.database.name, "owner") as connection:
            started = time.perf_counter()
            connection.execute(_schemas(self.size + 1, self.size + 1))
            seconds = time.perf_counter() - started
            connection.execute(f"DROP SCHEMA {tenant_name(self.size + 1)} CASCADE")
        return seconds

    def migrate(self) -> float:
        return self._alter(
            "DO $$ BEGIN FOR tenant IN 1 .. "
            f"{self.size} LOOP EXECUTE format('ALTER TABLE %I.notes1 {{change}}',"
            " 't' || tenant); END LOOP; END $$"
        )

    def _read(self, *, new: bool) -> float:
        name = tenant_name(random.randint(1, self.size))
        started = time.perf_counter()
        with (self._new if new else self._warm).begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL search_path = {name}")
            found = connection.exec_driver_sql("SELECT id FROM notes1 WHERE id = 1")
            assert found.scalar() == 1
        return time.perf_counter() - started


def _schemas(first: int, last: int) -> str:
    """What creates the schemas of some tenants; one table has a row."""
    return f"""
        DO $$ BEGIN
          FOR tenant IN {first} .. {last} LOOP
            EXECUTE format('CREATE SCHEMA %I', 't' || tenant);
            FOR number IN 1 .. {_TABLES} LOOP
              EXECUTE format('CREATE TABLE %I.%I
                (id integer PRIMARY KEY, amount integer, body varchar(200))',
                't' || tenant, 'notes' || number);
            END LOOP;
            EXECUTE format('INSERT INTO %I.notes1 VALUES (1, 1, '''')', 't' || tenant);
          END LOOP;
        END $$
    """


def run(options: Any) -> dict[str, Any]:
    prepare("earlier")
    results: dict[str, Any] = {"postgresql": {}, "refused": {}}
    for version in options.versions:
        with ExitStack() as stack:
            sizes = FULL_SIZES if options.full else SIZES
            if version != options.versions[-1]:
                sizes = {way: sizes[way] for way in ("role", "shared")}
            cases = _cases(version, sizes, stack)
            results["postgresql"][str(version)] = _measure(version, cases, options.full)
            for case in cases:
                if isinstance(case, Earlier) and case.size == max(sizes[EARLIER]):
                    say(f"PostgreSQL {version}, {EARLIER} until it refuses")
                    results["refused"][str(version)] = case.refused()
    return results


def _cases(
    version: int, sizes: Mapping[str, list[int]], stack: ExitStack
) -> list[Case]:
    """The roles belong to the server, so each number has a server of its own; all are
    measured together."""
    cases: list[Case] = []
    for size in sorted({*sizes["role"], *sizes["shared"]}):
        say(f"PostgreSQL {version}, {size:,} tenants")
        database = stack.enter_context(tenants_database(version))
        fill(database, size, ["notes"])
        if size in sizes["role"]:
            create_roles(database, 1, size)
            cases.append(OurRoles("role", size, database))
        if size in sizes["shared"]:
            cases.append(Ours("shared", size, database))
    if EARLIER in sizes:
        program = stack.enter_context(Program("earlier", "earlier_tenants.py"))
        for size in sizes[EARLIER]:
            say(f"PostgreSQL {version}, {EARLIER}, {size:,} tenants")
            database = _earlier_database(version, size, stack)
            cases.append(Earlier(size, database, program))
    if SCHEMAS in sizes:
        say(f"PostgreSQL {version}, {SCHEMAS}, {max(sizes[SCHEMAS]):,} tenants")
        databases = _schema_databases(version, sizes[SCHEMAS], stack)
        cases += [Schemas(size, each) for size, each in databases.items()]
    for case in cases:
        stack.callback(case.close)
    return cases


def _earlier_database(version: int, size: int, stack: ExitStack) -> Database:
    """A database with tenants of the earlier package, whose catalog is as if they had
    been created one by one, which would take minutes."""
    server = stack.enter_context(Server(version))
    with server.connect() as connection:
        connection.execute(CREATE_LOGINS)
        connection.execute("CREATE DATABASE earlier OWNER owner")
    database = Database("earlier", server)
    with Program("earlier", "transactions.py", "earlier") as program:
        program.call("prepare", url=database.owner_url, tenants=[])
    roles = ", ".join(f"tenant_{tenant_name(each)}" for each in range(1, size + 1))
    privileges = "GRANT SELECT, INSERT, UPDATE, DELETE ON"
    database.execute(
        f"""
        DO $$ BEGIN
          FOR tenant IN 1 .. {size} LOOP
            EXECUTE format('CREATE ROLE %I', 'tenant_t' || tenant);
          END LOOP;
        END $$;
        GRANT {roles} TO owner WITH ADMIN OPTION;
        SET ROLE owner;
        GRANT USAGE ON SCHEMA public TO {roles};
        {privileges} ALL TABLES IN SCHEMA public TO {roles};
        ALTER DEFAULT PRIVILEGES IN SCHEMA public {privileges} TABLES TO {roles}
        """
    )
    fill(database, size, ["notes"])
    return database


def _schema_databases(
    version: int, sizes: list[int], stack: ExitStack
) -> dict[int, Database]:
    """One database a size, each a copy of the one that grows."""
    server = stack.enter_context(Server(version))
    with server.connect() as connection:
        connection.execute(CREATE_LOGINS)
        connection.execute("CREATE DATABASE growing OWNER owner")
        found = {}
        done = 0
        for size in sizes:
            growing = Database("growing", server)
            for first in range(done + 1, size + 1, 50):
                last = min(first + 49, size)
                growing.execute(_schemas(first, last), login="owner")
            done = size
            name = f"schemas{size}"
            connection.execute(
                f"CREATE DATABASE {name} TEMPLATE growing OWNER owner"
                " STRATEGY FILE_COPY"
            )
            found[size] = Database(name, server)
        connection.execute("DROP DATABASE growing")
    return found


def _measure(version: int, cases: list[Case], full: bool) -> dict[str, Any]:
    results = {case.name: case.described() for case in cases}
    for measure, (title, few, many) in MEASURES.items():
        say(f"PostgreSQL {version}, {title}")
        measured = [case for case in cases if measure in case.measures]
        candidates: dict[str, Candidate] = {
            case.name: getattr(case, measure) for case in measured
        }
        rounds = many if full else few
        samples = interleave(
            candidates,
            rounds,
            warmup=min(rounds - 1, 3),
            seconds=SECONDS * (10 if full else 1),
        )
        for case in measured:
            base = samples[f"{case.way}, 10"]
            results[case.name][measure] = {
                **spread(samples[case.name]),
                "ratio": ratio(samples[case.name], base),
            }
    return results


def aims(results: dict[str, Any]) -> list[Aim]:
    """Shared tenants cost nothing for being many; roles have no aim."""
    cases = list(results["postgresql"].values())[-1]
    case = max(
        (case for case in cases.values() if case["isolation"] == "shared"),
        key=lambda case: case["tenants"],
    )
    found = []
    for measure in ("connect", "transact"):
        ratio = case[measure]["ratio"]["median"]
        found.append(
            Aim(
                f"{MEASURES[measure][0]}, shared, {case['tenants']:,} tenants",
                "10 tenants",
                f"at most {FLAT:.2f}",
                f"{ratio:.2f}",
                ratio <= FLAT,
            )
        )
    return found


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG texts by file name."""
    version, cases = list(results["postgresql"].items())[-1]
    refused, _ = results["refused"][version]
    labels = {EARLIER: f"{EARLIER}, up to {refused:,}"}
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for case in cases.values():
        for measure in ("create", "connect"):
            if measure in case:
                way = labels.get(case["isolation"], case["isolation"])
                points = lines.setdefault(measure, {}).setdefault(way, [])
                points.append((case["tenants"], case[measure]["median"]))
    found = {
        f"tenants-{measure}.svg": plot.log_log(
            f"{MEASURES[measure][0].capitalize()}, PostgreSQL {version}",
            "number of tenants",
            "milliseconds",
            lines[measure],
        )
        for measure in lines
    }
    if len(results["postgresql"]) > 1:
        found["scale.svg"] = _versions(results)
    return found


def _versions(results: dict[str, Any]) -> str:
    lines = {
        f"{isolation}, PostgreSQL {version}": [
            (case["tenants"], case["connect"]["median"])
            for case in cases.values()
            if case["isolation"] == isolation
        ]
        for version, cases in results["postgresql"].items()
        for isolation in ("role", "shared")
    }
    return plot.log_log(
        "Time from connecting to the first row",
        "number of tenants",
        "milliseconds",
        lines,
        dashed=[name for name in lines if name.startswith("shared")],
    )


def report(results: dict[str, Any]) -> None:
    for version, cases in results["postgresql"].items():
        print(f"PostgreSQL {version}, as ratios to 10 tenants\n")
        titles = [title for title, _, _ in MEASURES.values()]
        rows = []
        for case in cases.values():
            row = [f"{case['isolation']}, {case['tenants']:,}"]
            for measure in MEASURES:
                result = case.get(measure)
                if result is None:
                    row.append("")
                else:
                    times = result["ratio"]["median"]
                    digits = 0 if times >= 10 else 1
                    row.append(f"{times:.{digits}f}x ({milliseconds(result)})")
            rows.append([*row, str(case.get("acl", ""))])
        table(["", *titles, "ACL of the table, bytes"], rows)
        print()
    for version, (tenants, error) in results["refused"].items():
        print(f"PostgreSQL {version}: {EARLIER} refuses after {tenants:,}: {error}\n")
