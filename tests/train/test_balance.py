"""Long-tail balancing: the rarest codes keep their labels, as many as the text allows, on one rank or several; and a
resumed run goes on as if it had never stopped."""

import math
import multiprocessing
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState

from train.balance import LongTailBalance

NUM_CODES = 16


def skewed(seed: int, size: int = 200, num_codes: int = NUM_CODES) -> torch.Tensor:
    """Codes of which a few are most, as background is."""
    shares = 1 / (1 + np.arange(num_codes)) ** 2
    return torch.from_numpy(np.random.default_rng(seed).choice(num_codes, size, p=shares / shares.sum()))


@pytest.mark.parametrize("ratio, texts", [(1.0, 60), (0.5, 61), (3.0, 25), (0.001, 60), (2.0, 0), (0.29, 100)])
def test_the_rarest_are_kept_until_the_budget_is_reached(ratio, texts):
    balance, seen = LongTailBalance(NUM_CODES, ratio), Counter()
    for step in range(20):
        codes_N = skewed(step)
        seen.update(codes_N.tolist())
        keep_N = balance.select(codes_N, texts, step)
        assert keep_N.dtype == torch.bool and int(keep_N.sum()) == pytest.approx(ratio * texts, abs=0.5)
        kept, dropped = ([seen[code] for code in codes_N[chosen_N].tolist()] for chosen_N in (keep_N, ~keep_N))
        assert max(kept, default=0) <= min(dropped)
        assert balance.counts.tolist() == [seen[code] for code in range(NUM_CODES)]


def test_the_threshold_is_the_formula():
    """Codes 0..3 are seen 8, 4, 2 and 1 times: p is 1, 2, 4 and 8 fifteenths."""
    codes_N = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3])
    for budget, tau in ((1, 4), (2, 4), (3, 2), (4, 2), (7, 1), (14, 1), (15, 0), (99, 0)):
        balance = LongTailBalance(NUM_CODES, 1.0)
        keep_N = balance.select(codes_N, budget, 0)
        logs = balance.logs()
        assert logs["balance_tau"] == pytest.approx(float(Fraction(tau, 15)), abs=1e-12)
        for code, p in enumerate((1, 2, 4, 8)):
            of_code = keep_N[codes_N == code]
            assert p == tau or bool((of_code == (p > tau)).all())
        assert int(keep_N.sum()) == min(budget, 15)
        assert logs["balance_kept"] == pytest.approx(min(budget, 15) / 15)
        shares = np.array([8, 4, 2, 1]) / 15
        assert logs["code_entropy"] == pytest.approx(-(shares * np.log(shares)).sum())


def test_ties_are_broken_uniformly_and_by_seed_and_step_alone():
    codes_N = torch.arange(NUM_CODES)  # each once: all are at the threshold
    choices = torch.stack([LongTailBalance(NUM_CODES, 1.0, seed=3).select(codes_N, 4, step) for step in range(400)])
    # 100 expected of 400, with a standard deviation of 8.7; the largest of 16 deviations is below four of them.
    assert float((choices.sum(0) - 100.0).abs().max()) < 4 * math.sqrt(400 * 0.25 * 0.75)
    again = LongTailBalance(NUM_CODES, 1.0, seed=3).select(codes_N, 4, 17)
    assert torch.equal(again, choices[17])
    assert not torch.equal(LongTailBalance(NUM_CODES, 1.0, seed=4).select(codes_N, 4, 17), again)


def test_background_gives_way():
    """The most frequent code is more than half of what is read, and next to nothing of what is kept."""
    for seed in range(3):
        balance, read, kept = LongTailBalance(256, 1.0), [], []
        for step in range(20):
            codes_N = skewed(100 * seed + step, num_codes=256)
            read.append(codes_N)
            kept.append(codes_N[balance.select(codes_N, 50, step)])
        assert float((torch.cat(read) == 0).float().mean()) > 0.5
        assert float((torch.cat(kept) == 0).float().mean()) < 0.02


def test_an_update_without_supervised_tokens_changes_nothing():
    balance = LongTailBalance(NUM_CODES, 1.0)
    assert balance.select(torch.zeros(0, dtype=torch.int64), 10, 0).tolist() == []
    assert balance.logs() == {} and not bool(balance.counts.any())


def session(balance, model, first: int, last: int, state: TrainerState) -> list[tuple]:
    """Choices and logs of the updates from `first` to `last`."""
    state.global_step = first
    balance.on_train_begin(None, state, TrainerControl(), model=model)
    return [(balance.select(skewed(step), 70, step).tolist(), balance.logs()) for step in range(first, last)]


def test_a_resumed_run_chooses_as_one_that_never_stopped(tiny_model, tmp_path):
    whole = session(LongTailBalance(NUM_CODES, 0.7, 1), tiny_model, 0, 12, TrainerState())
    stopped = LongTailBalance(NUM_CODES, 0.7, 1)
    begun = session(stopped, tiny_model, 0, 5, TrainerState())
    TrainerState(global_step=5, stateful_callbacks=[stopped]).save_to_json(tmp_path / "trainer_state.json")
    state = TrainerState.load_from_json(tmp_path / "trainer_state.json")
    resumed = LongTailBalance(NUM_CODES, 0.7, 1)
    assert begun + session(resumed, tiny_model, 5, 12, state) == whole
    assert resumed.counts.dtype == torch.int64 and int(resumed.counts.sum()) == 12 * 200


