"""SIM and its follow-up: their claims have pages of their own."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.records import Record
from experiments.claims.paper import Claim, Paper


def claims(records: Sequence[Record]) -> list[Claim]:
    """What the pages found, in a sentence each."""
    del records
    return [
        Claim(
            "perspective relaxation as objective yields a 41% and 17% reduction of the parameters with no accuracy "
            "drop",
            "[Fashion-MNIST](curves.md) loses 0.1 points at 46 % sparsity; [20 Newsgroups](newsgroups.md) about 0.4 "
            "points at "
            "20 %; [CIFAR-100](cifar.md) none until the unrolled form is about 56 % sparse",
            True,
        ),
        Claim(
            "Perspective relaxation performs better than ℓ1-norm at parameter reduction",
            "[Fashion-MNIST](curves.md), [20 Newsgroups](newsgroups.md) and [CIFAR-100](cifar.md): no better on any "
            "of them",
            False,
        ),
        Claim(
            "using 20%-30% of total training data is enough",
            "[20 Newsgroups](newsgroups.md): with 15 % every penalty is within 0.5 points of what all messages give",
            True,
        ),
        Claim(
            "significantly improve … robustness of baseline models",
            "[under attack](robustness.md) at ε = 0.008 the sparse models are 0.4 to 0.8 points above their "
            "baseline; the "
            "printed figures of Table 2 do not come out",
            True,
        ),
        Claim(
            "it can be implemented in parallel",
            "[processes and Ray](parallelism.md): two processes are up to 2.0 times as fast as one",
            True,
        ),
        Claim(
            "circumventing costly backward computations",
            "[against implicit differentiation](against-implicit.md): at our sizes that reaches every accuracy sooner",
            False,
        ),
        Claim(
            "(the follow-up) κ alone sets sparsity and accuracy",
            "[κ as the only knob](kappa.md): sparsity is in the printed range in one reading, and accuracy in none",
            False,
        ),
    ]


PAPER = Paper(
    name="sim",
    title="SIM: state-driven implicit modeling, and its follow-up",
    source="The papers' tables and figures are made again on pages of their own, each by one command, with what "
    "holds and what "
    "does not; this is their short form.",
    setting="Nothing is run for this section: settings, seeds and times are on the pages.",
    cases=lambda quick: (),
    measure=lambda case, seed, quick: {},
    claims=claims,
    tables=lambda records: [],
    picture=lambda records: None,
)
