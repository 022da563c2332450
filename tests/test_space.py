"""The prompt space: combinations, keys, pools and programs."""

import itertools
import random

import optuna
import pytest

import dspy
from dspy.promptune import PromptSpace, SpaceError


def grid(*sizes: int) -> PromptSpace:
    """A space with one predictor per size, each with that many instructions and as many demo sets."""
    texts = {i: [f"instruction {i}.{j}" for j in range(n)] for i, n in enumerate(sizes)}
    demos = {i: [[{"question": f"q{i}.{j}", "answer": "a"}] for j in range(n)] for i, n in enumerate(sizes)}
    return PromptSpace(texts, demos)


class TwoSteps(dspy.Module):
    """A program of two predictors that share a signature."""

    def __init__(self) -> None:
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.second(question=self.first(question=question).answer)


def test_names_and_order_are_upstreams():
    """A key runs instruction, demos of predictor 0, then of predictor 1, under upstream's parameter names."""
    space = grid(2, 3)
    assert space.names == (
        "0_predictor_instruction",
        "0_predictor_demos",
        "1_predictor_instruction",
        "1_predictor_demos",
    )
    assert space.sizes == (2, 2, 3, 3)
    assert len(space) == 36


def test_a_zero_shot_space_has_only_instructions():
    """Without demos a key holds the instructions' indices only."""
    space = PromptSpace({0: ["a", "b"], 1: ["c"]})
    assert space.names == ("0_predictor_instruction", "1_predictor_instruction")
    assert list(space.keys()) == [(0, 0), (1, 0)]


def test_params_and_key_are_inverse():
    """Turning a key into parameters and back gives the key, for every combination."""
    space = grid(2, 2)
    assert all(space.key(space.params(key)) == key for key in space.keys())


def test_distributions_hold_every_candidate():
    """The distributions are categorical over the candidates' indices."""
    found = {name: tuple(d.choices) for name, d in grid(3).distributions().items()}
    assert found == {"0_predictor_instruction": (0, 1, 2), "0_predictor_demos": (0, 1, 2)}


def test_allowed_keys_are_the_whole_space():
    """With allowed combinations, only these are members, listed once each."""
    space = PromptSpace({0: ["a", "b"]}, {0: ["x", "y"]}, allowed=[(1, 0), (0, 1), [1, 0]])
    assert list(space.keys()) == [(0, 1), (1, 0)]
    assert (0, 0) not in space and (1, 0) in space
    with pytest.raises(SpaceError, match="not among the 2"):
        space.key({"0_predictor_instruction": 0, "0_predictor_demos": 0})


def test_instructions_are_a_list_of_texts():
    """A text in the place of the list is no list of letters, and a generator is read once."""
    with pytest.raises(SpaceError, match="give a list of texts"):
        PromptSpace({0: "abc"})
    assert PromptSpace({0: (text for text in ("a", "b"))}).size == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PromptSpace({}), "at least one predictor"),
        (lambda: PromptSpace({1: ["a"]}), "number them 0 to V-1"),
        (lambda: PromptSpace({0: []}), "no candidates"),
        (lambda: PromptSpace({0: ["a"]}, {0: []}), "0_predictor_demos has no candidates"),
        (lambda: PromptSpace(["a"]), "give a dict of lists"),
        (lambda: PromptSpace(None), "instructions=None: give a dict of lists"),
        (lambda: PromptSpace({0: ["a"]}, [[]]), "demos=.*: give a dict of lists"),
        (lambda: PromptSpace({0: None}), "instructions of predictor 0 are None: give a list of texts"),
        (lambda: PromptSpace({0: ["a"]}, {0: None}), "demo sets of predictor 0 are None"),
        (lambda: PromptSpace({0: ["a"]}, {0: [None]}), "Demo set None of predictor 0"),
        (lambda: PromptSpace({0: ["a"]}, {0: [{"q": 1}]}), "Demo set {'q': 1} of predictor 0: give a list of dspy"),
        (lambda: PromptSpace({0: ["a"]}, {0: [["q"]]}), "give a list of dspy.Example or mappings"),
        (lambda: PromptSpace({0: ["a"]}, allowed=5), "Key 5: give one index a part, for 0_predictor_instruction"),
        (lambda: PromptSpace({0: ["a"]}, allowed=[0]), "Key 0: give one index a part"),
        (lambda: PromptSpace({0: ["a", 3]}), "must be text"),
        (lambda: PromptSpace({0: ["a"]}, {1: [[]]}), "must agree"),
        (lambda: PromptSpace({0: ["a"]}, allowed=[]), "at least one combination"),
        (lambda: PromptSpace({0: ["a"]}, allowed=[(1,)]), "0 to 0"),
        (lambda: PromptSpace({0: ["a"]}, allowed=[(0, 0)]), "this space needs 1"),
        (lambda: PromptSpace({0: ["a"]}).key({}), "needs 0_predictor_instruction"),
        (lambda: PromptSpace({0: ["a"]}).pool(0, random.Random(0)), "at least 1"),
    ],
)
def test_bad_input_is_refused_with_the_rule(make, words):
    """Each bad argument raises SpaceError that names the rule."""
    with pytest.raises(SpaceError, match=words):
        make()


