"""One warm zygote for all daemons of these tests, and one daemon per file where its state does not matter."""

from collections.abc import Iterator

import pytest
from daemons import Place, Zygote, a_daemon, a_zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with a_zygote() as warm:
        yield warm


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Place]:
    """Shared by the tests of a file: each uses jobs of its own and leaves none behind."""
    with a_daemon(tmp_path_factory.mktemp("place") / "p", zygote) as shared:
        yield shared


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Iterator[Place]:
    """A daemon for one test, which may kill it."""
    with a_daemon(tmp_path_factory.mktemp("own") / "p", zygote) as mine:
        yield mine
