"""Choose how a recipe runs: the fastest setting that fits, the runners-up, and what would make it fit.

Every setting computes the same numbers, so speed decides: seconds a token, corrected by earlier runs on this
machine. Of equally fast settings the one that computes least again is taken, and of settings within 1% that differ in
the micro-batch or in kept attention only, the one with less memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from luthier.plan.efficiency import efficiency_of
from luthier.plan.flops import model_flops_per_token
from luthier.plan.host import HostPlan, estimate_host, values_first_of
from luthier.plan.memory import estimate_memory
from luthier.plan.objective import passes_before, work_of
from luthier.plan.reasons import reasons_for, why_not
from luthier.plan.remedies import Remedy, faster, remedies
from luthier.plan.request import Request
from luthier.plan.result import Candidate, Plan, RunnerUp
from luthier.plan.setting import Base, Setting, Way
from luthier.plan.sharding import forward_exchange_seconds
from luthier.plan.time import estimate_step, forward_seconds
from luthier.plan.ways import tiers
from luthier.recipe.steps import Batching
from luthier.runtime.errors import RecipeError

__all__ = ["evaluate", "make_plan", "search"]

TIE = 1.01
LEVEL = 1.001
"""Seconds that differ by less are the same."""
RUNNERS_UP = 3


def make_plan(request: Request, *, with_remedies: bool = True) -> Plan:
    """The plan for a request; when nothing fits it has the smallest setting, `fits` False, and remedies (which take
    a search each)."""
    candidates, refused = look(request)
    fitting = [candidate for candidate in candidates if candidate.fits]
    chosen = _fastest(fitting) if fitting else min(candidates, key=lambda candidate: candidate.needed_bytes)
    changes: tuple[Remedy, ...] = remedies(request, first_fit) if with_remedies and not fitting else ()
    return Plan(
        request=request, chosen=chosen, fits=bool(fitting), reasons=reasons_for(request, chosen, candidates, refused),
        runners_up=tuple(_runners_up(chosen, candidates)), remedies=changes, steps=request.steps(chosen.split),
        faster=faster(request, chosen, first_fit) if with_remedies and fitting else None,
        model_flops_per_token=model_flops_per_token(request.sizes, request.documents),
        seconds_before=_seconds_before(request, chosen), ways=tuple(_best_of_each_way(chosen, candidates)),
        refused={way.words(): reason for way, reason in refused.items()},
    )  # fmt: skip


def _seconds_before(request: Request, chosen: Candidate) -> float:
    """Of the passes that the objective makes before the first step, corrected as a step is."""
    count = passes_before(request.recipe.objective.name, request.epochs(chosen.split))
    if not count:
        return 0.0
    tokens = request.documents.tokens * count / request.num_gpus
    once = chosen.setting.micro_tokens
    seconds = forward_seconds(
        request.sizes, chosen.setting, request.documents, request.device, tokens=once,
        table=efficiency_of(request.device.type),
    )  # fmt: skip
    seconds += forward_exchange_seconds(
        request.sizes, chosen.setting, request.device, compute=seconds, tokens=once,
        table=efficiency_of(request.device.type),
    )  # fmt: skip
    return seconds * tokens / once * chosen.correction.seconds


def first_fit(request: Request) -> Candidate | None:
    """The fastest setting that fits, or None."""
    fitting = [candidate for candidate in search(request) if candidate.fits]
    return _fastest(fitting) if fitting else None


def search(request: Request) -> list[Candidate]:
    """Every setting worth a look: for each way to spread the model (`ways.py`), micro-batch and base the policies from
    no recompute to all, up to the first that fits and the next."""
    return look(request)[0]


def look(request: Request) -> tuple[list[Candidate], dict[Way, str]]:
    """(candidates, ways that were left out and why). Ways of a later tier only where none before has one that fits.

    Raises:
        RecipeError: see `ways.tiers`; L252: rules refuse every way.
    """
    found: list[Candidate] = []
    refused: dict[Way, str] = {}
    for tier in tiers(request):
        useful = [(way, reason) for way, reason in tier if _useful(request, way, found)]
        refused |= {way: reason for way, reason in useful if reason}
        for way in (way for way, reason in useful if not reason):
            for budget, split in request.splits(way):
                for base in request.bases(way):
                    plain = _setting(request, split, base, way)
                    found += _policies(request, plain, budget, split)
        if any(candidate.fits for candidate in found):
            break
    if not found:
        raise RecipeError(
            code="L252", message="no way to spread this recipe over several devices: "
            + "; ".join(f"{way.words()}: {reason}" for way, reason in refused.items()),
            hint="take one device, or change the key that is named",
        )  # fmt: skip
    return found, refused


def _useful(request: Request, way: Way, found: list[Candidate]) -> bool:
    """Sharing sequences helps only where their tokens are what does not fit: without activations, a layer's transient
    and logits the smallest setting that was looked at (of the same storage, if there is one) would."""
    if way.sequence_parallel == request.recipe.distributed.sequence_parallel_size or not found:
        return True
    same = [other for other in found if other.setting.way.offload == way.offload] or found
    return any(
        other.needed_bytes - other.memory.activations - other.memory.transient - other.memory.logits
        <= other.available_bytes
        for other in same
    )


def evaluate(request: Request, setting: Setting, *, budget: int, split: Batching) -> Candidate:
    """Memory and time of one setting."""
    device, documents = request.device, request.documents
    optim, table = request.recipe.train.optim, efficiency_of(device.type)
    correction = request.correction(setting.base, setting.way)
    memory = estimate_memory(
        request.sizes, setting, optim=optim, optim_args=request.recipe.train.optim_args,
        supervised=documents.supervised, device_type=device.type, table=table,
    )  # fmt: skip
    step_tokens = split.sequences_per_step * documents.sequence_tokens / request.num_gpus
    step = estimate_step(
        request.sizes, setting, documents, device, step_tokens=step_tokens, optim=optim, table=table,
        work=work_of(request.recipe.objective.name),
    )  # fmt: skip
    room = int(device.memory_bytes * (1 - table.safety))
    return Candidate(
        setting=setting, budget=budget, split=split, memory=memory, step=step, correction=correction,
        step_tokens=step_tokens * request.num_gpus, available_bytes=room, host=_host(request, setting),
        host_available=None if setting.offload == "none" or device.type != "cuda" else request.host_memory,
    )  # fmt: skip


def _setting(request: Request, split: Batching, base: Base, way: Way) -> Setting:
    documents, micro = request.documents, split.per_device_train_batch_size
    largest = micro * documents.longest_sequence
    if not request.recipe.data.packing:
        # Rows of one batch are not all as long as the longest: half again of the mean is taken.
        largest = min(largest, max(documents.longest_sequence, round(1.5 * micro * documents.sequence_tokens)))
    whole = request.num_gpus == 1 or way.strategy == "ddp"
    return Setting(
        micro_tokens=-(-min(largest, documents.tokens) // way.sequence_parallel), base=base,
        dtype_bytes=request.dtype_bytes, accumulate=split.gradient_accumulation_steps, world=request.num_gpus, way=way,
        reshard=request.recipe.distributed.reshard_after_forward, extended=request.extended and not way.sharded,
        replay=whole and way.sequence_parallel == 1, host=request.host_devices,
    )  # fmt: skip


def _policies(request: Request, plain: Setting, budget: int, split: Batching) -> Iterator[Candidate]:
    """Recompute from none to all. Where nothing is given: none; if that does not fit, selective, and the fewest
    whole layers that fit, with the others keeping all or selective; all layers at the end. Layers that run again do
    so with attention and, where that can be kept, without."""
    fixed = request.recompute
    if fixed is not None:
        setting = replace(plain, recompute=fixed[0], recompute_layers=fixed[1])
        whole = setting.whole_layers(request.sizes.shape.layers) > 0
        for keep, attending in request.attention_kept if whole else ((False, 0),):
            setting = replace(setting, keep_attention=keep, attending_layers=attending)
            candidate = evaluate(request, setting, budget=budget, split=split)
            yield candidate
            yield from _fewest_attending(request, candidate)
        return
    none = evaluate(request, plain, budget=budget, split=split)
    yield none
    selective = evaluate(request, replace(plain, recompute="selective"), budget=budget, split=split)
    if request.sizes.fast:
        yield selective
    if none.fits or (selective.fits and request.sizes.fast):
        return
    for keep, attending in request.attention_kept:
        setting = replace(plain, keep_attention=keep, attending_layers=attending)
        for candidate in _whole_layers(request, setting, budget, split):
            yield candidate
            yield from _fewest_attending(request, candidate)


def _fewest_attending(request: Request, attending: Candidate) -> Iterator[Candidate]:
    """Where a candidate whose layers attend again fits, and would not if none of them did: the fewest that do."""
    setting, budget, split = replace(attending.setting, keep_attention=True), attending.budget, attending.split
    low, high = request.sizes.lowest_layer, setting.whole_layers(request.sizes.shape.layers)
    if attending.setting.keep_attention or not attending.fits or not request.attention_is_open:
        return
    while low < high:
        middle = (low + high) // 2
        candidate = evaluate(request, replace(setting, attending_layers=middle), budget=budget, split=split)
        low, high = (low, middle) if candidate.fits else (middle + 1, high)
    if low < setting.whole_layers(request.sizes.shape.layers):
        yield evaluate(request, replace(setting, attending_layers=low), budget=budget, split=split)


def _whole_layers(request: Request, plain: Setting, budget: int, split: Batching) -> Iterator[Candidate]:
    """All layers recomputed as a whole; if that fits, also the fewest with which it does."""
    layers = request.sizes.shape.layers
    everything = evaluate(request, replace(plain, recompute="layer"), budget=budget, split=split)
    if everything.fits:
        mixed = [replace(plain, recompute="layer")]
        mixed += [replace(plain, recompute="selective")] if request.sizes.fast else []
        for start in mixed:
            low, high = request.sizes.lowest_layer + 1, layers
            while low < high:
                middle = (low + high) // 2
                candidate = evaluate(request, replace(start, recompute_layers=middle), budget=budget, split=split)
                low, high = (low, middle) if candidate.fits else (middle + 1, high)
            if low < layers:
                yield evaluate(request, replace(start, recompute_layers=low), budget=budget, split=split)
    yield everything


def _fastest(candidates: list[Candidate]) -> Candidate:
    """Least seconds a token; of equally fast ones (a host that cannot keep up hides work) the one that computes least
    again, then the one with least memory."""
    quickest = min(candidate.seconds_per_token for candidate in candidates)
    level = [candidate for candidate in candidates if candidate.seconds_per_token <= LEVEL * quickest]
    best = min(level, key=lambda candidate: (*_again(candidate), candidate.seconds_per_token, candidate.needed_bytes))

    def plain(candidate: Candidate) -> Setting:
        return replace(candidate.setting, micro_tokens=0, accumulate=0, keep_attention=False, attending_layers=0)

    def same_but_smaller(candidate: Candidate) -> bool:
        return candidate.seconds_per_token <= TIE * best.seconds_per_token and plain(candidate) == plain(best)

    return min(filter(same_but_smaller, candidates), key=lambda candidate: candidate.needed_bytes)


def _again(candidate: Candidate) -> tuple[int, bool, bool]:
    """How much is computed again: whole layers, then norms and products, then attention."""
    setting = candidate.setting
    return setting.whole_layers(10**6), setting.recompute != "none", not setting.keep_attention


def _best_of_each_way(chosen: Candidate, candidates: list[Candidate]) -> Iterator[RunnerUp]:
    """The fastest that fits of each way, or the one with the least memory; the chosen way first."""
    found: dict[Way, list[Candidate]] = {chosen.setting.way: [chosen]}
    for candidate in candidates:
        found.setdefault(candidate.setting.way, []).append(candidate)
    own_words = "chosen" if chosen.fits else "needs least"
    for way, own in found.items():
        fitting = [candidate for candidate in own if candidate.fits]
        best = _fastest(fitting) if fitting else min(own, key=lambda candidate: candidate.needed_bytes)
        mine = way == chosen.setting.way
        yield RunnerUp(candidate=chosen if mine else best, why=own_words if mine else why_not(best, chosen))


def _host(request: Request, setting: Setting) -> HostPlan:
    train = request.recipe.train
    return estimate_host(
        request.sizes, setting, optim=train.optim, optim_args=train.optim_args, cuda=request.device.type == "cuda",
        values_first=values_first_of(request.recipe, setting.way),
    )  # fmt: skip


def _runners_up(chosen: Candidate, candidates: list[Candidate]) -> Iterator[RunnerUp]:
    """One other candidate of each kind: recompute, base, distribution, micro-batch; fastest first."""
    seen = {_kind(chosen)}
    others = sorted(candidates, key=lambda candidate: (not candidate.fits, candidate.seconds_per_token))
    count = 0
    for candidate in others:
        if _kind(candidate) in seen or count == RUNNERS_UP:
            continue
        seen.add(_kind(candidate))
        count += 1
        yield RunnerUp(candidate=candidate, why=why_not(candidate, chosen))


def _kind(candidate: Candidate) -> tuple[object, ...]:
    setting = candidate.setting
    return (setting.recompute, setting.recompute_layers is None, setting.keep_attention, setting.base, setting.way)
