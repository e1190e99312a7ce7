"""Contract: a scan on a GPU gives the scores, and so the choice, of a scan on the CPU."""

import pytest

from luthier.spectrum.scan import scan_files
from luthier.spectrum.select import select
from tests.spectrum.makers import save, weights

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_scores_and_choice_are_those_of_the_cpu(tmp_path):
    files = save(tmp_path / "m", weights(12))
    found = {
        device: scan_files(files, weights="w", source="m", cache_dir=tmp_path / device, device=device)
        for device in ("cpu", "cuda")
    }
    for ours, theirs in zip(found["cpu"].results, found["cuda"].results, strict=True):
        assert theirs.name == ours.name and theirs.signal_rank == ours.signal_rank
        assert theirs.compat == pytest.approx(ours.compat, rel=1e-6)
        assert theirs.calibrated == pytest.approx(ours.calibrated, rel=1e-6)
    for score in ("calibrated", "compat"):
        chosen = [
            select(scan, score=score, top_percent=30, train_embeddings=True, tied=True) for scan in found.values()
        ]
        assert chosen[0] == chosen[1]
