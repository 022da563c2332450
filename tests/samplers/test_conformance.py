"""Optuna's own suite for samplers, applied to ours."""

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler

from dspy.promptune import PromptSpace, QEISampler

pytest.register_assert_rewrite("optuna.testing.pytest_samplers")

from optuna.testing import pytest_samplers as suite  # noqa: E402

SPACE = PromptSpace({0: ["Answer.", "Answer in one word.", "Think first."]}, {0: ["", "q: 1\na: 2"]})


class Ours:
    """Gives the suite samplers of a small space; embedded without a model to load, which the suite cannot see."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        """A builder of fresh samplers."""
        return lambda: QEISampler(SPACE, embedder="ngram", seed=0)


class TestBasic(Ours, suite.BasicSamplerTestCase):
    """What every sampler must do."""


class TestRelative(Ours, suite.RelativeSamplerTestCase):
    """What a sampler that proposes all parameters together must do."""


class TestSingleOnly(Ours, suite.SingleOnlySamplerTestCase):
    """What a sampler for one objective must do."""
