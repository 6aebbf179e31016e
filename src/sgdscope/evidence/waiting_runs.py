"""The escape experiments of the claims X5 to X13, in three sizes, and what their controls are drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import expm1, sqrt
from typing import Any

import xxhash

SEEDS = 5
Setting = dict[str, Any]
Runs = Callable[[int], list[Setting]]

# Analytic potentials: learning rates with lr lambda_1 <= 0.35, noise by Theorem 1 or 2 so that tau is 300 to 8000 updates.
WELLS = {"potential": {"kind": "wells"}, "valley": {"kind": "threshold", "at": 1.0}}
TANG = {"potential": {"kind": "tang", "population": True}, "valley": {"kind": "threshold", "at": 0.5533}}  # saddle + 0.3
TANG_ITSELF = {"potential": {"kind": "tang"}, "valley": {"kind": "threshold", "at": 0.4567}}  # saddle + 0.3
SIZES: Mapping[str, Setting] = {
    "quick": {"walkers": 400, "max_updates": 60_000, "enough": 0.9},
    "standard": {"walkers": 1000, "max_updates": 200_000, "enough": 0.9},
    "paper": {"walkers": 100, "max_updates": 1_000_000, "enough": 1.0},
}
# Networks: one linear layer and one hidden layer. The box of the paper is +-0.05 [M]; with it and a waiting time of 50 to 200
# updates walkers leave before they have filled it (lr lambda_1 tau of 0.2 to 3, times that are not exponential), so that the box
# is wider here and learning rates such that B = 1 takes some 500 updates, found by trial on one seed. Weight decay gives the
# separable tables a minimum.
RADIUS = 0.2
TABLES: Mapping[str, Setting] = {
    "breast_cancer": {"clip": 5.0}, "banknote": {}, "avila": {"clip": 5.0}, "sensorless_head": {"clip": 5.0}
}  # fmt: skip
BUNDLED = ("breast_cancer",)  # the table of ``quick``, which comes with the package
MODELS: Mapping[str, Setting] = {
    "logistic": {"name": "logistic"},
    "mlp": {"name": "mlp", "hidden": [16], "activation": "tanh"},
}
# The unit of each sweep: the learning rate of batches of one example, by trial; of the bundled table by `waiting_tables.sought`,
# as are the temperature of white noise and its learning rate.
LR: Mapping[tuple[str, str], float] = {
    ("breast_cancer", "logistic"): 0.0717,
    ("banknote", "logistic"): 0.11,
    ("banknote", "mlp"): 0.13,
    ("avila", "logistic"): 0.018,
    ("avila", "mlp"): 0.015,
    ("sensorless_head", "logistic"): 1.2,
    ("sensorless_head", "mlp"): 1.2,
}


def shaped(batch_size: float) -> Setting:
    """Noise of covariance |H| / B."""
    return {"kind": "shaped", "batch_size": batch_size}


def minibatch(batch_size: int) -> Setting:
    """Noise of batches."""
    return {"kind": "minibatch", "batch_size": batch_size}


def white(diffusion: float) -> Setting:
    """White noise."""
    return {"kind": "white", "diffusion": diffusion}


def setting(base: Mapping[str, Any], noise: Mapping[str, Any], lr: float, k: float = 1.0, **further: Any) -> Setting:
    """One setting.

    Args:
        base: its potential and valley.
        noise: of the walk.
        lr: learning rate.
        k: factor on the curvature.
        **further: added, such as walkers.

    Returns:
        The description without name and seed.
    """
    return {**base, "noise": dict(noise), "lr": lr, "k": k, **further}


SHARPNESS = [setting(WELLS, shaped(1.2), 0.1, k) for k in (1.0, 1.15, 1.35, 1.6)]
SHARPNESS += [setting(TANG, minibatch(1), 0.0065, k) for k in (1.0, 1.15, 1.35, 1.6)]
BATCH = [setting(WELLS, shaped(b), 0.1) for b in (0.75, 0.9, 1.05, 1.2)]
BATCH += [setting(TANG, minibatch(b), 0.014) for b in (1, 2, 3)]
RATE = [setting(WELLS, shaped(1.2), lr) for lr in (0.1, 0.115, 0.135, 0.16)]
RATE += [setting(TANG, minibatch(1), lr) for lr in (0.0065, 0.0075, 0.0088, 0.0104)]
RATIO = [setting(WELLS, shaped(8 * lr), lr) for lr in (0.0125, 0.025, 0.05)]
RATIO += [setting(TANG, minibatch(b), b / 150) for b in (1, 2, 3)]
WHITE_SHARPNESS = [setting(WELLS, white(0.08), 0.02, k) for k in (1.0, 1.5, 2.2, 3.3)]
WHITE_SHARPNESS += [setting(TANG_ITSELF, white(8.0), 0.002, k) for k in (1.0, 1.5, 2.2, 3.3)]
TEMPERATURE = [setting(WELLS, white(d), 0.04) for d in (0.07, 0.08, 0.095, 0.115)]
TEMPERATURE += [setting(TANG_ITSELF, white(d), 0.002) for d in (7.0, 8.0, 9.0, 10.5)]
PARALLEL = [setting(WELLS | {"potential": {"kind": "wells", "d": d}}, white(0.05), 0.05, walkers=600) for d in (1, 2, 4)]
# Which barrier counts: wells of height b at curvatures 2 and -1 (k = 1 / (4 b)), lifted so that log L(b)/L(a) = q does not go
# with b; under noise |H| / B and, as of a mean square error, 2 L |H| / B.
BARRIERS = [
    setting(
        {"potential": {"kind": "wells", "barrier": b, "offset": b / expm1(q)}, "valley": WELLS["valley"]},
        {"kind": "shaped", "batch_size": size, "of_loss": of_loss},
        0.1,
        1 / (4 * b),
        sweep="barrier",
        walkers=100,
    )
    for size, of_loss in ((0.7, False), (0.3, True))
    for b in (0.24, 0.36)
    for q in (1.0, 1.5)
]
UNEVEN = {"potential": {"kind": "wells", "stretch": sqrt(2.0)}, "valley": {"kind": "threshold", "at": 0.0}}
OCCUPATION = [setting(UNEVEN, shaped(0.1 * ratio), 0.1, updates=n) for ratio, n in ((6, 8_000), (8, 12_000), (10, 24_000))]
OCCUPATION += [setting(UNEVEN, white(d), 0.1, updates=n) for d, n in ((0.14, 6_000), (0.11, 9_000), (0.09, 15_000))]


def presets(quick: Sequence[Setting], networks: Sequence[Setting] | None = None) -> dict[str, Runs]:
    """The runs of a claim in each size.

    Args:
        quick: settings on potentials.
        networks: settings on networks: those on the bundled table beside the potentials in ``quick``, those on the others
            alone in ``standard`` and beside the potentials in ``paper``; the potentials alone if None.

    Returns:
        Preset -> seed -> descriptions; equal settings have equal descriptions, so that claims share them.
    """

    def of(preset: str) -> Runs:
        bundled = preset == "quick"
        told = [s for s in networks or [] if (s["potential"]["dataset"] in BUNDLED) == bundled]
        settings = told if preset == "standard" and told else [*quick, *told]

        def runs(seed: int) -> list[Setting]:
            return [described(preset, 1000 * seed + s, chosen) for s in range(SEEDS) for chosen in settings]

        return runs

    return {preset: of(preset) for preset in SIZES}


def described(preset: str, seed: int, chosen: Setting) -> Setting:
    """Name a setting and give it its size.

    Args:
        preset: quick, standard or paper.
        seed: of the run.
        chosen: the setting.

    Returns:
        The description.
    """
    size = {k: v for k, v in SIZES[preset].items() if "updates" not in chosen or k == "walkers"}
    told = {**size, **chosen}
    if "updates" in told:
        told["walkers"] = 100
    digest = xxhash.xxh3_64_hexdigest(json.dumps(told, sort_keys=True).encode())[:10]
    kind, noise = told["potential"]["kind"], told["noise"]["kind"]
    return told | {"name": f"{preset}-escape-{kind}-{noise}-{digest}-seed{seed}", "seed": seed}


# --- networks ----------------------------------------------------------------------------------------------------------------


def _networks() -> list[Setting]:
    """Each table with each network: potential, valley and the learning rate at which B = 1 leaves it in some 500 updates."""
    found = []
    for (table, name), lr in LR.items():
        settle = {"updates": 2000, "lr": 0.1}
        potential = {"kind": "network", "dataset": table, **TABLES[table], "model": MODELS[name], "decay": 1e-3, "settle": settle}
        found.append({"potential": potential, "valley": {"kind": "box", "radius": RADIUS}, "lr": lr})
    return found


def _of_networks(settings: Callable[[float], list[tuple[int, float, float]]]) -> list[Setting]:
    """For each network the (B, lr, k) of its learning rate."""
    return [
        setting({"potential": base["potential"], "valley": base["valley"]}, minibatch(b), lr, k, walkers=100)
        for base in _networks()
        for b, lr, k in settings(base["lr"])
    ]


NETWORK_SHARPNESS = _of_networks(lambda lr: [(1, lr, k) for k in (0.7, 0.85, 1.0, 1.2)])
NETWORK_BATCH = _of_networks(lambda lr: [(b, 4 * lr, 1.0) for b in (4, 5, 6)])
NETWORK_RATE = _of_networks(lambda lr: [(1, f * lr, 1.0) for f in (0.7, 0.85, 1.0, 1.2)])
NETWORK_RATIO = _of_networks(lambda lr: [(b, b * lr, 1.0) for b in (1, 2, 4)])

# White noise leaves a box along the flattest direction, so that one network is asked, with a weight decay that gives every
# direction a curvature: D over decay, the variance there, is a fraction of the squared radius.
DIFFUSION: Mapping[str, tuple[float, float]] = {"breast_cancer": (0.000166, 0.263), "banknote": (0.00028, 0.5)}  # D, lr


def _of_white(settings: Sequence[tuple[float, float]]) -> list[Setting]:
    """For each table (D over its own, k)."""
    found = []
    for table, (diffusion, lr) in DIFFUSION.items():
        potential = {"kind": "network", "dataset": table, **TABLES[table], "model": MODELS["logistic"], "decay": 0.05}
        base = {"potential": potential | {"settle": {"updates": 2000, "lr": 0.1}}, "valley": {"kind": "box", "radius": RADIUS}}
        found += [setting(base, white(round(f * diffusion, 12)), lr, k, walkers=100) for f, k in settings]
    return found


NETWORK_WHITE_SHARPNESS = _of_white([(1.0, k) for k in (0.7, 1.0, 1.4, 2.0)])
NETWORK_TEMPERATURE = _of_white([(d / 28, 1.0) for d in (25, 28, 32, 37)])
