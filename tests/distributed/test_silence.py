"""Which empty replies stay so."""

from dspy.promptune.distributed.silence import SilentPairs

PAIR, OTHER = ((0,), 3), ((1,), 3)


def test_a_model_that_is_down_is_no_silent_pair():
    """However often pairs are asked in vain, none is silent while no other is answered."""
    silence = SilentPairs()
    silence.answered()
    for _ in range(3):
        for pair in (PAIR, OTHER):
            answers = silence.asked(pair)
            assert not any(silence.stays(pair, times, answers) for times in (1, 2, 3))
            silence.note([pair], answers)


def test_a_pair_is_silent_when_it_is_asked_in_vain_again_and_others_were_answered():
    """Twice in one job, or in a second one, with an answer between."""
    silence = SilentPairs()
    answers = silence.asked(PAIR)
    assert not silence.stays(PAIR, 1, answers)
    silence.answered()
    assert silence.stays(PAIR, 2, answers) and not silence.stays(PAIR, 1, answers)
    silence.note([PAIR], answers)
    assert silence.among((0,), [1, 3]) == [1] and not silence.among((1,), [1, 3])
    assert silence.stays(PAIR, 1, silence.asked(PAIR))


def test_the_only_pair_without_an_answer_is_silent():
    """At the end of a run nobody else is asked: then that others were answered before is enough."""
    silence = SilentPairs()
    silence.answered(5)
    answers = silence.asked(PAIR)
    assert not any(silence.stays(PAIR, times, answers) for times in (1, 2, 3))
    silence.note([PAIR], answers)
    assert silence.stays(PAIR, 1, silence.asked(PAIR))


def test_what_was_silent_elsewhere_is_so_at_once():
    """A worker that is told so asks once."""
    silence = SilentPairs()
    silence.expect([PAIR])
    assert silence.stays(PAIR, 1, silence.asked(PAIR)) and silence.pairs == [PAIR]
