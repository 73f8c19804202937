"""Contracts that every registered loss keeps, and reference values of the losses themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from torch import Tensor, nn

from covidcxr.errors import ConfigError, UnknownNameError
from covidcxr.losses import (
    CLASSIFICATION_LOSSES,
    SEGMENTATION_LOSSES,
    CombinedLoss,
    DiceLoss,
    build_classification_loss,
    build_segmentation_loss,
    known_planes,
)
from covidcxr.losses.segmentation import focal_term

SURE = 200.0
"""A logit so large that float32 holds no doubt."""

REFUSALS = (ConfigError, jaxtyping.TypeCheckError)
"""A wrong shape is refused by the shape checker where tests run under it, else by the loss itself."""

CHECKED = hasattr(DiceLoss.forward, "__wrapped__")
"""Whether these tests run under jaxtyping's import hook, which refuses wrong types before our own words do."""


def refuses(message: str) -> pytest.RaisesExc:
    return pytest.raises(REFUSALS, match=None if CHECKED else message)


@pytest.fixture(params=SEGMENTATION_LOSSES.names())
def mask_loss(request: pytest.FixtureRequest) -> nn.Module:
    return build_segmentation_loss(request.param)


@pytest.fixture(params=CLASSIFICATION_LOSSES.names())
def label_loss_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def squared() -> Iterator[str]:
    """The three lines of a newcomer, registered for one test."""

    @SEGMENTATION_LOSSES.register("squared")
    class Squared(nn.Module):
        def forward(self, logits, target):
            return (logits.sigmoid() - target).square().mean()

    yield "squared"
    del SEGMENTATION_LOSSES._entries["squared"]


def draw_masks(batch: int = 2, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 12, 10, generator=generator)
    target = (torch.rand(batch, classes, 12, 10, generator=generator) < 0.3).float()
    return logits, target


def check_mask_contract(loss: nn.Module, batch: int, classes: int) -> None:
    logits, target = draw_masks(batch, classes)
    logits.requires_grad_()
    value = loss(logits, target)
    assert value.shape == ()
    assert value.dtype == torch.float32
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    truth = 2 * target - 1
    perfect, good, bad = (loss(scale * truth, target).item() for scale in (SURE, 0.5, -0.5))
    assert perfect == pytest.approx(0, abs=1e-4)
    assert perfect < good < bad


# --- contracts on masks ---


@pytest.mark.parametrize(("batch", "classes"), [(2, 1), (2, 2), (1, 1)])
def test_mask_loss_contract(mask_loss: nn.Module, batch: int, classes: int) -> None:
    check_mask_contract(mask_loss, batch, classes)


def test_newcomer_keeps_the_contract_and_joins_a_sum(squared: str) -> None:
    check_mask_contract(build_segmentation_loss(squared), 2, 1)
    check_mask_contract(build_segmentation_loss(f"{squared}+dice"), 2, 1)
    with pytest.raises(ConfigError, match=r"'gamma' in the arguments of the segmentation loss 'squared'"):
        build_segmentation_loss(squared, {"gamma": 1})


def test_mask_loss_under_bf16_autocast(mask_loss: nn.Module) -> None:
    logits, target = draw_masks()
    half = (20 * logits).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = mask_loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert half.grad is not None
    assert half.grad.isfinite().all()
    torch.testing.assert_close(value, mask_loss(half.float(), target))


def test_mask_loss_with_an_empty_target(mask_loss: nn.Module) -> None:
    logits, target = draw_masks()
    nothing = torch.zeros_like(target)
    empty, some = mask_loss(torch.full_like(logits, -SURE), nothing), mask_loss(logits, nothing)
    assert empty.item() == pytest.approx(0, abs=1e-4)
    assert some.isfinite()
    assert some > empty + 1e-3


def test_mask_loss_gradient_is_finite_at_certainty(mask_loss: nn.Module) -> None:
    _, target = draw_masks()
    for sign in (1, -1):
        logits = (sign * SURE * (2 * target - 1)).requires_grad_()
        mask_loss(logits, target).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_mask_loss_refuses_shapes_that_would_broadcast(mask_loss: nn.Module) -> None:
    logits, target = draw_masks(batch=2, classes=1)
    for a, b in [(logits, target[:, 0]), (logits[:, 0], target), (logits[:, 0], target[:, 0]), (logits, target[:1])]:
        with pytest.raises(REFUSALS):
            mask_loss(a, b)


