"""Fixtures of the evaluation tests.

model_folder  a tiny random model that reads and draws 64 x 64 pixels, saved as a Hub repository would hold it
"""

import pytest
import torch


@pytest.fixture(scope="session")
def model_folder(make_tiny_config, trained_tokenizer, tmp_path_factory):
    from modeling_unified import UnifiedForConditionalGeneration
    from processing_unified import UnifiedImageProcessor, UnifiedProcessor

    codec = make_tiny_config().codec_config.to_dict() | {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 8, 8, 16],
    }
    torch.manual_seed(0)
    model = UnifiedForConditionalGeneration(make_tiny_config(codec_config=codec, image_size=[64, 64]))
    image_processor = UnifiedImageProcessor(size={"height": 64, "width": 64}, stride=8)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    UnifiedProcessor(image_processor, trained_tokenizer, image_stride=8).save_pretrained(folder)
    return folder
