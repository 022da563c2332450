"""The calibration benchmark."""

import numpy as np

from benchmarks.calibration import predict
from benchmarks.tables import Table
from dspy.promptune import PromptSpace


def test_a_learnable_table_is_predicted():
    """Accuracy that follows the vectors is predicted for prompts never measured: correlation above .8."""
    places = np.linspace(-1.0, 1.0, 60)
    space = PromptSpace({0: [f"prompt {i}" for i in range(60)]})
    truth = {key: float(0.5 + 0.4 * places[key[0]]) for key in space.keys()}
    table = Table("line", space, truth, {}, n_examples=100)
    angles = places * np.pi / 2
    vectors = [np.stack([np.cos(angles), np.sin(angles)], axis=1)]
    outcome = predict(table, vectors, seed=0, prompts=30, examples=30)
    assert outcome.correlation > 0.8
    assert outcome.inside50 <= outcome.inside90
    assert outcome.inside90 > 0.7
