"""The pytest plugin ``saltus``: the fixture ``saltus_host``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saltus.testing import Host


@pytest.fixture
def saltus_host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A :class:`saltus.testing.Host` of its own for each test; its plugin folder is that of the test's file."""
    with Host(plugin_dir=Path(request.path).parent) as host:
        yield host
