"""Contract: the merged folder is the adapter model, in the base's type, for plain transformers; or there is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.export import merge as merge_module
from luthier.export.merge import merge
from luthier.export.verify import mean_kl
from luthier.model.load import load_tuned
from luthier.model.new_tokens import new_token_ids
from luthier.model.save import save_trained
from luthier.runtime.errors import EnvironmentProblem, RunFailed
from tests.model.support import CPU, base_folder, load, logits, prepare, section, some_ids, train

NEW = ["<think>", "</think>"]
LORA = {"name": "lora"}
METHODS = {
    "lora": LORA,
    "rslora": {"name": "lora", "use_rslora": True, "lora_dropout": 0.1},
    "dora": {"name": "lora", "use_dora": True},
    "both tables": {"name": "lora", "modules_to_save": ["embed_tokens", "lm_head"]},
    "norm": {"name": "lora", "modules_to_save": ["norm"]},
    "qlora": {"name": "qlora"},
    "full": {"name": "full"},
    "freeze": {"name": "freeze", "last_n_layers": 1},
}


def tune(tmp_path, *, tied=False, stored=torch.float32, dtype="float32", new_tokens=(), method=LORA, steps=4):
    """Base, recipe section and adapter folder of a short training in tmp_path."""
    where = section(base_folder(tmp_path / "base", tied=tied, dtype=stored), new_tokens=list(new_tokens))
    tuned, tokenizer = prepare(where, dtype=dtype, **method)
    extra = new_token_ids(tokenizer, where.new_tokens)
    train(tuned, steps=steps, extra=extra)
    save_trained(tuned.model, tokenizer, tmp_path / "final")
    return where, tmp_path / "final", extra


def do_merge(where, final, **options):
    return merge(where, final, final.parent / "merged", device=CPU, **options)


def tuned_logits(where, final, extra=(), quantization="none"):
    model = load_tuned(where, final, device=CPU, dtype="float32", quantization=quantization)
    return logits(model, some_ids(extra))


def merged_logits(folder, extra=()):
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), some_ids(extra))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", METHODS)
def test_merged_model_equals_adapter_model_in_plain_transformers(tmp_path, method, tied):
    new = NEW if method in ("lora", "dora", "qlora", "full") else []
    where, final, extra = tune(tmp_path, tied=tied, new_tokens=new, method=METHODS[method])
    report = do_merge(where, final)
    assert report.passed
    assert report.dtype == "float32"
    expected = tuned_logits(where, final, extra)
    base = logits(load(where), some_ids(extra))
    assert (expected - base).abs().max() > 0.1  # training did something
    assert (merged_logits(tmp_path / "merged", extra) - expected).abs().max() <= 1e-5
    assert max(report.max_logit_difference, report.merging) <= 1e-5 < report.bound and report.writing == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) is not tied


@pytest.mark.parametrize("method", ["lora", "dora", "both tables", "full"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_base_is_merged_in_fp32_and_rounded_once(tmp_path, stored, method):
    where, final, _ = tune(tmp_path, stored=stored, method=METHODS[method])
    report = do_merge(where, final)
    assert {value.dtype for value in load_file(tmp_path / "merged" / "model.safetensors").values()} == {stored}
    assert report.dtype == str(stored).removeprefix("torch.")
    # Rounding the exactly merged weights explains all of the difference, not only two thirds of it.
    assert report.max_logit_difference == report.rounding > 0
    assert report.writing == 0 and report.merging <= 0.2 * report.bound, "rounding is told, and loosens nothing"


def test_each_merged_weight_is_the_rounded_fp32_product(tmp_path):
    """One weight by hand: W + (alpha / r) B A in fp32, rounded once."""
    where, final, _ = tune(tmp_path, stored=torch.bfloat16, dtype="bfloat16")
    do_merge(where, final)
    name = "model.layers.1.mlp.up_proj"
    adapter = load_file(final / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
    weight = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].float()
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(merged, (weight + 2.0 * (b @ a)).bfloat16())


def test_untouched_weights_keep_every_byte(tmp_path):
    method = {"name": "lora", "target_modules": ["q_proj"]}
    where, final, _ = tune(tmp_path, stored=torch.bfloat16, method=method)
    do_merge(where, final)
    before, after = (
        load_file(tmp_path / "base" / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{index}.self_attn.q_proj.weight" for index in range(2)}


def test_a_frozen_full_result_in_another_type_keeps_frozen_bytes_of_the_base(tmp_path):
    """Trained in fp32 on a CPU from a bf16 base: the export is bf16 again."""
    where, final, _ = tune(tmp_path, stored=torch.bfloat16, method=METHODS["freeze"])
    report = do_merge(where, final)
    assert (report.dtype, report.kind, report.adapter_kl) == ("bfloat16", "model", None)
    before, after = (
        load_file(tmp_path / "base" / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)


def test_a_4_bit_adapter_goes_into_the_original_base_and_the_report_says_what_that_changes(tmp_path):
    where, final, extra = tune(tmp_path, method=METHODS["qlora"])
    report = do_merge(where, final)
    assert report.quantized_base
    assert report.quantization_kl is not None and report.quantization_adapter_kl is not None
    assert 0 < report.quantization_kl <= 0.05 * report.quantization_adapter_kl
    # The same number by another way, on other tokens.
    packed = tuned_logits(where, final, extra, quantization="nf4")
    ours = mean_kl(list(packed), list(merged_logits(tmp_path / "merged", extra)))
    assert 0.1 * report.quantization_kl < ours < 10 * report.quantization_kl
    assert json.loads((final / "luthier.json").read_text())["base"]["quantization"] == "nf4"
    plain = load_file(tmp_path / "base" / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(plain["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])


def test_a_plain_adapter_has_no_quantisation_numbers(tmp_path):
    where, final, _ = tune(tmp_path)
    report = do_merge(where, final)
    assert (report.quantized_base, report.quantization_kl, report.quantization_adapter_kl) == (False, None, None)
    assert set(report.to_json()) >= {
        "prompts", "tokens", "max_logit_difference", "bound", "mean_kl", "argmax_agreement", "dtype", "base",
        "quantized_base", "passed",
    }  # fmt: skip
    json.dumps(report.to_json(), allow_nan=False)
    assert report.adapter_kl > 100 * report.mean_kl
    assert report.argmax_agreement == 1.0


# -- a merge that is wrong is caught, and nothing is left


def round_early(model, dtypes):
    """Planted: the product is computed and added in bf16."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.to(torch.bfloat16)
            layer.merge()
    return EXACT(model, dtypes)


