"""transformers' own tests of processors and image processors, applied to our classes. Started by test_conformance.py.

`tests` is here the folder of that name from transformers' source distribution, not ours.
"""

import unittest
from unittest.mock import patch

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin

import modeling_unified  # noqa: F401  registers the classes, so that the Auto classes of the tests find them
from processing_unified import UnifiedImageProcessor, UnifiedProcessor
from train.tokenizer import train_tokenizer

TEXTS = ["lower newer", "upper older longer string", "What is the capital of France?", "Describe this."]


class UnifiedImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs):
        super().__init__(parent, size={"height": 16, "width": 24}, stride=8, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": UnifiedImageProcessor}  # else they are looked up by the name of the test's folder


class UnifiedImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = UnifiedImageProcessingTester

    @unittest.skip("images are always brought to RGB, transparent ones laid on white: no model here has 4 channels")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skip("for models inside of transformers; Pillow and numpy are what every installation has")
    def test_new_models_require_torchvision_backend(self):
        pass


class UnifiedProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = UnifiedProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return train_tokenizer(TEXTS, vocab_size=300)

    @classmethod
    def _setup_image_processor(cls):
        return UnifiedImageProcessor(size={"height": 16, "width": 24}, stride=8)

    def setUp(self):
        # Saving writes an `auto_map` into the live processor, which the tests then compare with a fresh one.
        for of_ours in (UnifiedProcessor, UnifiedImageProcessor):
            unregistered = patch.object(of_ours, "_auto_class", None)
            unregistered.start()
            self.addCleanup(unregistered.stop)

    def get_processor(self, use_tiny_ckpt: bool = True) -> UnifiedProcessor:
        """Drops the system turns of the tests' conversations: these models know a user and an assistant alone."""
        processor = super().get_processor(use_tiny_ckpt)
        apply = processor.apply_chat_template

        def without_system(conversations: list, **kwargs):
            if isinstance(conversations[0], dict):
                return apply(conversations, **kwargs)
            return apply([[turn for turn in each if turn["role"] != "system"] for each in conversations], **kwargs)

        processor.apply_chat_template = without_system
        return processor

    @unittest.skip("its template has no [SOS], which our call then puts in front: that shifts the characters it counts")
    def test_apply_chat_template_assistant_mask(self):
        pass

    @unittest.skip("it wants transformers' words; ours say which text lacks an image (tests/processing_unified)")
    def test_if_input_has_mismatching_tokens_and_mm_data(self):
        pass


class UnifiedProcessorWithFeaturesTest(UnifiedProcessorTest):
    """The same where an image is read through codes and features."""

    @staticmethod
    def prepare_processor_dict():
        return {"image_inputs": ["codes", "features"], "feature_stride": 4}
