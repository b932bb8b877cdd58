"""Runs the cases in ``saltus.testing`` and in a server and compares; called by ``server/tests/testing_host.rs``.

    python compare.py URL PLUGIN_DIR

Line protocol is compared as well: what ``tests/line_cases.py`` says of it, a server must say.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from cases import CASES, Case  # noqa: E402
from line_cases import ACCEPTED, REFUSED  # noqa: E402

from saltus.testing import Host, LineProtocolError, UnexpectedQuery  # noqa: E402
from saltus.testing._lines import read  # noqa: E402

PATIENCE_SECONDS = 20.0
# What the engine says of every run, and of those that fail.
ENGINES_OWN = ("starting execution", "finished execution", "error executing", "error running", "plugin_filename: ")


class Server:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(
        self, method: str, path: str, body: bytes = b"", headers: Optional[dict[str, str]] = None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of an answer."""
        data = body if method != "GET" else None
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.getheaders(), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, list(error.headers.items()), error.read()

    def post(self, path: str, body: Any) -> None:
        status, _, answer = self.call("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if status >= 300:
            raise RuntimeError(f"{path}: {status} {answer.decode()}")

    def sql(self, db: str, sql: str) -> list[dict[str, Any]]:
        body = json.dumps({"db": db, "q": sql, "format": "json"}).encode()
        status, _, answer = self.call("POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
        if status != 200:
            raise RuntimeError(f"{sql}: {status} {answer.decode()}")
        rows: list[dict[str, Any]] = json.loads(answer)
        return rows

    def until(self, db: str, sql: str, count: int) -> list[dict[str, Any]]:
        """The rows of a query once there are enough."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            rows = self.sql(db, sql)
            if len(rows) >= count:
                return rows
            if time.monotonic() > end:
                raise RuntimeError(f"{sql}: {len(rows)} rows, {count} are expected: {rows}")
            time.sleep(0.02)


def in_testing(case: Case, path: Path) -> dict[str, Any]:
    """What a case does without a server."""
    host = Host(database=case.name)
    trigger = host.load(path, args=case.args, name=case.name, spec=spec_of(case), missing_columns=case.missing_columns)
    done, answers = [], []
    try:
        for lines in case.writes:
            done.append(trigger.process_writes(lines, check=False))
        for _ in range(case.calls):
            done.append(trigger.process_scheduled_call(check=False))
        for query, headers, body in case.requests:
            method = "POST" if body else "GET"
            run = trigger.process_request(method, query=query, headers=headers, body=body, check=False)
            done.append(run)
            assert run.response is not None
            answers.append(answer_of(run.response.status, run.response.headers, run.response.body))
    except UnexpectedQuery as error:
        raise RuntimeError(f"{case.name}: a case must not depend on what a query gives: {error}") from None
    logs = [[line.level, line.text] for run in done for line in run.logs if not line.text.startswith(ENGINES_OWN)]
    tables = {table: host.database().rows(table) for table in host.database().tables()}
    return {
        "logs": logs,
        "errors": [run.error for run in done if run.error is not None],
        "tables": {table: [plain(row, case) for row in rows] for table, rows in tables.items()},
        "answers": answers,
    }


def spec_of(case: Case) -> str:
    """What starts it. Rows of one table: what a plugin writes to others must not come back to it."""
    if case.calls:
        return "every:1s"
    return f"request:{case.name}" if case.requests else f"table:{case.writes[0].split()[0].partition(',')[0]}"


def in_server(case: Case, server: Server) -> dict[str, Any]:
    """What a case does in a server."""
    db = case.name
    server.post("/api/v3/configure/database", {"db": db})
    spec = spec_of(case)
    settings: dict[str, Any] = {"run_async": False, "error_behavior": "log", "execution": "deferred"}
    if case.missing_columns != "absent":
        settings["missing_columns"] = case.missing_columns
    create = {
        "db": db,
        "plugin_filename": f"{case.name}.py",
        "trigger_name": case.name,
        "trigger_specification": spec,
        "trigger_settings": settings,
        "trigger_arguments": case.args,
        "disabled": False,
    }
    server.post("/api/v3/configure/processing_engine_trigger", create)
    ended = f"SELECT run_id, outcome, detail FROM system.trigger_runs WHERE trigger_name = '{case.name}' AND outcome <> 'decision'"
    for number, lines in enumerate(case.writes, 1):
        status, _, answer = server.call("POST", f"/api/v3/write_lp?db={db}&precision=ns", lines.encode())
        if status != 204:
            raise RuntimeError(f"{case.name}: the server refuses the rows: {status} {answer.decode()}")
        server.until(db, ended, number)
    answers = []
    for query, headers, body in case.requests:
        method = "POST" if body else "GET"
        answers.append(answer_of(*server.call(method, f"/api/v3/engine/{case.name}?{query}", body, headers)))
    if case.calls:
        server.until(db, ended, case.calls)
        server.call(
            "POST", f"/api/v3/configure/processing_engine_trigger/disable?db={db}&trigger_name={quote(case.name)}"
        )
    return {"answers": answers, **said_and_written(case, server)}


def said_and_written(case: Case, server: Server) -> dict[str, Any]:
    """Logs, errors and rows. What a failing run, or the writing of its results, says comes a moment after its end."""
    db = case.name
    lines = server.sql(
        db,
        f"SELECT log_level, log_text FROM system.processing_engine_logs WHERE trigger_name = '{case.name}' ORDER BY time",
    )
    logs = [[line["log_level"], line.get("log_text", "")] for line in lines]
    failures = [text.split("\n")[0] for level, text in logs if level == "ERROR" and text.startswith(ENGINES_OWN)]
    errors = [text if ": error writing back" in text else text.partition(": ")[2] for text in failures]
    tables = {}
    names = server.sql(db, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox'")
    for name in sorted(row["table_name"] for row in names):
        columns = server.sql(
            db,
            f"SELECT column_name FROM information_schema.columns WHERE table_schema = 'iox' AND table_name = '{name}'",
        )
        wanted = ", ".join(
            "CAST(time AS BIGINT) AS time" if column == "time" else f'"{column}"'
            for column in sorted(row["column_name"] for row in columns)
        )
        tables[name] = [plain(row, case) for row in server.sql(db, f'SELECT {wanted} FROM "{name}" ORDER BY 1, time')]
    said = [line for line in logs if not line[1].startswith(ENGINES_OWN)]
    return {"logs": said, "errors": errors, "tables": tables}


def plain(row: dict[str, Any], case: Case) -> dict[str, Any]:
    """A row without what is missing, and without a time that is the clock's."""
    return {name: value for name, value in row.items() if value is not None and (case.timed or name != "time")}


def answer_of(status: int, headers: list[tuple[str, str]], body: bytes) -> Any:
    """What a client sees of an answer; not what every answer has of the server's own."""
    interesting = sorted((name.lower(), value) for name, value in headers if name.lower() in ("content-type", "x-a"))
    text: Any = body.decode()
    if ("content-type", "application/json") in interesting and status == 500:
        text = json.loads(text)
    return [status, interesting, text]


def in_order(outcome: dict[str, Any]) -> dict[str, Any]:
    """Rows in an order of their own: equal times have none."""
    tables = {
        name: sorted(rows, key=lambda row: json.dumps(row, sort_keys=True)) for name, rows in outcome["tables"].items()
    }
    return {**outcome, "tables": tables}


def compare(case: Case, server: Server, plugins: Path) -> list[str]:
    """What differs between the two."""
    path = plugins / f"{case.name}.py"
    path.write_text(case.source)
    ours = in_order(in_testing(case, path))
    end = time.monotonic() + 5.0
    theirs = in_order(in_server(case, server))
    while theirs != ours and time.monotonic() < end:
        time.sleep(0.05)
        theirs = in_order({**theirs, **said_and_written(case, server)})
    differences = []
    for part in ours:
        if ours[part] == theirs[part]:
            continue
        if isinstance(ours[part], list) and len(ours[part]) == len(theirs[part]):
            pairs = [(a, b) for a, b in zip(ours[part], theirs[part]) if a != b]
        else:
            pairs = [(ours[part], theirs[part])]
        differences += [f"{case.name}, {part}:\n  testing {a!r}\n  server  {b!r}" for a, b in pairs]
    return differences


def compare_lines(server: Server) -> list[str]:
    """What differs in the reading of line protocol."""
    differences = []
    bodies = [body for body, _ in REFUSED] + [body for body, _ in ACCEPTED]
    bodies += ["# c\n\nm f=1\n\nbad\n#x\n  worse\r\nm f=2", "m f=1i 1\nm g=1,f=1 2\nm g=2i 3\nm f=3i 4", "\tm f=1 1"]
    for number, body in enumerate(bodies):
        _, refused = read(body)
        status, _, answer = server.call("POST", f"/api/v3/write_lp?db=lines{number}&precision=ns", body.encode())
        theirs = []
        if status == 400:
            theirs = [(error["line_number"], error["error_message"]) for error in json.loads(answer)["data"]]
        ours = [(error.number, error.message) for error in refused]
        if (status == 400) != bool(refused) or theirs != ours:
            differences.append(f"lines {body!r}:\n  testing {ours!r}\n  server  {status} {theirs!r}")
    return differences


def main() -> int:
    """Compares everything; the exit status says whether all is the same."""
    server, plugins = Server(sys.argv[1]), Path(sys.argv[2])
    wanted = sys.argv[3:]
    differences = [] if wanted else compare_lines(server)
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        try:
            differences += compare(case, server, plugins)
        except (RuntimeError, LineProtocolError, OSError) as error:
            differences.append(f"{case.name}: {error}\n{traceback.format_exc()}")
    for difference in differences:
        print(difference)
    print(f"{len(wanted or CASES)} plugins compared, {len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
