"""Fixtures of the model's tests: a model whose predictions differ from place to place, prompts and batches for it.

Fixtures (function scope, as all of them):

    sharp             callable(config) -> the model with weights ten times wider than by default, eval mode: at the
                      default scale an untrained model predicts nearly the same everywhere, and most mistakes hide
    model             sharp(tiny_config)
    prompts           callable(*texts) -> input_ids and attention_mask [B,T], padded on the left
    make_codes        callable(seed) -> int64 [16], the codes of one image
    every_task_batch  a text, a caption of a read image, an image from words: what the processor makes of them
"""

import pytest
import torch


@pytest.fixture
def sharp():
    from modeling_unified import UnifiedForConditionalGeneration

    def build(config):
        config.text_config.initializer_range = 0.2
        torch.manual_seed(0)
        return UnifiedForConditionalGeneration(config).eval()

    return build


@pytest.fixture
def model(sharp, tiny_config):
    return sharp(tiny_config)


@pytest.fixture
def prompts(tiny_processor):
    def encode(*texts: str):
        return tiny_processor(text=list(texts))

    return encode


@pytest.fixture
def make_codes():
    def codes(seed: int) -> torch.Tensor:
        return torch.randint(16, (16,), generator=torch.Generator().manual_seed(seed))

    return codes


@pytest.fixture
def every_task_batch(tiny_processor, make_codes):
    def said(role, **part):
        return {"role": role, "content": [part]}

    return tiny_processor.encode_conversations(
        [
            [said("assistant", type="text", text="two cats")],
            [
                said("user", type="image", image_tokens=make_codes(1)),
                said("assistant", type="text", text="a red heart"),
            ],
            [
                said("user", type="text", text="a pizza"),
                said("assistant", type="image", image_tokens=make_codes(2)),
            ],
        ]
    )