def test_mask_loss_under_the_shape_checker(mask_loss: nn.Module) -> None:
    forward = jaxtyping.jaxtyped(typechecker=beartype)(type(mask_loss).forward)
    logits, target = draw_masks()
    assert forward(mask_loss, logits, target).shape == ()
    with pytest.raises(jaxtyping.TypeCheckError):
        forward(mask_loss, logits, target[:, :1])


def test_mask_losses_hold_nothing_that_a_checkpoint_would_save(mask_loss: nn.Module) -> None:
    assert mask_loss.state_dict() == {}


# --- known planes ---


def test_known_planes_drops_unknown_classes_and_keeps_order() -> None:
    logits, target = draw_masks(batch=3, classes=2)
    target[0, 1] = torch.nan
    target[2, 0, 3, 3] = torch.nan  # one unknown pixel: the plane is unknown
    kept_logits, kept_target = known_planes(logits.bfloat16(), target)
    planes = [(0, 0), (1, 0), (1, 1), (2, 1)]
    assert kept_logits.dtype == torch.float32
    assert torch.equal(kept_logits[:, 0], torch.stack([logits[p].bfloat16().float() for p in planes]))
    assert torch.equal(kept_target[:, 0], torch.stack([target[p] for p in planes]))


def test_known_planes_of_nothing_known_is_empty() -> None:
    logits, target = draw_masks()
    kept_logits, kept_target = known_planes(logits, torch.full_like(target, torch.nan))
    assert kept_logits.shape == kept_target.shape == (0, 1, 12, 10)


def test_unknown_planes_get_no_gradient(mask_loss: nn.Module) -> None:
    logits, target = draw_masks()
    target[0, 1] = torch.nan
    logits.requires_grad_()
    mask_loss(*known_planes(logits, target)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 1] == 0).all()
    assert (logits.grad[1, 0] != 0).any()


def test_mismatch_names_both_shapes() -> None:
    from covidcxr.losses.segmentation import _same_shape

    with pytest.raises(ConfigError, match=r"\(2, 1, 12, 10\).*\(2, 12, 10\)"):
        _same_shape(torch.zeros(2, 1, 12, 10), torch.zeros(2, 12, 10))
    with pytest.raises(REFUSALS):
        known_planes(torch.zeros(2, 1, 12, 10), torch.zeros(2, 12, 10))


# --- reference values on masks, in NumPy float64 ---


def as_numpy(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return 1 / (1 + np.exp(-logits.double().numpy())), target.double().numpy()


@pytest.mark.parametrize(
    ("name", "arguments", "alpha", "beta", "power"),
    [
        ("dice", {"smooth": 2.0}, 0.5, 0.5, 1),
        ("jaccard", {"smooth": 2.0}, 1, 1, 1),
        ("tversky", {"alpha": 0.2, "beta": 0.9, "smooth": 2.0}, 0.2, 0.9, 1),
        ("focal_tversky", {"alpha": 0.2, "beta": 0.9, "gamma": 2, "smooth": 2.0}, 0.2, 0.9, 0.5),
    ],
)
def test_overlap_losses_per_image_and_class(
    name: str, arguments: dict, alpha: float, beta: float, power: float
) -> None:
    logits, target = draw_masks(batch=3, classes=2)
    target[1, 1] = 0  # an empty one among them
    inside, truth = as_numpy(logits, target)
    expected = []
    for p, t in zip(inside.reshape(6, -1), truth.reshape(6, -1), strict=True):
        index = (p @ t + 2) / (p @ t + alpha * p @ (1 - t) + beta * (1 - p) @ t + 2)
        expected.append((1 - index) ** power)
    value = build_segmentation_loss(name, arguments)(logits, target)
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_overlap_losses_agree_with_smp_on_one_plane() -> None:
    from segmentation_models_pytorch import losses as smp

    logits, target = draw_masks(batch=1, classes=1)
    pairs = {
        "dice": smp.DiceLoss("binary"),
        "jaccard": smp.JaccardLoss("binary"),
        "tversky": smp.TverskyLoss("binary", alpha=0.3, beta=0.7),
    }
    for name, reference in pairs.items():
        ours = build_segmentation_loss(name, {"smooth": 1e-6})(logits, target)
        torch.testing.assert_close(ours, reference(logits, target), rtol=1e-5, atol=1e-6)


def test_pixel_bce_weighs_the_inside() -> None:
    logits, target = draw_masks()
    p, t = as_numpy(logits, target)
    expected = -(3 * t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert build_segmentation_loss("bce", {"pos_weight": 3})(logits, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 2.0), (0.7, 0.5), (None, 0.0)])
