"""The host of ``saltus.testing``: what plugins see, and what tests see of plugins."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import pytest

import saltus
from saltus.testing import Host, LineProtocolError, PluginFailed, Query, Trigger, UnexpectedQuery

PLUGIN = "plugin_for_tests.py"


def load(host: Host, **args: str) -> Trigger:
    return host.load(PLUGIN, args=args or None)


def test_a_plugin_sees_rows_in_globals_of_its_own(saltus_host: Host) -> None:
    trigger = load(saltus_host)
    for _ in range(2):
        run = trigger.process_writes('m,t=x f=1.5,s="q" 5\nm g=2i,f=2 6')
        assert [line.text for line in run.logs] == [
            "m [{'t': 'x', 'f': 1.5, 's': 'q', 'time': 5}, {'f': 2.0, 'g': 2, 'time': 6}] 1 builtins"
        ]
    assert saltus_host.database().rows("m")[0] == {"f": 1.5, "g": None, "s": "q", "t": "x", "time": 5}


def test_rows_may_have_every_column_of_their_table(saltus_host: Host) -> None:
    trigger = saltus_host.load(PLUGIN, missing_columns="none")
    trigger.process_writes("m,t=x f=1 1")
    assert "{'g': 1, 't': None, 'f': None, 'time': 2}" in trigger.process_writes("m g=1i 2").logs[0].text
    with pytest.raises(ValueError, match="missing_columns must be absent or none"):
        saltus_host.load(PLUGIN, missing_columns="null")


def test_the_errors_of_line_builder_are_where_influxdb_has_them(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "main.py"
    path.write_text(
        "import __main__\ndef process_writes(api, batches, args):\n    try:\n        LineBuilder('a').build()\n"
        "    except __main__.InvalidLineError as error:\n        api.info(error)\n"
    )
    saltus_host.load(path).process_writes("m f=1 1").assert_logged("At least one field")


def test_the_internal_database_is_the_servers_own(saltus_host: Host) -> None:
    run = load(saltus_host, write_to="_internal").process_writes("m f=1 1", check=False)
    assert run.error == "Exception: error writing line protocol to _internal: cannot modify internal db"


def test_writes_that_waited_come_in_one_run_a_batch_each(saltus_host: Host) -> None:
    run = load(saltus_host).process_writes("a f=1 1\nb f=2 2", "a f=3 3")
    assert [line.text.split()[0] for line in run.logs] == ["a", "b", "a"]
    assert run.event.ids == ("1-0-1", "1-0-1", "1-0-2")


def test_a_trigger_of_a_table_gets_that_table(saltus_host: Host) -> None:
    trigger = saltus_host.load(PLUGIN, spec="table:b")
    assert len(trigger.process_writes("a f=1 1\nb f=2 2").logs) == 1
    with pytest.raises(ValueError, match="no rows"):
        trigger.process_writes("a f=1 1")
    with pytest.raises(ValueError, match="spec must be"):
        saltus_host.load(PLUGIN, spec="hourly")


def test_a_trigger_is_of_one_kind(saltus_host: Host) -> None:
    with pytest.raises(ValueError, match="the trigger is for a schedule, and this is a write"):
        saltus_host.load(PLUGIN, spec="every:1s").process_writes("m f=1 1")
    with pytest.raises(ValueError, match="the trigger is for a write"):
        saltus_host.load(PLUGIN, spec="all_tables").process_request()
    saltus_host.load(PLUGIN, spec="cron:0 0 * * * *").process_scheduled_call()
    saltus_host.load(PLUGIN, spec="request:way/*").process_request()


def test_lines_that_the_server_refuses_are_the_tests_fault(saltus_host: Host) -> None:
    with pytest.raises(LineProtocolError, match="No fields were provided"):
        load(saltus_host).process_writes("m f=")


def test_what_is_queued_is_written_if_the_run_succeeds(saltus_host: Host) -> None:
    run = load(saltus_host, write="out", write_to="other").process_writes("m f=1 1")
    run.assert_written("out", fields={"f": 1}, count=1)
    run.assert_written("out", database="other", fields={"f": ANY})
    assert saltus_host.database("other").tables() == ["out"]
    assert run.lines == {"test": ["out f=1i"], "other": ["out f=1i"]}

    failed = load(saltus_host, write="lost", **{"raise": "no"}).process_writes("m f=1 1", check=False)
    assert failed.error == "ValueError: no"
    assert "raise ValueError(value)" in failed.traceback
    failed.assert_nothing_written()
    assert "lost" not in saltus_host.database().tables()


def test_an_error_of_the_plugin_fails_the_test(saltus_host: Host) -> None:
    with pytest.raises(PluginFailed, match="ValueError: no") as caught:
        load(saltus_host, **{"raise": "no"}).process_writes("m f=1 1")
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.run.logs


def test_results_that_cannot_be_written_are_an_error_of_the_run(saltus_host: Host) -> None:
    run = load(saltus_host, raw="m f=2i").process_writes("m f=1 1", check=False)
    assert run.error == (
        "error running wal plugin: error writing back lines to test: Cannot write: line protocol parse failed: invalid "
        "column type for column 'f', expected iox::column_type::field::float, got iox::column_type::field::integer (line 1): "
        "`m f=2i`"
    )
    run = load(saltus_host, write_to="not a name").process_scheduled_call(check=False)
    assert (
        run.error
        == "error running schedule plugin: error writing back lines to not a name: Cannot write: invalid database name: not a name"
    )


def test_write_sync_writes_at_once_and_raises(saltus_host: Host) -> None:
    failed = load(saltus_host, write_sync="out f=1i 7", **{"raise": "no"}).process_writes("m f=1 1", check=False)
    failed.assert_written("out", fields={"f": 1}, time=7)
    run = load(saltus_host, write_sync="out f=1 7").process_writes("m f=1 2", check=False)
    assert run.error is not None
    assert run.error.startswith(
        "Exception: error writing line protocol to test: Cannot write: line protocol parse failed: "
    )


def test_queries_are_answered_by_the_test(saltus_host: Host) -> None:
    saltus_host.on_query(re.compile("FROM room"), [{"n": 1}])
    saltus_host.on_query("SELECT n  FROM\n room", lambda query: [{"n": query.database}])
    run = load(saltus_host, query="SELECT n FROM room").process_scheduled_call()
    assert run.logs[-1].text == "[{'n': 'test'}]"
    assert run.queries == [Query("SELECT n FROM room", {}, "test")]
    assert load(saltus_host, query="SELECT m FROM room").process_scheduled_call().logs[-1].text == "[{'n': 1}]"
    saltus_host.on_query(lambda query: "boom" in query.sql, saltus.QueryError("no"))
    assert load(saltus_host, query="boom").process_scheduled_call(check=False).error == "QueryError: no"
    assert "$x" in str(load(saltus_host, query="SELECT $x FROM room").process_scheduled_call(check=False).error)


def test_a_query_without_an_answer_fails_the_test_even_if_the_plugin_swallows_it(saltus_host: Host) -> None:
    with pytest.raises(UnexpectedQuery, match="SELECT 1"):
        load(saltus_host, swallowed_query="SELECT 1").process_scheduled_call()


def test_what_is_printed_is_logged(saltus_host: Host) -> None:
    run = load(saltus_host, print="one\ntwo").process_writes("m f=1 1")
    assert [line.text for line in run.logs[1:]] == ["one", "two"]
    run.assert_logged("tw.", "INFO")
    with pytest.raises(AssertionError, match="no WARN in the log"):
        run.assert_logged("two", "WARN")


def test_state_is_kept_if_the_run_succeeds(saltus_host: Host) -> None:
    trigger = load(saltus_host, count="")
    trigger.process_writes("m f=1 1")
    assert saltus_host.state() == {"count": 1}
    trigger.args = {"count": "", "raise": "no"}
    trigger.process_writes("m f=1 1", check=False)
    trigger.args = {"count": ""}
    assert trigger.process_writes("m f=1 1").logs[-1].text == "count 2"


def test_scheduled_calls_have_whole_seconds_in_local_time(saltus_host: Host) -> None:
    run = load(saltus_host).process_scheduled_call("2026-01-02T03:04:05.678Z")
    utc = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    local = utc.astimezone().replace(tzinfo=None)
    assert run.logs[0].text == f"{local} {int(utc.timestamp()) * 10**9 + 678_000_000}"


def test_requests_and_responses(saltus_host: Host) -> None:
    trigger = load(saltus_host)
    run = trigger.process_request(
        "POST", query="a=1&a=2&b=%20", headers={"X-A": "v", "Authorization": "Bearer x"}, body="text"
    )
    assert run.response is not None
    assert run.response.status == 201
    assert run.response.header("content-type") == "application/json"
    assert run.response.json() == {"query": {"a": "2", "b": " "}, "headers": {"x-a": "v"}, "body": "text"}
    streamed = trigger.process_request(query={"kind": "stream"}).response
    assert streamed is not None
    assert (streamed.status, streamed.text, streamed.chunks) == (200, "ab", [b"a", b"b"])
    failed = trigger.process_request(query={"kind": "none"}, check=False).response
    assert failed is not None
    assert (failed.status, failed.json()) == (500, {"error": "Unsupported return type from Python function"})
    trigger.args = {"raise": "no"}
    failed = trigger.process_request(check=False).response
    assert failed is not None
    assert failed.json() == {"error": "Python function call failed: ValueError: no"}


def test_a_missing_function_is_said_with_its_signature(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    run = saltus_host.load(path).process_writes("m f=1 1", check=False)
    assert run.error == (
        "the process_writes function is not present in the plugin. Should be defined as: "
        "process_writes(influxdb3_local, table_batches, args=None)"
    )


def test_a_coroutine_is_run(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "coroutine.py"
    path.write_text("async def process_writes(api, batches, args):\n    api.info('ran')\n")
    saltus_host.load(path).process_writes("m f=1 1").assert_logged("ran")


def test_a_folder_keeps_its_module_until_a_file_changes(saltus_host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "saltus_test_folder"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="must contain __init__.py"):
        saltus_host.load(folder)
    (folder / "helper.py").write_text("WORD = 'one'\n")
    source = "from .helper import WORD\nRUNS = []\ndef process_writes(api, batches, args):\n    RUNS.append(1)\n    api.info(WORD, len(RUNS))\n"
    (folder / "__init__.py").write_text(source)
    trigger = saltus_host.load(folder)
    texts = [trigger.process_writes("m f=1 1").logs[-1].text for _ in range(2)]
    (folder / "helper.py").write_text("WORD = 'three'\n")
    texts.append(trigger.process_writes("m f=1 1").logs[-1].text)
    assert texts == ["one 1", "one 2", "three 1"]


CACHE = """
import time

