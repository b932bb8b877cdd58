"""Line protocol in tests means what it means to the server; ``server/tests/testing_host.rs`` sends the same cases there."""

from __future__ import annotations

import math

import pytest
from line_cases import ACCEPTED, REFUSED

from saltus.testing import LineProtocolError
from saltus.testing._clock import Clock
from saltus.testing._lines import FLOAT, INTEGER, Line, read
from saltus.testing._tables import Database


@pytest.mark.parametrize(("body", "message"), REFUSED)
def test_what_is_refused_is_refused_with_the_servers_words(body: str, message: str) -> None:
    lines, refused = read(body)
    assert (lines, [error.message for error in refused]) == ([], [message])
    assert (refused[0].number, refused[0].text) == (1, body)


@pytest.mark.parametrize(("body", "rows"), ACCEPTED)
def test_what_is_accepted_has_these_values(body: str, rows: list[tuple[str, dict[str, object]]]) -> None:
    lines, refused = read(body)
    assert refused == []
    assert [(line.table, {**line.tags, **line.fields, "time": line.time}) for line in lines] == rows
    assert [list(map(type, line.fields.values())) for line in lines] == [
        [type(row[key]) for key in line.fields] for line, (_, row) in zip(lines, rows)
    ]


def test_names_and_texts_have_limits() -> None:
    for body, message in [
        ("n" * 65535 + " f=1", None),
        ("n" * 65536 + " f=1", "String is greater than 64KB"),
        ("m " + "n" * 65536 + "=1", "String is greater than 64KB"),
        ('m f="' + "n" * (1 << 20) + '"', None),
        ('m f="' + "n" * ((1 << 20) + 1) + '"', "String is greater than 1MB"),
        ("m f=" + "9" * 5000 + "i", f"Unable to parse integer value `{'9' * 64}...`"),
    ]:
        _, refused = read(body)
        assert [error.message.partition(":")[0] for error in refused] == ([] if message is None else [message])


def test_a_precision_scales_and_auto_guesses() -> None:
    def time(text: str, precision: str) -> object:
        lines, refused = read(f"m f=1 {text}", precision)
        return lines[0].time if lines else refused[0].message

    assert time("5", "s") == 5_000_000_000
    assert time("5", "us") == 5_000
    assert time("4999999999", "auto") == 4999999999 * 10**9
    assert time("5000000000", "auto") == 5000000000 * 10**6
    assert time("5000000000000", "auto") == 5000000000000 * 10**3
    assert time("5000000000000000", "auto") == 5000000000000000
    assert str(time("9223372036854775807", "s")).startswith(
        "timestamp, 9223372036854775807, out of range for precision: Second: in this unit timestamps are -9223372036 to"
    )
    with pytest.raises(ValueError, match="precision must be"):
        read("m f=1", "h")


def test_line_numbers_skip_blank_lines_and_comments() -> None:
    lines, refused = read("# c\n\nm f=1\n\nbad\n#x\n  worse\r\nm f=2")
    assert [line.number for line in lines] == [1, 4]
    assert [(error.number, error.text) for error in refused] == [(2, "bad"), (3, "  worse")]


def test_a_refused_line_leaves_no_columns_behind() -> None:
    lines, refused = read("m f=1i\nm g=1,f=1\nm g=2i\nm f=3i")
    assert [line.fields for line in lines] == [{"f": 1}, {"g": 2}, {"f": 3}]
    assert len(refused) == 1


def test_the_schema_of_the_table_decides_types() -> None:
    _, refused = read("m f=1", schemas={"m": {"f": INTEGER}})
    assert refused[0].message == f"invalid column type for column 'f', expected {INTEGER}, got {FLOAT}"


def test_a_table_has_no_more_columns_than_the_limit() -> None:
    full = "m " + ",".join(f"f{at}=1i" for at in range(4096))
    _, refused = read(f"{full}\nm g=1\nm f7=1i\n{full},g=1\nn g=1")
    assert [error.number for error in refused] == [2, 4]
    assert refused[0].message == (
        "Update to schema would exceed number of columns per table limit of 4096 columns: table `m` would have 4097"
    )


def test_a_write_is_taken_whole_or_not_at_all() -> None:
    database = Database("db", Clock())
    with pytest.raises(LineProtocolError):
        database.write("m f=1 1\nm f=2i 2")
    assert database.tables() == []
    database.write("m,t=a f=1 1\nm,t=a g=2i 1\nm,t=b f=3 1")
    assert database.rows("m") == [
        {"f": 1.0, "g": 2, "t": "a", "time": 1},
        {"f": 3.0, "g": None, "t": "b", "time": 1},
    ]
    assert database.columns("m") == {"t": "tag", "f": "float", "g": "integer"}


def test_lines_without_a_time_get_the_clocks_and_no_two_writes_the_same() -> None:
    clock = Clock()
    clock.set(1_700_000_000_123_456_789)
    database = Database("db", clock)
    first, second = database.write("m f=1\nm g=1"), database.write("m f=1")
    assert [point.time for point in first] == [1_700_000_000_123_456_789] * 2
    assert second[0].time == 1_700_000_000_123_456_790
    assert Database("other", clock).write("m f=1", "s")[0].time == 1_700_000_000_000_000_000


def test_lines_are_compared_by_what_they_say() -> None:
    assert read("m f=1 5")[0] == [Line("m", {}, {"f": 1.0}, {"f": FLOAT}, 5, 1)]
    assert math.copysign(1, float(read("m f=-0")[0][0].fields["f"])) == -1
