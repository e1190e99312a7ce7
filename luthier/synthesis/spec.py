"""The spec of `luthier data synth`: what a user may write, one frozen section per subject.

Rules across keys are in `synthesis/rules.py`. No torch below this line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.recipe.data_schema import DedupSection, Source
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.section import Section

__all__ = [
    "DocumentsSection", "EndpointSection", "EvolveSection", "JudgeSpec", "LocalSection", "Operator",
    "RejectionSection", "SamplingSection", "ScorerSpec", "SeedsSection", "SynthSpec",
]  # fmt: skip

PositiveInt = Annotated[int, Field(ge=1)]
Price = Annotated[float, Field(ge=0.0)]
Operator = Literal["constraints", "deepen", "concretize", "reasoning", "input", "breadth"]


class EndpointSection(Section):
    """The server that is asked: anything that speaks OpenAI's chat API."""

    base_url: str
    """For instance `http://localhost:8000/v1`; `/chat/completions` is appended."""
    model: str
    """Name the server knows the model by."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; null: no key is sent."""
    concurrency: PositiveInt = 8
    """Requests in flight at once."""
    requests_per_minute: Annotated[float, Field(ge=1.0)] | None = None
    """Attempts sent in any 60 seconds; null: any number."""
    tokens_per_minute: Annotated[float, Field(ge=1.0)] | None = None
    """Tokens, of prompts and answers together, in any 60 seconds; null: any number."""
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 120.0
    """Longest time of one attempt, from connecting to the last byte."""
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Further attempts after 408, 409, 425, 429, 5xx, a broken connection or a broken answer."""
    max_wait_seconds: Annotated[float, Field(gt=0.0)] = 60.0
    """Longest wait before a retry; a server that asks for more (`Retry-After`) ends the job, which can be resumed."""
    input_price: Price | None = None
    """US dollars a million prompt tokens; with `output_price` the cost is counted."""
    output_price: Price | None = None
    """US dollars a million completion tokens."""
    budget_usd: Annotated[float, Field(gt=0.0)] | None = None
    """Most that this job may spend at this server, sessions before a resume included. Needs both prices."""
    budget_tokens: PositiveInt | None = None
    """Most tokens, of prompts and answers together, that this job may use at this server, earlier sessions included."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of each request, for instance `{reasoning_effort: low}`; null removes a key."""


class LocalSection(Section):
    """A model on this machine, without a server."""

    name_or_path: str
    """Hub id or local folder; `smollm2-135m-instruct` is the model that ships in a package."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    batch_size: PositiveInt = 32
    """Answers sampled at once. Part of the random draw: another size gives other answers."""


class SamplingSection(Section):
    """How answers are drawn."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.7
    """0: the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw from the likeliest tokens that have this probability together."""
    max_tokens: PositiveInt = 1024
    """Longest answer; an answer that is cut there is not used (outcome `cut`)."""
    send_seed: bool = True
    """Send a `seed` with each request, made from the spec's own; off for servers that refuse the key."""


class DocumentsSection(Section):
    """Question and answer pairs from documents, each proven by a quotation."""

    paths: Annotated[list[str], Field(min_length=1)]
    """Files, folders or globs: txt, md, html, pdf, docx."""
    chunk_tokens: Annotated[int, Field(ge=16)] = 800
    """Longest passage shown to the model."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 80
    """How much of the passage before is repeated at the start of a passage, within a section."""
    tokenizer: str | None = None
    """Hub id or folder whose tokenizer counts. null: an estimate, one token a short word, a mark or 4 characters."""
    pairs: PositiveInt = 3
    """Pairs asked for from each passage; the model may give fewer."""
    quote_words: PositiveInt = 4
    """Fewest words of a quotation that counts as proof, unless the passage has fewer."""
    with_passage: bool = False
    """Put the passage in front of the question, so that the row teaches reading; else it teaches the content."""
    limit: PositiveInt | None = None
    """Use only the first passages, in the order of the files."""


class SeedsSection(Section):
    """New prompts in the manner of a few examples, then their answers (Self-Instruct, arXiv:2212.10560)."""

    examples: Source
    """Rows whose first user message is an example prompt; path, format and map as in a recipe."""
    topics: list[str] = Field(default_factory=list)
    """Each request is about one of them, in turn; empty: no topic is named."""
    rows: PositiveInt = 100
    """New prompts wanted; the job ends before with `max_requests`."""
    shown: PositiveInt = 4
    """Examples shown in a request, a quarter of them made in earlier rounds once there are any."""
    prompts: PositiveInt = 5
    """New prompts asked for in a request."""
    round_requests: PositiveInt = 8
    """Requests of a round; what a round has made may serve as an example from the next on."""
    max_requests: PositiveInt | None = None
    """Most requests for prompts. null: four times rows / prompts."""
    novelty: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    """A prompt whose Jaccard index with an example or an earlier prompt is at least this is a duplicate."""
    answer: bool = True
    """Ask for the answers, too. false: rows hold the prompt alone."""


class EvolveSection(Section):
    """Existing prompts made harder or more varied, then answered (Evol-Instruct, arXiv:2304.12244)."""

    source: Source
    """Rows whose first user message is evolved; path, format and map as in a recipe."""
    rounds: PositiveInt = 1
    """How often each prompt is evolved; each round begins with what the one before gave."""
    operators: list[Operator] = Field(
        default=["constraints", "deepen", "concretize", "reasoning", "breadth"], min_length=1
    )
    """Drawn from by the seed, one a round; their words are in `luthier/synthesis/operators.yaml`. Twice: twice as
    often."""
    keep: Literal["all", "last"] = "all"
    """Rows of every round, or of each prompt's last successful one."""


