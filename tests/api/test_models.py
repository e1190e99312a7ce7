"""Contract: models listed, loaded on first use, dropped when others need the room, deleted; owners apart."""

import asyncio

import openai
import pytest

from luthier.api.loading import Loader, Loading
from luthier.api.settings import ServerSection
from luthier.jobs.settings import EMBEDDED
from luthier.jobs.store import Store
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import RecipeError
from luthier.serve.host import Target
from luthier.serve.http.errors import ApiError
from tests.api.serving import api, tuned_model
from tests.serve.serving import adapter_folder
from tests.support.tiny import save_tiny

NAME = "ft:tiny:luthier:{}:0000000{}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base, other = save_tiny(folder / "tiny"), save_tiny(folder / "other", seed=7)
    adapters = [adapter_folder(folder / f"adapter-{n}", base, seed=n) for n in range(4)]
    return base, other, adapters, save_tiny(folder / "full", seed=3)


@pytest.fixture
def server(world, tmp_path):
    base, other, adapters, full = world
    store = Store.open(tmp_path / "home")
    for n, adapter in enumerate(adapters):
        tuned_model(store, NAME.format("a", n), adapter, base, owner="local")
    tuned_model(
        store, NAME.format("a", 0) + ":ckpt-step-2", adapters[1], base, "local", "checkpoint", NAME.format("a", 0)
    )
    tuned_model(store, NAME.format("full", 9), full, base, owner="local")
    tuned_model(store, NAME.format("hers", 8), adapters[0], base, owner="ann")
    models = {"tiny": base, "hosted-name": base, "other": other}
    with api(tmp_path / "home", store=store, models=models, max_loaded_models=2, max_loaded_bases=2) as running:
        yield running


def say(client, model, **more):
    asked = {"messages": [{"role": "user", "content": "time and water"}], "temperature": 0, "max_tokens": 12, **more}
    return client.chat.completions.create(model=model, **asked).choices[0].message.content


def test_names_are_listed_and_looked_up(server):
    client = server.client(_strict_response_validation=True)
    names = {one.id: one for one in client.models.list()}
    assert {"tiny", "hosted-name", "other", NAME.format("a", 0), NAME.format("a", 0) + ":ckpt-step-2"} <= set(names)
    assert names["tiny"].owned_by == "luthier" and names[NAME.format("a", 1)].owned_by == "local"
    found = client.models.retrieve(NAME.format("a", 0) + ":ckpt-step-2")
    assert found.to_dict()["parent"] == NAME.format("a", 0)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_tuned_models_share_their_base_and_the_oldest_makes_room(server):
    client = server.client()
    loader = server.app.state.loader
    texts = {name: say(client, name) for name in ("tiny", "hosted-name", *(NAME.format("a", n) for n in range(4)))}
    assert texts["tiny"] == texts["hosted-name"]
    assert len({texts[NAME.format("a", n)] for n in range(4)} | {texts["tiny"]}) == 5
    assert loader.names == ["tiny", "hosted-name", NAME.format("a", 2), NAME.format("a", 3)]
    assert len(server.host.engines) == 1
    assert say(client, NAME.format("a", 0)) == texts[NAME.format("a", 0)], "loaded again"
    assert NAME.format("a", 2) not in loader.names
    assert say(client, NAME.format("a", 0) + ":ckpt-step-2") == texts[NAME.format("a", 1)]
    completion = client.completions.create(model=NAME.format("a", 1), prompt="time", max_tokens=4, temperature=0)
    assert completion.choices[0].finish_reason in ("length", "stop")
    chunks = list(client.chat.completions.create(
        model=NAME.format("a", 3), messages=[{"role": "user", "content": "time and water"}], temperature=0,
        max_tokens=12, stream=True,
    ))  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == texts[NAME.format("a", 3)]


def test_bases_make_room_for_each_other(server):
    client = server.client()
    first = say(client, "tiny")
    say(client, NAME.format("a", 0))
    full = say(client, NAME.format("full", 9))
    assert len(server.host.engines) == 2
    other = say(client, "other")
    # The shared base was used longest ago; its adapter went before it.
    assert server.app.state.loader.names == [NAME.format("full", 9), "other"] and len(server.host.engines) == 2
    assert len({first, full, other}) == 3
    assert say(client, "tiny") == first and len(server.host.engines) == 2


def test_many_first_requests_at_once_load_once(server):
    async def ask():
        async with server.async_client() as client:
            return await asyncio.gather(*(
                client.chat.completions.create(model=NAME.format("a", n % 2), temperature=0, max_tokens=8,
                                               messages=[{"role": "user", "content": "time"}])
                for n in range(12)
            ))  # fmt: skip

    answers = asyncio.run(ask())
    assert {answer.model for answer in answers} == {NAME.format("a", 0), NAME.format("a", 1)}
    assert len(server.host.engines) == 1


