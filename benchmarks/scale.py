"""Few tenants beside many: creating one, a new connection, a warm one, table ACLs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import plot
from database import (
    Note,
    create_roles,
    fill,
    first_id,
    tenant_name,
    tenants_database,
)
from measure import interleave, milliseconds, ratio, say, spread, table
from sqlalchemy import Engine, NullPool, create_engine, select

from servers import Database
from sqlalchemy_tenants.managers import PostgresManager

PLOT = Path(__file__).parent.parent / "docs" / "scale.svg"

#: What is measured of each isolation and number of tenants.
MEASURES = {
    "create": "create_tenant",
    "bulk": "create_tenants, each",
    "connect": "first row of a new connection",
    "grant": "transaction after a grant",
    "warm": "transaction, warm",
    "acl": "ACL of the table, bytes",
}

_BULK = 100


def run(options: Any) -> dict[str, Any]:
    results = {
        str(version): _run_version(version, options.full)
        for version in options.versions
    }
    if options.full:
        PLOT.write_text(_plot(results))
        say(f"wrote {PLOT}")
    return {"postgresql": results}


def report(results: dict[str, Any]) -> None:
    for version, cases in results["postgresql"].items():
        print(f"PostgreSQL {version}, as ratios to 10 tenants\n")
        headers = ["", *MEASURES.values()]
        rows = []
        for case in cases.values():
            row = [f"{case['isolation']}, {case['tenants']:,}"]
            for name in MEASURES:
                result = case.get(name)
                if result is None:
                    row.append("")
                elif name == "acl":
                    row.append(str(result))
                else:
                    times = result["ratio"]["median"]
                    digits = 0 if times >= 10 else 1
                    row.append(f"{times:.{digits}f}x ({milliseconds(result)})")
            rows.append(row)
        table(headers, rows)
        print()


def _run_version(version: int, full: bool) -> dict[str, Any]:
    sizes = {
        "role": [10, 1_000, 3_000, 10_000],
        "shared": [10, 1_000, 10_000, 100_000],
    }
    if not full:
        sizes = {"role": [10, 300, 1_000], "shared": [10, 300, 1_000, 10_000]}
    with ExitStack() as stack:
        cases = []
        # the roles belong to the server, so each number has a server of its own; all
        # are measured together
        for size in sorted({*sizes["role"], *sizes["shared"]}):
            say(f"PostgreSQL {version}, {size:,} tenants")
            database = stack.enter_context(tenants_database(version))
            fill(database, size, ["notes"])
            if size in sizes["role"]:
                create_roles(database, 1, size)
                cases.append(_Case(database, "role", size, stack))
            if size in sizes["shared"]:
                cases.append(_Case(database, "shared", size, stack))
        results = {case.name: case.described() for case in cases}
        few, some, many = (3, 60, 600) if full else (3, 25, 250)
        for name, method, rounds in (
            ("connect", _Case.connect, some),
            ("grant", _Case.after_grant, some),
            ("warm", _Case.transact, many),
            ("create", _Case.create, 100 if full else some),
            ("bulk", _Case.create_in_bulk, few),
        ):
            say(f"PostgreSQL {version}, {MEASURES[name]}")
            measured = [
                case
                for case in cases
                if case.isolation == "role" or name not in ("create", "bulk")
            ]
            samples = interleave(
                {case.name: _bind(method, case) for case in measured},
                rounds,
                warmup=min(rounds - 1, 3),
            )
            for case in measured:
                base = samples[f"{case.isolation}, 10"]
                results[case.name][name] = {
                    **spread(samples[case.name]),
                    "ratio": ratio(samples[case.name], base),
                }
    return results


def _bind(
    method: Callable[[_Case], float | None], case: _Case
) -> Callable[[], float | None]:
    return lambda: method(case)


class _Case:
    """One isolation, and one number of tenants."""

    def __init__(
        self, database: Database, isolation: Any, size: int, stack: ExitStack
    ) -> None:
        self.database = database
        self.isolation = isolation
        self.size = size
        self.name = f"{isolation}, {size}"
        login = "app" if isolation == "role" else "app_shared"

        def engine(login: str, **kw: Any) -> Engine:
            engine = create_engine(database.url(login), **kw)
            stack.callback(engine.dispose)
            return engine

        def manager(engine: Engine) -> PostgresManager:
            return PostgresManager.from_engine(
                engine, schema="public", isolation=isolation, admin_engine=admin
            )

        admin = engine("manager", pool_size=1)
        self.new = manager(engine(login, poolclass=NullPool))
        self.warm = manager(engine(login, pool_size=1))
        self.superuser = stack.enter_context(database.server.connect(database.name))
        self.granted = False

    def described(self) -> dict[str, Any]:
        """What is known without timing."""
        ((acl,),) = self.database.rows(
            "SELECT pg_column_size(relacl) FROM pg_class WHERE relname = 'notes'"
        )
        return {"isolation": self.isolation, "tenants": self.size, "acl": acl}

    def create(self) -> float:
        """Create one tenant more; it is deleted again, so that the number stays."""
        started = time.perf_counter()
        self.warm.create_tenant("more")
        seconds = time.perf_counter() - started
        self.superuser.execute("DROP ROLE tenant_more")
        return seconds

    def create_in_bulk(self) -> float:
        """Create many more, as seconds for each."""
        more = [f"more {number}" for number in range(_BULK)]
        started = time.perf_counter()
        self.warm.create_tenants(more)
        seconds = time.perf_counter() - started
        roles = ", ".join(f'"tenant_{tenant}"' for tenant in more)
        self.superuser.execute(f"DROP ROLE {roles}")
        return seconds / _BULK

    def connect(self) -> None:
        """Open a connection and read a row of a random tenant."""
        self._read(self.new)

    def after_grant(self) -> float:
        """A transaction on a warm connection, after somebody's membership changed."""
        self.granted = not self.granted
        verb, preposition = ("GRANT", "TO") if self.granted else ("REVOKE", "FROM")
        self.superuser.execute(f"{verb} pg_monitor {preposition} owner")
        started = time.perf_counter()
        self._read(self.warm)
        return time.perf_counter() - started

    def transact(self) -> None:
        """A transaction of a random tenant on a warm connection."""
        self._read(self.warm)

    def _read(self, manager: PostgresManager) -> None:
        number = random.randint(1, self.size)
        id = first_id(number)
        with manager.new_session(
            tenant_name(number), create_if_missing=False
        ) as session:
            assert session.scalar(select(Note.id).where(Note.id == id)) == id
            session.commit()


def _plot(results: dict[str, Any]) -> str:
    lines = {}
    for version, cases in results.items():
        for isolation in ("role", "shared"):
            lines[f"{isolation}, PostgreSQL {version}"] = [
                (case["tenants"], case["connect"]["median"])
                for case in cases.values()
                if case["isolation"] == isolation
            ]
    return plot.log_log(
        "Time from connecting to the first row",
        "number of tenants",
        "milliseconds",
        lines,
    )
