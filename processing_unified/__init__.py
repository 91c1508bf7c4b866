"""Text, images and conversations to model inputs, and model outputs back to text and images.

Shipped to the Hub with a model (this file is not: it only registers). Never imports modeling_unified.
"""

from .image_processing_unified import UnifiedImageProcessor
from .processing_unified import UnifiedProcessor

UnifiedImageProcessor.register_for_auto_class()
UnifiedProcessor.register_for_auto_class()

__all__ = ["UnifiedImageProcessor", "UnifiedProcessor"]
