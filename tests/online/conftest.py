import pytest

from tests.online.support import World


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No answer of a judge is kept between tests."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))
