"""The processor of a model whose tower was trained at a size of its own."""

import pytest
import torch

from modeling_unified import UnifiedForConditionalGeneration
from train.conversations import assistant, text, user
from train.processors import build_processor


@pytest.mark.parametrize(("tower", "seen"), [(8, None), (12, 12), (14, 12)])
@torch.no_grad()
def test_the_tower_sees_its_own_size(make_tiny_config, tiny_tokenizer, make_image, tower, seen):
    config = make_tiny_config("unifluid")
    config.vision_config.image_size = tower  # patches of 4
    model, processor = UnifiedForConditionalGeneration(config).eval(), build_processor(config, tiny_tokenizer)
    assert config.image_size == [8, 8] and config.feature_stride == 4
    assert processor.feature_size == (seen and {"height": seen, "width": seen})
    image = {"type": "image", "image": make_image(0, 20, 20)}
    batch = processor.encode_conversations([[user(image), assistant(text("a cat"))]])
    side = seen or 8
    assert batch["feature_pixel_values"].shape[-2:] == (side, side)
    assert int((batch["input_ids"] == config.image_feature_token_id).sum()) == (side // 4) ** 2
    assert torch.isfinite(model(**batch).text_loss).all()
