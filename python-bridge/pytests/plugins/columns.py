"""Logs the addresses of columns as the buffer protocol and as the Arrow interface show them."""

import ctypes

NAMES = ("host", "n", "time")


class PyBuffer(ctypes.Structure):
    """The first fields of ``Py_buffer``, and room for the rest."""

    _fields_ = [("buf", ctypes.c_void_p), ("rest", ctypes.c_char * 256)]


class ArrowArray(ctypes.Structure):
    """``struct ArrowArray`` of the Arrow C data interface."""


ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private", ctypes.c_void_p),
]


class ArrowArrayStream(ctypes.Structure):
    """``struct ArrowArrayStream``."""

    _fields_ = [
        ("get_schema", ctypes.c_void_p),
        ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ArrowArray))),
        ("get_last_error", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private", ctypes.c_void_p),
    ]


def buffer_address(column):
    view = PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(column), ctypes.byref(view), 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return view.buf


def pointer(capsule, name, kind):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype = ctypes.c_void_p
    get.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.cast(get(capsule, name), ctypes.POINTER(kind)).contents


def process_writes(influxdb3_local, table_batches, args=None):
    batch = table_batches[0]
    columns = batch.columns
    influxdb3_local.info(*(buffer_address(columns[name]) for name in NAMES))
    arrays = [columns[name].__arrow_c_array__() for name in NAMES]
    influxdb3_local.info(*(pointer(array, b"arrow_array", ArrowArray).buffers[1] for _schema, array in arrays))
    positions = [list(columns).index(name) for name in NAMES]
    _schema, array = batch.__arrow_c_array__()
    struct = pointer(array, b"arrow_array", ArrowArray)
    assert struct.length == 2 and struct.n_children == len(columns)
    influxdb3_local.info(*(struct.children[at].contents.buffers[1] for at in positions))
    stream_capsule = batch.__arrow_c_stream__()
    stream = pointer(stream_capsule, b"arrow_array_stream", ArrowArrayStream)
    first = ArrowArray()
    assert stream.get_next(ctypes.addressof(stream), ctypes.byref(first)) == 0
    influxdb3_local.info(*(first.children[at].contents.buffers[1] for at in positions))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(first.release)(ctypes.addressof(first))
    keys, numbers = memoryview(columns["host"]), memoryview(columns["n"])
    influxdb3_local.info(
        keys.format,
        keys.tolist(),
        columns["host"].dictionary,
        numbers.format,
        numbers.tolist(),
        memoryview(columns["u"]).format,
        memoryview(columns["f"]).format,
        memoryview(columns["b"]).tolist(),
        columns["b"].null_count,
        numbers.readonly,
    )
    assert columns["s"].to_list() == ["h\u00e4", None] and columns["region"].to_list() == ["eu", None]
    assert len(columns["s"]) == batch.row_count == 2 and columns["time"].kind == "timestamp"
    try:
        memoryview(columns["s"])
    except BufferError as error:
        assert "to_list" in str(error)
    else:
        raise AssertionError("strings have no buffer")
