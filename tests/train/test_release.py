"""A finished run becomes a folder with the same weights in half the bytes, which says where it came from."""

import json

import pytest
import torch

from modeling_unified import UnifiedForConditionalGeneration
from train.release import half, read_records, release


def write_run(folder, trained, processor, name, **starts_from):
    trained.save_pretrained(folder)
    processor.save_pretrained(folder)
    record = {"recipe": {"name": name, **{part: str(path) for part, path in starts_from.items()}}, "seconds": 1}
    (folder / "training.json").write_text(json.dumps(record))


def test_release_halves_the_weights_and_keeps_the_drawings(tiny_model, tiny_processor, tmp_path):
    write_run(tmp_path / "text", tiny_model, tiny_processor, "spark/text")
    write_run(tmp_path / "run", tiny_model, tiny_processor, "spark/ugen", text_model=tmp_path / "text")
    release(tmp_path / "run", tmp_path / "card", {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 5})

    released = UnifiedForConditionalGeneration.from_pretrained(tmp_path / "card")
    assert released.dtype == torch.float32
    assert released.generation_config.image_sampling == {"guidance_scale": 1.5, "temperature": 0.9, "top_k": 5}
    weights = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "card", tmp_path / "run")]
    assert weights[0] < 0.55 * weights[1]
    for name, tensor in tiny_model.state_dict().items():
        torch.testing.assert_close(released.state_dict()[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert list(json.loads((tmp_path / "card" / "training.json").read_text())) == ["spark/text", "spark/ugen"]


def test_the_records_of_all_runs_before_are_kept(tiny_model, tiny_processor, tmp_path):
    write_run(tmp_path / "codec", tiny_model, tiny_processor, "spark/kl")
    write_run(tmp_path / "first", tiny_model, tiny_processor, "spark/unifluid", codec=tmp_path / "codec")
    starts_from = {"codec": tmp_path / "codec", "model": tmp_path / "first"}
    write_run(tmp_path / "longer", tiny_model, tiny_processor, "spark/unifluid-longer", **starts_from)
    assert list(read_records(tmp_path / "longer")) == ["spark/kl", "spark/unifluid", "spark/unifluid-longer"]


def test_an_unfinished_run_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="not finished"):
        release(tmp_path, tmp_path / "card", {})


@pytest.mark.parametrize("sampling", [{"num_inference_steps": 5}, {"guidance_scale": -1.0}])
def test_settings_that_the_head_does_not_take_are_refused(tiny_model, tiny_processor, tmp_path, sampling):
    write_run(tmp_path / "run", tiny_model, tiny_processor, "spark/ugen")
    with pytest.raises(ValueError, match=next(iter(sampling))):
        release(tmp_path / "run", tmp_path / "card", sampling)
    assert not (tmp_path / "card").exists()


def test_weights_beyond_half_precision_are_refused():
    assert half("a", torch.tensor([True])).dtype == torch.bool
    with pytest.raises(ValueError, match="lm_head holds values up to 1e\\+05, beyond float16"):
        half("lm_head", torch.tensor([1e5]))
