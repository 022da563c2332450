"""The methods that the regret benchmark compares: a name, the options of ``search`` that make it, and one run of it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np

from benchmarks.tables import Table
from dspy.promptune.space import Key, PromptSpace

__all__ = ["METHODS", "Method", "Trace", "trace"]

Trace = list[tuple[int, float]]
"""The true accuracy of the prompt that the run would return, each time it changed, with the calls spent by then."""

UPSTREAM_MINIBATCH = 35
HOSTED = "PROMPTUNE_HOSTED_EMBEDDER"
"""Variable with the name of a hosted embedder, such as ``openai/text-embedding-3-small``: adds a method with it."""


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    ``options`` are those of ``search``. ``build`` makes the sampler where no name stands for it, from the space and the
    seed. ``run`` replaces ``search`` for baselines that are not behind its door: it takes the table, the seed and the
    budget in calls. ``seeds`` caps the number of seeds of slow methods.
    """

    label: str
    group: Literal["ours", "baseline", "ablation"]
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[PromptSpace, int], Any] | None = None
    run: Callable[[Table, int, int], Trace] | None = None
    seeds: int | None = None

    @property
    def embeds(self) -> bool:
        """Whether the packaged embedder is used."""
        return self.run is None and self.options.get("sampler") not in ("tpe", "gp") and "embedder" not in self.options


def trace(table: Table, method: Method, seed: int, max_calls: int) -> Trace:
    """One run of a method with a budget of ``max_calls`` examples scored, on the table's prompts in a random order."""
    table = table.shuffled(seed)
    if method.run is not None:
        return _changes(method.run(table, seed, max_calls))
    from dspy.promptune import search

    options = dict(method.options)
    if method.build is not None:
        build = method.build
        options["sampler"] = lambda space: build(space, seed)
    run = search(
        table.space,
        table.replay(seed),
        n_examples=table.n_examples,
        max_calls=max_calls,
        seed=seed,
        **options,
    )
    return _changes([(calls, table.accuracy(params)) for calls, params in run.history])


def plain(kind: Literal["tpe", "random"], batch: int, minibatch: int) -> Callable[[Table, int, int], Trace]:
    """Optuna without this package: random minibatches, no full evaluation, the winner by its mean of minibatches.

    The prompts of a table are one categorical parameter, because most pairs of its instructions and demo sets were
    never recorded; those of a product are one for each of its tables.

    Args:
        kind: Which of Optuna's samplers, with its defaults.
        batch: Trials asked for before the first of them is told.
        minibatch: Examples a trial, drawn without replacement.
    """

    def run(table: Table, seed: int, max_calls: int) -> Trace:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        study = optuna.create_study(direction="maximize", sampler=samplers[kind](seed=seed))
        choices = table.choices()
        space = {
            f"prompt {i}": optuna.distributions.CategoricalDistribution(range(len(keys)))
            for i, keys in enumerate(choices)
        }
        evaluate, rng = table.replay(seed), np.random.default_rng(seed)
        means: dict[Key, list[float]] = defaultdict(list)
        calls, history = 0, []
        while calls < max_calls:
            for trial in [study.ask(space) for _ in range(batch)]:
                size = min(minibatch, max_calls - calls)
                if size == 0:
                    break
                examples = rng.choice(table.n_examples, size, replace=False).tolist()
                picked = zip(choices, trial.params.values(), strict=True)
                prompt = tuple(index for keys, place in picked for index in keys[place])
                mean = float(np.mean(evaluate(table.space.params(prompt), examples)))
                study.tell(trial, mean)
                means[prompt].append(mean)
                calls += size
                winner = max(means, key=lambda key: float(np.mean(means[key])))
                history.append((calls, table.truth[winner]))
        return history

    return run


def _changes(history: Trace) -> Trace:
    """The history without the entries that change nothing."""
    return [entry for i, entry in enumerate(history) if i == 0 or entry[1] != history[i - 1][1]]


Q8: dict[str, Any] = {"batch_size": 8, "schedule": "batch"}
"""Eight prompts proposed before the first of them is scored. One job evaluates them, so that runs can be repeated."""


JOBS8: dict[str, Any] = {"n_jobs": 8}
"""Eight prompts evaluated at once, a new one proposed whenever one ends: 8 running and the next one chosen by then.
Which of two threads ends first is not fixed, so such a run is repeated in distribution only."""


def blind(to: Literal["noise", "examples"]) -> Callable[[PromptSpace, int], Any]:
    """Our sampler with every mean taken for equally sure, or without knowing which examples are behind a mean."""

    def build(space: PromptSpace, seed: int) -> Any:
        from dspy.promptune import QEISampler

        sampler: Any = QEISampler(space, seed=seed, batch_size=8)
        posterior = sampler.surrogate.posterior
        sampler.surrogate.posterior = lambda observations, pool: _blinded(sampler, posterior, observations, pool, to)
        return sampler

    return build


