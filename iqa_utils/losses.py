"""Losses on batches of quality scores.

Every loss takes ``pred`` and ``mos`` of shape (B,) and returns a scalar tensor. Shapes are checked
first: (B, 1) against (B,) would broadcast to (B, B) and train on nonsense.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-8  # beside the norm and inside the roots, as published


def check_pair(pred: Tensor, mos: Tensor) -> None:
    """Refuse anything but two vectors of the same length, one image or more."""
    if pred.ndim != 1 or pred.shape != mos.shape or not len(pred):
        raise ValueError(
            f"pred and mos must both have shape (B,) with B >= 1, "
            f"got {tuple(pred.shape)} and {tuple(mos.shape)}"
        )


def norm_in_norm(
    pred: Tensor,
    mos: Tensor,
    *,
    form: Literal["eq4", "nin", "l1"] = "eq4",
    p: float = 1.0,
    q: float = 2.0,
    alphas: tuple[float, float] = (1.0, 0.0),
) -> Tensor:
    """Compare predictions and scores after each is normalised over the batch.

    ``eq4`` is half the squared difference of z-scores; its batch mean is 1 - Pearson correlation.
    ``nin`` is the loss that the paper cites: both sides divided by their q-norm, a p-norm between
    them, and a second term in which the prediction is first scaled by its cosine to the scores.
    ``l1`` is what the released code computes: its (1, B) tensor falls into a batch-of-one branch.

    ``p`` and ``q`` are the exponents of its outer and inner norm, ``alphas`` the weights of its
    plain and its cosine-scaled term.

    Returns:
        Scalar: ``eq4`` in [0, 2], ``nin`` in [0, 1], ``l1`` in score units. Where no correlation
        exists (one image, constant scores or predictions) ``eq4`` and ``nin`` are 0 with zero
        gradient.

    Raises:
        ValueError: If the shapes differ or are not (B,), B is 0, there is no such form, an exponent
            is below 1, or the weights are negative or zero.

    References:
        Feng et al., Electronics Letters 2023, Eq. (4); Li et al., Norm-in-norm loss, ACM MM 2020.

    Example:
        >>> pred, mos = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 5.0, 7.0])
        >>> f"{norm_in_norm(pred, mos).item():.3f} {norm_in_norm(-pred, mos).item():.3f}"
        '0.000 2.000'
    """
    check_pair(pred, mos)
    if form not in ("eq4", "nin", "l1"):
        raise ValueError(f"form must be eq4, nin or l1, got {form!r}")
    if min(p, q) < 1 or min(alphas) < 0 or not sum(alphas):
        raise ValueError(f"p and q must be >= 1, alphas >= 0 and not both 0: {p}, {q}, {alphas}")
    if form == "l1":
        return F.l1_loss(pred, mos)
    if form == "eq4":
        p, q, alphas = 2.0, 2.0, (1.0, 0.0)
    y_hat, varied = _unit(pred, q)
    y, known = _unit(mos, q)
    largest = 2 ** max(1.0, 1 / q) * len(pred) ** max(0.0, 1 / p - 1 / q)
    plain = (y_hat - y).abs().pow(p).sum() / largest**p
    scaled = (F.cosine_similarity(y_hat, y, dim=0) * y_hat - y).abs().pow(p).sum() / largest**p
    loss = (alphas[0] * plain + alphas[1] * scaled) / sum(alphas)
    loss = 2 * loss if form == "eq4" else loss  # plain is (1 - correlation) / 2
    return torch.where(varied & known, loss, 0.0)


def _unit(values: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """Centre (B,) and divide by the q-norm; the flag is False where there is no spread."""
    centred = values - values.mean()
    norm = torch.linalg.vector_norm(centred, q)
    spread = norm > 1e-6 * (1 + values.detach().abs().max())  # rounding leaves no exact zero
    return centred / torch.where(spread, norm + _EPS, 1.0), spread


def fidelity(
    pred: Tensor, mos: Tensor, *, mos_std: Tensor | None = None, pred_std: Tensor | None = None
) -> Tensor:
    """Fidelity between the true and the predicted order of every pair in the batch.

    Thurstone's model turns a score difference into the probability that one image is preferred.
    The probabilities of truth and prediction are compared by 1 - sqrt(p q) - sqrt((1-p)(1-q)).
    Only the order within the batch matters, so scores of one data set must not meet another's.

    Without ``mos_std``, the deviations of the scores (B,), the true probability is 0, 1/2 or 1;
    without ``pred_std``, which UNIQUE learns, each prediction's is 1.

    Returns:
        Mean over the B (B - 1) / 2 pairs, in [0, 1]; 0 with zero gradient for one image.

    Raises:
        ValueError: If the shapes differ or are not (B,), or B is 0.

    References:
        Tsai et al., FRank, SIGIR 2007; Zhang et al., UNIQUE, IEEE TIP 2021, Eqs. (1)-(4).

    Example:
        >>> round(fidelity(torch.tensor([0.0, 0.0]), torch.tensor([2.0, 1.0])).item(), 3)
        0.293
    """
    check_pair(pred, mos)
    i, j = torch.triu_indices(len(pred), len(pred), offset=1, device=pred.device)  # (pairs,) each
    if not len(i):
        return 0.0 * pred.sum()
    difference, spread = mos[i] - mos[j], 2**0.5
    truth = 0.5 * (1 + difference.sign())
    if mos_std is not None:
        check_pair(mos_std, mos)
        noise = (mos_std[i].square() + mos_std[j].square()).sqrt()
        truth = torch.special.ndtr(difference / noise.clamp_min(_EPS))
    if pred_std is not None:
        check_pair(pred_std, pred)
        spread = (pred_std[i].square() + pred_std[j].square() + _EPS).sqrt()
    guess = torch.special.ndtr((pred[i] - pred[j]) / spread)
    agreement = (truth * guess + _EPS).sqrt() + ((1 - truth) * (1 - guess) + _EPS).sqrt()
    return (1 - agreement).mean()


def mean_over_sources(
    loss: Callable[..., Tensor], pred: Tensor, mos: Tensor, source: Tensor, *more: Tensor
) -> Tensor:
    """Apply a loss to each data set of a mixed batch and average the data sets equally.

    As in the released code of Feng et al., 2023: six losses, averaged. ``source`` numbers the data
    set of each image, (B,); ``loss`` gets pred, mos and ``more`` of (B,) of one set. A data set
    without an image in the batch does not count; one with a single image counts with what ``loss``
    gives for it. Sets are told apart in main memory, where the batches of ``fit`` keep ``source``;
    one on a GPU is fetched, which waits once.

    Raises:
        ValueError: If the shapes differ or are not (B,), or B is 0.

    Example:
        >>> pred, mos = torch.tensor([1.0, 1.0, 5.0]), torch.tensor([1.0, 3.0, 4.0])
        >>> mean_over_sources(F.mse_loss, pred, mos, torch.tensor([0, 0, 1])).item()
        1.5
    """
    check_pair(pred, mos)
    check_pair(source, mos)
    source = source.cpu()
    order = source.argsort(stable=True)  # set by set
    sizes = source.unique(return_counts=True)[1].tolist()
    here = order.to(pred.device, non_blocking=True)
    parts = [
        x.index_select(0, order if x.device.type == "cpu" else here).split(sizes)
        for x in (pred, mos, *more)
    ]
    return torch.stack([loss(*own) for own in zip(*parts, strict=True)]).mean()


def range_weighted_mse(pred: Tensor, mos: Tensor, *, counts: Tensor, edges: Tensor) -> Tensor:
    """Squared error in which rare score ranges weigh more: the alternative to cross-sampling.

    A range of n images weighs 1 / n, so that every range counts the same, scaled so that the
    weights of the training images average 1. ``counts`` (R,) are the training images between
    ``edges`` (R + 1,), left-closed, the last one closed.

    Raises:
        ValueError: If shapes do not fit, or a score lies outside the edges or in an empty range. On
            a GPU a look at the scores would wait at every step: there the loss of such a batch is
            NaN, at which ``fit`` stops and names the images.

    References:
        Lehmann and Rokita, Machine Graphics & Vision 2023, section 3.2: announced, not shown.
    """
    check_pair(pred, mos)
    counts, edges = (x.to(mos, non_blocking=True) for x in (counts, edges))
    last = len(edges) - 2
    fits = 0 < len(counts) == last + 1
    ranges = (torch.bucketize(mos, edges, right=True) - 1).where(mos != edges[-1], last)  # (B,)
    known = (ranges >= 0) & (ranges <= last)
    if fits:
        ranges = ranges.clamp(0, last)
        known &= counts[ranges] >= 1
    if not fits or (mos.device.type == "cpu" and not known.all()):
        raise ValueError(
            f"scores span [{mos.min():g}, {mos.max():g}], ranges with images are "
            f"{counts.tolist()} between edges {edges.tolist()}"
        )
    weights = counts.clamp(min=1).pow(-1.0)  # (R,)
    weights = weights * counts.sum() / (weights * counts).sum()
    return (torch.where(known, weights[ranges], torch.nan) * (pred - mos) ** 2).mean()


def weighted_l1(pred: Tensor, mos: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error, each image with its own weight, (B,); None weighs all alike.

    Weights average 1 over the training set and are not renormalised over a batch: one of rare
    scores counts more. Yang et al., Delving into deep imbalanced regression, ICML 2021.

    Raises:
        ValueError: If pred, mos or weight differ in shape or are not (B,), or B is 0.

    Example:
        >>> pred, mos = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])
        >>> weighted_l1(pred, mos, torch.tensor([0.5, 1.5])).item()
        1.75
    """
    check_pair(pred, mos)
    return _weighted_mean((pred - mos).abs(), weight)