def process_scheduled_call(api, call_time, args):
    cache = api.cache
    held = cache.get("object", None)
    if held is None:
        held = [time.time_ns()]
        cache.put("object", held, ttl=10)
        cache.put("everywhere", 1, use_global=True)
    held.append(len(held))
    api.info(str(held).replace(" ", ""), time.time(), cache.get("everywhere"), cache.get("everywhere", "-", use_global=True))
    try:
        cache.put("object", 1, ttl=-1)
    except ValueError as error:
        api.info(error)
"""


def test_the_cache_keeps_objects_until_the_clock_says_so(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "cache.py"
    path.write_text(CACHE)
    trigger, other = saltus_host.load(path, name="one"), saltus_host.load(path, name="other")
    saltus_host.clock.set("2026-01-01T00:00:00Z")
    before = time.time()
    first = trigger.process_scheduled_call().logs
    assert first[1].text == "cannot convert float seconds to Duration: value is negative"
    assert first[0].text.split()[1:] == ["1767225600.0", "None", "1"]
    began = 1_767_225_600 * 10**9

    def held(asked: Trigger) -> str:
        return asked.process_scheduled_call().logs[0].text.split()[0]

    saltus_host.clock.advance(9.5)
    assert held(trigger) == f"[{began},1,2]", "the object itself, not a copy"
    assert held(other) == f"[{began + 9_500_000_000},1]", "a trigger has a cache of its own"
    saltus_host.clock.advance(0.5)
    assert held(trigger) == f"[{began + 10_000_000_000},1]", "it has expired"
    assert time.time() >= before, "outside of a run the clock is the machine's"


def test_limits_of_output(saltus_host: Host) -> None:
    saltus_host.output_rows_max = 2
    run = load(saltus_host, raw="o f=1 1\no f=1 2\no f=1 3").process_writes("m f=1 1", check=False)
    assert run.error is not None
    assert run.error.startswith("LimitError: the run queued more than 2 rows; nothing of it is written")


def test_a_failing_assertion_shows_what_was_written(saltus_host: Host) -> None:
    run = load(saltus_host, write="out").process_writes("m f=1 1")
    with pytest.raises(AssertionError, match=r"at least one point expected, 0 found.*\n.*\n.*table='out'"):
        run.assert_written("out", fields={"f": 2})
    with pytest.raises(AssertionError):
        run.assert_written("out", fields={"f": True})
    with pytest.raises(AssertionError, match="2 points expected, 1 found"):
        run.assert_written("out", count=2)
    with pytest.raises(AssertionError, match="nothing should have been written"):
        run.assert_nothing_written()


def test_columns_show_what_rows_say(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "columns.py"
    path.write_text(
        "def process_writes(api, batches, args):\n"
        "    for name, column in batches[0].columns.items():\n"
        "        api.info(name, column.kind, column.null_count, column.dictionary, column.to_list())\n"
        "    api.info(batches[0].row_count, batches[0].event_id)\n"
    )
    run = saltus_host.load(path).process_writes("m,t=a f=1,b=t 1\nm,t=b f=2 2")
    assert [line.text for line in run.logs] == [
        "t tag 0 ['a', 'b'] ['a', 'b']",
        "f float 0 None [1.0, 2.0]",
        "b boolean 1 None [True, None]",
        "time timestamp 0 None [1, 2]",
        "2 1-0-1",
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="memoryview() of a Python object needs Python 3.12")
def test_columns_have_buffers(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "buffers.py"
    path.write_text(
        "def process_writes(api, batches, args):\n"
        "    for name in ('t', 'i', 'f', 'b', 'time'):\n"
        "        view = memoryview(batches[0].columns[name])\n"
        "        api.info(name, view.format, view.readonly, view.tolist())\n"
    )
    run = saltus_host.load(path).process_writes("m,t=a f=1,b=t,i=7i 1\nm,t=b f=2,b=f,i=8i 2")
    assert [line.text for line in run.logs] == [
        "t i True [0, 1]",
        "i q True [7, 8]",
        "f d True [1.0, 2.0]",
        "b ? True [True, False]",
        "time q True [1, 2]",
    ]


def test_instants_are_what_they_say(saltus_host: Host) -> None:
    clock = saltus_host.clock
    for instant, wanted in [
        (5, 5),
        (1.5, 1_500_000_000),
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T01:00:00+01:00", 0),
        (datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc), 10**9),
    ]:
        clock.set(instant)  # type: ignore[arg-type]
        assert clock.now_ns() == wanted
    clock.advance(2)
    assert clock.now() == datetime.datetime(1970, 1, 1, 0, 0, 3, tzinfo=datetime.timezone.utc)


def test_arguments_are_strings_and_files_must_be_there(saltus_host: Host) -> None:
    with pytest.raises(TypeError, match="arguments of triggers are strings"):
        saltus_host.load(PLUGIN, args={"n": 1})  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError, match="Plugin not found"):
        saltus_host.load("nowhere.py")


def test_line_builder_is_a_builtin_only_while_it_should_be() -> None:
    script = (
        "from saltus.testing import Host\nwith Host():\n    LineBuilder('m')\n"
        "try:\n    LineBuilder\nexcept NameError:\n    print('gone')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "gone\n"


def test_the_package_is_the_api_outside_of_the_server() -> None:
    assert saltus.InfluxDB3Local.__module__.startswith("saltus.testing")
    assert str(saltus.PluginTimeout()) == "the run took longer than its deadline"


def test_folders_of_one_name_run_their_own_code(saltus_host: Host, tmp_path: Path) -> None:
    for side in ("a", "b"):
        folder = tmp_path / side / "common"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(
            "import common.who\nfrom .who import NAME\n"
            "def process_writes(api, batches, args):\n    from .who import NAME as late\n"
            "    api.info(NAME, late, common.who.NAME)\n"
        )
        (folder / "who.py").write_text(f"NAME = {side!r}\n")
    for _ in range(2):
        for side in ("a", "b"):
            run = saltus_host.load(tmp_path / side / "common").process_writes("m f=1 1")
            assert [line.text for line in run.logs] == [f"{side} {side} {side}"]
    (tmp_path / "a" / "common" / "who.py").write_text("NAME = 'new'\n")
    run = saltus_host.load(tmp_path / "a" / "common").process_writes("m f=1 1")
    assert run.logs[0].text == "new new new"


def test_a_call_of_a_trigger_with_a_time_zone_is_aware(saltus_host: Host, tmp_path: Path) -> None:
    path = tmp_path / "call.py"
    path.write_text(
        "import datetime\ndef process_scheduled_call(api, call_time, args):\n"
        "    api.info(call_time.isoformat(), call_time.fold, (call_time - datetime.timedelta(hours=1)).timestamp())\n"
        "    api.info(api.event.scheduled_time)\n"
    )
    # The hour that comes twice: an interval before it is real time, a local time is the clock's.
    table = [
        ("cron:0 * * * *", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00+01:00 1 1792884600.0"),
        ("every:1h", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00+01:00 0 1792888200.0"),
        ("every:1h", "2026-07-01T12:00:00Z", "2026-07-01T14:00:00+02:00 0 1782903600.0"),
    ]
    for spec, at, said in table:
        run = saltus_host.load(path, spec=spec, time_zone="Europe/Berlin").process_scheduled_call(at)
        assert [line.text for line in run.logs] == [said, said.split()[0]], spec
    with pytest.raises(ValueError, match="'Mars/Olympus' is no time zone"):
        saltus_host.load(path, time_zone="Mars/Olympus")
