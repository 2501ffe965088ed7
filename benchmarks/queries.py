"""Queries of a tenant under row-level security, beside a WHERE written by hand."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import plot
from database import tenant_name
from measure import Aim, Candidate, interleave, ratio, say, spread, table, times
from psycopg.pq import ExecStatus
from shop import CONDITION, FORMS, PLAIN, SIZES, WAYS, Way, shop

from servers import Database

#: Statements; in brackets what the WHERE written by hand adds.
QUERIES = {
    "point read": "SELECT id, amount, body FROM orders WHERE id = $1[ AND tenant = $2]",
    # by an index led by the tenant
    "latest 20": (
        "SELECT id, placed, amount FROM orders[ WHERE tenant = $1]"
        " ORDER BY placed DESC LIMIT 20"
    ),
    # by an index that does not know tenants, or by that of the tenant and a sort
    "largest 20": (
        "SELECT id, placed, amount FROM orders[ WHERE tenant = $1]"
        " ORDER BY amount DESC LIMIT 20"
    ),
    "aggregate": "SELECT count(*), sum(amount) FROM orders[ WHERE tenant = $1]",
    "join": (
        "SELECT count(*), sum(amount) FROM orders"
        " JOIN customers ON customers.id = orders.customer WHERE customers.region = 7"
        "[ AND orders.tenant = $1 AND customers.tenant = $1]"
    ),
    "insert": (
        "INSERT INTO orders (tenant, customer, placed, amount, body)"
        " VALUES ($1, 1, 1, 1, 'new')"
    ),
    "update": "UPDATE orders SET body = 'changed' WHERE id = $1[ AND tenant = $2]",
}

#: All orders of a tenant, only to ask how many the planner expects.
ALL = "SELECT id FROM orders[ WHERE tenant = $1]"
#: For sequential scans; the smaller table, since a policy may cost much for each row.
COUNT = "SELECT count(*) FROM customers[ WHERE tenant = $1]"

WRITES = ("insert", "update")

#: These are also run in transactions of their own.
SHORT = ("point read", "latest 20", *WRITES)

#: The aims: ratios to the WHERE written by hand.
AIMS = {"shared": 1.05, "role": 1.25, CONDITION: 1.05}

#: What a batch should take, in seconds; and how many statements it has at most.
BATCH, MOST = 0.004, 50
#: How many rounds each comparison has, and the seconds after which no other begins.
ROUNDS, SECONDS = 25, 0.7

#: A statement's text, or the name of a prepared one if the second is true; and values.
Job: TypeAlias = tuple[bytes, bool, list[bytes]]
#: Those of the clock, and those that the server's process ran.
Spent: TypeAlias = tuple[float, float]
#: Executes something as many times as it is told.
Batch: TypeAlias = Callable[[int], Spent]


class Client:
    """A connection of one way.

    It speaks libpq, since what Python does would hide what the server does; and in
    pipelines, since waking up for each statement would, too.
    """

    def __init__(
        self, way: Way, database: Database, ids: Mapping[str, Sequence[int]]
    ) -> None:
        self.way = way
        self.ids = ids
        self.connection = database.server.connect(database.name, way.login)
        # it would deallocate all after a ROLLBACK, ours too
        self.connection.prepare_threshold = None
        self._libpq = self.connection.pgconn
        self._prepared: set[str] = set()
        self._clock = Path(f"/proc/{self._libpq.backend_pid}/schedstat")

    def text(self, query: str) -> str:
        """The statement of a query."""
        kept = r"\1" if self.way.condition else ""
        return re.sub(r"\[(.*?)\]", kept, QUERIES.get(query, query))

    def values(self, query: str, size: str, number: int) -> list[str]:
        """The parameters of a query: for the same ``number``, the same rows."""
        values = []
        if query in ("point read", "update"):
            values.append(str(self.ids[size][number]))
        if query == "insert" or self.way.condition:
            values.append(tenant_name(SIZES[size]))
        return values

    def begin(self, size: str) -> None:
        """Begin a transaction of a tenant."""
        for statement in self._begin(size):
            self.connection.execute(statement)

    def _begin(self, size: str) -> list[str]:
        return ["BEGIN", *self.way.scope(tenant_name(SIZES[size]))]

    def rollback(self) -> None:
        """End a transaction; nothing that was measured stays."""
        self.connection.execute("ROLLBACK")

    def found(self, query: str, size: str) -> list[Any]:
        """What a query finds: the last column, where equal rows may be in any order."""
        self.begin(size)
        rows = self.connection.execute(self._literal(query, size)).fetchall()
        self.rollback()
        return [row[-1] for row in rows]

    def explain(self, query: str, size: str) -> dict[str, Any]:
        """The plan of a query, and what became of it."""
        options = "ANALYZE, BUFFERS, TIMING OFF"
        return self._explain(options, self._literal(query, size), size)

    def estimate(self, size: str) -> int:
        """How many orders of a tenant the planner expects."""
        statement = self._literal(ALL, size)
        rows: int = self._explain("COSTS", statement, size)["Plan Rows"]
        return rows

    def _explain(self, options: str, statement: str, size: str) -> dict[str, Any]:
        self.begin(size)
        ((plans,),) = self.connection.execute(
            f"EXPLAIN ({options}, FORMAT JSON) {statement}"
        ).fetchall()
        self.rollback()
        plan: dict[str, Any] = plans[0]["Plan"]
        return plan

    def _literal(self, query: str, size: str) -> str:
        values = self.values(query, size, 0)
        return re.sub(
            r"\$(\d)", lambda found: f"'{values[int(found[1]) - 1]}'", self.text(query)
        )

    def batch(self, query: str, size: str, mode: str) -> Batch:
        """A query that is executed again and again in one transaction."""
        prepared = mode == "prepared"
        text = self._prepare(query, size) if prepared else self.text(query)
        jobs = [
            (text.encode(), prepared, self._encoded(query, size, number))
            for number in range(MOST)
        ]

        def call(times: int) -> Spent:
            self.begin(size)
            self._execute(jobs[-1:])  # other ways had their copies in the cache
            seconds = self._execute(jobs[:times])
            self.rollback()
            return seconds

        return call

    def transactions(self, query: str) -> Batch:
        """A prepared query in transactions of its own, where tenants take turns."""
        jobs: list[Job] = []
        for number in range(MOST):
            for size in SIZES:
                text = self._prepare(query, size, query)
                statements = [*self._begin(size), "ROLLBACK"]
                one: list[Job] = [(each.encode(), False, []) for each in statements]
                one.insert(
                    -1, (text.encode(), True, self._encoded(query, size, number))
                )
                jobs += one
        length = len(jobs) // MOST
        return lambda times: self._execute(jobs[: times * length])

    def _prepare(self, query: str, size: str, name: str | None = None) -> str:
        """Prepare a query, and execute it until PostgreSQL has chosen between a plan
        for the parameters at hand and one for all."""
        name = name or f"{query}, {size}"
        if name not in self._prepared:
            self._prepared.add(name)
            self.begin(size)
            done = self._libpq.prepare(name.encode(), self.text(query).encode())
            assert done.status == ExecStatus.COMMAND_OK, done.error_message
            values = self._encoded(query, size, 0)
            self._execute([(name.encode(), True, values)] * (6 if values else 1))
            self.rollback()
        return name

    def _encoded(self, query: str, size: str, number: int) -> list[bytes]:
        return [value.encode() for value in self.values(query, size, number)]

    def _execute(self, jobs: Sequence[Job]) -> Spent:
        """Execute statements in one pipeline.

        They are sent and received while the server works, which takes longer.
        """
        libpq = self._libpq
        libpq.enter_pipeline_mode()
        cpu, started = self._cpu(), time.perf_counter()
        for text, prepared, values in jobs:
            if prepared:
                libpq.send_query_prepared(text, values)
            else:
                libpq.send_query_params(text, values)
        libpq.pipeline_sync()
        status = None
        while status != ExecStatus.PIPELINE_SYNC:
            result = libpq.get_result()
            if result is None:  # ends the results of each statement
                continue
            status = result.status
            if status in (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED):
                raise RuntimeError(result.error_message.decode())
        seconds = time.perf_counter() - started
        cpu = self._cpu() - cpu
        libpq.exit_pipeline_mode()
        return seconds, cpu

    def _cpu(self) -> float:
        """The seconds that the server's process has run, where Linux tells them."""
        if not self._clock.exists():
            return 0.0
        return int(self._clock.read_text().split()[0]) / 1e9


