"""transformers' own model tests, applied to our classes. Started by test_conformance.py, which fetches those tests.

`tests` is here the folder of that name from transformers' source distribution, not ours.
"""

import unittest
from unittest.mock import patch

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.models.auto import modeling_auto

from modeling_unified import UnifiedConfig, UnifiedForConditionalGeneration, UnifiedModel

# By these two tables the tests know which class has no loss and which labels the other takes.
modeling_auto.MODEL_MAPPING_NAMES["unified"] = "UnifiedModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["unified"] = "UnifiedForConditionalGeneration"


class UnifiedModelTester:
    """Sizes and inputs: B rows, each with one image of 4x4 tokens between [SOI] and [EOI], then text."""

    batch_size = 7  # as many rows as transformers' tests run: they fill missing ones with random ids
    image_size = 8
    num_image_tokens = 16
    num_text_tokens = 6
    code_offset = 40
    num_codes = 24
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    seq_length = 1 + 1 + num_image_tokens + 1 + num_text_tokens
    encoder_seq_length = seq_length
    is_training = True

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def get_config(self) -> UnifiedConfig:
        return UnifiedConfig(
            text_config={
                "model_type": "llama",
                "vocab_size": self.code_offset + self.num_codes,
                "hidden_size": self.hidden_size,
                "intermediate_size": 37,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "pad_token_id": 0,
            },
            codec_config={
                "model_type": "unified_vq",
                "down_block_types": ["DownEncoderBlock2D"] * 2,
                "up_block_types": ["UpDecoderBlock2D"] * 2,
                "block_out_channels": [8, 16],
                "latent_channels": 4,
                "vq_embed_dim": 4,
                "num_vq_embeddings": self.num_codes,
                "norm_num_groups": 4,
            },
            image_size=[self.image_size, self.image_size],
            code_offset=self.code_offset,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            boi_token_id=3,
            eoi_token_id=4,
            mask_token_id=5,
            image_token_id=6,
            image_feature_token_id=7,
        )

    def text_ids(self, shape: list[int], vocab_size: int | None = None) -> torch.Tensor:
        return ids_tensor(shape, self.code_offset - 8) + 8

    def prepare_config_and_inputs_for_common(self) -> tuple[UnifiedConfig, dict[str, torch.Tensor]]:
        config = self.get_config()

        def column(token_id: int, count: int = 1) -> torch.Tensor:
            return torch.full((self.batch_size, count), token_id, device=text.device)

        text = self.text_ids([self.batch_size, self.num_text_tokens])
        slots = column(config.image_token_id, self.num_image_tokens)
        begin = torch.cat([column(config.bos_token_id), column(config.boi_token_id)], dim=1)
        input_ids = torch.cat([begin, slots, column(config.eoi_token_id), text], dim=1)
        pixel_values = floats_tensor([self.batch_size, 3, self.image_size, self.image_size])
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": pixel_values,
        }


class UnifiedModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (UnifiedModel, UnifiedForConditionalGeneration)
    all_generative_model_classes = ()  # tests of generation are not in the source distribution
    _is_composite = True
    test_resize_embeddings = False  # text and codes share the matrix: its size belongs to the codec too
    additional_model_inputs = ["pixel_values"]  # slots without their images are refused
    skip_test_image_features_output_shape = True  # they are as wide as the language model; there is no vision_config

    def setUp(self):
        self.model_tester = UnifiedModelTester(self)
        self.config_tester = ConfigTester(self, config_class=UnifiedConfig, has_text_modality=False)
        # Random ids of the tests' own are text: a slot among them would need an image.
        text_ids = patch("tests.test_modeling_common.ids_tensor", self.model_tester.text_ids)
        text_ids.start()
        self.addCleanup(text_ids.stop)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """Asks for the image as well as the text, so that both losses are there."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if "labels" in inputs and "input_ids" in inputs:
            slot = self.model_tester.get_config().image_token_id
            inputs["labels"][inputs["input_ids"] == slot] = slot
        return inputs

    @unittest.skip("codes are looked up in the embedding: reading an image has no layers")
    def test_get_image_features_hidden_states(self):
        pass

    @unittest.skip("codes are looked up in the embedding: reading an image has no attention")
    def test_get_image_features_attentions(self):
        pass

    @unittest.skip("this test calls a dictionary as soon as a model has a bool buffer (active_codes)")
    def test_torch_save_load(self):
        pass

    @unittest.skip("image targets are found by their slots in input_ids: no training on shards of a sequence")
    def test_causal_lm_loss_honors_shift_labels(self):
        pass
