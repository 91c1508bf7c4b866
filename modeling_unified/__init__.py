"""Registers the models, the processor and the pipeline with transformers. Importing this package is all it takes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.pipelines import PIPELINE_REGISTRY

from processing_unified import UnifiedImageProcessor, UnifiedProcessor

from .codecs_unified import CODECS, KLCodec, PatchCodec, VQCodec
from .configuration_unified import PARADIGMS, KLCodecConfig, PatchCodecConfig, UnifiedConfig, VQCodecConfig
from .generation_unified import UnifiedGenerateOutput, UnifiedStreamer
from .modeling_unified import UnifiedForConditionalGeneration, UnifiedModel
from .pipeline_unified import TextToImagePipeline

AutoConfig.register(UnifiedConfig.model_type, UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
for codec in CODECS.values():
    AutoConfig.register(codec.config_class.model_type, codec.config_class)
    AutoModel.register(codec.config_class, codec)
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(UnifiedConfig, UnifiedForConditionalGeneration)
AutoImageProcessor.register(UnifiedConfig, image_processor_classes={"pil": UnifiedImageProcessor})
AutoProcessor.register(UnifiedConfig, UnifiedProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "text-to-image", TextToImagePipeline, pt_model=(AutoModelForMultimodalLM,), type="multimodal"
)
# By this table `transformers serve` tells whether a model is one, and what it reads.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[UnifiedConfig.model_type] = UnifiedForConditionalGeneration.__name__
# Saving a checkpoint ships the code of these classes beside it.
UnifiedConfig.register_for_auto_class()
UnifiedModel.register_for_auto_class("AutoModel")
UnifiedForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")

__all__ = [
    "PARADIGMS",
    "KLCodec",
    "KLCodecConfig",
    "PatchCodec",
    "PatchCodecConfig",
    "TextToImagePipeline",
    "UnifiedConfig",
    "UnifiedForConditionalGeneration",
    "UnifiedGenerateOutput",
    "UnifiedImageProcessor",
    "UnifiedModel",
    "UnifiedProcessor",
    "UnifiedStreamer",
    "VQCodec",
    "VQCodecConfig",
]
