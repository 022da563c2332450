"""The replay of recorded tables."""

import json

import numpy as np
import pytest

from benchmarks.pack import pack
from benchmarks.products import product
from benchmarks.tables import SHIPPED, data_folder, load_table, load_tables
from dspy.promptune.features import embed_parts


def write(folder, name, **content):
    """A small table on disk: two instructions, two demo sets, three of the four combinations."""
    prompts = [
        {"instruction": "a", "demos": "x"},
        {"instruction": "a", "demos": ""},
        {"instruction": "b", "demos": "x"},
        {"instruction": "a", "demos": "x"},
    ]
    table = {"name": name, "n_examples": 200, "prompts": prompts, "scores": [0.5, 0.25, 1.0, 0.9], "matrix": None}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(table | content))
    return path


def test_only_listed_combinations_are_in_the_space(tmp_path):
    """Instruction and demos are two parts, only recorded pairs are allowed, and the first of duplicates counts."""
    table = load_table(write(tmp_path, "few_shot"))
    assert table.space.sizes == (2, 2)
    assert table.truth == {(0, 0): 0.5, (0, 1): 0.25, (1, 0): 1.0}
    assert set(table.space.keys()) == set(table.truth)
    assert table.best == 1.0


def test_a_table_without_demos_has_one_part(tmp_path):
    """Zero-shot tables become spaces of instructions alone."""
    prompts = [{"instruction": "a"}, {"instruction": "b", "demos": None}]
    table = load_table(write(tmp_path, "zero_shot", prompts=prompts, scores=[0.1, 0.2]))
    assert table.space.names == ("0_predictor_instruction",)
    assert table.accuracy({"0_predictor_instruction": 1}) == 0.2


def test_recorded_columns_are_replayed(tmp_path):
    """With a matrix, evaluating returns the recorded scores of the examples asked for."""
    matrix = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = load_table(write(tmp_path, "matrix", matrix=matrix))
    assert table.n_examples == 4
    assert table.replay(seed=3)(table.space.params((0, 0)), [3, 1]) == [0.0, 1.0]


def test_draws_are_fixed_by_seed_and_have_the_recorded_mean(tmp_path):
    """Without a matrix scores are fixed draws; 200 of them at .25 stay within four standard errors of it (.12)."""
    table = load_table(write(tmp_path, "means"))
    params = table.space.params((0, 1))
    first = table.replay(seed=0)(params, range(200))
    assert table.replay(seed=0)(params, range(200)) == first
    assert table.replay(seed=1)(params, range(200)) != first
    assert set(first) == {0.0, 1.0}
    assert sum(first) / 200 == pytest.approx(0.25, abs=0.12)


def test_shuffling_changes_indices_and_nothing_else(tmp_path):
    """Every prompt keeps its texts, its accuracy and its scores under its new key."""
    matrix = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = load_table(write(tmp_path, "matrix", matrix=matrix))

    def described(some):
        texts = [some.space.texts(i) for i in range(2)]
        return {(texts[0][a], texts[1][b]): (some.truth[a, b], some.columns[a, b].tolist()) for a, b in some.truth}

    assert any(list(table.shuffled(seed).truth) != list(table.truth) for seed in range(5))
    for seed in range(5):
        assert described(table.shuffled(seed)) == described(table)


def test_an_empty_folder_is_refused_with_the_remedy(tmp_path):
    """Without tables the benchmark says where it looked and how to point it elsewhere."""
    with pytest.raises(SystemExit, match=r"pass --data DIR, or unset PROMPTUNE_TABLES"):
        data_folder(str(tmp_path))


def test_a_packed_table_is_the_same_table_without_its_texts(tmp_path):
    """Packing keeps combinations, accuracies, 0/1 scores and the angles between candidates, and no text."""
    matrix = [[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    table = load_table(write(tmp_path, "matrix", matrix=matrix))
    np.savez_compressed(tmp_path / "packed.npz", **pack(table))
    packed = load_table(tmp_path / "packed.npz")
    assert packed.space.texts(0) == ["packed instruction 0", "packed instruction 1"]
    assert (packed.truth, packed.n_examples, packed.space.sizes) == (table.truth, 4, table.space.sizes)
    assert all(packed.columns[key].tolist() == row.tolist() for key, row in table.columns.items())
    for i, vectors in enumerate(embed_parts(table.space)):
        assert packed.embed(packed.space.texts(i)) @ packed.embed(packed.space.texts(i)).T == pytest.approx(
            vectors @ vectors.T, abs=2e-3
        )


def test_the_tables_of_this_repository_load_without_a_text():
    """Eight tables, three of them with per-example scores, together below 3 MB; shuffled ones keep their vectors."""
    tables = load_tables(data_folder())
    assert len(tables) == 8
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.npz")) < 3e6
    assert sum(bool(table.columns) for table in tables) == 3
    for table in tables:
        assert 0 <= min(table.truth.values()) < table.best <= 1
        for key, row in table.columns.items():
            assert row.mean() == pytest.approx(table.truth[key], abs=1e-3)
        mixed = table.shuffled(1)
        assert mixed.embed(mixed.space.texts(0)).shape == (mixed.space.sizes[0], 48)


def test_an_unknown_table_lists_the_known(tmp_path):
    """A filter that matches nothing names the tables there are."""
    write(tmp_path, "one")
    with pytest.raises(SystemExit, match=r"No table matches two: there are one\."):
        load_tables(tmp_path, ["two"])


def test_a_product_has_all_pairs_and_the_mean_of_both_scores_in_its_unit(tmp_path):
    """A pair's score on an example is made of what its two halves score there; shuffling keeps the pairs' truths."""
    first, second = (load_table(write(tmp_path, f"a_table_{name}")) for name in ("one", "two"))
    pairs = product(first, second, 100.0)
    assert pairs.space.size == 9 and pairs.truth[(0, 0, 1, 0)] == 0.75
    assert pairs.choices() == [list(first.truth), list(second.truth)]
    scores = pairs.replay(0)(pairs.space.params((0, 1, 0, 0)), range(200))
    assert set(scores) == {0.0, 50.0, 100.0}
    assert np.mean(scores) == pytest.approx(37.5, abs=8)
    assert sorted(pairs.shuffled(3).truth.values()) == sorted(pairs.truth.values())