def test_unknown_and_foreign_models_are_not_found_and_name_no_others(server):
    client = server.client(server.key("bob", "chat", "models"))
    for name in ("gpt-4o", NAME.format("hers", 8), NAME.format("a", 0), "../tiny", "/etc/passwd"):
        for call in (lambda name=name: say(client, name), lambda name=name: client.models.retrieve(name)):
            with pytest.raises(openai.NotFoundError) as missing:
                call()
            told = missing.value.message.replace(name, "")
            assert "ft:" not in told and missing.value.body["param"] == "model"
    assert {one.id for one in client.models.list()} == {"tiny", "hosted-name", "other", EMBEDDED}
    # In memory already, and still not his.
    say(server.client(server.key("root", "admin")), NAME.format("hers", 8))
    with pytest.raises(openai.NotFoundError):
        say(client, NAME.format("hers", 8))


def test_deleting_a_tuned_model_ends_it_and_its_checkpoints_and_no_base(server):
    client = server.client()
    name = NAME.format("a", 0)
    say(client, name)
    say(client, name + ":ckpt-step-2")
    gone = client.models.delete(name)
    assert (gone.id, gone.deleted, gone.object) == (name, True, "model")
    for one in (name, name + ":ckpt-step-2"):
        assert one not in server.app.state.loader.names
        with pytest.raises(openai.NotFoundError):
            say(client, one)
        with pytest.raises(openai.NotFoundError):
            client.models.delete(one)
    with pytest.raises(openai.PermissionDeniedError) as base:
        client.models.delete("tiny")
    assert base.value.code == "base_model" and say(client, "tiny")
    with pytest.raises(openai.NotFoundError):
        server.client(server.key("bob", "models")).models.delete(NAME.format("a", 1))


def test_a_model_whose_folder_is_gone_is_told_and_others_go_on(server, world, tmp_path):
    tuned_model(server.store, NAME.format("lost", 7), tmp_path / "secret-place" / "nowhere", world[0], owner="local")
    with pytest.raises(openai.APIStatusError) as lost:
        say(server.client(), NAME.format("lost", 7))
    assert lost.value.status_code == 503 and lost.value.response.headers["x-should-retry"] == "false"
    assert "secret-place" not in lost.value.message
    assert say(server.client(), "tiny")


def test_permissions_of_checkpoints_are_honestly_absent(server):
    permissions = server.client(max_retries=2).fine_tuning.checkpoints.permissions
    name = NAME.format("a", 0) + ":ckpt-step-2"
    for call in (
        lambda: permissions.retrieve(name),
        lambda: list(permissions.list(name)),
        lambda: permissions.create(name, project_ids=["p"]).data,
        lambda: permissions.delete("cp_1", fine_tuned_model_checkpoint=name),
    ):
        with pytest.raises(openai.InternalServerError) as absent:
            call()
        assert absent.value.status_code == 501 and absent.value.code == "not_supported"
    with pytest.raises(openai.NotFoundError):
        permissions.retrieve("ft:none:ckpt-step-1")


def test_what_was_used_least_recently_makes_room():
    async def story():
        host = FakeHost()
        loader = Loader(host, ServerSection(max_loaded_models=2, max_loaded_bases=1))
        for name in ("a", "b", "a", "c"):
            async with loader.lease(name, loading(name)):
                pass
        assert set(host.there) == {"a", "c"}

    asyncio.run(story())


class FakeHost:
    """Loads nothing; some models refuse to go."""

    def __init__(self):
        self.there, self.busy = {}, set()

    def find(self, name):
        return self.there.get(name)

    def add(self, target):
        self.there[target.name] = object()
        return self.there[target.name]

    def remove(self, name):
        if name in self.busy:
            raise RecipeError(code="S608", message="busy")
        del self.there[name]


def loading(name, *, weights="base", tuned=True):
    return lambda: Loading(
        target=Target(name=name, section=ModelSection(name_or_path=name)), weights=(weights,), tuned=tuned
    )


def test_a_model_in_use_is_never_dropped():
    async def story():
        host = FakeHost()
        loader = Loader(host, ServerSection(max_loaded_models=2, max_loaded_bases=2))
        async with loader.lease("a", loading("a")), loader.lease("b", loading("b")):
            with pytest.raises(ApiError) as full:
                async with loader.lease("c", loading("c")):
                    pass
            assert full.value.status == 503 and "Retry-After" in full.value.headers
            assert set(host.there) == {"a", "b"}
        async with loader.lease("c", loading("c")):
            assert set(host.there) == {"b", "c"}
        host.busy = {"b", "c"}  # streams go on after the request's own block
        with pytest.raises(ApiError):
            async with loader.lease("d", loading("d")):
                pass
        host.busy = set()
        async with loader.lease("x", loading("x", weights="x")):
            assert len(host.there) == 2
            async with loader.lease("y", loading("y", weights="y")):
                assert set(host.there) == {"x", "y"}
                with pytest.raises(ApiError):
                    async with loader.lease("z", loading("z", weights="z", tuned=False)):
                        pass

    asyncio.run(story())