class ScorerSpec(Section):
    """What makes an answer right."""

    name: Literal["exact", "contains", "regex", "number", "json_exact", "judge"] | None = None
    """Comparison with the reference, as in `evaluate.tasks`; `number`: the last numbers are equal (GSM8K);
    `judge`: the spec's `judge` says at least its `accept`."""
    pattern: str | None = None
    """Regular expression whose first group is compared, in the answer and, where it matches, in the reference."""
    python: str | None = None
    """Instead of `name`: your own code, as FILE:FUNCTION. Called as rewards of online RL are, with
    `(prompts, completions, **columns)`; returns one number for each."""
    accept: float = 1.0
    """Least score of an accepted answer, for `python`."""


class RejectionSection(Section):
    """Several answers to each prompt, of which a scorer keeps the right ones."""

    source: Source
    """Rows: what stands before the last assistant message is asked, that message is the reference."""
    n: PositiveInt = 8
    """Answers to each prompt."""
    scorer: ScorerSpec
    """What makes an answer right."""
    keep: Literal["first", "best", "all", "pairs"] = "best"
    """Of the accepted answers: the first, the best (highest score, then the shortest), all that differ; or `pairs`: one
    accepted and one rejected answer, as rows for DPO."""
    max_per_prompt: PositiveInt = 4
    """Most rows of one prompt, for `all` and `pairs`."""


class JudgeSpec(Section):
    """A model that scores rows at the end, or answers of rejection sampling."""

    rubric: str
    """What makes a row good, in words."""
    min_score: float = 1.0
    """Lowest score of the rubric."""
    max_score: float = 5.0
    """Highest score of the rubric."""
    accept: float = 4.0
    """Rows with a lower score are left out (outcome `judged_low`)."""
    max_tokens: PositiveInt = 256
    """Longest answer of the judge."""
    endpoint: EndpointSection | None = None
    """Another server or model than the spec's own; null: the same."""


class SynthSpec(Section):
    """Rows made by a model."""

    version: Literal[1] = 1
    """Version of this schema."""
    name: str | None = None
    """Title in the summary; default: the name of the output file."""
    mode: Literal["documents", "seeds", "evolve", "rejection"]
    """Where rows come from; the section of the same name has its settings."""
    out: str | None = None
    """File for the rows (`.jsonl`); `--out` wins. Journal, rejected rows and summary stand beside it."""
    seed: int = 0
    """Of every draw: examples, operators, the seeds sent to the server."""
    system: str | None = None
    """System message of the rows, sent when answers are made."""
    endpoint: EndpointSection | None = None
    """The server that is asked."""
    local: LocalSection | None = None
    """Instead of a server: a model on this machine."""
    sampling: SamplingSection = Field(default_factory=SamplingSection)
    documents: DocumentsSection | None = None
    seeds: SeedsSection | None = None
    evolve: EvolveSection | None = None
    rejection: RejectionSection | None = None
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How JSON is asked for. `auto`: `response_format` with the schema if the server takes it, which one short request
    finds out; `none`: in words alone. Answers are checked against the schema in any case."""
    repairs: Annotated[int, Field(ge=0, le=5)] = 1
    """How often an answer that is not valid is asked for again, with what was wrong."""
    prompts: str | None = None
    """YAML file with prompt templates that replace some of `luthier/synthesis/prompts.yaml`."""
    filters: FilterSection | None = None
    """Mend, redact or leave out rows for what they say, as in a recipe, before `dedup`; null: nothing is looked at. Not
    `judge`, which is a section of the spec, and no length in tokens."""
    dedup: DedupSection | None = None
    """Leave out rows that say what another says, as in a recipe; null: only equal answers to one prompt are."""
    judge: JudgeSpec | None = None
    """Score rows that are left at the end, and leave out low ones; or the scorer of rejection sampling."""
