"""``LineBuilder``: makes one line of line protocol, with the escaping and the errors of InfluxDB 3."""

from __future__ import annotations

from collections import OrderedDict

from saltus.errors import InvalidKeyError, InvalidLineError, InvalidMeasurementError

_TAG_VALUE = str.maketrans({"\\": "\\\\", ",": "\\,", "=": "\\=", " ": "\\ "})
_MEASUREMENT = str.maketrans({",": "\\,", " ": "\\ "})
_FORBIDDEN_IN_KEYS = ((" ", "spaces"), (",", "commas"), ("=", "equals signs"))


class LineBuilder:
    """One line: a measurement, tags, fields and perhaps a timestamp. Every setter returns the builder itself."""

    measurement: str
    tags: OrderedDict[str, str]
    fields: OrderedDict[str, str]

    def __init__(self, measurement: str) -> None:
        if " " in measurement:
            raise InvalidMeasurementError("Measurement name cannot contain spaces")
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

    def tag(self, key: str, value: object) -> LineBuilder:
        """Sets a tag; the value is what ``str()`` makes of it."""
        self._validate_key(key, "tag")
        self.tags[key] = str(value)
        return self

    def uint64_field(self, key: str, value: int) -> LineBuilder:
        """Sets an unsigned integer field."""
        self._validate_key(key, "field")
        if value < 0:
            raise ValueError(f"uint64 field '{key}' cannot be negative")
        self.fields[key] = f"{value}u"
        return self

    def int64_field(self, key: str, value: int) -> LineBuilder:
        """Sets an integer field."""
        self._validate_key(key, "field")
        self.fields[key] = f"{value}i"
        return self

    def float64_field(self, key: str, value: float) -> LineBuilder:
        """Sets a float field; integral values are written with ``.0``."""
        self._validate_key(key, "field")
        self.fields[key] = f"{int(value)}.0" if value % 1 == 0 else str(value)
        return self

    def string_field(self, key: str, value: str) -> LineBuilder:
        """Sets a string field."""
        self._validate_key(key, "field")
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        self.fields[key] = f'"{escaped}"'
        return self

    def bool_field(self, key: str, value: object) -> LineBuilder:
        """Sets a boolean field by the truth of ``value``."""
        self._validate_key(key, "field")
        self.fields[key] = "t" if value else "f"
        return self

    def time_ns(self, timestamp_ns: int) -> LineBuilder:
        """Sets the timestamp, in nanoseconds since the epoch."""
        self._timestamp_ns = timestamp_ns
        return self

    def _escape_measurement(self, value: str) -> str:
        return value.translate(_MEASUREMENT)

    def _escape_tag_value(self, value: str) -> str:
        return value.translate(_TAG_VALUE)

    def _escape_field_key(self, value: str) -> str:
        return value.translate(_TAG_VALUE)

    def build(self) -> str:
        """The line, without a newline."""
        line = self._escape_measurement(self.measurement)
        for key, value in self.tags.items():
            line += f",{key}={self._escape_tag_value(value)}"
        if not self.fields:
            raise InvalidLineError(f"At least one field is required: {line}")
        line += " " + ",".join(f"{self._escape_field_key(key)}={value}" for key, value in self.fields.items())
        if self._timestamp_ns is not None:
            line += f" {self._timestamp_ns}"
        return line
