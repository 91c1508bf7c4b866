"""Loads a model folder through every Auto class and pipeline and tells what comes out, as plain numbers and strings.

test_hub.py calls `outputs` with our package, and runs this file as a script in a process that cannot import it:
`python -I hub_probe.py FOLDER RESAVED RESULT.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

OUR_PACKAGES = ("modeling_unified", "processing_unified")


def plain(value: Any) -> Any:
    """Tensors, images and nested containers of them as JSON values; floats keep every digit."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Image.Image):
        return np.asarray(value).tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def outputs(folder: str, **flag: bool) -> dict[str, Any]:
    """What the model in `folder` answers; `flag` goes to every loading call (`trust_remote_code=True` or nothing)."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    torch.set_num_threads(1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    words = {"type": "text", "text": "how many cats?"}
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, words]}]
    text_chat = [{"role": "user", "content": "two cats"}]
    brief = {"max_new_tokens": 4, "do_sample": False}

    config = transformers.AutoConfig.from_pretrained(folder, **flag)
    processor = transformers.AutoProcessor.from_pretrained(folder, **flag)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **flag)
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    found = {
        "config": [config.model_type, config.image_codec, config.image_head, config.num_codes],
        "processor": dict(inputs),
        "image processor": image_processor(image, return_tensors="pt")["pixel_values"],
    }
    with torch.no_grad():
        model = transformers.AutoModel.from_pretrained(folder, **flag)
        found["AutoModel"] = model(**inputs).last_hidden_state
        for name in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
            model = getattr(transformers, name).from_pretrained(folder, **flag)
            found[name] = model(**inputs).logits

    pipe = transformers.pipeline("text-generation", model=folder, **flag)
    found["text-generation"] = [pipe("two cats", **brief), pipe(text_chat, **brief)]
    pipe = transformers.pipeline("image-text-to-text", model=folder, **flag)
    found["image-text-to-text"] = [
        pipe(images=image, text="<|image_slot|>how many cats?\n", return_full_text=False, generate_kwargs=brief),
        pipe(text=chat, return_full_text=False, generate_kwargs=brief),
    ]
    pipe = transformers.pipeline("text-to-image", model=folder, **flag)
    found["text-to-image"] = [pipe("two cats", seed=1), pipe(["two cats", "a red heart"], seed=[1, 2], batch_size=2)]
    return plain(found)


def save_again(folder: str, target: str) -> None:
    """Saves the model and processor of `folder`, loaded as remote code, to `target`."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    AutoModelForMultimodalLM.from_pretrained(folder, trust_remote_code=True).save_pretrained(target)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained(target)


if __name__ == "__main__":
    folder, resaved, result = sys.argv[1:]
    for package in OUR_PACKAGES:
        sys.modules[package] = None  # importing it fails, even where it is installed
    first = outputs(folder, trust_remote_code=True)
    save_again(folder, resaved)
    second = outputs(resaved, trust_remote_code=True)
    Path(result).write_text(json.dumps({"first": first, "second": second}))
