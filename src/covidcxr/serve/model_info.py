"""What answers: the model as the page and the store know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from covidcxr.pipeline.pipeline import Pipeline

__all__ = ["ModelFacts"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What answers.

    Attributes:
        name: Where it was loaded from.
        sha256: Of configs and weights; another model has another one.
        components: Names of the pipeline's parts.
        classes: What the classifier can answer.
        mask_classes: What the segmenters draw.
        exclusive: Whether exactly one class is true.
        temperature: Logits are divided by it; None without a classifier.
        thresholds: By class, from where on it is plausible.
    """

    name: str
    sha256: str
    components: tuple[str, ...]
    classes: tuple[str, ...]
    mask_classes: tuple[str, ...]
    exclusive: bool
    temperature: float | None
    thresholds: dict[str, float]

    @classmethod
    def of(cls, name: str, pipeline: Pipeline) -> ModelFacts:
        """Look at a pipeline."""
        models, classifier = pipeline.models(), pipeline.classifier
        drawn = [name for model in models.values() if model.task == "segmentation" for name in model.config.classes]
        config = None if classifier is None else classifier.config
        return cls(
            name,
            _fingerprint(pipeline),
            tuple(models),
            () if config is None else config.classes,
            tuple(drawn),
            config is not None and config.mode != "multilabel",
            None if config is None else config.temperature,
            {} if config is None else dict(config.thresholds),
        )


def _fingerprint(pipeline: Pipeline) -> str:
    """Return the SHA-256 of all that decides an answer: configs, clean-up and weights."""
    digest = hashlib.sha256(repr((pipeline.postprocess.to_config(), pipeline.min_lung_area)).encode())
    for name, model in pipeline.models().items():
        digest.update(repr((name, model.config)).encode())
        for key, tensor in sorted(model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
