"""Contract: a card says what the run's files say, gives nothing away, and keeps what people wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.report.card.keep import compose, split_front_matter
from luthier.report.card.text import code, fence, plain, table
from luthier.report.card.write import card_text, keep_cards, write_cards
from luthier.report.read import read_run
from luthier.runtime.errors import DataError
from tests.report.make_run import make_run

TOKEN = "hf_" + "QqWwEeRrTtYyUuIiOoPpAaSsDd"


def finished(folder, **adapter):
    """A run with an adapter folder and a merged one."""
    run = make_run(folder)
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, **adapter}
    (folder / "final" / "adapter_config.json").write_text(json.dumps(config))
    (folder / "final" / "chat_template.jinja").write_text("x")
    (folder / "merged").mkdir()
    (folder / "merged" / "config.json").write_text('{"max_position_embeddings": 8192}')
    return run


def change(run, name, **values):
    file = run.path / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_the_hub_library_reads_what_the_run_measured(tmp_path):
    from huggingface_hub import ModelCard

    run = finished(tmp_path / "tickets")
    files = write_cards(run)
    assert [file.relative_to(run.path).as_posix() for file in files] == ["final/README.md", "merged/README.md"]
    adapter, merged = (ModelCard.load(file).data for file in files)
    assert (adapter.base_model, adapter.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "adapter")
    assert (merged.base_model_relation, merged.library_name, merged.pipeline_tag) == (
        "finetune", "transformers", "text-generation",
    )  # fmt: skip
    assert (adapter.library_name, adapter.license) == ("peft", "apache-2.0")
    after = json.loads((run.path / "eval" / "after.json").read_text())["tasks"][0]
    [result] = merged.eval_results
    assert (result.dataset_name, result.metric_type) == (after["name"], "exact_match")
    assert result.metric_value == pytest.approx(after["score"])


def test_several_processes_are_told_with_how_they_shared_the_work(tmp_path):
    run = finished(tmp_path / "tickets")
    view = read_run(run)
    view.train.update(seconds=60.0)
    assert "| 60 s on 1 process |" in card_text(view, run.path / "merged", old=None)
    view.train.update(processes=8, strategy="fsdp2, optimizer offloaded")
    text = card_text(view, run.path / "merged", old=None)
    assert "| 60 s on 8 processes (fsdp2, optimizer offloaded) |" in text
    assert "`luthier rerun RUN` repeats the run in one process" in text


def test_scores_intervals_and_the_tests_words(tmp_path):
    run = finished(tmp_path / "tickets")
    compared = json.loads((run.path / "eval" / "comparison.json").read_text())["tasks"][0]
    text = card_text(read_run(run), run.path / "merged", old=None)
    assert f"{compared['before'] * 100:.1f}%" in text
    assert f"{compared['delta'] * 100:+.1f} points" in text
    assert compared["test"] in text
    assert "a small test set, 60 rows" in text
    assert "better" in text


def test_no_evidence_and_contamination_are_limits(tmp_path):
    run = finished(tmp_path / "tickets")
    [task] = json.loads((run.path / "eval" / "comparison.json").read_text())["tasks"]
    change(run, "eval/comparison.json", tasks=[{**task, "verdict": "no evidence", "p_value": 0.4}])
    decontaminate = {"of_rows": 300, "against_rows": 60, "found": {"prompt": 7}, "sure": {"prompt": 5}, "dropped": 3}
    stages = {
        "language": {"rows": 300, "dropped": 4, "changed": 0},
        "pii": {"rows": 296, "dropped": 0, "changed": 9},
    }
    filters = {"settings": {"language": {"languages": ["en", "de"]}}, "stages": stages}
    curated = {"decontaminate": decontaminate, "later_step": {"dropped": {"too_long": 4}}, "filters": filters}
    change(run, "data/manifest.json", curated=curated)
    text = card_text(read_run(run), run.path / "merged", old=None)
    assert "no evidence that the tuned model differs from its base (p = 0.4)" in text
    assert "Contamination: 4 training rows are like evaluation rows" in text
    assert "Later step: 4 too\\_long." in text
    assert "Filter language, over 300 rows: 4 dropped." in text
    assert "Filter pii, over 296 rows: 9 changed." in text
    assert split_front_matter(text, tmp_path)[0]["language"] == ["en", "de"]


def test_a_run_without_scores_says_so(tmp_path):
    run = finished(tmp_path / "tickets")
    for name in ("before", "after", "comparison"):
        (run.path / "eval" / f"{name}.json").unlink()
    text = card_text(read_run(run), run.path / "final", old=None)
    assert "this run scored no task" in text
    assert "model-index" not in text
    assert "nothing here shows that this model is better" in text


def test_planted_secrets_stay_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "correct horse battery")
    run = finished(tmp_path / "tickets")
    manifest = json.loads((run.path / "manifest.json").read_text())
    recipe = {
        **manifest["recipe"],
        "name": f"run with {TOKEN}",
        "model": {"name_or_path": "/srv/private zone/models/base", "chat_template": "/home/joe/t.jinja"},
        "data": {"train": [{"path": "/home/joe/secret project/rows.jsonl", "system": "correct horse battery"}]},
        "objective": {"name": "sft", "api_key": "Zq8wKd72mmP"},
        "output_dir": "/home/joe/out",
    }
    change(run, "manifest.json", recipe=recipe, working_directory="/home/joe/work",
           command=["luthier", "run", "/home/joe/r.yaml", f"--x={TOKEN}", "https://u:Zq8wKd72mmP@h/x"])  # fmt: skip
    change(run, "data/manifest.json", sources=[
        {"path": "/home/joe/secret project/rows.jsonl", "format": "messages", "rows": 3, "hash": "ab" * 16}
    ])  # fmt: skip
    (run.path / "data_card.md").write_text(f"see /home/joe/secret project/readme and {TOKEN}")
    for folder in ("final", "merged"):
        text = card_text(read_run(run), run.path / folder, old=None)
        for secret in (TOKEN, TOKEN[3:], "correct horse", "Zq8wKd72mmP", "joe", "private zone", "/srv", "/home"):
            assert secret not in text
        assert "rows.jsonl" in text
        assert "base_model:" not in text


def test_markup_in_values_stays_text(tmp_path):
    run = finished(tmp_path / "tickets")
    manifest = json.loads((run.path / "manifest.json").read_text())
    evil = "<script>x</script> | [a](http://e.vil) `b` <!-- luthier:end summary -->\n# head\n---\nlicense: mit"
    change(run, "manifest.json", recipe={**manifest["recipe"], "name": evil})
    change(run, "data/manifest.json", sources=[
        {"path": "a|b`c`<img src=x>.jsonl", "format": "<b>", "rows": 3, "hash": "ab" * 16}
    ])  # fmt: skip
    text = card_text(read_run(run), run.path / "merged", old=None)
    front, body = split_front_matter(text, tmp_path)
    assert front["license"] == "apache-2.0"
    assert "<script" not in body.split("```yaml")[0]
    assert "a](" not in body.split("```yaml")[0]
    assert "\n# head" not in body
    again = split_front_matter(compose(tmp_path, front, {"summary": "new"}, old=text), tmp_path)[1]
    assert again.count("luthier:end summary") == 1


def test_what_people_wrote_survives(tmp_path):
    run = finished(tmp_path / "tickets")
    [_, file] = write_cards(run)
    text = file.read_text()
    mine = text.replace("license: apache-2.0", "license: mit\nlanguage: en\nmykey: [1, 2]").replace(
        "- luthier\n", "- luthier\n- mytag\n"
    )
    mine = (
        mine.replace("<!-- luthier:begin limits -->", "My own words.\n\n<!-- luthier:begin limits -->") + "\nThe end.\n"
    )
    file.write_text(mine)
    change(run, "data/manifest.json", rows_read=12_345)
    write_cards(run)
    again = file.read_text()
    front, body = split_front_matter(again, file)
    assert (front["license"], front["language"], front["mykey"]) == ("mit", "en", [1, 2])
    assert {"luthier", "mytag"} <= set(front["tags"])
    assert "My own words.\n\n<!-- luthier:begin limits -->" in body
    assert body.endswith("\nThe end.\n")
    assert "12,345 rows read" in body
    write_cards(run)
    assert file.read_text() == again


def test_a_value_of_ours_is_renewed_and_a_skipped_section_stays_out(tmp_path):
    file = tmp_path / "README.md"
    first = compose(file, {"license": "mit", "base_model": "a/b"}, {"one": "1", "two": "2"}, old=None)
    second = compose(file, {"license": "apache-2.0", "base_model": "c/d"}, {"one": "1", "two": "2"}, old=first)
    front, _ = split_front_matter(second, file)
    assert front == {"license": "apache-2.0", "base_model": "c/d"}
    gone, _ = split_front_matter(compose(file, {}, {"one": "1"}, old=first), file)
    assert gone == {}
    start = first.index("<!-- luthier:begin two")
    skipped = compose(file, {}, {"one": "1", "two": "2"}, old=first[:start] + "<!-- luthier:skip two -->\n")
    assert "begin two" not in skipped


def test_a_card_without_markers_is_kept_whole(tmp_path):
    text = compose(tmp_path / "R", {"tags": ["x"]}, {"one": "1"}, old="# Mine\n\nwords")
    assert "# Mine\n\nwords\n\n<!-- luthier:begin one -->" in text


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("a\n<!-- luthier:begin one -->\nx", 2, "no end marker"),
        ("a\n<!-- luthier:end one -->\nx", 2, "marker"),
        (2 * "<!-- luthier:begin one -->\n<!-- luthier:end one -->\n", 3, "second"),
        ("---\na: [\n---\nx", 2, "YAML block"),
        ("---\n- a\n---\nx", 1, "list"),
        ("---\na: 1\n---\n\n<!-- luthier:begin one -->\n<!-- luthier:begin two -->\n<!-- luthier:end one -->", 6,
         "inside section one of line 5"),
    ],
)  # fmt: skip
def test_damaged_cards_are_named_by_line(tmp_path, text, line, said):
    with pytest.raises(DataError) as caught:
        compose(tmp_path / "README.md", {}, {"one": "1"}, old=text)
    problem = caught.value.problems[0]
    assert said in problem.message
    assert problem.line == line


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_the_text_of_people_is_byte_for_byte(first, second, third):
    def own(text):
        return text.replace("<!--", "").replace("---", "").replace("\r", "")

    meta = {"tags": ["luthier"]}
    text = compose("R", meta, {"one": "1", "two": "2"}, old=None)
    mine = text.replace("<!-- luthier:begin one", own(first) + "\n<!-- luthier:begin one")
    mine = mine.replace("<!-- luthier:begin two", own(second) + "\n<!-- luthier:begin two") + own(third)
    assert compose("R", meta, {"one": "1", "two": "2"}, old=mine) == mine
    assert compose("R", meta, {"one": "A", "two": "2"}, old=mine) == mine.replace(
        "\n1\n<!-- luthier:end one", "\nA\n<!-- luthier:end one"
    )


@given(st.text(max_size=80))
def test_no_value_breaks_a_table_or_a_fence(text):
    assert len(table(("a", "b"), [(plain(text), code(text))]).splitlines()) == 3
    block = fence(text)
    ticks = block[: len(block) - len(block.lstrip("`"))]
    assert not any(line.strip() == ticks for line in block.split("\n")[1:-1])


def test_a_card_outlives_the_folder_it_lies_in(tmp_path):
    import shutil

    run = finished(tmp_path / "tickets")
    [_, file] = write_cards(run)
    file.write_text(file.read_text() + "Mine.\n")
    keep_cards(run)
    shutil.rmtree(run.path / "merged")
    (run.path / "merged").mkdir()
    write_cards(run)
    assert file.read_text().endswith("Mine.\n")
    assert not (run.path / "export" / "cards" / "merged.md").exists()


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"r": 1024}])
def test_adapters_that_vllm_cannot_load_are_told(tmp_path, config):
    run = finished(tmp_path / "tickets", **config)
    assert "vLLM cannot serve this adapter" in card_text(read_run(run), run.path / "final", old=None)


def test_gguf_files_are_told_with_what_they_keep(tmp_path):
    run = finished(tmp_path / "tickets")
    (run.path / "gguf").mkdir()
    (run.path / "gguf" / "tickets-q8_0.gguf").write_bytes(b"GGUF")
    file = {
        "file": "tickets-q8_0.gguf",
        "bytes": 144_000_000,
        "bits_per_weight": 8.5,
        "kl": 0.0012,
        "same_choice": 0.996,
    }
    (run.path / "export" / "gguf.json").write_text(json.dumps({"files": [file]}))
    text = card_text(read_run(run), run.path / "gguf", old=None)
    assert "llama-server -m tickets-q8_0.gguf --jinja" in text
    assert "| `tickets-q8_0.gguf` | 8.5 | 144 | 0.0012 | 99.6% |" in text
    assert "Scores were measured before the conversion" in text