def test_pixel_focal_agrees_with_torchvision_and_smp(alpha: float | None, gamma: float) -> None:
    from segmentation_models_pytorch import losses as smp
    from torchvision.ops import sigmoid_focal_loss

    logits, target = draw_masks()
    ours = build_segmentation_loss("focal", {"alpha": alpha, "gamma": gamma})(logits, target)
    theirs = sigmoid_focal_loss(logits, target, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours, smp.FocalLoss("binary", alpha=alpha, gamma=gamma)(logits, target))


def test_pixel_focal_is_not_the_focal_of_the_mean() -> None:
    logits, target = draw_masks()
    mean = F.binary_cross_entropy_with_logits(logits, target)
    wrong = (1 - torch.exp(-mean)) ** 2 * mean
    assert abs(build_segmentation_loss("focal")(logits, target) - wrong) > 0.02


def test_focal_term_has_a_finite_gradient_at_certainty() -> None:
    cross_entropy = torch.tensor([0.0, 1e-8, 1.0, 200.0], requires_grad=True)
    focal_term(cross_entropy, 0.5).sum().backward()
    assert cross_entropy.grad is not None
    assert cross_entropy.grad.isfinite().all()


def test_lovasz_agrees_with_the_definition() -> None:
    """The Lovász extension of the Jaccard loss: sorted hinge errors times the steps of the set function."""
    logits, target = draw_masks(batch=2, classes=2)
    expected = []
    for x, t in zip(logits.double().numpy().reshape(4, -1), target.numpy().reshape(4, -1), strict=True):
        errors = 1 - x * (2 * t - 1)
        total, previous, wrong = 0.0, 0.0, np.zeros(len(t), bool)
        for pixel in np.argsort(-errors):
            wrong[pixel] = True  # the Jaccard loss when exactly these pixels are wrong
            kept = (t == 1) & ~wrong
            jaccard = 1 - kept.sum() / ((t == 1) | wrong).sum()
            total += max(errors[pixel], 0) * (jaccard - previous)
            previous = jaccard
        expected.append(total)
    assert build_segmentation_loss("lovasz")(logits, target).item() == pytest.approx(np.mean(expected), rel=1e-5)


# --- contracts on labels ---

TARGETS = {
    "classes": (3, torch.tensor([0, 2, 1, 2])),
    "two classes, one output": (1, torch.tensor([0, 1, 1, 0])),
    "findings": (3, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]])),
    "findings with gaps": (3, torch.tensor([[0.0, torch.nan, 1], [1, 0, 0], [torch.nan] * 3, [1, 1, 0]])),
    "one finding": (1, torch.tensor([[0.0], [1], [1], [0]])),
    "two classes, one image": (2, torch.tensor([1])),
}
NOT_ZERO = {"label_smoothing": "its smallest value is at the softened label"}


def accepts(loss: nn.Module, logits: Tensor, target: Tensor) -> bool:
    try:
        loss(logits, target)
    except REFUSALS:
        return False
    return True


