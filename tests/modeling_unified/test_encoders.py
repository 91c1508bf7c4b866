"""An encoder gives one embedding for each placeholder that the processor writes."""

import pytest
import torch

from modeling_unified.configuration_unified import PARTS
from modeling_unified.encoders_unified import ENCODERS


def test_every_encoder_that_is_offered_exists():
    assert ENCODERS.keys() == set(PARTS["image_inputs"])


@pytest.mark.parametrize("height, width", [(8, 8), (4, 12), (2, 2)])
def test_slots_of_the_processor_embeddings_and_tokens_of_the_grid_are_as_many(
    model, tiny_processor, make_image, height, width
):
    size = {"height": height, "width": width}
    inputs = tiny_processor(images=make_image(1), text="<|image_slot|>", size=size)
    slots = int((inputs["input_ids"] == model.config.image_token_id).sum())
    (embeds_NH,) = model.get_image_features(inputs["pixel_values"]).pooler_output
    rows, columns = model.model.codec.grid(height, width)
    assert slots == len(embeds_NH) == rows * columns
    assert sum(encoder.num_tokens(height, width) for encoder in model.model.encoders.values()) == slots
    for encoder in model.model.encoders.values():
        assert hasattr(model.config, encoder.placeholder)


def test_codes_are_read_as_they_are_written(model, make_codes):
    """A read image's embeddings are the rows of its codes, as those of a written image."""
    codes_NL = torch.stack([make_codes(1), make_codes(2)])
    features = model.model.get_image_features(image_tokens=codes_NL)
    embedding = model.get_input_embeddings()
    assert torch.equal(features.last_hidden_state, embedding(codes_NL + model.config.code_offset))
    assert torch.equal(features.last_hidden_state, model.model.embed_image_tokens(codes_NL))
