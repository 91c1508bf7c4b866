"""One update under bfloat16 autocast, as GPUs train, is that of float32 but for rounding."""

import pytest
import torch

from modeling_unified.configuration_unified import PARADIGMS
from train.conversations import assistant, text, user

LOSS, COSINE = 0.005, 0.999  # bfloat16 has 8 bits, a relative step of 0.4%. Measured: up to 0.0012, at least 0.9998


@pytest.fixture(params=PARADIGMS)
def updated(request, make_tiny_row, make_tiny_processor, picture):
    """callable(half) -> (losses by kind, gradients, model after one step of AdamW), from the same weights and noise."""
    from modeling_unified import UnifiedForConditionalGeneration

    def updated(half: bool):
        torch.manual_seed(0)
        config = make_tiny_row(request.param)
        config.text_config.initializer_range = 0.2
        model, processor = UnifiedForConditionalGeneration(config).train(), make_tiny_processor(config)
        conversations = [
            [user(picture(model, processor, 1), text("a blue cat")), assistant(picture(model, processor, 2))],
            [user(picture(model, processor, 3)), assistant(text("two cats left of a pizza"))],
        ]
        inputs = processor.encode_conversations(conversations, supervise_features=request.param == "uvu")
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = model(**inputs)
        losses = {"text": outputs.text_loss, "image": outputs.image_loss}
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
        return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model

    return updated


def test_an_update_is_that_of_float32(updated):
    (expected, slopes, _), (losses, half_slopes, model) = updated(False), updated(True)
    for kind, loss in losses.items():
        assert loss.dtype == torch.float32 and len(loss) == len(expected[kind]) > 0
        assert float(loss.mean()) == pytest.approx(float(expected[kind].mean()), rel=LOSS), kind
    assert not torch.equal(losses["text"], expected["text"]), "nothing was computed in half precision"
    assert half_slopes.keys() == slopes.keys()
    assert all(slope.isfinite().all() for slope in half_slopes.values())
    one, other = (torch.cat([each[name].flatten() for name in slopes]) for each in (slopes, half_slopes))
    assert float(torch.cosine_similarity(one, other, dim=0)) > COSINE
    assert float(other.norm()) == pytest.approx(float(one.norm()), rel=2 * LOSS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
