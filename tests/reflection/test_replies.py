"""Instructions that end for want of room, with and without a history of the language model."""

import json

import pytest

import dspy
from dspy.promptune.reflection.attempts import Attempts
from dspy.promptune.reflection.reflection import Reflector
from dspy.promptune.reflection.replies import asking
from tests.reflection.test_reflection import Recorded, SortAndPlace, compiled, metric, request_for
from tests.server import Faults, LMServer, TaskRule
from tests.server.behavior import BODY
from tests.server.replies import completion

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore:dspy.LM")]

HISTORIES = [{}, {"disable_history": True}, {"max_history_size": 0}]


class Short(Recorded):
    """A warehouse whose texts for one field are cut off, all of them or the first few."""

    def __init__(self, field, times=10**6):
        super().__init__(0)
        self.field, self.left = field, [times]

    def forward(self, prompt=None, messages=None, **kwargs):
        answer = super().forward(prompt, messages, **kwargs)
        wanted = str(messages[-1]["content"]).rpartition("Respond with")[2] if messages else ""
        if f"[[ ## {self.field} ## ]]" in wanted and self.left[0] > 0:
            self.left[0] -= 1
            answer.choices[0].finish_reason = "length"
        return answer


def replying(reason):
    """A server whose every reply ends for this reason."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Sort by"}, "finish_reason": reason}
    body = BODY + json.dumps(completion(choices=[choice], usage={"prompt_tokens": 1, "completion_tokens": 1}))
    return LMServer(TaskRule({}), faults=Faults(rule=lambda messages, attempt: body))


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False)])
def test_how_a_reply_ended_is_known_without_a_history(reason, cut, history):
    """What a provider says of a reply's end is seen whether DSPy keeps it or not."""
    with replying(reason) as server, dspy.context(**history):
        lm = dspy.LM("openai/rules", api_base=server.url, api_key="none", cache=False)
        with asking(lm) as cut_off:
            assert not cut_off()
            dspy.settings.lm("Write.")
        assert cut_off() is cut
        assert len(lm.history) == (0 if history else 1)


def test_a_model_that_tells_nothing_is_believed():
    """Where no reply has an end that is known, none was cut off."""

    class Plain(dspy.BaseLM):
        def __call__(self, *args, **kwargs):
            return ["Sort by"]

    with asking(Plain("plain")) as cut_off:
        assert dspy.settings.lm("Write.") == ["Sort by"]
    assert not cut_off()


@pytest.mark.parametrize("history", HISTORIES)
def test_a_text_that_is_cut_off_is_not_used(history):
    """The writer gives no text then and says why, and its call counts."""
    world, program = Short("new_instruction", times=1), SortAndPlace(1)
    with dspy.context(lm=world, **history):
        reflector = Reflector(Attempts(world.examples(0, 12), metric), lambda params: program, world, seed=0)
        first, second = reflector(request_for(program)), reflector(request_for(program, 1))
    assert (first.texts, first.calls) == ([], 4) and "was cut off" in str(first.error)
    assert len(second.texts) == 1


def test_a_proposal_that_is_cut_off_is_asked_for_again():
    """With ``reflect=True`` another rollout takes its place, as for one that failed."""
    run = compiled(Short("proposed_instruction", times=1), num_trials=2).optimization_run
    assert len(run.space.texts(0)) >= 4 and "missing" not in run.facts


def test_proposals_that_are_all_cut_off_are_no_candidates():
    """With ``reflect=True`` the run says what was wrong, and stops before it searches."""
    with pytest.raises(dspy.promptune.EvaluationError, match=r"was cut off \(max_tokens allows more\)"):
        compiled(Short("proposed_instruction"))


def test_without_reflect_proposals_are_upstreams():
    """A proposal that is cut off is a candidate, as it is in upstream's compile."""
    short, whole = (compiled(lm, reflect=False, num_trials=2) for lm in (Short("proposed_instruction"), Recorded(0)))
    assert short.optimization_run.space.texts(0) == whole.optimization_run.space.texts(0)
