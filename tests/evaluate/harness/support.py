"""Small tasks of lm-evaluation-harness, whole in a folder: YAML and rows."""

import json

GENERATE = """
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}, train: {shots}}}
output_type: generate_until
test_split: test
fewshot_split: train
doc_to_text: "{question}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [",", "(?s).*#### "]
generation_kwargs:
  until: ["Question:"]
  do_sample: false
num_fewshot: 1
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[0-9]+)"}}
      - {{function: take_first}}
metadata: {{version: 3.0}}
"""

CHOICE = """
task: pick
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["time", "people", "way"]
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def sums_task(folder, *, rows=6, text="Question: {{question}}\\nAnswer:", **changes):
    """GSM8K's shape: a question, an answer that ends in `#### number`, strict and flexible extraction."""
    body = [{"question": f"What is {n} + 1?", "answer": f"so\n#### {n + 1}"} for n in range(rows)]
    shots = [{"question": f"What is {n} + 2?", "answer": f"so\n#### {n + 2}"} for n in range(50, 53)]
    where = {"rows": write(folder / "test.jsonl", body), "shots": write(folder / "train.jsonl", shots)}
    path = folder / "sums.yaml"
    config = GENERATE.format(**where, question=text)
    for old, new in changes.pop("replace", {}).items():
        assert old in config
        config = config.replace(old, new)
    path.write_text(config, "utf-8")
    return str(path)


def choice_task(folder):
    rows = [{"question": f"word {n}", "label": n % 3} for n in range(6)]
    path = folder / "pick.yaml"
    path.write_text(CHOICE.format(rows=write(folder / "pick.jsonl", rows)), "utf-8")
    return str(path)