def wrong_scale(model, dtypes):
    """Planted: alpha / r is off by 1%."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] *= 1.01
    return EXACT(model, dtypes)


def halved_scale(model, dtypes):
    """Planted: alpha / r is half of what it was in training."""
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] *= 0.5
    return EXACT(model, dtypes)


def lost_layer(model, dtypes):
    """Planted: one adapter is forgotten."""
    name = next(name for name, _ in model.named_parameters() if "down_proj.lora_B" in name)
    model.get_parameter(name).data.zero_()
    return EXACT(model, dtypes)


def lost_row(model, dtypes):
    """Planted: one trained token row is forgotten."""
    wrapper = model.get_input_embeddings()
    delta = wrapper.token_adapter.trainable_tokens_delta["default"]
    delta.data[1] = wrapper.token_adapter.base_layer.weight.data[wrapper.token_adapter.token_indices["default"][1]]
    return EXACT(model, dtypes)


EXACT = merge_module._merge_exactly


@pytest.mark.parametrize(
    ("planted", "stored"),
    [
        (round_early, torch.float32), (round_early, torch.bfloat16), (wrong_scale, torch.float32),
        (lost_layer, torch.bfloat16), (lost_row, torch.float32),
    ],
)  # fmt: skip
def test_a_wrong_merge_is_refused_and_leaves_no_folder(tmp_path, monkeypatch, planted, stored):
    # rsLoRA: a large update, whose own rounding shows beside that of the weights.
    where, final, _ = tune(
        tmp_path, stored=stored, new_tokens=NEW, steps=12, method={"name": "lora", "use_rslora": True}
    )
    calls = []

    def sabotage(model, dtypes):
        calls.append(1)
        # Only the merge that is written is wrong, not the exact one it is compared with.
        return planted(model, dtypes) if len(calls) == 1 else EXACT(model, dtypes)

    monkeypatch.setattr(merge_module, "_merge_exactly", sabotage)
    with pytest.raises(RunFailed, match="merged and adapter model differ") as caught:
        do_merge(where, final)
    assert (caught.value.exit_code, caught.value.problems[0].code) == (1, "X601")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "final"]


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("planted", [halved_scale, lost_layer])
def test_a_merge_that_is_wrong_everywhere_is_refused_after_three_steps(tmp_path, monkeypatch, planted, stored):
    """The written merge and the one it is compared with have the same fault, and the adapter does next to nothing:
    rounding to 16 bits changes the logits by more than the fault does."""
    where, final, _ = tune(tmp_path, stored=stored, steps=1, method={"name": "lora"})
    (final / "luthier.json").unlink()
    file = final / "adapter_model.safetensors"
    chooser = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=chooser) * 1e-4 if "lora_B" in name else value
        for name, value in load_file(file).items()
    }
    save_file(tensors, file)
    report = do_merge(where, final)
    assert report.passed and report.merging <= 0.5 * report.bound
    if stored == torch.bfloat16:
        assert 1.5 * report.rounding > 0.5 * report.effect, "a bound that rounding loosens would let it through"
    monkeypatch.setattr(merge_module, "_merge_exactly", planted)
    with pytest.raises(RunFailed, match="merged and adapter model differ"):
        do_merge(where, final)


def test_a_failing_merge_keeps_the_folder_of_an_earlier_one(tmp_path, monkeypatch):
    where, final, _ = tune(tmp_path)
    do_merge(where, final)
    before = (tmp_path / "merged" / "model.safetensors").read_bytes()
    monkeypatch.setattr(merge_module, "_merge_exactly", wrong_scale)
    with pytest.raises(RunFailed):
        do_merge(where, final)
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == before


def test_weights_that_overflow_the_type_of_the_base_are_refused(tmp_path):
    where, final, _ = tune(tmp_path, stored=torch.float16)
    (final / "luthier.json").unlink()
    file = final / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "layers.0.self_attn.v_proj.lora_B" in name:
            value.fill_(1e7)
    save_file(tensors, file)
    with pytest.raises(RunFailed, match="the merged model holds NaN or infinity"):
        do_merge(where, final)
    assert not (tmp_path / "merged").exists()


def test_a_flipped_byte_in_the_adapter_is_refused_by_name(tmp_path):
    where, final, _ = tune(tmp_path, steps=1)
    file = final / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    with pytest.raises(RunFailed, match=r"adapter_model\.safetensors is not what was written"):
        do_merge(where, final)
    assert not (tmp_path / "merged").exists()


def test_another_base_is_refused(tmp_path):
    where, final, _ = tune(tmp_path, steps=1)
    base_folder(tmp_path / "base", seed=9)
    with pytest.raises(RunFailed, match="other weights"):
        do_merge(where, final)


def test_a_full_disk_is_explained_and_nothing_is_left(tmp_path, monkeypatch):
    import errno

    where, final, _ = tune(tmp_path, steps=1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge_module, "save_model_files", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        do_merge(where, final)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "final"]


# -- what is in the folder


def test_shards_have_at_most_the_size_asked_for(tmp_path):
    where, final, extra = tune(tmp_path)
    do_merge(where, final, max_shard_size="200KB")
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert all(file.stat().st_size <= 210_000 for file in shards)
    assert (merged_logits(tmp_path / "merged", extra) - tuned_logits(where, final, extra)).abs().max() <= 1e-5


def test_only_data_is_written_and_every_file_is_in_the_record(tmp_path):
    where, final, _ = tune(tmp_path)
    do_merge(where, final)
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    record = json.loads((tmp_path / "merged" / "luthier.json").read_text())
    assert {name.rpartition(".")[2] for name in names} == {"safetensors", "json", "jinja"}
    assert set(record["files"]) == names - {"luthier.json"}
    assert record["kind"] == "merged"
    assert record["merge"]["passed"] is True
    load(section(tmp_path / "merged"))  # our own loader takes it, hashes checked


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_code_that_knows_only_safetensors_and_the_tie_flag_loads_it_strictly(tmp_path, tied):
    from tests.support.tiny import tiny_model

    where, final, _ = tune(tmp_path, tied=tied)
    do_merge(where, final)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    if json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    other = tiny_model(seed=4)
    other.load_state_dict(tensors, strict=True)
    assert torch.equal(logits(other), merged_logits(tmp_path / "merged"))


PLAIN = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    want = load_file(folder + "/../expected.safetensors")
    with torch.no_grad():
        difference = float((model(input_ids=want["ids"]).logits - want["logits"]).abs().max())
    text = tokenizer.apply_chat_template([{"role": "user", "content": "people way"}], tokenize=False)
    answer = model.generate(want["prompt"], max_new_tokens=40, do_sample=False)[0, want["prompt"].shape[1]:].tolist()
    print(json.dumps({
        "luthier": "luthier" in sys.modules, "missing": sorted(info["missing_keys"]),
        "difference": difference, "text": text,
        "answer": answer, "stops": model.generation_config.eos_token_id, "config": model.config.eos_token_id,
        "tokens": len(tokenizer), "rows": model.get_input_embeddings().weight.shape[0],
    }))
"""