def truth_as_signs(outputs: int, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return 2 * target.nan_to_num() - 1
    return 2.0 * (target[:, None] if outputs == 1 else F.one_hot(target, outputs)) - 1


@pytest.mark.parametrize("kind", TARGETS)
def test_label_loss_contract(label_loss_name: str, kind: str) -> None:
    outputs, target = TARGETS[kind]
    loss = build_classification_loss(label_loss_name)
    logits = torch.randn(len(target), outputs, generator=torch.Generator().manual_seed(1)).requires_grad_()
    if not accepts(loss, logits, target):
        assert kind not in ("classes", "two classes, one image"), "every loss takes class indices"
        return
    value = loss(logits, target)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    signs = truth_as_signs(outputs, target)
    perfect, good, bad = (loss(scale * signs, target).item() for scale in (SURE, 0.5, -0.5))
    assert good < bad
    if label_loss_name not in NOT_ZERO:
        assert perfect == pytest.approx(0, abs=1e-4)
        assert perfect < good


@pytest.mark.parametrize("kind", TARGETS)
def test_label_loss_under_bf16_autocast(label_loss_name: str, kind: str) -> None:
    outputs, target = TARGETS[kind]
    loss = build_classification_loss(label_loss_name)
    half = (20 * torch.randn(len(target), outputs)).bfloat16().requires_grad_()
    if not accepts(loss, half, target):
        return
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert half.grad is not None
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("target", [torch.full((4, 3), torch.nan), torch.full((4,), -1)])
def test_without_any_label_the_loss_is_zero_with_a_zero_gradient(label_loss_name: str, target: Tensor) -> None:
    loss = build_classification_loss(label_loss_name)
    logits = torch.randn(4, 3, requires_grad=True)
    if not accepts(loss, logits, target):
        assert target.is_floating_point()
        return
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_unlabelled_images_do_not_count(label_loss_name: str) -> None:
    loss = build_classification_loss(label_loss_name)
    logits = torch.randn(4, 3)
    whole = loss(logits, torch.tensor([0, -1, 2, -1]))
    torch.testing.assert_close(whole, loss(logits[[0, 2]], torch.tensor([0, 2])))


def test_label_loss_refuses_what_does_not_fit(label_loss_name: str) -> None:
    loss = build_classification_loss(label_loss_name)
    for target in (torch.zeros(3).long(), torch.zeros(4, 2), torch.zeros(4), torch.tensor([0, 1, 3, 0])):
        with pytest.raises(REFUSALS):
            loss(torch.zeros(4, 3), target)


def test_label_out_of_range_says_so() -> None:
    with pytest.raises(ConfigError, match="label 3 is out of range: the classes are 0 to 2"):
        build_classification_loss("cross_entropy")(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ConfigError, match="label 2 is out of range: the classes are 0 to 1"):
        build_classification_loss("bce")(torch.zeros(2, 1), torch.tensor([0, 2]))


def test_label_loss_under_the_shape_checker(label_loss_name: str) -> None:
    loss = build_classification_loss(label_loss_name)
    forward = jaxtyping.jaxtyped(typechecker=beartype)(type(loss).forward)
    assert forward(loss, torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).shape == ()
    with pytest.raises(jaxtyping.TypeCheckError):
        forward(loss, torch.zeros(4, 3), torch.tensor([0, 1, 2]))


def test_label_losses_hold_nothing_that_a_checkpoint_would_save() -> None:
    for name in ("cross_entropy", "focal", "label_smoothing"):
        assert build_classification_loss(name, {"class_weights": [1, 2]}).state_dict() == {}
    assert build_classification_loss("bce", {"pos_weight": [1, 2]}).state_dict() == {}


# --- reference values on labels ---


@pytest.fixture
def label_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.randn(6, 3, generator=generator), torch.tensor([0, 2, 1, 2, 2, 0])


def softmax_numpy(logits: Tensor) -> np.ndarray:
    raised = np.exp(logits.double().numpy())
    return raised / raised.sum(1, keepdims=True)


def test_cross_entropy_against_numpy(label_batch: tuple[Tensor, Tensor]) -> None:
    logits, target = label_batch
    weights = np.array([1.0, 2.0, 0.5])
    p = softmax_numpy(logits)[np.arange(6), target]
    w = weights[target]
    loss = build_classification_loss("cross_entropy", {"class_weights": [1, 2, 0.5]})
    assert loss(logits, target).item() == pytest.approx((w * -np.log(p)).sum() / w.sum(), rel=1e-5)


def test_label_smoothing_against_numpy(label_batch: tuple[Tensor, Tensor]) -> None:
    logits, target = label_batch
    soft = 0.8 * np.eye(3)[target] + 0.2 / 3
    expected = -(soft * np.log(softmax_numpy(logits))).sum(1).mean()
    assert build_classification_loss("label_smoothing", {"smoothing": 0.2})(logits, target).item() == pytest.approx(
        expected, rel=1e-5
    )
    same = build_classification_loss("cross_entropy", {"label_smoothing": 0.1})(logits, target)
    torch.testing.assert_close(build_classification_loss("label_smoothing")(logits, target), same)


def test_softmax_focal_against_numpy(label_batch: tuple[Tensor, Tensor]) -> None:
    logits, target = label_batch
    w = np.array([1.0, 2.0, 0.5])[target]
    p = softmax_numpy(logits)[np.arange(6), target]
    loss = build_classification_loss("focal", {"gamma": 1.5, "class_weights": [1, 2, 0.5]})
    expected = (w * (1 - p) ** 1.5 * -np.log(p)).sum() / w.sum()
    assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
    weights = {"class_weights": [1, 2, 0.5]}
    flat = build_classification_loss("focal", {"gamma": 0, **weights})(logits, target)
    torch.testing.assert_close(flat, build_classification_loss("cross_entropy", weights)(logits, target))


def test_sigmoid_focal_agrees_with_torchvision() -> None:
    from torchvision.ops import sigmoid_focal_loss

    outputs, target = TARGETS["findings"]
    logits = torch.randn(4, outputs, generator=torch.Generator().manual_seed(3))
    ours = build_classification_loss("focal", {"alpha": 0.25})(logits, target)
    torch.testing.assert_close(ours, sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="mean"))
    target[0, 1] = torch.nan
    known = ~target.isnan()
    masked = sigmoid_focal_loss(logits[known], target[known], alpha=0.25, gamma=2, reduction="mean")
    torch.testing.assert_close(build_classification_loss("focal", {"alpha": 0.25})(logits, target), masked)