def _blinded(sampler: Any, posterior: Any, observations: Sequence[Any], pool: Sequence[Key], to: str) -> Any:
    from dspy.promptune.gp.data import Observation

    less = [Observation(one.key, one.value, None if to == "noise" else one.scores) for one in observations]
    found = posterior(less, pool)
    observe = found.observe
    if to == "examples":
        found.observe = lambda j, variance, value=None, examples=None: observe(j, variance, value)
        return found
    level = float(sampler.surrogate.gp.log_noise.exp()) ** 2
    found.observe = lambda j, variance, value=None, examples=None: observe(j, level, value)
    found.noise = lambda size: np.full(len(pool), level)
    return found


def without(*terms: str) -> Callable[[PromptSpace, int], Any]:
    """Our sampler with some terms of its kernel held at nothing."""

    def build(space: PromptSpace, seed: int) -> Any:
        import torch
        from gpytorch.priors import NormalPrior

        from dspy.promptune import QEISampler

        sampler = QEISampler(space, seed=seed, batch_size=8)
        kernel = sampler.surrogate.gp.kernel
        for term in terms:
            if hasattr(kernel, f"log_{term}"):
                value = torch.full_like(getattr(kernel, f"log_{term}").data, -9.0)
                getattr(kernel, f"log_{term}").data.copy_(value)
                kernel.register_prior(
                    f"log_{term}_prior", NormalPrior(value, torch.full_like(value, 1e-3)), f"log_{term}"
                )
        sampler.surrogate._prior = sampler.surrogate.gp.hyperparameters()
        return sampler

    return build


def hosted(space: PromptSpace, seed: int) -> Any:
    """Our sampler with a hosted embedder."""
    import dspy
    from dspy.promptune import QEISampler

    return QEISampler(space, seed=seed, batch_size=8, embedder=_hosted_embedder(dspy.Embedder))


@cache
def _hosted_embedder(kind: Callable[[str], Any]) -> Any:
    return kind(os.environ[HOSTED])


METHODS: dict[str, Method] = {
    "qei": Method("ours, q=8 in batches", "ours", Q8),
    "qei-async": Method("ours, 8 jobs at once", "ours", JOBS8),
    "qei-q1": Method("ours, q=1", "ours", {"batch_size": 1}),
    "tpe-35": Method("TPE, minibatch 35, q=1", "baseline", run=plain("tpe", 1, UPSTREAM_MINIBATCH)),
    "tpe-35-q8": Method("TPE, minibatch 35, q=8", "baseline", run=plain("tpe", 8, UPSTREAM_MINIBATCH)),
    "tpe-10": Method("TPE, minibatch 10, q=1", "baseline", run=plain("tpe", 1, 10)),
    "tpe-10-q8": Method("TPE, minibatch 10, q=8", "baseline", run=plain("tpe", 8, 10)),
    "tpe-full": Method(
        "TPE as upstream spends (35, winners in full), q=1", "baseline", {"sampler": "tpe", "batch_size": 1}
    ),
    "random-35": Method("random, minibatch 35", "baseline", run=plain("random", 1, UPSTREAM_MINIBATCH)),
    "gp-35": Method(
        "Optuna's GPSampler, minibatch 35, q=1",
        "baseline",
        {"sampler": "gp", "full_eval_steps": 0, "batch_size": 1},
        seeds=10,
    ),
    "botorch-35": Method(
        "BoTorch, the original recipe, minibatch 35, q=4",
        "baseline",
        {"sampler": "botorch", "minibatch_size": 35, "full_eval_steps": 0, "batch_size": 4, "schedule": "batch"},
    ),
    "racing": Method(
        "racing alone, prompts unrelated, 8 at once",
        "baseline",
        JOBS8,
        build=without("smooth", "own", "joint"),
    ),
    "onehot": Method("ours, one-hot parts", "ablation", {"embedder": "onehot", **JOBS8}),
    "ngram": Method("ours, hashed n-grams", "ablation", {"embedder": "ngram", **JOBS8}),
    "equal-noise": Method("ours, every mean equally sure", "ablation", JOBS8, build=blind("noise")),
    "unpaired": Method("ours, examples not told apart", "ablation", JOBS8, build=blind("examples")),
    "additive": Method("ours, without the product of parts", "ablation", JOBS8, build=without("joint")),
    "fixed-10": Method("ours, fixed minibatch 10", "ablation", {"minibatch_size": 10, "full_eval_steps": 0, **JOBS8}),
    "fixed-35": Method(
        "ours, fixed minibatch 35", "ablation", {"minibatch_size": UPSTREAM_MINIBATCH, "full_eval_steps": 0, **JOBS8}
    ),
}
"""All methods, in the order of the tables' lines."""

if HOSTED in os.environ:
    METHODS["hosted"] = Method(f"ours, {os.environ[HOSTED]}", "ablation", JOBS8, build=hosted)
