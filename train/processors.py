"""The processor that writes what a model reads."""

from transformers import PreTrainedTokenizerBase

from modeling_unified.configuration_unified import UnifiedConfig
from processing_unified.image_processing_unified import UnifiedImageProcessor
from processing_unified.processing_unified import UnifiedProcessor


def build_processor(
    config: UnifiedConfig, tokenizer: PreTrainedTokenizerBase, max_features: int | None = None
) -> UnifiedProcessor:
    """The processor that writes what a model of this config reads; the vision tower sees the codec's own view, with
    `max_features` an image at its own size, or tiles where the config has some.

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
        max_features=max_features,
        feature_tiles=config.feature_tiles,
        image_lines=config.image_lines,
        sep_token_id=config.sep_token_id,
    )
