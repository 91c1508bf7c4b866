"""Smaller and elsewhere: a saved model of each row loads in half precision and in int8, its text part is exported, and
transformers' server answers with it.

torchao (int8) and what the server is made of (fastapi, uvicorn, openai) are no dependencies of ours: their tests run
where they are installed.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, TorchAoConfig, pipeline
from transformers.utils.import_utils import is_serve_available

from modeling_unified import UnifiedForConditionalGeneration
from modeling_unified.configuration_unified import PARADIGMS

ROOT = Path(__file__).parents[1]
SERVE = "import modeling_unified; from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module", params=PARADIGMS)
def saved(request, tmp_path_factory, make_tiny_row, make_tiny_processor) -> str:
    config = make_tiny_row(request.param)
    config.text_config.initializer_range = 0.2  # predictions that differ from place to place
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("deployment"))
    UnifiedForConditionalGeneration(config).save_pretrained(folder)
    make_tiny_processor(config).save_pretrained(folder)
    return folder


@pytest.fixture
def prompt(saved, make_image):
    words = {"type": "text", "text": "how many cats?"}
    chat = [{"role": "user", "content": [{"type": "image", "image": make_image()}, words]}]
    return AutoProcessor.from_pretrained(saved).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def distance(folder: str, other: torch.nn.Module, prompt) -> float:
    """Relative error of the other model's logits."""
    with torch.no_grad():
        expected = AutoModelForMultimodalLM.from_pretrained(folder)(**prompt).logits
        return float((other(**prompt).logits.float() - expected).norm() / expected.norm())


def draws_and_writes(model, folder: str, prompt) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    draw = pipeline("text-to-image", model=model, processor=processor)
    settings = {"num_inference_steps": 2} if model.config.image_head == "diffusion" else {}
    assert draw("a cat", seed=1, **settings)[0]["generated_image"].size == (8, 8)
    assert len(model.generate(**prompt, max_new_tokens=3, min_new_tokens=3)[0]) == len(prompt["input_ids"][0]) + 3


def test_half_precision(saved, prompt):
    """The codec stays in float32: in half precision many a latent falls to another code."""
    half = AutoModelForMultimodalLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.model.language_model.dtype == half.lm_head.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.model.codec.parameters()} <= {torch.float32}
    assert 0 < distance(saved, half, prompt) < 0.05  # measured: up to 0.014
    draws_and_writes(half, saved, prompt)


def test_int8(saved, prompt, tmp_path):
    """Weights of the language model and of what is around it; saved, it loads again as it was."""
    int8 = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
    asked = TorchAoConfig(int8, modules_to_not_convert=["model.codec", "lm_head"])
    small = AutoModelForMultimodalLM.from_pretrained(saved, quantization_config=asked)
    layer = small.model.language_model.layers[0].mlp.up_proj.weight
    assert type(layer.data) is not torch.Tensor and layer.qdata.dtype == torch.int8
    assert all(type(parameter.data) is torch.Tensor for parameter in small.model.codec.parameters())
    assert 0 < distance(saved, small, prompt) < 0.05  # measured: up to 0.024
    draws_and_writes(small, saved, prompt)
    small.save_pretrained(tmp_path)
    back = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(back(**prompt).logits, small(**prompt).logits)


class TextOnly(torch.nn.Module):
    """Embeddings in, since a graph cannot count the placeholders that ids hold; these are for no image."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        embeds_BTH = self.model.get_input_embeddings()(input_ids)
        return self.model(inputs_embeds=embeds_BTH, attention_mask=attention_mask, use_cache=False).logits


@torch.no_grad()
def test_text_is_exported_for_any_length(saved):
    model = AutoModelForMultimodalLM.from_pretrained(saved)
    short, long = (dict(AutoProcessor.from_pretrained(saved)(text=text)) for text in ("two", "a cat left of a pizza"))
    length = {1: torch.export.Dim("T", min=2, max=256)}
    shapes = {"input_ids": length, "attention_mask": length}
    exported = torch.export.export(TextOnly(model), (), long, dynamic_shapes=shapes).module()
    for inputs in (short, long):
        torch.testing.assert_close(exported(**inputs), model(**inputs).logits)


def test_ids_are_not_exported(saved):
    """What fails, and where: the count of placeholders is compared with that of the images."""
    model = AutoModelForMultimodalLM.from_pretrained(saved)
    inputs = dict(AutoProcessor.from_pretrained(saved)(text="a cat"))
    with pytest.raises(Exception, match=r"data-dependent expression(.|\n)*holes = int"):
        torch.export.export(model, (), inputs)


def asked(url: str, body: dict | None = None) -> dict:
    data = body and json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed")
def test_the_server_of_transformers_answers(saved):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"http://localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", SERVE, "serve", saved, "--port", url.rsplit(":")[-1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(120):
            try:
                assert asked(f"{url}/health") == {"status": "ok"}
                break
            except urllib.error.URLError:
                assert server.poll() is None, server.stderr.read()[-2000:]
                time.sleep(0.5)
        body = {"model": saved, "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 4}
        answer = asked(f"{url}/v1/chat/completions", body)
    finally:
        server.terminate()
        server.wait()
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    assert answer["usage"]["completion_tokens"] <= 4


def test_the_server_of_transformers_loads_our_class(saved):
    """Without fastapi and the rest: that part which finds the class, and what it reads."""
    model_manager = pytest.importorskip("transformers.cli.serving.model_manager", exc_type=ImportError)
    manager = model_manager.ModelManager(device="cpu", model_timeout=-1)
    model, processor = manager.load_model_and_processor(manager.process_model_name(saved))
    assert isinstance(model, UnifiedForConditionalGeneration)
    assert manager.get_model_modality(model, processor) == model_manager.Modality.MULTIMODAL
