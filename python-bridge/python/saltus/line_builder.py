"""``LineBuilder``: makes one line of line protocol, with the escaping and the errors of InfluxDB 3.

What InfluxDB writes and then refuses, or takes for something else, is an error of the call that brought it: the author of a plugin
sees it there. Two things of the data are not: a float that is no finite number, and an empty tag value. They are written as InfluxDB
writes them, and the server refuses that line alone and shows it in the log; a plugin need not end because a mean has no values.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from saltus.errors import InvalidKeyError, InvalidLineError, InvalidMeasurementError

_NAME = str.maketrans({"\\": "\\\\", ",": "\\,", "=": "\\=", " ": "\\ "})
_MEASUREMENT = str.maketrans({"\\": "\\\\", ",": "\\,", " ": "\\ "})
_FORBIDDEN_IN_KEYS = ((" ", "spaces"), (",", "commas"), ("=", "equals signs"))
_RESERVED = frozenset(("time", "__chunk_order"))
# What no name and no tag value can have: control characters, and halves of characters.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = re.compile("-?[0-9]+")
_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|nan|-?inf")
_NAME_BYTES_MAX = 65_535
_STRING_BYTES_MAX = 1 << 20
_I64_MIN, _I64_MAX, _U64_MAX = -(1 << 63), (1 << 63) - 1, (1 << 64) - 1


def _fault(text: str) -> str | None:
    """Why a text can be neither a name nor a tag value."""
    if not text.isprintable() and (found := _UNWRITABLE.search(text)):
        return f"cannot contain control characters or surrogates, and has U+{ord(found[0]):04X}"
    if len(text) * 4 > _NAME_BYTES_MAX and (length := len(text.encode())) > _NAME_BYTES_MAX:
        return f"has {length} bytes, the limit is {_NAME_BYTES_MAX}"
    return None


def _integer(value: object, what: str, lowest: int, highest: int) -> str:
    """The digits of a whole number; what prints itself as digits is one, as in InfluxDB, and no float or boolean does."""
    text = f"{value}"
    if not _INTEGER.fullmatch(text):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}: {text}")
    if not lowest <= int(text) <= highest:
        raise ValueError(f"{what} is out of range, {lowest} to {highest}: {text}")
    return text


class LineBuilder:
    """One line: a measurement, tags, fields and perhaps a timestamp. Every setter returns the builder itself."""

    measurement: str
    tags: OrderedDict[str, str]
    fields: OrderedDict[str, str]

    def __init__(self, measurement: str) -> None:
        if " " in measurement:
            raise InvalidMeasurementError("Measurement name cannot contain spaces")
        if not measurement:
            raise InvalidMeasurementError("Measurement name cannot be empty")
        if measurement[0] == "#":
            raise InvalidMeasurementError(f"Measurement name '{measurement}' begins with #, which makes a line a comment")
        if measurement[0] == "\ufeff":
            raise InvalidMeasurementError("Measurement name cannot begin with a byte order mark, U+FEFF")
        if fault := _fault(measurement):
            raise InvalidMeasurementError(f"Measurement name {fault}")
        self.measurement = measurement
        self.tags = OrderedDict()
        self.fields = OrderedDict()
        self._timestamp_ns: int | None = None

    def _validate_key(self, key: str, key_type: str) -> None:
        if not key:
            raise InvalidKeyError(f"{key_type} key cannot be empty")
        for character, name in _FORBIDDEN_IN_KEYS:
            if character in key:
                raise InvalidKeyError(f"{key_type} key '{key}' cannot contain {name}")
        if key in _RESERVED:
            raise InvalidKeyError(f"{key_type} key '{key}' is reserved: the timestamp is set with time_ns()")
        if key in (self.fields if key_type == "tag" else self.tags):
            other = "field" if key_type == "tag" else "tag"
            raise InvalidKeyError(f"{key_type} key '{key}' is the key of a {other} of this line already")
        if fault := _fault(key):
            raise InvalidKeyError(f"{key_type} key {key!r} {fault}")

    def tag(self, key: str, value: object) -> LineBuilder:
        """Sets a tag; the value is what ``str()`` makes of it."""
        self._validate_key(key, "tag")
        if value is None:
            raise ValueError(f"tag '{key}' has no value, None: leave the tag out")
        text = str(value)
        if fault := _fault(text):
            raise ValueError(f"tag '{key}': the value {fault}")
        self.tags[key] = text
        return self

    def uint64_field(self, key: str, value: int) -> LineBuilder:
        """Sets an unsigned integer field, 0 to 2**64 - 1."""
        self._validate_key(key, "field")
        text = f"{value}"
        if text[:1] == "-" and _INTEGER.fullmatch(text) and int(text) < 0:
            raise ValueError(f"uint64 field '{key}' cannot be negative")
        text = _integer(value, f"uint64 field '{key}'", 0, _U64_MAX)
        self.fields[key] = text.lstrip("-") + "u"
        return self

    def int64_field(self, key: str, value: int) -> LineBuilder:
        """Sets an integer field, -2**63 to 2**63 - 1."""
        self._validate_key(key, "field")
        self.fields[key] = _integer(value, f"int64 field '{key}'", _I64_MIN, _I64_MAX) + "i"
        return self

    def float64_field(self, key: str, value: float) -> LineBuilder:
        """Sets a float field; integral values are written with ``.0``. The server refuses a line with one that is not finite."""
        self._validate_key(key, "field")
        if value is None or isinstance(value, (str, bytes)):
            raise TypeError(f"float64 field '{key}' must be a float, not {type(value).__name__}: {value!r}")
        if value % 1 == 0:
            text = f"{int(value)}.0" if value else "-0.0" if str(value)[0] == "-" else "0.0"
        else:
            text = str(value)
            if type(value) is not float and not _FLOAT.fullmatch(text):
                text = str(float(value))
        if len(text) > 300 and float(text) in (float("inf"), float("-inf")):
            raise ValueError(f"float64 field '{key}' is out of range, it is beyond 1.8e308")
        self.fields[key] = text
        return self

    def string_field(self, key: str, value: str) -> LineBuilder:
        """Sets a string field."""
        self._validate_key(key, "field")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        if not value.isprintable() and (found := _SURROGATE.search(value)):
            raise ValueError(f"string field '{key}' cannot contain surrogates, and has U+{ord(found[0]):04X}")
        if len(value) * 4 > _STRING_BYTES_MAX and (length := len(value.encode())) > _STRING_BYTES_MAX:
            raise ValueError(f"string field '{key}' has {length} bytes, the limit is {_STRING_BYTES_MAX}")
        self.fields[key] = f'"{escaped}"'
        return self

    def bool_field(self, key: str, value: object) -> LineBuilder:
        """Sets a boolean field by the truth of ``value``."""
        self._validate_key(key, "field")
        self.fields[key] = "t" if value else "f"
        return self

    def time_ns(self, timestamp_ns: int) -> LineBuilder:
        """Sets the timestamp, in nanoseconds since the epoch."""
        self._timestamp_ns = int(_integer(timestamp_ns, "time_ns()", _I64_MIN, _I64_MAX))
        return self

    def _escape_measurement(self, value: str) -> str:
        return value.translate(_MEASUREMENT)

    def _escape_tag_value(self, value: str) -> str:
        return value.translate(_NAME)

    def _escape_field_key(self, value: str) -> str:
        return value.translate(_NAME)

    def build(self) -> str:
        """The line, without a newline."""
        line = self._escape_measurement(self.measurement)
        for key, value in self.tags.items():
            line += f",{self._escape_field_key(key)}={self._escape_tag_value(value)}"
        if not self.fields:
            raise InvalidLineError(f"At least one field is required: {line}")
        line += " " + ",".join(f"{self._escape_field_key(key)}={value}" for key, value in self.fields.items())
        if self._timestamp_ns is not None:
            line += f" {self._timestamp_ns}"
        return line