def run(options: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for version in options.versions[-1:]:
        with ExitStack() as stack:
            databases = stack.enter_context(shop(version))
            ids = {size: _ids(databases["plain"], size) for size in SIZES}
            clients = {}
            for name, way in {**WAYS, **FORMS}.items():
                client = Client(way, databases[way.database], ids)
                stack.callback(client.connection.close)
                clients[name] = client
            results[str(version)] = _run(clients, 5 if options.full else 1)
    return {"postgresql": results}


def _ids(database: Database, size: str) -> list[int]:
    rows = database.rows(
        "SELECT id FROM orders WHERE tenant = %s ORDER BY amount LIMIT %s",
        [tenant_name(SIZES[size]), MOST],
    )
    return [id for (id,) in rows]


def _run(clients: Mapping[str, Client], patience: int) -> dict[str, Any]:
    """
    :param patience: how much longer than by default to measure.
    """
    ways = {name: clients[name] for name in WAYS}
    planned: dict[str, Any] = {}
    prepared: dict[str, Any] = {}
    transactions: dict[str, Any] = {}
    plans = {}
    estimates = _estimates(clients)  # first: what is rolled back leaves its pages
    for query in QUERIES:
        say(query)
        compared = ways if query in WRITES else clients
        for size in SIZES:
            name = f"{query}, {size}"
            if query not in WRITES:
                plans[name] = _plans(clients, query, size)
            for mode, results in (("planned", planned), ("prepared", prepared)):
                batches = {
                    way: client.batch(query, size, mode)
                    for way, client in compared.items()
                }
                results[name] = _compare(batches, patience)
        if query in SHORT:
            batches = {way: client.transactions(query) for way, client in ways.items()}
            transactions[query] = _compare(batches, patience)
    say("forced sequential scans")
    return {
        "planned": planned,
        "prepared": prepared,
        "transactions": transactions,
        "plans": plans,
        "estimates": estimates,
        "sequential": _sequential(clients, patience),
    }


def _compare(batches: Mapping[str, Batch], patience: int = 1) -> dict[str, Any]:
    """Time batches of all ways, side by side, and relate them to the baseline's."""
    cpu: dict[str, list[float]] = {way: [] for way in batches}

    def timed(way: str) -> Candidate:
        once, _ = batches[way](1)
        if once < BATCH:  # which it may not be the first time
            once = min(once, batches[way](1)[0])
        length = max(1, min(MOST, round(BATCH / once)))

        def call() -> float:
            seconds, used = batches[way](length)
            cpu[way].append(used / length)
            return seconds / length

        return call

    samples = interleave(
        {way: timed(way) for way in batches},
        ROUNDS * patience,
        warmup=0,
        seconds=SECONDS * patience,
    )
    results = {}
    for way, each in samples.items():
        results[way] = {**spread(each), "ratio": ratio(each, samples[PLAIN])}
        if all(cpu[PLAIN]):
            results[way]["cpu"] = ratio(cpu[way], cpu[PLAIN])
    return results


def _plans(clients: Mapping[str, Client], query: str, size: str) -> dict[str, Any]:
    """The plan of each way, how many pages it read and how many orders, and how many
    it expected; all find the same."""
    expected = clients[PLAIN].found(query, size)
    assert expected
    plans = {}
    for way, client in clients.items():
        assert client.found(query, size) == expected, f"{way}: {query}, {size}"
        plan = client.explain(query, size)
        pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        expected_rows, rows = _orders(plan)
        plans[way] = {
            "plan": _outline(plan),
            "pages": pages,
            "expected": expected_rows,
            "rows": rows,
        }
    return plans


def _orders(plan: Mapping[str, Any], workers: float | None = None) -> tuple[int, int]:
    """How many orders a plan expects to read, and how many it read; fewer than it
    might, under a LIMIT.

    :param workers: what PostgreSQL divided the rows by, in a parallel plan.
    """
    if plan.get("Relation Name") == "orders":
        if workers is None:
            return plan["Plan Rows"], round(plan["Actual Rows"])
        read = plan["Actual Rows"] * plan["Actual Loops"]
        return round(plan["Plan Rows"] * workers), round(read)
    if "Workers Planned" in plan:
        planned = plan["Workers Planned"]
        # the leader helps (get_parallel_divisor() in costsize.c)
        workers = planned + max(0, 1 - 0.3 * planned)
    for part in plan.get("Plans", []):
        expected, read = _orders(part, workers)
        if expected:
            return expected, read
    return 0, 0


#: What says nothing of how rows are found and put together.
_WRAPPERS = ("Aggregate", "Hash", "Limit", "Materialize", "Result")


def _outline(plan: Mapping[str, Any]) -> str:
    """A plan in short, without what evaluates the tenant."""
    parts = [
        _outline(part)
        for part in plan.get("Plans", [])
        if part["Parent Relationship"] != "InitPlan"
    ]
    node = plan["Node Type"]
    if len(parts) == 1 and (node in _WRAPPERS or node == "Bitmap Heap Scan"):
        return parts[0]
    keys = ("Index Name", "Relation Name")
    name = next((f"{node} {plan[key]}" for key in keys if key in plan), node)
    return f"{name} ({', '.join(parts)})" if parts else name


def _estimates(clients: Mapping[str, Client]) -> dict[str, Any]:
    """How many orders a tenant has, and how many each way's planner expects."""
    return {
        size: {
            "orders": len(clients[PLAIN].found(ALL, size)),
            **{way: client.estimate(size) for way, client in clients.items()},
        }
        for size in SIZES
    }


def _sequential(clients: Mapping[str, Client], patience: int) -> dict[str, Any]:
    """What the policy costs where it is asked for each row of the table."""
    forms = {way: clients[way] for way in (PLAIN, *FORMS, "shared", "role")}
    for client in forms.values():
        for scan in ("indexscan", "bitmapscan"):
            client.connection.execute(f"SET enable_{scan} = off")
        client.connection.execute("SET max_parallel_workers_per_gather = 0")
    batches = {
        way: client.batch(COUNT, "middle", "planned") for way, client in forms.items()
    }
    results = _compare(batches, patience)
    for client in forms.values():
        client.connection.execute("RESET ALL")
    return results


def report(results: dict[str, Any]) -> None:
    for version, measured in results["postgresql"].items():
        print(f"PostgreSQL {version}: time as a ratio to a WHERE written by hand,")
        print(
            "median and quartiles. Timed are executions in one pipeline of libpq, over"
        )
        print("a Unix socket; BEGIN and what confines the transaction only where it is")
        print("said.\n")
        others = [way for way in WAYS if way != PLAIN]
        for mode, title in (
            ("planned", "planned each time, within one transaction"),
            ("prepared", "prepared, within one transaction"),
            ("transactions", "prepared, with the whole transaction, tenants in turns"),
        ):
            _ratios(title, measured[mode], others)
        _ratios("other forms", measured["planned"], ["shared", *FORMS])
        _ratios("other forms, prepared", measured["prepared"], ["shared", *FORMS])
        sequential = {"100,000 rows, middle": measured["sequential"]}
        _ratios("forced sequential scan", sequential, ["shared", *FORMS])
        print("How many orders the planner expects.\n")
        table(
            ("tenant", *next(iter(measured["estimates"].values()))),
            [(size, *row.values()) for size, row in measured["estimates"].items()],
        )
        print("\nPlans of a WHERE written by hand, and those that are others.\n")
        table(
            ("query, tenant", "way", "orders expected", "read", "pages", "plan"),
            _differing(measured),
        )


def aims(results: dict[str, Any]) -> list[Aim]:
    """The worst of all queries and tenants, prepared or not; and estimates."""
    measured = list(results["postgresql"].values())[-1]
    found = []
    for way, aim in AIMS.items():
        ratios = {
            f"{name}, {mode}": result[way]["ratio"]["median"]
            for mode in ("planned", "prepared")
            for name, result in measured[mode].items()
            if way in result
        }
        worst = max(ratios, key=ratios.__getitem__)
        middle = statistics.median(ratios.values())
        found.append(
            Aim(
                f"time of a query, {way}",
                PLAIN,
                f"at most {aim:.2f}",
                f"{middle:.2f} in the middle; most: {ratios[worst]:,.2f}, {worst}",
                ratios[worst] <= aim,
            )
        )
        errors = [
            max(row[each] / row["orders"], row["orders"] / row[each])
            for each in (PLAIN, way)
            for row in measured["estimates"].values()
        ]
        by_hand, ours = max(errors[: len(SIZES)]), max(errors[len(SIZES) :])
        found.append(
            Aim(
                f"estimate of a tenant's rows, {way}",
                PLAIN,
                f"at most {by_hand:.1f} times off",
                f"at most {ours:.1f} times off",
                ours <= by_hand,
            )
        )
    return found


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG texts by file name."""
    version, measured = list(results["postgresql"].items())[-1]
    return {
        f"queries-{mode}.svg": plot.dots(
            f"Time of a query, {described}, PostgreSQL {version}",
            "ratio to a WHERE written by hand, less is better",
            {
                (query, f"{size} tenant"): {
                    way: result[way]["ratio"] for way in WAYS if way != PLAIN
                }
                for name, result in measured[mode].items()
                for query, size in [name.split(", ")]
            },
            aim=lambda group, way: AIMS.get(way),
            logarithmic=True,
        )
        for mode, described in (
            ("prepared", "prepared"),
            ("planned", "planned each time"),
        )
    }


def _ratios(title: str, measured: Mapping[str, Any], ways: Iterable[str]) -> None:
    rows = [
        (
            name,
            f"{result[PLAIN]['median'] * 1e3:.0f} µs",
            *(times(result[way]["ratio"]) for way in ways),
        )
        for name, result in measured.items()
        if all(way in result for way in ways)
    ]
    table((title, PLAIN, *ways), rows)
    print()


def _differing(measured: Mapping[str, Any]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    for name, plans in measured["plans"].items():
        by_hand = plans[PLAIN]
        for way, plan in plans.items():
            if way == PLAIN or plan["plan"] != by_hand["plan"]:
                keys = ("expected", "rows", "pages", "plan")
                rows.append((name, way, *(plan[key] for key in keys)))
    return rows