def test_bce_against_numpy_with_gaps_and_weights() -> None:
    outputs, target = TARGETS["findings with gaps"]
    logits = torch.randn(4, outputs, generator=torch.Generator().manual_seed(4))
    p, t = as_numpy(logits, target)
    terms = -(np.array([1.0, 2.0, 3.0]) * t * np.log(p) + (1 - t) * np.log(1 - p))
    value = build_classification_loss("bce", {"pos_weight": [1, 2, 3]})(logits, target)
    assert value.item() == pytest.approx(np.nanmean(terms), rel=1e-5)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_one_output_takes_indices_and_columns_alike(name: str) -> None:
    loss, logits, target = build_classification_loss(name), torch.randn(4, 1), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(loss(logits, target), loss(logits, target[:, None].float()))


def test_bce_of_class_indices_is_one_hot(label_batch: tuple[Tensor, Tensor]) -> None:
    logits, target = label_batch
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(target).float())
    torch.testing.assert_close(build_classification_loss("bce")(logits, target), expected)


def test_softmax_losses_refuse_findings_and_a_single_output() -> None:
    for name in ("cross_entropy", "label_smoothing"):
        with pytest.raises(REFUSALS):
            build_classification_loss(name)(torch.zeros(2, 3), torch.zeros(2, 3))
        with pytest.raises(ConfigError, match="Use bce or focal"):
            build_classification_loss(name)(torch.zeros(2, 1), torch.tensor([0, 1]))


def test_settings_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ConfigError, match="use class_weights"):
        build_classification_loss("focal", {"alpha": 0.3})(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"class_weights has 2 value\(s\), but the network has 3"):
        build_classification_loss("cross_entropy", {"class_weights": [1, 2]})(torch.zeros(2, 3), torch.tensor([0, 1]))


# --- names, arguments, sums ---


def test_sum_equals_its_weighted_parts() -> None:
    logits, target = draw_masks()
    loss = build_segmentation_loss(" dice + bce +focal", {"weights": [1, 0.5, 2], "focal": {"gamma": 3}})
    assert isinstance(loss, CombinedLoss)
    dice, bce = build_segmentation_loss("dice")(logits, target), build_segmentation_loss("bce")(logits, target)
    focal = build_segmentation_loss("focal", {"gamma": 3})(logits, target)
    torch.testing.assert_close(loss(logits, target), dice + 0.5 * bce + 2 * focal)
    assert {name: part.item() for name, part in loss.parts(logits, target).items()} == {
        "dice": dice.item(), "bce": bce.item(), "focal": focal.item()
    }  # fmt: skip
    equal = build_segmentation_loss("dice+bce")(logits, target)
    torch.testing.assert_close(equal, dice + bce)
    assert "0.5 * bce" in repr(loss)


def test_sum_keeps_the_contract() -> None:
    check_mask_contract(build_segmentation_loss("dice+bce+focal"), 2, 2)
    logits, target = draw_masks()
    with torch.autocast("cpu", torch.bfloat16):
        assert build_segmentation_loss("dice+bce+focal")(logits.bfloat16(), target).dtype == torch.float32


