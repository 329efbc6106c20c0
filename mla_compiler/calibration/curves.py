"""What a layer leaves out at each value of a policy's number, and what that costs

    error(value)  =  |out(value) - out|² / |out|²           out: the layer's attention, of the exact model
    cost(value)   =  weight * error(value)                  KL of the model's predictions, nats a token, from this layer alone
    weight        =  KL(probe) / error(probe)               measured: all other layers exact

KL is quadratic in a small change, as the error is, so one value, the probe, serves for all; and as it never averages out over
tokens as losses do, one window of text tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import OptionError
from ..ledger import Call, Sums
from ..sparsity import EXACTLY, Sparsity
from .subject import Outcome, Subject

VALUES = (0.01, 0.02, 0.03, 0.045, 0.065, 0.09, 0.13, 0.2, 0.35)
PROBE = 1e-3
"""The error for which a probe is chosen: about that of what is chosen in the end."""
SHORT = 2048
"""Tokens that a layer's weight is measured on."""


Under = Callable[[Sparsity], tuple[Tensor, Call]]


@dataclass(frozen=True)
class Point:
    """flops: (all, left out); error: as above."""

    policy: Sparsity
    flops: tuple[float, float]
    error: float


@dataclass(frozen=True)
class Curve:
    """Of one layer."""

    layer: str
    points: tuple[Point, ...]
    weight: float = 0.0


def family(text: str) -> tuple[Sparsity, ...]:
    """`pages.share, pages.share+threshold=0.04` -> what is tried of each: its number at every one of VALUES, and that of a
    threshold which has none at those and what is above. Raises OptionError for a text that names none."""
    return tuple(policy for part in text.split(",") for policy in _tried(part.strip()))


def _tried(text: str) -> tuple[Sparsity, ...]:
    name, plus, then = text.partition("+")
    free = then.strip() == "threshold"
    after = {value: [f"threshold={other!r}" for other in VALUES if other >= value] if free else [then] for value in VALUES}
    try:
        return tuple(Sparsity.parse(f"{name}={value!r}{plus}{each}") for value in VALUES for each in after[value])
    except OptionError as error:
        raise OptionError(f"--policy {text!r} has no number to seek: {error.what}", "threshold, pages.share, ...") from error


def curves(subject: Subject, ids: Tensor, policies: Sequence[Sparsity], layers: Sequence[str]) -> list[Curve]:
    """One pass of the exact model, in which each layer's attention is made under each policy as well."""
    watch = {layer: Watch(subject, layer, policies) for layer in layers}

    def observe(site: str, under: Under) -> None:
        if (layer := subject.layer(site)) in watch:
            watch[layer](site, under)

    subject.run(ids, observer=observe)
    return [one.curve() for one in watch.values()]


class Watch:
    """Looks on while the model runs, and makes one layer's attention under some policies beside its own."""

    def __init__(self, subject: Subject, layer: str, policies: Sequence[Sparsity]) -> None:
        self.subject, self.layer, self.policies = subject, layer, policies
        self.whole = 0.0
        self.away, self.all, self.gone = ([0.0] * len(policies) for _ in range(3))

    def __call__(self, site: str, under: Under) -> None:
        if self.subject.layer(site) != self.layer:
            return
        exact = under(EXACTLY)[0].double()
        self.whole += exact.square().sum().item()
        for at, policy in enumerate(self.policies):
            out, call = under(policy)
            counted = Sums(call)
            counted.add(call)
            flops = counted.account(site, str(policy)).flops
            self.away[at] += (out.double() - exact).square().sum().item()
            self.all[at], self.gone[at] = self.all[at] + flops[0], self.gone[at] + flops[1]

    def curve(self) -> Curve:
        """What leaves nothing out has no error: it only rounds otherwise."""
        points = zip(self.policies, self.all, self.gone, self.away, strict=True)
        return Curve(self.layer, tuple(
            Point(policy, (whole, gone), away / self.whole if gone else 0.0) for policy, whole, gone, away in points))


def probe(curve: Curve) -> Point | None:
    """The point whose error is nearest to PROBE, of those that leave anything out."""
    return min((point for point in curve.points if point.error), key=lambda point: abs_log(point.error / PROBE), default=None)


def abs_log(x: float) -> float:
    return max(x, 1 / x)


def weigh(subject: Subject, ids: Tensor, exact: Outcome, curve: Curve) -> float | None:
    """The weight of one layer; None if it leaves nothing out on these ids."""
    point = probe(curve)
    if point is None:
        return None
    watch = Watch(subject, curve.layer, [point.policy])
    other = subject.run(ids, {curve.layer: point.policy}, watch)
    error = watch.curve().points[0].error
    return max(subject.divergence(exact.hidden, other.hidden), 0.0) / error if error else None


def weighed(curves: Sequence[Curve], weights: Sequence[float | None]) -> list[Curve]:
    """Curves with their weights. A layer of which none is known is as dear as the dearest."""
    most = max((weight for weight in weights if weight is not None), default=0.0)
    return [replace(curve, weight=most if weight is None else weight) for curve, weight in zip(curves, weights, strict=True)]
