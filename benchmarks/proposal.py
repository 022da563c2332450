"""What one proposal costs: seconds and peak memory, ours against BoTorch on the same posterior and the same pool.

    python -m benchmarks.proposal            # a minute or two
    python -m benchmarks.proposal --quick    # without BoTorch's slow rows

Every row is measured in a process of its own on one thread, the median of five repetitions for ours and one for
BoTorch; ours is the posterior from all observations and the batch from it, the fit of hyper-parameters apart. Values
of batches come from one estimator for both: 65,536 Sobol samples of the joint posterior.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dspy.promptune.space import Key, PromptSpace

__all__ = ["Case", "main", "measure", "problem"]

CANDIDATES = 100
"""Candidates of each of the two parts: 10,000 combinations."""

MINIBATCH = 35
Q = 8
REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One row: ``ours``, ``botorch`` (our kernel, so the same posterior) or ``botorch-wide`` (its own, all columns)."""

    method: str
    pool: int
    observations: int
    width: int

    @property
    def slow(self) -> bool:
        """Whether it takes more than some seconds."""
        return self.method == "botorch-wide" or (self.method == "botorch" and self.pool > 1_000)


CASES = [
    Case("ours", 1_000, 50, 384),
    Case("botorch", 1_000, 50, 384),
    Case("botorch-wide", 1_000, 50, 384),
    Case("ours", 10_000, 50, 384),
    Case("botorch", 10_000, 50, 384),
    Case("ours", 1_000, 500, 384),
    Case("ours", 10_000, 500, 384),
    Case("ours", 1_000, 50, 48),
    Case("ours", 1_000, 50, 3_072),
]


@dataclass(frozen=True)
class Problem:
    """A space with its vectors, and what was measured of some of its prompts."""

    space: PromptSpace
    vectors: list[np.ndarray]
    pool: list[Key]
    observed: list[Key]
    scores: list[list[float]]


def problem(case: Case, seed: int = 0) -> Problem:
    """Two parts of 100 candidates whose accuracy follows their vectors; minibatches of 35 scores of random prompts."""
    rng = np.random.default_rng(seed)
    texts = [f"candidate {i}" for i in range(CANDIDATES)]
    space = PromptSpace({0: texts}, {0: texts})
    hidden = [rng.normal(size=(CANDIDATES, 6)) for _ in range(2)]
    vectors = [
        part @ rng.normal(size=(6, case.width)) + 0.5 * rng.normal(size=(CANDIDATES, case.width)) for part in hidden
    ]
    effects = [part @ rng.normal(size=6) / 6**0.5 for part in hidden]
    pool = space.pool(case.pool, random.Random(seed))
    observed = [pool[i] for i in rng.choice(len(pool), case.observations, replace=False)]
    level = [1 / (1 + np.exp(-0.5 * sum(effects[i][key[i]] for i in range(2)))) for key in observed]
    scores = [(rng.random(MINIBATCH) < p).astype(float).tolist() for p in level]
    return Problem(space, vectors, pool, observed, scores)


def measure(case: Case) -> dict[str, Any]:
    """Seconds, peak memory and the batch of one case, in this process."""
    import torch

    torch.set_num_threads(1)
    run = {"ours": _ours, "botorch": _botorch, "botorch-wide": _botorch_wide}[case.method]
    return asdict(case) | run(case)


def _observations(given: Problem) -> list[Any]:
    from dspy.promptune.gp.data import Observation

    return [
        Observation(key, float(np.mean(scores)), tuple(scores))
        for key, scores in zip(given.observed, given.scores, strict=True)
    ]


def _surrogate(given: Problem) -> tuple[Any, Any, float]:
    """Our model fitted to the observations, its posterior over the pool, and the value that a batch has to improve."""
    from dspy.promptune.gp.surrogate import Surrogate

    surrogate = Surrogate(given.vectors)
    posterior = surrogate.posterior(_observations(given), given.pool)
    place = {key: j for j, key in enumerate(given.pool)}
    best = float(posterior.mean[[place[key] for key in given.observed]].max())
    return surrogate, posterior, best


def _ours(case: Case) -> dict[str, Any]:
    from dspy.promptune.gp.improvement import greedy_batch

    given = problem(case)
    _surrogate(problem(Case("ours", 50, 20, 8)))  # imports and first calls are not a proposal's cost
    surrogate, _, _ = _surrogate(given)
    observations = _observations(given)
    place = {key: j for j, key in enumerate(given.pool)}

    def propose() -> list[int]:
        posterior = surrogate.posterior(observations, given.pool)
        best = float(posterior.mean[[place[key] for key in given.observed]].max())
        return greedy_batch(posterior, Q, best=best, seed=0)

    cost, batch = _timed(propose, REPEATS)
    fitting, _ = _timed(lambda: _surrogate(given), REPEATS)
    asking, _ = _timed(_asking(given, case), 1)
    return cost | {"fit": fitting["cpu"], "ask": asking["cpu"], "value": _value(given, batch)}


def _asking(given: Problem, case: Case) -> Callable[[], Any]:
    """The proposal as a user meets it: ``study.ask`` with our sampler, its first fit included."""
    import optuna

    from dspy.promptune import QEISampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = {text: i for i, text in enumerate(given.space.texts(0))}
    sampler = QEISampler(
        given.space,
        seed=0,
        embedder=lambda texts: given.vectors[0][[rows[text] for text in texts]],
        batch_size=Q,
        max_space_size=case.pool,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for key, scores in zip(given.observed, given.scores, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params=given.space.params(key),
                distributions=given.space.distributions(),
                value=float(np.mean(scores)),
                user_attrs={"scores": scores},
            )
        )
    return lambda: study.ask(given.space.distributions())


