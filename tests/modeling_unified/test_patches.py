"""Patches of pixels as tokens, images read at their own size, and the prediction of what is read (UVU).

K codewords, S side of a patch, R images that are read, M features of all of them, T sequence.
"""

import pytest
import torch
from transformers import AutoModel

from modeling_unified import PatchCodec, PatchCodecConfig, UnifiedConfig, UnifiedForConditionalGeneration
from modeling_unified import codecs_unified as codecs
from modeling_unified.encoders_unified import into_patches, merge_squares


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return PatchCodec(PatchCodecConfig(patch_size=4, num_codewords=50)).eval()


@pytest.fixture
def model(make_tiny_config, sharp):
    return sharp(make_tiny_config("uvu"))


@pytest.fixture
def processor(model, make_tiny_processor):
    return make_tiny_processor(model.config)


def test_what_is_made_of_codewords_comes_back_to_the_byte(codec):
    codes_BL = torch.randint(50, (2, 2 * 3))
    pixels = codec.decode(codes_BL, (2, 3))
    assert pixels.shape == (2, 3, 8, 12) and pixels.dtype == torch.float32
    assert torch.equal(codec.encode(pixels), codes_BL)
    top_right = ((pixels[:, :, :4, 8:] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(top_right, codec.codebook[codes_BL[:, 2]])  # raster order


def test_the_nearest_codeword_is_found_block_by_block(codec, monkeypatch):
    """Against all distances in float64, whatever the sizes of the blocks; of equal codewords the first."""
    codec.codebook[40] = codec.codebook[7]
    codec.codebook.clamp_(100, 156)  # near each other, so that patches fall on many
    pixels = torch.rand(3, 3, 16, 20).mul(0.5).sub(0.25)
    patches_ND = codecs.into_tiles(pixels, 4).flatten(1).double()
    codebook_KD = (codec.codebook.double() / 127.5 - 1).flatten(1)
    expected = torch.cdist(patches_ND, codebook_KD).argmin(1).view(3, -1)
    assert len(expected.unique()) > 5
    for patches, codewords in ((1024, 8192), (7, 3), (1, 50)):
        monkeypatch.setattr(codecs, "PATCHES_AT_ONCE", patches)
        monkeypatch.setattr(codecs, "CODEWORDS_AT_ONCE", codewords)
        assert torch.equal(codec.encode(pixels), expected)


def test_large_images_and_half_precision_keep_the_codes(codec):
    codes_BL = torch.randint(50, (1, 128 * 160))
    pixels = codec.decode(codes_BL, (128, 160))
    assert pixels.shape == (1, 3, 512, 640)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(pixels), codes_BL)
    assert codec.to(torch.bfloat16).codebook.dtype == torch.uint8
    assert torch.equal(codec.encode(pixels), codes_BL)


def test_the_codebook_is_stored_as_bytes(codec, tmp_path):
    codec.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is PatchCodec and torch.equal(again.codebook, codec.codebook)
    assert (tmp_path / "model.safetensors").stat().st_size < 50 * 3 * 4 * 4 + 500


@pytest.mark.parametrize("wrong", [{"patch_size": 0}, {"num_codewords": 0}])
def test_a_codebook_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        PatchCodecConfig(**wrong)


def test_pixels_that_patches_do_not_divide_are_refused(codec):
    with pytest.raises(ValueError, match="10x8 is not a multiple of the codec's stride 4"):
        codec.encode(torch.zeros(1, 3, 10, 8))
    with pytest.raises(ValueError, match="5 codes per image do not fill a grid of 2x3"):
        codec.decode(torch.zeros(1, 5, dtype=torch.long), (2, 3))


def test_a_codebook_of_another_patch_size_is_refused(make_tiny_config, tmp_path, codec):
    model = UnifiedForConditionalGeneration(make_tiny_config("uvu"))
    with pytest.raises(RuntimeError, match="codebook"):
        model.model.codec.load_state_dict(codec.state_dict())


def test_merged_features_show_the_same_pixels_as_a_codeword():
    """Cut into 1x1 patches and merged by 2x2, an image becomes its 2x2 patches, in raster order."""
    pixels_CHW = torch.arange(3 * 4 * 6.0).view(3, 4, 6)
    small_NF = into_patches(pixels_CHW, 1)
    merged = merge_squares(small_NF, (4, 6), 2).unflatten(1, (2, 2, 3)).permute(0, 3, 1, 2)
    assert torch.equal(merged, codecs.into_tiles(pixels_CHW[None], 2))


def test_images_of_many_sizes_in_one_batch_are_each_what_they_are_alone(model, processor, make_image):
    """Native sizes and aspect ratios; positions are one to one with the codewords of the same pixels."""
    images = [make_image(1, 8, 8), make_image(2, 6, 10), make_image(3, 2, 4)]
    image = processor.tokenizer.image_token
    inputs = processor(images=[[each] for each in images], text=[image] * 3)
    assert inputs["feature_sizes"].tolist() == [[8, 8], [6, 10], [2, 4]]
    assert inputs["feature_pixel_values"].shape == (3, 3, 8, 10)
    views = {name: inputs[name] for name in ("feature_pixel_values", "feature_sizes")}
    together = model.get_image_features(**views).pooler_output
    tokens_M = model.model.encode_read_images(**views)
    alone = [processor(images=[each], text=[image]) for each in images]
    assert [len(each) for each in together] == [16, 15, 2]
    for own, embeds_NH, codes_N in zip(alone, together, tokens_M.split([16, 15, 2]), strict=True):
        assert int((own["input_ids"] == model.config.image_feature_token_id).sum()) == len(embeds_NH)
        (single,) = model.get_image_features(feature_pixel_values=own["feature_pixel_values"]).pooler_output
        torch.testing.assert_close(single, embeds_NH, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.model.codec.encode(own["feature_pixel_values"])[0], codes_N)
    assert len(tokens_M.unique()) > 4


@pytest.mark.parametrize(
    "size, limit, expected",
    [
        ((8, 8), 64, (8, 8)),
        ((7, 9), 64, (8, 8)),  # to the nearest whole feature; 3.5 rounds to even
        ((40, 40), 64, (16, 16)),
        ((20, 80), 64, (8, 32)),
        ((2, 400), 64, (2, 128)),  # a long image: one side is raised to one feature, the other cut to the limit
    ],
)
def test_the_own_size_of_an_image(make_tiny_config, make_tiny_processor, make_image, size, limit, expected):
    processor = make_tiny_processor(make_tiny_config("uvu"))
    processor.max_features = limit
    inputs = processor(images=[make_image(1, *size)], text=[processor.tokenizer.image_token])
    assert tuple(inputs["feature_sizes"][0].tolist()) == expected
    assert expected[0] * expected[1] // 4 <= limit


def test_an_image_smaller_than_a_feature_is_refused(processor, make_image):
    with pytest.raises(ValueError, match="image 1: it is 1x9 .height x width., less than a token of 2 pixels"):
        processor(images=[make_image(1), make_image(2, 1, 9)], text=[processor.tokenizer.image_token * 2])


def test_sizes_that_do_not_fit_their_pixels_are_refused(model, processor, make_image):
    inputs = processor(images=[make_image(1)], text=[processor.tokenizer.image_token])
    with pytest.raises(ValueError, match=r"feature_sizes \[\[8, 12\]\] do not fit feature_pixel_values \[1, 3, 8, 8\]"):
        model(**inputs | {"feature_sizes": torch.tensor([[8, 12]])})


def test_a_tower_of_one_size_takes_no_mixture(make_tiny_config, sharp):
    vision = make_tiny_config("unifluid").vision_config.to_dict()
    model = sharp(make_tiny_config("uvu", vision_config=vision, spatial_merge_size=1))
    sizes = torch.tensor([[8, 8], [4, 8]])
    with pytest.raises(ValueError, match="takes images of one size at a time"):
        model.get_image_features(feature_pixel_values=torch.zeros(2, 3, 8, 8), feature_sizes=sizes)


def captioned(processor, make_image, **arguments):
    """One conversation with an image that is read, one that is text, one with another, larger image."""
    conversations = [
        [
            {"role": "user", "content": [{"type": "image", "image": make_image(1)}]},
            {"role": "assistant", "content": "a red heart"},
        ],
        [{"role": "assistant", "content": "two cats"}],
        [
            {"role": "user", "content": [{"type": "image", "image": make_image(2, 6, 10)}]},
            {"role": "assistant", "content": "a blue circle"},
        ],
    ]
    return processor.encode_conversations(conversations, **arguments)


@pytest.mark.parametrize("offset", [1, 0])
def test_each_feature_predicts_the_codeword_of_its_place(make_tiny_config, sharp, processor, make_image, offset):
    """Offset 1: the hidden state before a feature predicts what it shows; 0: its own. Written out by hand."""
    model = sharp(make_tiny_config("uvu", visual_target_offset=offset))
    batch = captioned(processor, make_image, supervise_features=True)
    output = model(**batch, output_hidden_states=True)
    hidden_BTH, config = output.hidden_states[-1], model.config
    codes = iter(model.model.encode_read_images(batch["feature_pixel_values"], batch["feature_sizes"]))
    expected = []
    for row, ids_T in enumerate(batch["input_ids"]):
        for place in (ids_T == config.image_feature_token_id).nonzero()[:, 0].tolist():
            logits_K = model.lm_head(hidden_BTH[row, place - offset])[config.code_offset :]
            expected.append(-logits_K.log_softmax(-1)[next(codes)])
    assert len(expected) == 31
    torch.testing.assert_close(output.image_loss, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_supervision_changes_no_text_loss_and_can_be_given_its_tokens(model, processor, make_image):
    plain, supervised = (captioned(processor, make_image, supervise_features=on) for on in (False, True))
    codes_M = model.model.encode_read_images(supervised["feature_pixel_values"], supervised["feature_sizes"])
    outputs = [model(**plain), model(**supervised), model(**supervised, feature_tokens=codes_M)]
    assert len(outputs[0].image_loss) == 0 and len(outputs[1].image_loss) == 31
    assert torch.equal(outputs[0].text_loss, outputs[1].text_loss)
    assert torch.equal(outputs[1].image_loss, outputs[2].image_loss)
    changed = model(**supervised, feature_tokens=(codes_M + 1) % 16)
    assert not torch.isclose(changed.image_loss, outputs[1].image_loss).all()


def test_labels_that_were_taken_back_cost_nothing(model, processor, make_image):
    """A dropped target keeps its place among the others."""
    batch = captioned(processor, make_image, supervise_features=True)
    whole = model(**batch).image_loss
    features_BT = batch["labels"] == model.config.image_feature_token_id
    keep_M = torch.arange(int(features_BT.sum())) % 3 == 0
    batch["labels"][features_BT] = torch.where(keep_M, model.config.image_feature_token_id, -100)
    torch.testing.assert_close(model(**batch).image_loss, whole[keep_M])


def test_fine_tuning_leaves_the_rows_of_the_codes_exactly_alone(make_tiny_config, sharp, processor, make_image):
    """Without image loss no code row gets a gradient, tied or not: text and codes do not share a softmax."""
    for tied in (True, False):
        model = sharp(make_tiny_config("uvu", tie_word_embeddings=tied)).train()
        offset = model.config.code_offset
        for supervise in (False, True):
            model.zero_grad()
            model(**captioned(processor, make_image, supervise_features=supervise)).loss.backward()
            rows_VH = model.lm_head.weight.grad
            assert bool(rows_VH[:offset].any()) and bool(rows_VH[offset:].any()) == supervise


def test_a_joint_softmax_is_a_switch(make_tiny_config, sharp, processor, make_image):
    batch = captioned(processor, make_image)
    losses = {
        joint: sharp(make_tiny_config("uvu", joint_softmax=joint))(**batch).text_loss.mean() for joint in (False, True)
    }
    assert losses[False] < losses[True]  # fewer rivals


def test_labels_without_a_codeword_are_refused(make_tiny_config, sharp, model, processor, make_image):
    batch = captioned(processor, make_image, supervise_features=True)
    apart = sharp(make_tiny_config("uvu", spatial_merge_size=1))
    with pytest.raises(ValueError, match="a feature shows 1 pixels a side, an image token 2"):
        apart.model.encode_read_images(batch["feature_pixel_values"], batch["feature_sizes"])
    with pytest.raises(ValueError, match="31 labels on 31 placeholders, but 30 image tokens"):
        model(**batch, feature_tokens=torch.zeros(30, dtype=torch.long))
    with pytest.raises(ValueError, match="31 labels are image placeholders, but no images were passed"):
        inputs_embeds = model.get_input_embeddings()(batch["input_ids"])
        model(inputs_embeds=inputs_embeds, labels=batch["labels"])
    batch["labels"][1, 2] = model.config.image_feature_token_id
    with pytest.raises(ValueError, match="32 labels on 31 placeholders"):
        model(**batch)


def test_a_model_without_features_supervises_none(tiny_processor):
    with pytest.raises(ValueError, match="there are no features to supervise"):
        tiny_processor.encode_conversations([], supervise_features=True)


def test_paper_scale():
    """Qwen2.5-3B, SigLIP2-so400m and 200,000 codewords of 32x32 pixels, without memory for them."""
    config = UnifiedConfig.for_paradigm("uvu")
    with torch.device("meta"):
        model = UnifiedForConditionalGeneration(config)
    assert model.model.codec.codebook.shape == (200_000, 3, 32, 32)
    assert model.lm_head.weight.shape == (151_936 + 200_000, 2048)
    assert config.feature_stride == config.codec_config.stride == 32
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    embedding = model.get_input_embeddings().weight.numel()
    assert count["language_model"] - embedding == 2_774_773_760  # Qwen2.5: 2.77 billion without embeddings
    assert 0.40e9 < count["encoders"] < 0.45e9
    assert count["codec"] == 0
