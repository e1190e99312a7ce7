"""The mode of a spec."""

from __future__ import annotations

from luthier.synthesis.modes.base import Mode
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.templates import Templates

__all__ = ["build_mode"]


def build_mode(spec: SynthSpec, templates: Templates) -> Mode:
    """Read what the mode needs.

    Raises:
        LuthierError: sources that cannot be used.
    """
    if spec.mode == "documents":
        from luthier.synthesis.modes.documents import DocumentsMode

        return DocumentsMode(spec, templates)
    if spec.mode == "seeds":
        from luthier.synthesis.modes.seeds import SeedsMode

        return SeedsMode(spec, templates)
    if spec.mode == "evolve":
        from luthier.synthesis.modes.evolve import EvolveMode

        return EvolveMode(spec, templates)
    from luthier.synthesis.modes.rejection import RejectionMode

    return RejectionMode(spec, templates)