def test_sum_of_classification_losses() -> None:
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    value = build_classification_loss("cross_entropy+focal", {"focal": {"gamma": 1}, "weights": [1, 3]})(logits, target)
    focal = build_classification_loss("focal", {"gamma": 1})(logits, target)
    torch.testing.assert_close(value, F.cross_entropy(logits, target) + 3 * focal)


def test_a_module_passes_through() -> None:
    loss = nn.Identity()
    assert build_segmentation_loss(loss) is loss
    with pytest.raises(ConfigError, match="built already"):
        build_segmentation_loss(loss, {"gamma": 1})


def test_unknown_name_gets_the_nearest() -> None:
    for name in ("dise", "bce+dise"):
        with pytest.raises(UnknownNameError, match=r"no segmentation loss 'dise'\. Did you mean 'dice'\?"):
            build_segmentation_loss(name)


@pytest.mark.parametrize(
    ("loss", "loss_args", "message"),
    [
        ("focal", {"gama": 2}, r"'gama' in the arguments of the segmentation loss 'focal'\. Did you mean 'gamma'\?"),
        ("dice+focal", {"focal": {"gama": 2}}, r"segmentation loss 'focal'\. Did you mean 'gamma'\?"),
        ("dice+focal", {"focall": {}}, r"'focall' in loss_args of 'dice\+focal'\. Did you mean 'focal'\?"),
        ("dice+focal", {"focal": 2}, "must be a table"),
        ("dice+focal", {"weights": [1]}, r"list of 2 numbers, one each for dice, focal, not \[1\]"),
        ("dice+focal", {"weights": [1, -1]}, "from 0 up"),
        ("dice+focal", {"weights": "12"}, "list of 2 numbers"),
        ("dice+dice", None, "names each once"),
        ("dice+", None, "names each once"),
        ("", None, "names each once"),
        ("focal", {"gamma": "2"}, "segmentation loss 'focal' cannot be built: gamma must be a number"),
        ("focal", {"alpha": 2}, r"alpha must be a number in \[0, 1\], not 2"),
        ("bce", {"pos_weight": float("inf")}, "pos_weight must be a number"),
        ("dice", {"smooth": 0}, "smooth must be above 0"),
        ("focal_tversky", {"gamma": 0}, "gamma must be a number from 0.1 up"),
        ("focal", [2], "must be a table"),
        (nn.Identity, None, "a name or an instance"),
    ],
)
def test_wrong_settings(loss: object, loss_args: object, message: str) -> None:
    with refuses(message):
        build_segmentation_loss(loss, loss_args)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "loss_args"),
    [
        ("cross_entropy", {"class_weights": [1, 0]}),
        ("cross_entropy", {"class_weights": 2}),
        ("cross_entropy", {"label_smoothing": 1.5}),
        ("focal", {"class_weights": []}),
        ("bce", {"pos_weight": "3"}),
        ("label_smoothing", {"smoothing": -0.1}),
    ],
)
def test_wrong_classification_settings(loss: str, loss_args: dict) -> None:
    with refuses(f"classification loss '{loss}' cannot be built: .* must"):
        build_classification_loss(loss, loss_args)


def test_factories_are_entries_too() -> None:
    def make(**settings: float) -> nn.Module:
        if settings:
            raise TypeError("no settings here")
        return nn.BCEWithLogitsLoss()

    for name, entry in {"made": make, "bad": lambda: 3}.items():
        SEGMENTATION_LOSSES.register(name)(entry)
    try:
        check_mask_contract(build_segmentation_loss("made"), 2, 1)
        with pytest.raises(ConfigError, match="'made' cannot be built: no settings here"):
            build_segmentation_loss("made", {"gamma": 1})
        with pytest.raises(ConfigError, match=r"'bad' builds a int, not a torch\.nn\.Module"):
            build_segmentation_loss("bad")
    finally:
        del SEGMENTATION_LOSSES._entries["made"], SEGMENTATION_LOSSES._entries["bad"]


def test_importing_the_room_loads_neither_lightning_nor_smp() -> None:
    code = "import sys, covidcxr.losses; print(*{'lightning', 'segmentation_models_pytorch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
