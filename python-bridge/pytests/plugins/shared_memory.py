"""Checks, byte address by byte address, that a worker process sees its rows where they lie: many in shared memory, and few where their
packet was copied to, once."""

import ctypes
import re


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.POINTER(_ArrowArray)),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


def _mappings():
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "memfd:saltus-rows" in line]
    ranges = [re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups() for line in lines]
    assert all(access == "r--p" for _, _, access in ranges), lines
    return [(int(start, 16), int(end, 16)) for start, end, _ in ranges]


def _address(exporter):
    view = _Buffer()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
    api.PyBuffer_Release.argtypes = [ctypes.POINTER(_Buffer)]
    assert api.PyObject_GetBuffer(exporter, ctypes.byref(view), 0) == 0
    address = view.buf
    api.PyBuffer_Release(ctypes.byref(view))
    return address


def _arrow_buffers(array):
    yield from (array.buffers[at] for at in range(array.n_buffers) if array.buffers[at])
    for at in range(array.n_children):
        yield from _arrow_buffers(array.children[at].contents)
    if array.dictionary:
        yield from _arrow_buffers(array.dictionary.contents)


def process_writes(influxdb3_local, table_batches, args=None):
    mappings = _mappings()
    assert len(mappings) <= 1, mappings
    seen = set()
    inside = lambda address: seen.add(address) or not mappings or mappings[0][0] <= address < mappings[0][1]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    views = buffers = 0
    for batch in table_batches:
        for name, column in batch.columns.items():
            # Text has no view, and booleans are bits in Arrow and bytes in a view.
            if column.kind not in ("string", "boolean"):
                assert inside(_address(column)), name
                views += 1
        _schema, array = batch.__arrow_c_array__()
        addresses = list(_arrow_buffers(_ArrowArray.from_address(get_pointer(array, b"arrow_array"))))
        assert all(inside(address) for address in addresses)
        buffers += len(addresses)
    # What is in a packet is one piece of memory.
    assert mappings or max(seen) - min(seen) < 32 * 1024, seen
    influxdb3_local.info(len(table_batches), "batches,", views, "views,", buffers, "buffers in", "a mapping" if mappings else "a packet")