def test_a_fresh_process_without_luthier_gets_the_same_logits_template_and_stop(tmp_path):
    """One process for all variants: tied and untied, new tokens, tables trained in full, DoRA, full."""
    variants = {
        "a": {"tied": True, "new_tokens": NEW},
        "b": {"tied": True, "method": METHODS["both tables"]},
        "c": {"method": METHODS["both tables"], "new_tokens": NEW},
        "d": {"method": METHODS["dora"], "new_tokens": NEW},
        "e": {"tied": True, "method": METHODS["full"], "new_tokens": NEW},
        "f": {"stored": torch.bfloat16, "method": METHODS["rslora"]},
    }
    bounds = {}
    for name, options in variants.items():
        folder = tmp_path / name
        stored, tied = options.pop("stored", torch.float32), options.pop("tied", False)
        base = base_folder(folder / "base", tied=tied, dtype=stored)
        where = section(base, new_tokens=options.pop("new_tokens", []))
        tuned, tokenizer = prepare(where, **options.pop("method", LORA))
        extra = new_token_ids(tokenizer, where.new_tokens)
        # Taught to answer 9 10 11 and then end the turn: `<|im_end|>`, id 2.
        lesson = torch.tensor([[1, *extra, 5, 6, 7, 9, 10, 11, 2]])
        optimizer = torch.optim.AdamW([value for value in tuned.model.parameters() if value.requires_grad], lr=0.003)
        for _ in range(60 if name == "e" else 5):
            tuned.model(input_ids=lesson, labels=lesson, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_trained(tuned.model, tokenizer, folder / "final")
        report = merge(where, folder / "final", folder / "merged", device=CPU)
        # Other prompts than the check's: 1e-5 max|logit|, and for bf16 what rounding costs.
        bounds[name] = 0.1 * report.bound if name != "f" else 1.5 * report.rounding + report.bound
        ids = some_ids(extra)
        expected = {
            "ids": ids,
            "logits": tuned_logits(where, folder / "final", extra),
            "prompt": lesson[:, :-4].clone(),
        }
        save_file(expected, folder / "expected.safetensors")
    folders = [str(tmp_path / name / "merged") for name in variants]
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, *folders], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    for name, line in zip(variants, run.stdout.splitlines(), strict=True):
        got = json.loads(line)
        assert got["luthier"] is False
        assert got["missing"] == []
        assert got["difference"] <= bounds[name], name
        assert got["text"] == "<|im_start|>user\npeople way<|im_end|>\n"
        if name == "e":  # trained in full, so few steps are enough to learn the lesson
            assert got["answer"] == [9, 10, 11, 2], name  # it stops by itself
        assert got["stops"] in (2, [2])
        assert got["config"] in (2, [2])
        assert got["tokens"] <= got["rows"]
