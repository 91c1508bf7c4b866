"""`pipeline("text-to-image")`: a prompt in, PIL images out.

    pipe = pipeline("text-to-image", model="model_cards/ugen-spark")
    pipe("a cat left of a pizza, noto style", seed=1)[0]["generated_image"].save("cat.png")

A prompt is a string or a conversation whose last turn is the user's. Each prompt gives a list of
`{"generated_image": PIL.Image}`, `num_images_per_prompt` of them.
"""

from typing import Any

import torch
from transformers import Pipeline

GENERATE_ARGUMENTS = (
    "do_sample", "temperature", "top_k", "top_p", "guidance_scale", "guidance_schedule", "num_inference_steps",
    "image_order", "image_size", "image_sampling", "seed", "use_cache",
)  # fmt: skip


class TextToImagePipeline(Pipeline):
    """Draws with any model that generates with `generation_mode="image"` and its processor."""

    _load_processor = True
    _load_tokenizer = True  # batches are padded by it
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(
        self,
        negative_prompt: str | None = None,
        num_images_per_prompt: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        if unknown := kwargs.keys() - set(GENERATE_ARGUMENTS):
            raise ValueError(f"text-to-image takes no {sorted(unknown)}; it takes {sorted(GENERATE_ARGUMENTS)}")
        forward = {**(generate_kwargs or {}), **kwargs}
        if num_images_per_prompt is not None:
            forward["num_return_sequences"] = num_images_per_prompt
        preprocess = {} if negative_prompt is None else {"negative_prompt": negative_prompt}
        return preprocess, ({"generate_kwargs": forward} if forward else {}), {}

    def _tokens(self, prompt: str | list[dict]) -> dict[str, Any]:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        return self.processor.apply_chat_template(
            getattr(prompt, "messages", prompt),  # pipelines wrap a conversation in a `Chat`
            add_generation_prompt=True,
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def preprocess(self, inputs: str | list[dict], negative_prompt: str | None = None) -> dict[str, Any]:
        model_inputs = self._tokens(inputs)
        if negative_prompt is not None:
            negative = self._tokens(negative_prompt)
            model_inputs["negative_prompt_ids"] = negative["input_ids"]
            model_inputs["negative_prompt_attention_mask"] = negative["attention_mask"]
        return model_inputs

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        arguments = self._prepare_generate_kwargs(generate_kwargs or {})
        arguments.pop("max_new_tokens", None)  # the grid decides how many tokens an image has
        drawn = self.model.generate(**model_inputs, generation_mode="image", return_dict_in_generate=True, **arguments)
        pixels_NCHW = torch.stack([pixels_CHW for row in drawn.images for pixels_CHW in row])
        # One entry for each prompt: a batch is taken apart along the first dimension.
        return {"pixels": pixels_NCHW.unflatten(0, (len(model_inputs["input_ids"]), -1))}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        pixels_NCHW = model_outputs["pixels"].flatten(0, 1)
        drawn = self.processor.post_process_multimodal_output(pixels_NCHW, generation_mode="image")
        return [{"generated_image": image} for image in drawn]
