"""``alembic check`` with nothing to do, beside plain Alembic."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cores import CLIENT, SERVER, on
from measure import Aim, interleave, milliseconds, ratio, say, spread, table, times
from peers import OURS, PEERS, Program, prepare

from servers import CREATE_LOGINS, Server

#: The number of tables; rounds of ours, and of the others, which take longer.
SIZES = {10: (24, 4), 100: (12, 2), 1000: (10, 2)}

#: What the rounds of one number of tables may take on a slow machine: ours, others.
SECONDS = (35, 8)

#: The aims.
AIM, MORE_STATEMENTS = 1.10, 5


@dataclass(frozen=True)
class Way:
    """How the tables are marked and compared.

    :param peer: whose environment it runs in.
    :param check: the module in ``programs/checks``.
    :param database: what it compares with.
    :param most: tables up to which it is measured.
    """

    peer: str
    check: str
    database: str
    most: int = 1000


PLAIN, WITH = "plain Alembic", "sqlalchemy-tenants"

WAYS = {
    PLAIN: Way("plain", "plain", "ours"),
    "plugin switched off": Way(OURS, "off", "ours"),
    WITH: Way(OURS, "ours", "ours"),
    PEERS["earlier"].name: Way("earlier", "earlier", "earlier"),
    PEERS["rls"].name: Way("rls", "rls_policies", "rls"),
    PEERS["alembic_utils"].name: Way("alembic_utils", "entities", "utils", 100),
}

#: Who creates the tables of a database.
CREATORS = {way.database: name for name, way in WAYS.items() if name != PLAIN}
CREATORS["ours"] = WITH


def run(options: Any) -> dict[str, Any]:
    prepare(*{way.peer for way in WAYS.values() if way.peer != OURS})
    return {
        "postgresql": {
            str(version): {
                str(size): _run_size(version, size, options.full) for size in SIZES
            }
            for version in options.versions[-1:]
        }
    }


def report(results: dict[str, Any]) -> None:
    print("Each run is the first of its process, after models and packages have been")
    print("imported. CPU is that of the Python process.\n")
    for version, sizes in results["postgresql"].items():
        for size, ways in sizes.items():
            print(f"PostgreSQL {version}, {int(size):,} tables\n")
            rows = [
                (
                    name,
                    milliseconds(way["wall"]),
                    times(way["ratio"]),
                    times(way["cpu"]),
                    way["statements"],
                )
                for name, way in ways.items()
            ]
            table(("", "time", "ratio", "CPU", "statements"), rows)
            print()


def aims(results: dict[str, Any]) -> list[Aim]:
    """Time and statements, for each number of tables."""
    sizes = list(results["postgresql"].values())[-1]
    found = []
    for size, ways in sizes.items():
        ours, plain = ways[WITH], ways[PLAIN]
        more = ours["statements"] - plain["statements"]
        others = [
            f"{name} {way['ratio']['median']:.2g}x, {way['statements']:,} statements"
            for name, way in ways.items()
            if WAYS[name].peer not in ("plain", OURS)
        ]
        ratio = ours["ratio"]["median"]
        found.append(
            Aim(
                f"`alembic check` with nothing to do, {int(size):,} tables",
                "plain Alembic",
                f"at most {AIM:.2f}x, {MORE_STATEMENTS} statements more",
                f"{ratio:.2f}x, {more} more; {'; '.join(others)}",
                ratio <= AIM and more <= MORE_STATEMENTS,
            )
        )
    return found


def _run_size(version: int, size: int, full: bool) -> dict[str, Any]:
    say(f"PostgreSQL {version}, {size:,} tables")
    with ExitStack() as stack:
        with on(SERVER):
            server = stack.enter_context(Server(version))
        with server.connect() as connection:
            connection.execute(CREATE_LOGINS)
        with on(CLIENT):
            programs = _programs(size, stack)
        with ThreadPoolExecutor(2) as pool:
            created = [
                pool.submit(_create, server, database, programs[name])
                for database, name in CREATORS.items()
                if name in programs
            ]
        for each in created:
            each.result()  # raises what went wrong
        # one checkpoint now, and not in the middle of the rounds
        with server.connect() as connection:
            connection.execute("CHECKPOINT")
        ours = [PLAIN, "plugin switched off", WITH]
        others = [PLAIN, *(name for name in programs if name not in ours)]
        results: dict[str, Any] = {}
        for names, rounds, seconds in zip(
            (ours, others), SIZES[size], SECONDS, strict=True
        ):
            say(f"PostgreSQL {version}, {size:,} tables: {', '.join(names)}")
            answers: dict[str, list[Any]] = {name: [] for name in names}
            samples = interleave(
                {
                    name: _timed(
                        programs[name], server.url(WAYS[name].database, "owner"), found
                    )
                    for name, found in answers.items()
                },
                rounds * (3 if full else 1),
                warmup=1,
                least=2,
                seconds=seconds * (3 if full else 1),
            )
            cpu = {
                name: [each["cpu"] for each in found[1:]]
                for name, found in answers.items()
            }
            for name in names:
                # plain is measured with ours and with the others, and kept from there
                results.setdefault(
                    name,
                    {
                        "wall": spread(samples[name]),
                        "ratio": ratio(samples[name], samples[PLAIN]),
                        "cpu": ratio(cpu[name], cpu[PLAIN]),
                        "statements": answers[name][0]["statements"],
                    },
                )
    return results


def _programs(size: int, stack: ExitStack) -> dict[str, Program]:
    return {
        name: stack.enter_context(
            Program(way.peer, "autogenerate.py", way.check, str(size))
        )
        for name, way in WAYS.items()
        if size <= way.most
    }


def _create(server: Server, database: str, program: Program) -> None:
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {database} OWNER owner")
    program.call("create", url=server.url(database, "owner"))
    with server.connect(database) as connection:
        connection.execute("VACUUM ANALYZE")


def _timed(program: Program, url: str, found: list[Any]) -> Callable[[], float]:
    def call() -> float:
        answer = program.call("check", url=url)
        assert not answer["differences"], answer
        found.append(answer)
        seconds: float = answer["seconds"]
        return seconds

    return call
