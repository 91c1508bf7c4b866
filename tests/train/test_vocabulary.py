"""Progressive vocabulary learning: how many codes are active at a step, which, and that a resume changes neither."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState

from train.vocabulary import ProgressiveVocabulary, by_frequency, every, linear, random_order

NUM_CODES = 16


def run_to(callback, model, first: int, last: int, state: TrainerState) -> list[set[int]]:
    """Active sets before each step of a session from step `first` to `last`."""
    active = []
    state.global_step = first
    callback.on_train_begin(None, state, TrainerControl(), model=model)
    for step in range(first, last):
        state.global_step = step
        callback.on_step_begin(None, state, TrainerControl(), model=model)
        active.append(set(model.model.image_head.active_codes.nonzero().flatten().tolist()))
    state.global_step = last
    callback.on_train_end(None, state, TrainerControl(), model=model)
    return active


@pytest.mark.parametrize("steps_per_code", [1, 3, 0.25, math.inf])
def test_one_code_joins_every_k_steps(tiny_model, steps_per_code):
    order = random_order(NUM_CODES, seed=5)
    active = run_to(ProgressiveVocabulary(order, every(steps_per_code)), tiny_model, 0, 60, TrainerState(max_steps=60))
    for step, codes in enumerate(active):
        assert codes == set(order[: min(NUM_CODES, math.floor(step / steps_per_code))])


def test_the_last_step_may_complete_the_set(tiny_model):
    run_to(ProgressiveVocabulary(random_order(NUM_CODES, 0), every(1)), tiny_model, 0, 16, TrainerState(max_steps=16))
    assert bool(tiny_model.model.image_head.active_codes.all())


def test_a_schedule_or_an_order_of_ones_own_is_one_line(tiny_model):
    order = by_frequency([[3, 3, 3, 9], [9, 1, 3, 0]], NUM_CODES)
    assert order[:4] == [3, 9, 0, 1] and sorted(order) == list(range(NUM_CODES))
    callback = ProgressiveVocabulary(order, linear(steps=8, num_codes=NUM_CODES))
    active = run_to(callback, tiny_model, 0, 9, TrainerState(max_steps=9))
    assert [len(codes) for codes in active] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert active[1] == {3, 9}


def test_random_order_is_a_permutation_fixed_by_its_seed():
    assert sorted(random_order(1000, 1)) == list(range(1000))
    assert random_order(1000, 1) == random_order(1000, 1) != random_order(1000, 2)


def test_a_resumed_run_keeps_order_and_active_set(tiny_model):
    never_stopped = ProgressiveVocabulary(random_order(NUM_CODES, 1), every(2))
    whole = run_to(never_stopped, tiny_model, 0, 40, TrainerState(max_steps=40))
    first = ProgressiveVocabulary(random_order(NUM_CODES, 1), every(2))
    state = TrainerState(max_steps=40, stateful_callbacks=[first])
    begun = run_to(first, tiny_model, 0, 13, state)
    stored = json.loads(json.dumps(first.state()))
    state = TrainerState(max_steps=40, stateful_callbacks={"ProgressiveVocabulary": stored})
    # Another seed: the order must come from the checkpoint.
    resumed = run_to(ProgressiveVocabulary(random_order(NUM_CODES, 2), every(2)), tiny_model, 13, 40, state)
    assert begun + resumed == whole


def test_bad_input_is_named(tiny_model):
    with pytest.raises(ValueError, match="steps_per_code is 0"):
        every(0)
    with pytest.raises(ValueError, match="3 places for 2 codes"):
        ProgressiveVocabulary([0, 1, 1], every(1))
    with pytest.raises(ValueError, match="names 5 codes, the model has 16"):
        run_to(ProgressiveVocabulary(range(5), every(1)), tiny_model, 0, 1, TrainerState(max_steps=1))


def test_a_run_too_short_for_all_codes_says_so(tiny_model, monkeypatch):
    messages = []
    monkeypatch.setattr("train.vocabulary.logger.warning", messages.append)
    run_to(ProgressiveVocabulary(random_order(NUM_CODES, 0), every(1)), tiny_model, 0, 4, TrainerState(max_steps=4))
    assert "4 of 16 codes" in messages[0]
