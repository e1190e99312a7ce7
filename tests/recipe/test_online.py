"""Contract: a recipe of online RL is checked whole before anything runs; nothing in it is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.load import load_recipe
from luthier.recipe.objective import objective_values
from luthier.recipe.online import choose_completions, online_rate, online_steps, require_processes
from luthier.recipe.resolve import recipe_to_dict, resolve, resolved_yaml
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import RecipeError
from tests.recipe.support import load, problem_of, problems_of
from tests.recipe.test_resolve import facts

pytestmark = pytest.mark.usefixtures("work")

NUMBER = "objective: {name: grpo, grpo: {rewards: [{name: number}]}}\n"


def grpo(text: str) -> str:
    return f"objective: {{name: grpo, grpo: {{rewards: [{{name: number}}], {text}}}}}\n"


def reward(text: str, more: str = "") -> str:
    return f"objective: {{name: grpo, grpo: {{rewards: [{{{text}}}]{more}}}}}\n"


def test_a_recipe_with_every_kind_of_reward_loads():
    Path("rewards.py").write_text("")
    recipe = load("""\
        objective:
          name: grpo
          grpo:
            rewards:
              - {name: number, weight: 1.0}
              - {name: exact_match, pattern: 'answer: (.*)', label: answer}
              - {name: json_valid, weight: 0.1}
              - {name: json_exact}
              - {name: regex, pattern: '^<think>'}
              - {name: length, soft_tokens: 64}
              - {python: 'rewards.py:brevity', weight: -0.5}
              - {name: judge, rubric: Is it kind?, max_score: 5.0}
            judge: {base_url: 'http://localhost:8000/v1', model: judge}
        """)
    assert len(recipe.objective.grpo.rewards) == 8


WRONG = {
    "objective: {name: grpo}": ("C110", "needs `objective.grpo.rewards`"),
    "objective: {grpo: {beta: 0.1}}": ("C111", "it is for objective grpo, not sft"),
    NUMBER.replace("name: grpo,", "name: grpo, label_smoothing: 0.1,"): ("C111", "has its keys under"),
    reward("weight: 1.0"): ("C110", "either `name` or `python`"),
    reward("name: number, python: 'rows.jsonl:f'"): ("C110", "either `name` or `python`"),
    reward("name: number, weight: 0.0"): ("C110", "weight 0"),
    reward("name: number}, {name: number"): ("C110", 'two rewards are called "number"'),
    reward("name: number, soft_tokens: 3"): ("C111", "it is for length, not number"),
    reward("name: json_valid, pattern: '(a)'"): ("C111", "not json_valid"),
    reward("name: regex"): ("C110", "needs `pattern`"),
    reward("name: regex, pattern: '('"): ("C103", "not a regular expression"),
    reward("name: exact_match, pattern: 'a'"): ("C103", "has no group"),
    reward("python: 'nowhere.py:f'"): ("C130", "no such file"),
    reward("python: 'rows.jsonl'"): ("C103", "a file and a function"),
    reward("name: length"): ("C110", "needs `soft_tokens`"),
    reward("name: length, soft_tokens: 600"): ("C110", "every completion would be punished"),
    reward("name: length, soft_tokens: 1, max_tokens: 600"): ("C110", "no completion has 600 tokens"),
    reward("name: judge, rubric: r", ", judge: {model: m}"): ("C110", "judge.base_url"),
    reward("name: judge, rubric: r", ", judge: {model: m, base_url: here}"): ("C103", "no http(s) URL"),
    reward("name: judge", ", judge: {model: m, base_url: 'http://x'}"): ("C110", "needs `rubric`"),
    reward("name: judge, rubric: r, min_score: 10.0", ", judge: {model: m, base_url: 'http://x'}"): ("C110", "below"),
    reward("name: judge, rubric: r", ", judge: {model: m, base_url: 'http://x', budget_usd: 1.0}"): ("C110", "prices"),
    grpo("judge: {model: m}"): ("C111", "there is no judge reward"),
    grpo("vllm_mode: server"): ("C111", "use_vllm is false"),
    grpo("use_vllm: true, vllm_mode: server"): ("C110", "vllm_server_base_url"),
    grpo("loss_type: cispo, epsilon: 0.1"): ("C111", "clips above only"),
    grpo("num_generations: 1"): ("C103", ">= 2"),
    NUMBER + "train: {tokens_per_step: 1000}": ("C110", "not known before"),
    NUMBER + "distributed: {strategy: fsdp2}": ("L323", "fsdp2` beside objective grpo"),
    NUMBER + "distributed: {strategy: zero2}": ("L323", "zero2` beside objective grpo"),
    NUMBER + "distributed: {dp_replicate_size: 2}": ("L323", "copies in shards"),
    NUMBER + "train: {gradient_checkpointing: selective}": ("C110", "Luthier's engine"),
    NUMBER + "train: {gradient_checkpointing_layers: 2}": ("C110", "Luthier's engine"),
    grpo("num_iterations: 4") + "train: {save_steps: 6}": ("C110", "between the 4 iterations"),
    NUMBER + "method: {lora_dropout: 0.1}": ("C110", "no dropout"),
    NUMBER + "method: {init_lora_weights: pissa}": ("C110", "changes the base"),
    NUMBER + "train: {loraplus_lr_ratio: 16.0}": ("C110", "belongs to Luthier's loop"),
    NUMBER + "train: {layerwise_lr_decay: 0.9}": ("C110", "belongs to Luthier's loop"),
    NUMBER + "train: {optim: muon}": ("C110", "none of this name"),
    NUMBER + "train: {optim: rmsprop_bnb, optim_args: {momentum: 0.9}}": ("C110", "misreads"),
    NUMBER.replace("name: grpo,", "name: grpo, beta: 0.1,"): ("C111", "has its keys under"),
    "objective: {name: dpo, grpo: {beta: 0.1}}": ("C111", "it is for objective grpo, not dpo"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG.items(), ids=[message for _, message in WRONG.values()])
def test_what_cannot_be_meant_is_refused_at_its_place(text, expected):
    found = problem_of(text)
    assert (found.code, found.file, bool(found.line)) == (expected[0], "recipe.yaml", True)
    assert expected[1] in found.message


BASE_CHANGES = {
    "model: {name_or_path: smollm2-135m-instruct, new_tokens: [a]}": "never sampled",
    "model: {name_or_path: smollm2-135m-instruct, quantization: fp8}": "fp8",
    "data: {train: [{path: rows.jsonl}], packing: true}": "packs none",
    "data: {train: [{path: rows.jsonl}], loss_on: all}": "trains the sampled completion",
    "data: {train: [{path: rows.jsonl}], overlong: truncate}": "half a question",
    "data: {train: [{path: rows.jsonl}], dedup: {}}": "compares rows with their answers",
    "data: {train: [{path: rows.jsonl}], validation: {fraction: 0.5, near_duplicates: 0.8}}": "online RL asks prompts",
}


@pytest.mark.parametrize(("line", "words"), BASE_CHANGES.items(), ids=BASE_CHANGES.values())
def test_keys_of_other_sections_that_mean_nothing_here_are_refused(line, words):
    parts = {
        "model": "model: {name_or_path: smollm2-135m-instruct}", "data": "data: {train: [{path: rows.jsonl}]}",
        "output_dir": "output_dir: runs/x",
    }  # fmt: skip
    parts[line.partition(":")[0]] = line
    assert words in problem_of("\n".join(parts.values()) + "\n" + NUMBER, base=False).message


def test_everything_wrong_is_told_at_once():
    text = grpo("vllm_mode: server").replace("number", "regex") + "train: {tokens_per_step: 8}\n"
    assert len(problems_of(text)) == 3


# -- derived values


def test_no_auto_is_left_and_what_was_resolved_loads_and_resolves_to_itself():
    result = resolve(load(NUMBER), facts(sequences=300, tokens=30_000))
    train = result.recipe.train
    assert train.per_device_train_batch_size * train.gradient_accumulation_steps == 64
    assert "auto" not in [value for key, value in train.model_dump().items()]
    assert train.learning_rate == online_rate("lora", 134_515_008)[0] == 7.2e-5
    assert {derived.key for derived in result.derived} >= {"train.learning_rate", "train.gradient_checkpointing"}
    Path("resolved.yaml").write_text(resolved_yaml(result))
    again = load_recipe(Path("resolved.yaml")).recipe
    assert resolve(again, facts(sequences=300, tokens=30_000)).recipe.train == train
    assert again.objective.grpo.rewards == result.recipe.objective.grpo.rewards
    assert recipe_to_dict(resolve(again, facts(sequences=300, tokens=30_000)).recipe) == recipe_to_dict(result.recipe)
    assert recipe_to_dict(again) == recipe_to_dict(result.recipe)


def test_checkpoints_do_not_fall_between_iterations_on_the_same_completions():
    result = resolve(load(grpo("num_iterations: 4")), facts(sequences=300, tokens=30_000))
    assert result.recipe.train.save_steps % 4 == 0


batches = st.one_of(st.just("auto"), st.integers(1, 40))


@given(batches, batches, st.integers(2, 16), st.integers(1, 500), st.floats(1, 5000), st.integers(1, 9))
def test_a_step_is_whole_groups_and_what_is_given_stays(micro, accumulate, generations, prompts, tokens, processes):
    fixed = isinstance(micro, int) and isinstance(accumulate, int)
    train = TrainSection(per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate)
    settings = {"num_generations": generations, "prompts": prompts, "mean_tokens": tokens, "device_type": "cpu"}
    if fixed and micro * accumulate * processes % generations:
        with pytest.raises(RecipeError, match="torn apart") as caught:
            choose_completions(train, **settings, processes=processes)
        hint = caught.value.problems[0].hint
        better = int(hint.split()[1])
        assert accumulate < better < accumulate + generations
        assert [n for n in range(accumulate, better + 1) if micro * n * processes % generations == 0] == [better]
        return
    split = choose_completions(train, **settings, processes=processes)
    shares = split.per_device_train_batch_size * split.gradient_accumulation_steps
    assert split.count == shares * processes
    assert split.count % generations == 0 and split.prompts == split.count // generations >= 1
    assert micro in ("auto", split.per_device_train_batch_size)
    assert accumulate in ("auto", split.gradient_accumulation_steps)
    if micro == accumulate == "auto" and min(8, prompts) * generations % processes == 0:
        assert split.prompts == min(8, prompts), "the step of one process"


def test_what_several_processes_do_not_do_is_refused_by_name():
    def refused(grpo: str, processes: int, **more: bool) -> str:
        with pytest.raises(RecipeError) as caught:
            require_processes(
                load(f"objective: {{name: grpo, grpo: {{rewards: [{{name: number}}]{grpo}}}}}"), processes, **more
            )
        return caught.value.problems[0].code

    assert refused(", use_vllm: true", 2) == "L322"
    assert refused("", 2, unshared=True) == "L321"
    one = load("objective: {name: grpo, grpo: {rewards: [{name: number}], use_vllm: true}}")
    require_processes(one, 1)
    four = load(NUMBER + "train: {per_device_train_batch_size: 4, gradient_accumulation_steps: 1}")
    require_processes(four, 2)  # 8 completions: a group of both processes
    with pytest.raises(RecipeError, match=r"4 x 1 x 3 processes = 12 completions"):
        require_processes(four, 3)
    with pytest.raises(RecipeError, match=r"4 x 1 = 4 completions") as caught:
        require_processes(four, 1)
    assert caught.value.problems[0].hint == "train.gradient_accumulation_steps: 2 makes it one"


@given(st.integers(1, 1000), st.integers(1, 64), st.sampled_from([0.1, 0.5, 1.0, 1.1, 3.0]))
def test_steps_ask_every_prompt_as_often_as_the_epochs_say(prompts, at_once, epochs):
    steps = online_steps(prompts, at_once, epochs, None)
    assert steps * at_once >= round(epochs * prompts, 6) > (steps - 1) * at_once - 1e-9


# -- what the weights depend on


def test_the_code_of_a_reward_counts_and_the_pace_of_a_judge_does_not():
    def known(more: str = "", body: str = "a = 1\n") -> dict:
        Path("rewards.py").write_text(body)
        judge = f"judge: {{base_url: 'http://x', model: m{more}}}"
        rewards = "rewards: [{python: 'rewards.py:f'}, {name: judge, rubric: r}]"
        recipe = load(f"objective: {{name: grpo, grpo: {{{rewards}, {judge}}}}}\n")
        return objective_values(recipe.objective, of_weights=True)

    assert known() == known(", concurrency: 2, timeout_seconds: 3.0")
    assert known() != known(", temperature: 0.5")
    assert known() != known(body="a = 2\n")


def test_runs_of_sft_depend_on_what_they_did_before():
    recipe = load("")
    assert objective_values(recipe.objective, of_weights=True) == {
        "name": "sft",
        "label_smoothing": 0.0,
        "neftune_noise_alpha": 0.0,
    }
    assert "grpo" not in recipe_to_dict(recipe)["objective"]


def test_what_the_judge_costs_is_in_the_resolved_recipe_though_no_weight_depends_on_it():
    recipe = load(reward("name: judge, rubric: r", ", judge: {model: m, base_url: 'http://x', concurrency: 2}"))
    assert recipe_to_dict(recipe)["objective"]["grpo"]["judge"]["concurrency"] == 2
    assert "concurrency" not in objective_values(recipe.objective, of_weights=True)["grpo"]["judge"]
