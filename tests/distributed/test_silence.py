"""Which empty replies stay so."""

from dspy.promptune.distributed.silence import LAST, REPLIES, SilentPairs

PAIR = ((0,), 3)


def test_a_model_that_is_down_is_no_silent_pair():
    """However often many pairs are asked in vain at once, none is silent while no other is answered meanwhile."""
    silence = SilentPairs()
    silence.answered()
    for _ in range(3):
        since = {((i,), 3): silence.since(((i,), 3)) for i in range(LAST + 1)}
        for replies in range(4, 13, 4):
            for pair in since:
                since[pair] = silence.asked_in_vain(pair, since[pair])
            assert not any(silence.is_silent(pair, replies, since[pair]) for pair in since)
        for pair in since:
            silence.note([pair], since[pair])


def test_a_pair_is_silent_when_it_is_asked_in_vain_again_and_others_were_answered():
    """In the same job after some replies, in a later one after any, with an answer between."""
    silence = SilentPairs()
    silence.answered()
    since = silence.asked_in_vain(PAIR, silence.since(PAIR))
    assert not silence.is_silent(PAIR, REPLIES, since)
    silence.answered()
    assert silence.asked_in_vain(PAIR, since) == since
    assert silence.is_silent(PAIR, REPLIES, since) and not silence.is_silent(PAIR, REPLIES - 1, since)
    silence.note([PAIR], since)
    assert silence.among((0,), [1, 3]) == [1] and not silence.among((1,), [1, 3])
    assert silence.is_silent(PAIR, 1, silence.asked_in_vain(PAIR, silence.since(PAIR)))


def test_the_only_pair_without_an_answer_is_silent():
    """At the end of a run nobody else is asked: then that others were answered before is enough for a third job."""
    silence = SilentPairs()
    silence.answered(5)
    since = silence.asked_in_vain(PAIR, silence.since(PAIR))
    for _ in range(2):
        assert not silence.is_silent(PAIR, 12, silence.asked_in_vain(PAIR, silence.since(PAIR)))
        silence.note([PAIR], since)
    assert silence.is_silent(PAIR, 1, silence.asked_in_vain(PAIR, silence.since(PAIR)))


def test_what_was_silent_elsewhere_is_so_at_once():
    """A worker that is told so asks once."""
    silence = SilentPairs()
    silence.expect([PAIR])
    assert silence.is_silent(PAIR, 1, silence.asked_in_vain(PAIR, silence.since(PAIR))) and silence.pairs == [PAIR]


def test_a_model_that_is_down_costs_few_pairs_their_scores():
    """Asked one after another, a few pairs look as if they were the last; the others do not."""
    silence = SilentPairs()
    silence.answered()
    silent = 0
    for i in range(10):
        pair = ((i,), 3)
        for _ in range(2):
            silence.note([pair], silence.asked_in_vain(pair, silence.since(pair)))
        silent += silence.is_silent(pair, 12, silence.asked_in_vain(pair, silence.since(pair)))
    assert silent == LAST
