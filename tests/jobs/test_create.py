"""A body in OpenAI's words -> a job and its recipe; every problem with its `param`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from luthier.jobs.create import environment_of, job_from_body, recipe_of
from luthier.jobs.errors import Invalid, NotFound
from luthier.jobs.guarded import GUARDED, NEVER
from luthier.jobs.records import ModelRecord
from luthier.jobs.settings import EMBEDDED, AllowSection, ApiSettings
from luthier.jobs.store import Store
from luthier.recipe.load import recipe_from_dict
from tests.jobs.making import add_file, open_store
from tests.jobs.schema_keys import text_keys
from tests.support.often import often

MODEL = "gpt-4o-mini-2024-07-18"
SETTINGS = ApiSettings(models={MODEL: EMBEDDED}, integrations=["wandb"])
FIELDS = st.sampled_from(
    [
        "model", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations", "method", "type",
        "hyperparameters", "luthier", "supervised", "dpo", "n_epochs", "batch_size", "learning_rate_multiplier",
        "beta", "wandb", "project", "tags", "data", "train", "objective", "evaluate", "tasks",
    ]
)  # fmt: skip
_SHARED: Store | None = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def body(store: Store, **changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "training_file": add_file(store), **changes}


def problems(store: Store, settings: ApiSettings = SETTINGS, **changes: Any) -> dict[str | None, str]:
    with pytest.raises(Invalid) as caught:
        job_from_body(body(store, **changes), store, settings, "ann")
    return {problem.param: problem.message for problem in caught.value.problems}  # type: ignore[attr-defined]


def recipe(store: Store, settings: ApiSettings = SETTINGS, **changes: Any) -> dict[str, Any]:
    job = job_from_body(body(store, **changes), store, settings, "ann")
    found = recipe_of(job, store, settings)
    recipe_from_dict(found, origin="test")
    return found


def test_the_smallest_body(store: Store) -> None:
    job = job_from_body(body(store), store, SETTINGS, "ann")
    assert (job.model, job.base, job.status, job.owner) == (MODEL, EMBEDDED, "validating_files", "ann")
    assert job.method == {
        "type": "supervised",
        "supervised": {
            "hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        },
    }
    assert job.hyperparameters == {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": 1.0}
    assert job.run_name == job.id
    found = recipe_of(job, store, SETTINGS, runs="runs")
    assert found["model"] == {"name_or_path": EMBEDDED}
    assert found["output_dir"] == f"runs/{job.id}"
    assert found["data"]["overlong"] == "error" and "packing" not in found["data"]
    assert found["train"] == {"seed": job.seed}
    assert Path(found["data"]["train"][0]["path"]).read_bytes().startswith(b'{"messages"')


OLD = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}


@pytest.mark.parametrize(
    "style",
    [
        {"hyperparameters": OLD},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": OLD}}},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": OLD}}, "hyperparameters": OLD},
        {"method": {"type": "supervised"}, "hyperparameters": {**OLD, "n_epochs": 2}},
    ],
)
def test_both_styles_give_one_recipe(store: Store, style: dict[str, Any]) -> None:
    found = recipe(store, seed=5, **style)
    assert found["train"] == {
        "seed": 5, "num_train_epochs": 2, "rows_per_step": 8, "learning_rate_multiplier": 0.5
    }  # fmt: skip
    assert found["data"]["packing"] is False


def test_both_styles_must_agree(store: Store) -> None:
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    found = problems(store, method=method, hyperparameters={"n_epochs": 2})
    assert found == {"hyperparameters.n_epochs": (
        "`hyperparameters.n_epochs` is 2, and `method.supervised.hyperparameters.n_epochs` is 3"
    )}  # fmt: skip
    # `auto` is a value, too: it says something else than 2.
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}}
    assert "hyperparameters.n_epochs" in problems(store, method=method, hyperparameters={"n_epochs": 2})


def test_dpo(store: Store) -> None:
    dpo = {"beta": 0.3, "n_epochs": 1, "batch_size": "auto"}
    found = recipe(store, method={"type": "dpo", "dpo": {"hyperparameters": dpo}})
    assert found["objective"] == {"name": "dpo", "beta": 0.3}
    assert found["train"]["num_train_epochs"] == 1
    auto = recipe(store, method={"type": "dpo"}, luthier={"objective": {"name": "simpo"}})
    assert auto["objective"] == {"name": "simpo"}  # beta stays the recipe's own: 2.0 for simpo, 0.1 for dpo


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"model": None}, "model", "is missing"),
        ({"model": "gpt-9"}, "model", "no model `gpt-9` to tune; there are gpt-4o-mini-2024-07-18"),
        ({"model": "ft:gpt:x:y:z"}, "model", "no model"),
        ({"model": "/etc"}, "model", "no model"),
        ({"training_file": "file-0"}, "training_file", "no file `file-0`"),
        ({"training_file": 3}, "training_file", "must be text"),
        ({"validation_file": "../../etc/passwd"}, "validation_file", "no file"),
        ({"suffix": "a:b"}, "suffix", "letters, digits"),
        ({"suffix": "x" * 65}, "suffix", "1 to 64"),
        ({"seed": -1}, "seed", "whole number"),
        ({"seed": True}, "seed", "got true"),
        ({"seed": 10**40}, "seed", "a very large number"),
        ({"metadata": {str(index): "x" for index in range(17)}}, "metadata", "17 pairs"),
        ({"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 64, "1 to 64"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", "512"),
        ({"metadata": {"a": 1}}, "metadata.a", "got 1"),
        ({"metadata": {"a": "\ud800"}}, "metadata.a", "must be text"),
        ({"metadata": {"a": "x\0y"}}, "metadata.a", "must be text"),
        ({"modle": "x"}, "modle", "unknown field"),
        ({"method": "dpo"}, "method", "must be an object"),
        ({"method": {}}, "method.type", "is missing"),
        ({"method": {"type": "rlhf"}}, "method.type", "allowed are supervised and dpo"),
        ({"method": {"type": "reinforcement"}}, "method.type", "grpo"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "no effect beside type dpo"),
        ({"method": {"type": "dpo", "dpo": {"beta": 1}}}, "method.dpo.beta", "unknown field"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "unknown field"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "1 to 50; got 0"),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs", "whole number"),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs", "got '3'"),
        ({"hyperparameters": {"batch_size": True}}, "hyperparameters.batch_size", "got true"),
        ({"hyperparameters": {"learning_rate_multiplier": float("nan")}}, "hyperparameters.learning_rate_multiplier",
         "got nan"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations.0.type", "must be wandb"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations.0.wandb.project", "is missing"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p", "tags": ["a,b"]}}]},
         "integrations.0.wandb.tags", "without commas"),
        ({"luthier": []}, "luthier", "must be an object"),
        ({"luthier": {"a": float("inf")}}, "luthier", "not finite"),
        ({"luthier": {"a": "x" * 70_000}}, "luthier", "65,536"),
        ({"luthier": {"train": {"learning_rat": 1e-4}}}, "luthier.train.learning_rat", "unknown key"),
        ({"luthier": {"train": {"learning_rate": "fast"}}}, "luthier.train.learning_rate", "must be"),
        ({"luthier": {"method": {"name": "full", "r": 8}}}, "luthier.method.r", "no effect"),
        ({"luthier": {"train": {"max_steps": 5}}, "hyperparameters": {"n_epochs": 2}},
         "method.supervised.hyperparameters.n_epochs", "is what n_epochs sets"),
        ({"luthier": {"data": {"train": "rows.jsonl"}}}, "luthier.data.train", "a list of one object"),
        ({"luthier": {"objective": {"name": "grpo", "grpo": {"rewards": [{"name": "number"}]}}},
          "hyperparameters": {"batch_size": 4}}, "method.supervised.hyperparameters.batch_size", "completions"),
    ],
)  # fmt: skip
def test_each_problem_has_its_param(store: Store, changes: dict[str, Any], param: str, words: str) -> None:
    found = problems(store, **changes)
    assert param in found, found
    assert words in found[param]


def test_all_problems_at_once(store: Store) -> None:
    found = problems(
        store, model="nope", training_file="file-x", suffix=":", seed="7", hyperparameters={"n_epochs": -1},
        metadata={"a": 2}, luthier={"output_dir": "/etc", "train": {"optm": "x"}}, typo=1,
    )  # fmt: skip
    assert set(found) == {
        "model", "training_file", "suffix", "seed", "hyperparameters.n_epochs", "metadata.a", "luthier.output_dir",
        "typo",
    }  # fmt: skip


def test_a_body_that_is_none(store: Store) -> None:
    for value in ([], "x", None, 3):
        with pytest.raises(Invalid, match="JSON object"):
            job_from_body(value, store, SETTINGS, "ann")


def test_files_of_other_owners_and_purposes(store: Store) -> None:
    other = add_file(store, "bob")
    assert "no file" in problems(store, training_file=other)["training_file"]
    batch = store.add_file("ann", "b.jsonl", "batch", [b"{}\n"]).id
    assert "purpose batch" in problems(store, validation_file=batch)["validation_file"]


def test_null_counts_as_absent(store: Store) -> None:
    names = ("suffix", "seed", "metadata", "integrations", "method", "hyperparameters", "validation_file", "luthier")
    assert job_from_body(body(store, **dict.fromkeys(names)), store, SETTINGS, "ann").suffix is None


def test_a_seed_is_drawn_and_kept(store: Store) -> None:
    seeds = {job_from_body(body(store), store, SETTINGS, "ann").seed for _ in range(3)}
    assert len(seeds) == 3
    assert job_from_body(body(store, seed=0), store, SETTINGS, "ann").seed == 0


# -- layers


def test_layers_of_the_recipe(store: Store) -> None:
    settings = ApiSettings(
        models={MODEL: EMBEDDED}, recipe={"method": {"r": 8, "lora_alpha": 16.0}, "data": {"max_length": 512}},
        recipe_of_base={EMBEDDED: {"method": {"r": 4}}},
    )  # fmt: skip
    found = recipe(store, settings, luthier={"method": {"lora_alpha": 4.0}, "export": {"merge": True}})
    assert found["method"] == {"r": 4, "lora_alpha": 4.0}
    assert found["data"]["max_length"] == 512 and found["data"]["overlong"] == "error"
    assert found["export"] == {"merge": True}


def test_auto_gives_way_to_the_keys_of_a_recipe(store: Store) -> None:
    job = job_from_body(
        body(store, luthier={"train": {"max_steps": 5, "tokens_per_step": 256}}), store, SETTINGS, "ann"
    )
    # As the check of the files resolves it for other jobs; here the keys decide.
    from dataclasses import replace

    resolved = replace(job, hyperparameters={"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0})
    train = recipe_of(resolved, store, SETTINGS)["train"]
    assert train == {"seed": job.seed, "max_steps": 5, "tokens_per_step": 256}


def test_what_is_to_be_known_of_the_file(store: Store) -> None:
    entry = {"format": "messages", "limit": 5}
    found = recipe(store, luthier={"data": {"train": [entry], "loss_on": "last_assistant"}})
    assert {**entry, "path": found["data"]["train"][0]["path"]} == found["data"]["train"][0]
    assert found["data"]["loss_on"] == "last_assistant"


def test_a_tuned_model_is_tuned_on(store: Store, tmp_path: Path) -> None:
    adapter = tmp_path / "final"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    name = "ft:gpt-4o-mini:luthier:a:12345678"
    store.put_model(
        ModelRecord(name=name, owner="ann", created=1, kind="tuned", base=EMBEDDED, path=str(adapter), job_id=None)
    )
    found = recipe(store, model=name)
    assert found["model"]["name_or_path"] == EMBEDDED and found["method"]["init_from"] == str(adapter)
    (adapter / "adapter_config.json").rename(adapter / "config.json")
    assert recipe(store, model=name)["model"]["name_or_path"] == str(adapter)
    # A run folder, as the worker keeps it.
    store.put_model(
        ModelRecord(name=name, owner="ann", created=1, kind="tuned", base=EMBEDDED, path=str(tmp_path), job_id=None)
    )
    assert recipe(store, model=name)["model"]["name_or_path"] == str(adapter)
    (adapter / "config.json").unlink()
    assert "gone from the disk" in problems(store, model=name)["model"]
    with pytest.raises(Invalid, match="no model"):
        job_from_body({"model": name, "training_file": add_file(store, "bob")}, store, SETTINGS, "bob")


def test_any_base_is_for_hub_ids_only(store: Store) -> None:
    settings = ApiSettings(allow=AllowSection(any_base=True))
    assert recipe(store, settings, model="Qwen/Qwen3-0.6B")["model"]["name_or_path"] == "Qwen/Qwen3-0.6B"
    for path in ("/etc", "./x", "~/x", "a/b/c"):
        assert "model" in problems(store, settings, model=path)


def test_wandb(store: Store) -> None:
    wandb = {"project": "p", "name": "n", "entity": None, "tags": ["a", "b"]}
    job = job_from_body(body(store, integrations=[{"type": "wandb", "wandb": wandb}]), store, SETTINGS, "ann")
    assert recipe_of(job, store, SETTINGS)["train"]["report_to"] == ["wandb"]
    assert environment_of(job) == {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_TAGS": "a,b"}
    refused = problems(store, ApiSettings(models=SETTINGS.models), integrations=[{"type": "wandb", "wandb": wandb}])
    assert "sends nothing to wandb" in refused["integrations"]


# -- what clients may not


@pytest.mark.parametrize(
    ("keys", "param"),
    [
        ({"output_dir": "/etc"}, "output_dir"),
        ({"model": {"name_or_path": "/etc"}}, "model.name_or_path"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code"),
        ({"model": {"chat_template": "/etc/passwd"}}, "model.chat_template"),
        ({"model": {"tokenizer": "/etc"}}, "model.tokenizer"),
        ({"model": {"revision": "refs/pr/1"}}, "model.revision"),
        ({"data": {"train": [{"path": "/etc/passwd"}]}}, "data.train.0.path"),
        ({"data": {"train": {"x": {"path": "/etc/passwd"}}}}, "data.train.x.path"),
        ({"data": {"validation": {"path": "s3://bucket/x"}}}, "data.validation.path"),
        ({"data": {"filters": {"python": ["evil.py:run"]}}}, "data.filters.python"),
        ({"data": {"filters": {"judge": {"rubric": "x"}}}}, "data.filters.judge"),
        ({"data": {"filters": {"listed": {"files": ["/etc/passwd"]}}}}, "data.filters.listed"),
        ({"method": {"init_from": "/root"}}, "method.init_from"),
        ({"objective": {"grpo": {"rewards": [{"name": "number"}, {"python": "/tmp/evil.py:run"}]}}},
         "objective.grpo.rewards.1.python"),
        ({"objective": {"grpo": {"judge": {"base_url": "http://169.254.169.254/"}}}}, "objective.grpo.judge"),
        ({"evaluate": {"judge": {"base_url": "http://127.0.0.1:22", "api_key_env": "AWS_SECRET"}}}, "evaluate.judge"),
        ({"evaluate": {"tasks": [{"name": "a", "path": "/etc/passwd"}]}}, "evaluate.tasks.0.path"),
        ({"evaluate": {"tasks": [{"lm_eval": "/tmp/evil.yaml"}]}}, "evaluate.tasks.0.lm_eval"),
        ({"evaluate": {"tasks": [{"name": "a", "grader": {"type": "python", "source": "x"}}]}},
         "evaluate.tasks.0.grader"),
        ({"export": {"push_to_hub": {"repo_id": "a/b"}}}, "export.push_to_hub"),
        ({"train": {"report_to": ["wandb"]}}, "train.report_to"),
        ({"train": {"seed": 3}}, "train.seed"),
    ],
)  # fmt: skip
def test_keys_that_would_break_the_service(store: Store, keys: dict[str, Any], param: str) -> None:
    assert f"luthier.{param}" in problems(store, luthier=keys)


def test_the_operator_can_allow_them(store: Store) -> None:
    settings = ApiSettings(models={MODEL: EMBEDDED}, allow=AllowSection(code=True))
    found = recipe(store, settings, luthier={"model": {"trust_remote_code": True}})
    assert found["model"]["trust_remote_code"] is True
    template = {"model": {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}}
    assert recipe(store, luthier=template)["model"]["chat_template"].startswith("{%")


def test_every_key_that_takes_text_is_sorted() -> None:
    """A new key of the recipe must be put on one of the lists before clients can set it unseen."""
    guarded = {*GUARDED, *NEVER}
    free = {
        "name", "model.chat_template_kwargs", "model.new_tokens", "data.train.*.map", "data.train.*.system",
        "data.train.*.split", "data.train.*.name", "data.validation.map", "data.filters.refusals.patterns",
        "data.filters.boilerplate.phrases", "data.filters.language.languages", "data.dedup.score",
        "method.target_modules", "method.init_lora_weights", "method.modules_to_save", "method.trainable",
        "objective.grpo.rewards.*.label", "objective.grpo.rewards.*.pattern", "objective.grpo.rewards.*.rubric",
        "objective.grpo.reference_column", "train.lr_scheduler_kwargs", "train.optim_args", "evaluate.tasks.*.name",
        "evaluate.tasks.*.map", "evaluate.tasks.*.system", "evaluate.tasks.*.pattern", "export.max_shard_size",
    }  # fmt: skip
    unsorted = [
        key for key in text_keys()
        if key not in free and not any(key == known or key.startswith(f"{known}.") for known in guarded)
    ]  # fmt: skip
    assert unsorted == []
    assert free <= set(text_keys())


# -- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([10**400, "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(changes=st.dictionaries(FIELDS | st.text(alphabet=st.characters(codec=None), max_size=8), JSON, max_size=6))
@hypothesis_settings(max_examples=often(60), deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_a_job_or_one_error(tmp_path_factory: Any, changes: dict[str, Any]) -> None:
    global _SHARED
    _SHARED = _SHARED or open_store(tmp_path_factory.mktemp("home"))
    try:
        job = job_from_body({**body(_SHARED), **changes}, _SHARED, SETTINGS, "ann")
    except Invalid as error:
        for problem in error.problems:
            text = f"{problem.message} {problem.hint} {problem.param}"  # type: ignore[attr-defined]
            assert text.isprintable() and text.encode()
        return
    assert _SHARED.create_job(job)[0] == job == _SHARED.job(job.id)
    json.dumps([job.metadata, job.luthier, job.method], ensure_ascii=False, allow_nan=False).encode()


def test_depth_and_surrogates_of_recipe_keys(store: Store) -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}
    assert "nested more than 20 deep" in problems(store, luthier=deep)["luthier"]
    kwargs = {"model": {"chat_template_kwargs": {"\ud800": 1}}}
    assert "surrogate" in problems(store, luthier=kwargs)["luthier"]
    assert "got 1" in problems(store, luthier={"train": {"\x1b[31m": 1}, "data": 1})["luthier.data"]
    assert "unknown field `a\\x1b[31m`" in problems(store, **{"a\x1b[31m": 1})["a\\x1b[31m"]


def test_names_that_no_database_can_hold_are_not_there(store: Store) -> None:
    for call in (store.job, store.file, store.model, store.delete_model, store.delete_file, store.upload, store.revoke):
        with pytest.raises(NotFound, match="no "):
            call("\ud800", "ann")  # type: ignore[operator]
    with pytest.raises(NotFound):
        store.jobs("ann", after="\ud800")
    assert store.jobs("ann", metadata={"\ud800": "\udfff"}) == ([], False)