def test_a_small_space_is_its_own_pool():
    """A space that fits the pool is listed whole, whatever the randomness."""
    assert grid(3).pool(9, random.Random(1)) == list(itertools.product(range(3), repeat=2))


def test_a_large_space_is_sampled_around_the_leaders():
    """A pool of a large space holds its leader, half neighbors one swap away, distinct keys, the same for one seed."""
    space, leader = grid(18, 18, 18), (1, 2, 3, 4, 5, 6)
    pool = space.pool(100, random.Random(3), [leader])
    near = [key for key in pool if sum(a != b for a, b in zip(key, leader, strict=True)) == 1]
    assert len(space) == 18**6
    assert leader in pool and len(set(pool)) == len(pool) == 100 and len(near) >= 49
    assert pool == space.pool(100, random.Random(3), [leader])
    assert pool != space.pool(100, random.Random(4), [leader])


def test_a_pool_of_allowed_keys_has_the_neighbors_of_its_leader():
    """After the leader come the allowed keys that differ from it in one part, in their order."""
    rng = random.Random(0)
    allowed = {tuple(rng.randrange(6) for _ in range(3)) for _ in range(90)}
    space = PromptSpace({i: [str(j) for j in range(6)] for i in range(3)}, allowed=allowed)
    leader = min(allowed)
    near = [key for key in sorted(allowed) if sum(a != b for a, b in zip(key, leader, strict=True)) == 1]
    assert space.pool(40, rng, [leader])[: 1 + len(near)] == [leader, *near]
    assert 2 < len(near) < 19


def test_a_pool_of_allowed_keys_stays_inside_them():
    """Where only some combinations are allowed, leaders, neighbors and random picks are all among them."""
    allowed = [(i, (7 * i) % 20) for i in range(20)] + [(3, j) for j in range(20)]
    space = PromptSpace({0: [str(i) for i in range(20)]}, {0: [str(i) for i in range(20)]}, allowed=allowed)
    pool = space.pool(15, random.Random(0), [(3, 1)])
    assert len(pool) == 15 and set(pool) <= set(allowed)


def test_demo_sets_of_any_fields_become_text():
    """A demo set is written out field by field, whatever its fields are called; upstream's bookkeeping is left out."""
    demos = [[], [dspy.Example(frage="Größe?", antwort="3 m", augmented=True)], "as it is"]
    assert PromptSpace({0: ["a"]}, {0: demos}).texts(1) == ["", "frage: Größe?\nantwort: 3 m", "as it is"]


def test_build_sets_instructions_and_demos_of_a_copy():
    """Building a program changes a copy, also where predictors share a signature and a list of demos."""
    demo = dspy.Example(question="1+1", answer="2")
    shared = [demo]
    space = PromptSpace({0: ["one", "two"], 1: ["three", "four"]}, {0: [[], shared], 1: [[], shared]})
    student = TwoSteps()
    before = [p.signature.instructions for p in student.predictors()]
    program = space.build(student, (1, 1, 0, 1))
    assert [p.signature.instructions for p in program.predictors()] == ["two", "three"]
    program.predictors()[0].demos.append("x")
    assert program.predictors()[1].demos == [demo] and shared == [demo]
    assert [p.signature.instructions for p in student.predictors()] == before


def test_build_refuses_another_program():
    """A program with another number of predictors is refused."""
    with pytest.raises(SpaceError, match="has 2 predictors, the space 1"):
        PromptSpace({0: ["a"]}).build(TwoSteps(), (0,))


def repeating() -> PromptSpace:
    """Three instructions of which two are equal, and four demo sets of which the first and the last are."""
    demo, other = dspy.Example(question="1+1", answer="2"), dspy.Example(question="2+2", answer="4")
    marked = dspy.Example(question="1+1", answer="2", augmented=True)
    return PromptSpace({0: ["a", "b", "a"]}, {0: [[demo, other], [other, demo], [demo], [marked, other]]})


