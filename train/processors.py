"""The processor that writes what a model reads."""

from transformers import PreTrainedTokenizerBase

from modeling_unified.configuration_unified import UnifiedConfig
from processing_unified.image_processing_unified import UnifiedImageProcessor
from processing_unified.processing_unified import UnifiedProcessor


def build_processor(
    config: UnifiedConfig, tokenizer: PreTrainedTokenizerBase, max_features: int | None = None
) -> UnifiedProcessor:
    """The processor that writes what a model of this config reads. The vision tower sees the codec's own view, resized
    to what the tower was trained on where that is another size; with `max_features` an image at its own size; or tiles
    where the config has some.

    Where the tokenizer has several chat templates, as `train.pretrained` gives them to it, the processor has them too.
    """
    height, width = config.image_size
    several = isinstance(tokenizer.chat_template, dict)
    return UnifiedProcessor(
        UnifiedImageProcessor(size={"height": height, "width": width}),
        tokenizer,
        chat_template=tokenizer.chat_template if several else None,
        image_stride=config.codec_config.stride,
        image_inputs=config.image_inputs,
        feature_stride=config.feature_stride,
        feature_size=None if max_features or config.feature_tiles else size_of_tower(config),
        max_features=max_features,
        feature_tiles=config.feature_tiles,
        image_lines=config.image_lines,
        sep_token_id=config.sep_token_id,
    )


def size_of_tower(config: UnifiedConfig) -> dict[str, int] | None:
    """The size of a tower that takes one size, in whole patches; None where that is the codec's, or it takes any."""
    tower = config.vision_config
    if tower is None or tower.model_type != "siglip_vision_model":
        return None
    side = tower.image_size // config.feature_stride * config.feature_stride
    return None if config.image_size == [side, side] else {"height": side, "width": side}
