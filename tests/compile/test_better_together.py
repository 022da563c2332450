"""DSPy's BetterTogether with this fork's options: MIPROv2, GEPA and MIPROv2 again."""

import pytest

import dspy
from benchmarks.warehouse import SortAndPlace, Warehouse, metric

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:dspy.LM")]


class Served(Warehouse):
    """A warehouse that can be launched and ended, as BetterTogether asks of its language models."""

    def launch(self, launch_kwargs=None):
        """There is no server."""

    def kill(self, launch_kwargs=None):
        """There is no server."""


def scored(example, prediction, trace=None):
    """The score of a program, as a number."""
    return float(metric(example, prediction))


@pytest.mark.slow
def test_a_strategy_of_mipro_and_gepa_takes_our_options():
    """Each MIPROv2 step is this fork's search, and the last one starts from what GEPA has written."""
    world = Served(0)
    with dspy.context(lm=world):
        mipro = dspy.MIPROv2(metric=scored, auto=None, num_candidates=3, num_threads=4, seed=1)
        gepa = dspy.GEPA(metric=metric, max_metric_calls=120, reflection_lm=world, num_threads=4, seed=1)
        together = dspy.BetterTogether(metric=scored, mipro=mipro, gepa=gepa)
        ours = {"sampler": "qei", "embedder": "ngram", "n_jobs": 4, "num_trials": 6, "disable_progress_bar": True}
        program = SortAndPlace(1)
        program.set_lm(world)
        best = together.compile(
            program,
            trainset=world.examples(0, 30),
            valset=world.examples(200, 230),
            strategy="mipro -> gepa -> mipro",
            optimizer_compile_args={"mipro": {**ours, "reflect": True}},
        )
    names = [each["strategy"] for each in best.candidate_programs]
    assert any(name and name.count("mipro") == 2 for name in names)
    assert world.true_score(best) >= world.true_score(SortAndPlace(1))