def test_equal_candidates_are_one():
    """Keys, size and pools know each text once; sizes and distributions keep the range of the lists."""
    space = repeating()
    assert space.sizes == (3, 4) and space.size == len(space) == 6
    assert list(space.keys()) == space.pool(6, random.Random(0)) == list(itertools.product((0, 1), (0, 1, 2)))
    assert space.distributions()["0_predictor_instruction"].choices == (0, 1, 2)
    assert {*space.pool(5, random.Random(0), [(1, 1)])} < set(space.keys())


def test_every_index_of_an_equal_candidate_is_the_same_prompt():
    """Parameters with a later index of a text give the key of its first one, which is the only member."""
    space = repeating()
    assert space.key({"0_predictor_instruction": 2, "0_predictor_demos": 3}) == (0, 0) == space.find((2, 3))
    assert (0, 0) in space and (2, 3) not in space
    assert space.params((2, 3)) == {"0_predictor_instruction": 0, "0_predictor_demos": 0}
    assert space.find((3, 0)) is space.find((0,)) is space.find((None, 0)) is None


def test_allowed_combinations_of_equal_prompts_are_one():
    """An allowed combination allows its prompt, under whatever indices it is written."""
    space = PromptSpace({0: ["a", "b", "a"]}, allowed=[(2,), (0,)])
    assert list(space.keys()) == [(0,)] and space.find((2,)) == (0,) and space.find((1,)) is None


def test_candidates_that_only_look_equal_stay_apart():
    """Demo sets whose values differ in type, or that cannot be compared, are different candidates."""

    class Odd:
        def __str__(self) -> str:
            return "odd"

        def __eq__(self, other: object) -> bool:
            raise ValueError("not comparable")

    for one, other in ((1, "1"), (Odd(), Odd())):
        space = PromptSpace({0: ["a"]}, {0: [[{"x": one}], [{"x": other}], [{"x": other}, {"x": other}]]})
        assert space.size == 3, one


def test_a_space_may_have_more_combinations_than_an_index_can_count():
    """16 predictors with 10 instructions and 10 demo sets each: size, pool, members and words all work."""
    space = grid(*[10] * 16)
    assert space.size == 10**32 and f"{10**32:,} combinations" in repr(space) and space
    pool = space.pool(50, random.Random(0), [(1,) * 32])
    assert len(set(pool)) == 50 and all(key in space for key in pool)


def test_an_open_space_grows_and_keeps_its_keys():
    """Appended texts get the next indices, one that is there gets its own, and keys of before keep their meaning."""
    space = grid(2).open()
    before = list(space.keys())
    assert space.append("0_predictor_instruction", "a new text") == 2
    assert space.append("0_predictor_instruction", "instruction 0.1") == 1
    assert space.sizes == (3, 2)
    assert all(key in space for key in before)
    assert space.params((2, 1)) == {"0_predictor_instruction": 2, "0_predictor_demos": 1}


def test_a_part_knows_which_text_was_written_from_which():
    """A copy of a text has the first one's children; one that was there keeps what it had."""
    space = PromptSpace({0: ["same", "same"]}).open()
    name = space.names[0]
    assert space.append(name, "child", 1) == 2 and space.append(name, "grandchild", 2) == 3
    assert space.append(name, "child", 3) == 2 and space.append(name, "stranger") == 4
    assert space.parts[0].parents == {2: 0, 3: 2}


def test_a_study_takes_trials_of_a_space_that_has_grown():
    """Trials from before and after an addition lie in one study, as integers."""
    space = grid(2).open()
    study = optuna.create_study()
    study.ask(space.distributions())
    space.append("0_predictor_instruction", "a new text")
    trial = optuna.trial.create_trial(value=1.0, params=space.params((2, 0)), distributions=space.distributions())
    study.add_trial(trial)
    assert study.trials[1].params == {"0_predictor_instruction": 2, "0_predictor_demos": 0}


def test_appending_is_refused_by_name():
    """A closed space, an unknown part, an instruction that is no text, and a space of some combinations only."""
    with pytest.raises(SpaceError, match=r"open\(\)"):
        grid(2).append("0_predictor_instruction", "text")
    with pytest.raises(SpaceError, match="'2_predictor_demos' is unknown"):
        grid(2).open().append("2_predictor_demos", [])
    with pytest.raises(SpaceError, match="must be text"):
        grid(2).open().append("0_predictor_instruction", 3)
    with pytest.raises(SpaceError, match="Parent 2 of 0_predictor_instruction: there are 2 candidates, so 0 to 1"):
        grid(2).open().append("0_predictor_instruction", "text", 2)
    with pytest.raises(SpaceError, match="allowed="):
        PromptSpace({0: ["a", "b"]}, allowed=[(0,)]).open()