def weighted_mse(pred: Tensor, mos: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error, in squared units of ``mos``, otherwise as :func:`weighted_l1`."""
    check_pair(pred, mos)
    return _weighted_mean((pred - mos) ** 2, weight)


def balanced_mse(pred: Tensor, mos: Tensor, *, noise: float) -> Tensor:
    """Squared error corrected for the label density, estimated from the batch itself.

    The cross-entropy of finding a prediction's own score among all scores of the batch, times
    2 noise^2, when predictions scatter normally around the truth with the standard deviation
    ``noise`` > 0, in units of ``mos``: being near a crowd of scores earns less.

    Raises:
        ValueError: If ``noise`` is not positive, the shapes differ or are not (B,), or B is 0.

    References:
        Ren et al., Balanced MSE for imbalanced visual regression, CVPR 2022, batch-based
        Monte-Carlo form with constant noise.

    Example:
        >>> balanced_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), noise=1.0)
        tensor(0.8201)
    """
    check_pair(pred, mos)
    if not noise > 0:
        raise ValueError(f"noise must be positive, got {noise}")
    distance = (pred[:, None] - mos[None, :]) ** 2  # (B, B), row i: prediction i to all scores
    own = torch.arange(len(mos), device=mos.device)
    return 2 * noise**2 * F.cross_entropy(-distance / (2 * noise**2), own)


def _weighted_mean(errors: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return errors.mean()
    check_pair(weight, errors)
    return (weight * errors).mean()