def on_two_ranks(rank: int, store: str, results: multiprocessing.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    balance, kept = LongTailBalance(NUM_CODES, 0.5, seed=2), []
    for step in range(6):
        codes_N = skewed(step).split([130, 70])[rank]
        kept += balance.select(codes_N, (31, 90)[rank], step).tolist()
    results.put((rank, kept, balance.counts.tolist(), balance.logs()))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_choose_as_one(tmp_path):
    context = multiprocessing.get_context("fork")  # ranks that need not import torch again
    results = context.SimpleQueue()
    arguments = [(rank, str(tmp_path / "store"), results) for rank in (0, 1)]
    processes = [context.Process(target=on_two_ranks, args=of_rank, daemon=True) for of_rank in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (_, first, *shared), (_, second, *shared_too) = sorted(results.get() for _ in processes)
    balance, whole = LongTailBalance(NUM_CODES, 0.5, seed=2), []
    for step in range(6):
        whole.append(balance.select(skewed(step), 121, step))
    assert shared == shared_too == [balance.counts.tolist(), balance.logs()]
    assert first == torch.cat([keep_N[:130] for keep_N in whole]).tolist()
    assert second == torch.cat([keep_N[130:] for keep_N in whole]).tolist()


@pytest.fixture
def reader(make_tiny_config):
    """A model that is trained on what it reads."""
    from modeling_unified import UnifiedForConditionalGeneration

    return UnifiedForConditionalGeneration(make_tiny_config("uvu")).eval()


@pytest.fixture
def batch(reader, make_tiny_processor, make_image):
    """Two images that are read, of different sizes, one that is written, and text."""
    images = [{"type": "image", "image": make_image(n, *size)} for n, size in enumerate([(8, 8), (4, 6), (8, 8)])]
    rows = [
        [{"role": "user", "content": images[:1]}, {"role": "assistant", "content": "two cats left of a pizza"}],
        [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": images[2:]}],
        [{"role": "user", "content": images[1:2]}, {"role": "assistant", "content": "a cat"}],
    ]
    return make_tiny_processor(reader.config).encode_conversations(rows, supervise_features=True)


def test_only_labels_of_read_tokens_are_taken_away(reader, batch):
    slot, feature = reader.config.image_token_id, reader.config.image_feature_token_id
    batch["labels"][:, 0] = 100  # before the first position there is none to predict it
    before, whole = batch["labels"].clone(), reader(**batch)
    codes_M = reader.model.encode_read_images(batch["feature_pixel_values"], batch["feature_sizes"])
    thinned = dict(batch)
    texts = len(whole.text_loss)
    LongTailBalance(NUM_CODES, 8.5 / texts).thin([thinned], reader, 0)
    keep_M = LongTailBalance(NUM_CODES, 8.5 / texts).select(codes_M, texts, 0)
    assert 0 < int(keep_M.sum()) == 8 < len(keep_M) == 22
    assert torch.equal(batch["labels"], before), "the caller's tensor is left alone"
    changed_BT = thinned["labels"] != before
    assert bool((before[changed_BT] == feature).all()) and bool((thinned["labels"][changed_BT] == -100).all())
    assert int((thinned["labels"] == slot).sum()) == int((before == slot).sum()) == 16
    assert torch.equal(thinned["feature_tokens"], codes_M)
    outputs = reader(**thinned)
    torch.testing.assert_close(outputs.text_loss, whole.text_loss)
    # Losses of written tokens come first, and no one's context has changed.
    expected = torch.cat([whole.image_loss[:16], whole.image_loss[16:][keep_M]])
    torch.testing.assert_close(outputs.image_loss, expected)


def test_micro_batches_are_thinned_as_one_batch(reader, batch):
    whole, balance = dict(batch), LongTailBalance(NUM_CODES, 0.3)
    balance.thin([whole], reader, 4)
    rows = ("input_ids", "labels", "attention_mask")
    images = {0: slice(0, 1), 2: slice(1, 2)}
    parts = [{name: batch[name][row : row + 1] for name in rows} for row in range(3)]
    for row, chosen in images.items():
        parts[row] |= {name: batch[name][chosen] for name in ("feature_pixel_values", "feature_sizes")}
    cut = LongTailBalance(NUM_CODES, 0.3)
    cut.thin(parts, reader, 4)
    assert torch.equal(torch.cat([part["labels"] for part in parts]), whole["labels"])
    assert torch.equal(cut.counts, balance.counts) and cut.logs() == balance.logs()
    assert 0 < cut.logs()["balance_kept"] < 1


def test_bad_input_is_named(tiny_model):
    with pytest.raises(ValueError, match="num_codes is 0"):
        LongTailBalance(0, 1.0)
    for ratio in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"ratio is {ratio}"):
            LongTailBalance(NUM_CODES, ratio)
    for codes in ([3, 16], [-1, 3]):
        with pytest.raises(ValueError, match=rf"codes {codes[0]}..{codes[1]} exceed the counted 0..15"):
            LongTailBalance(NUM_CODES, 1.0).select(torch.tensor(codes), 1, 0)
    with pytest.raises(ValueError, match="5 codes are to be counted, the model has 16"):
        session(LongTailBalance(5, 1.0), tiny_model, 0, 1, TrainerState())
    stored = {"LongTailBalance": {"args": {}, "attributes": {"counts": [1, 2, 3]}}}
    for callbacks, found in ((stored, 3), ({}, 0)):
        state = TrainerState(stateful_callbacks=callbacks)
        with pytest.raises(ValueError, match=f"step 7 has counts of {found} codes, this run has 16"):
            session(LongTailBalance(NUM_CODES, 1.0), tiny_model, 7, 8, state)