def _botorch(case: Case) -> dict[str, Any]:
    """``optimize_acqf_discrete`` on our posterior: our fitted kernel and noise in a ``SingleTaskGP``."""
    import torch

    given = problem(case)
    surrogate, posterior, best = _surrogate(given)
    model = _referee(surrogate, given)
    choices = torch.tensor(given.pool, dtype=torch.float64)
    with torch.no_grad():
        gap = float(np.abs(model.posterior(choices[:, None, :]).mean.reshape(-1).numpy() - posterior.mean).max())
    cost, batch = _timed(lambda: _discrete(model, choices, best), 1)
    return cost | {"value": _value(given, batch), "gap": gap}


def _referee(surrogate: Any, given: Problem) -> Any:
    """BoTorch's model with the same prior, noise and data as ours: no learning, no rescaling."""
    import torch
    from botorch.models import SingleTaskGP
    from gpytorch.means import ConstantMean

    from dspy.promptune.gp.model import evidence

    data = evidence(_observations(given))
    mean = ConstantMean()
    mean.initialize(constant=data.centre)
    with torch.no_grad():
        noise = surrogate.gp.noise(data).diagonal()[:, None]
    model = SingleTaskGP(
        torch.tensor(given.observed, dtype=torch.float64),
        torch.tensor(data.values * data.unit + data.centre)[:, None],
        noise.clone(),
        covar_module=surrogate.gp.kernel,
        mean_module=mean.double(),
        outcome_transform=None,
    )
    return model.eval()


def _botorch_wide(case: Case) -> dict[str, Any]:
    """BoTorch as one would use it first: its default kernel over the concatenated vectors; another posterior."""
    import torch
    from botorch.models import SingleTaskGP

    given = problem(case)
    _, _, best = _surrogate(given)
    x = torch.tensor(np.array([np.concatenate([given.vectors[i][key[i]] for i in range(2)]) for key in given.pool]))
    place = {key: j for j, key in enumerate(given.pool)}
    rows = [place[key] for key in given.observed]
    y = torch.tensor([np.mean(scores) for scores in given.scores])[:, None]
    model = SingleTaskGP(x[rows], y, torch.full_like(y, 0.25 / MINIBATCH)).eval()
    cost, batch = _timed(lambda: _discrete(model, x, best), 1)
    return cost | {"value": _value(given, batch)}


def _discrete(model: Any, choices: Any, best: float) -> list[int]:
    import torch
    from botorch.acquisition import qLogExpectedImprovement
    from botorch.optim import optimize_acqf_discrete

    torch.manual_seed(0)
    acquisition = qLogExpectedImprovement(model, best_f=best)
    chosen, _ = optimize_acqf_discrete(acquisition, q=Q, choices=choices)
    return [int((choices == row).all(dim=-1).nonzero()[0]) for row in chosen]


def _value(given: Problem, batch: Sequence[int]) -> float:
    """Expected improvement of a batch by our fitted posterior, with 65,536 Sobol samples."""
    from scipy.stats import norm, qmc

    _, posterior, best = _surrogate(given)
    members = np.array(batch)
    factor = np.linalg.cholesky(posterior.covariance(members) + 1e-12 * np.eye(len(members)))
    normal = norm.ppf(np.clip(qmc.Sobol(len(members), seed=1).random(2**16), 1e-12, 1 - 1e-12))
    samples = posterior.mean[members] + normal @ factor.T
    return float(np.maximum(samples.max(axis=1) - best, 0.0).mean())


def _timed(work: Callable[[], Any], repeats: int) -> tuple[dict[str, float], Any]:
    """Median seconds by the wall clock and by the processor's, peak memory above that before (MB), and the answer.

    The peak is that of the first time. On a busy machine the processor's clock tells what a quiet one would take.
    """
    before = _memory(reset=True)
    wall, processor, answer, peak = [], [], None, 0.0
    for i in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        answer = work()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
        if i == 0:
            peak = _memory() - before
    return {"seconds": statistics.median(wall), "cpu": statistics.median(processor), "memory": peak}, answer


def _memory(reset: bool = False) -> float:
    """Peak resident memory of this process in MB, since the last reset where the system can reset it (Linux)."""
    try:
        if reset:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as switch:
                switch.write("5")
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_process(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.proposal", "--case", json.dumps(asdict(case))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"{case} failed:\n{answer.stderr}")
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| method | pool | observations | width | seconds (wall) | seconds (CPU) | first fit alone (CPU) | "
        "study.ask, first fit included (CPU) | peak memory, MB | qEI of the batch | its logarithm |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        extra = [f"{row[name]:.3f}" if name in row else "" for name in ("fit", "ask")]
        cells = [row["method"], f"{row['pool']:,}", str(row["observations"]), f"{row['width']:,}"]
        cells += [f"{row['seconds']:.3f}", f"{row['cpu']:.3f}", *extra, f"{row['memory']:.0f}", f"{row['value']:.5f}"]
        lines.append("| " + " | ".join([*cells, f"{np.log(row['value']):.3f}"]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case in its own process and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proposal", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without BoTorch's slow rows")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    cases = [case for case in CASES if not (options.quick and case.slow)]
    rows = [_in_process(case) for case in cases]
    print(table(rows))
    ours, other = rows[0], rows[1]
    print(
        f"\nPool 1,000: {other['cpu'] / ours['cpu']:.0f} times faster than BoTorch on the same posterior "
        f"(means agree within {other['gap']:.0e}); our batch has {ours['value'] / other['value']:.1%} of its value."
    )


if __name__ == "__main__":
    main()
