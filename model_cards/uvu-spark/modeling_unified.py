"""The unified model: one language model that reads and writes text and images. Read this file first.

    pixels --codec--> tokens --head.embed--> slots ------------+
    pixels --vision tower--> features --> feature placeholders +--> language model --> lm_head: the next text token
    text ids --embedding--> everything else -------------------+                   --> image head: the next image token

The hidden state at a position predicts the position after it, for text and for images. No branch here names a
paradigm: the parts are looked up once, in the constructor.

A slot is filled with an image token, whether the image is read or written; a feature placeholder with what the vision
tower saw of an image that is read. Which images have slots, and which features, the processor has decided.

Labels on feature placeholders are visual supervision (UVU): there the codec's token of what the feature shows is
predicted, although the image is read and not written.

B batch, T sequence, N images or positions, R images that are read as features, L tokens of an image, M features of all
images together, C channels, H hidden size (height in pixel shapes), W width, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .codecs_unified import CODECS
from .configuration_unified import UnifiedConfig
from .encoders_unified import ENCODERS, ImageBatch
from .generation_unified import UnifiedGenerationMixin
from .heads_unified import HEADS, START_BY_THEMSELVES
from .language_head_unified import LanguageHead
from .orders_unified import ORDERS, check_order, next_places, places_of_slots, put_in_order, raster

if TYPE_CHECKING:  # saving follows relative imports by their text: this line ships the pipeline's file to the Hub
    from .pipeline_unified import TextToImagePipeline  # noqa: F401


@dataclass
class UnifiedOutput(CausalLMOutputWithPast):
    """Adds the unreduced losses of each kind: float32 [number of predicted text, or image, tokens]."""

    text_loss: torch.FloatTensor | None = None
    image_loss: torch.FloatTensor | None = None


class UnifiedPreTrainedModel(PreTrainedModel):
    config_class = UnifiedConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["codec"]  # in half precision many a latent falls to another code
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, use_safetensors: bool | None = True, **kwargs):
        """As of any model of transformers, but that weights are read from safetensors.

        Raises:
            ValueError: a repository that holds a pickle instead, which may run whatever its author wished when it is
                read. Who trusts the author passes `use_safetensors=None`.
        """
        try:
            loaded = super().from_pretrained(*args, use_safetensors=use_safetensors, **kwargs)
        except OSError as error:
            if use_safetensors and "model.safetensors" in str(error):
                raise ValueError(
                    f"{args[0] if args else kwargs.get('pretrained_model_name_or_path')} holds no weights as "
                    "safetensors. A pickle (pytorch_model.bin) is not read, since it may run code: ask its author for "
                    "model.safetensors, or, if you trust it, load it with use_safetensors=None and save it again"
                ) from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.base_model.codec.requires_grad_(False)  # loading makes every parameter trainable
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, START_BY_THEMSELVES):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class UnifiedModel(UnifiedPreTrainedModel):
    """The backbone with the parts around it: hidden states, no predictions."""

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.language_model = backbone(config.text_config)
        self.codec = CODECS[config.image_codec](config.codec_config).requires_grad_(False)
        self.encoders = nn.ModuleDict({name: ENCODERS[name](config) for name in config.image_inputs})
        self.image_head = HEADS[config.image_head](config)
        self.image_order = ORDERS[config.image_order](config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, L] of pixels [N, C, H, W] in [-1, 1]."""
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            return self.codec.encode(pixel_values)

    def encode_read_images(
        self, feature_pixel_values: torch.Tensor, feature_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Image tokens [M] or [M, D] of what the vision tower is shown, one for each feature of all images in turn.

        Raises:
            ValueError: features and tokens that do not show the same squares of pixels.
        """
        if self.config.feature_stride != self.config.codec_config.stride:
            raise ValueError(
                f"a feature shows {self.config.feature_stride} pixels a side, an image token "
                f"{self.config.codec_config.stride}: such features cannot be supervised, leave their labels out"
            )
        images = images_of_sizes(feature_pixel_values, feature_sizes)
        tokens: list[torch.Tensor] = [None] * len(images)
        for shape in {image.shape for image in images}:
            alike = [index for index, image in enumerate(images) if image.shape == shape]
            encoded = self.encode_images(torch.stack([images[index] for index in alike]))
            for index, tokens_L in zip(alike, encoded, strict=True):
                tokens[index] = tokens_L
        return torch.cat(tokens)

    def embed_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, L, H] of image tokens, as the language model is fed them."""
        return self.image_head.embed(image_tokens, self.get_input_embeddings())

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_pixel_values: torch.Tensor | None = None,
        feature_sizes: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Embeddings of images that are read, in `pooler_output`: a list of [placeholders, H], one for each image.

        Args:
            pixel_values: the codec's view, [N, C, H, W] in [-1, 1]; or `image_tokens`, computed before.
            feature_pixel_values: the vision tower's view, [R, C, H, W], padded at the right and below.
            feature_sizes: [R, 2], height and width in pixels of each image in it; by default all of it.

        Raises:
            ValueError: views of different numbers of images.
        """
        if image_tokens is None and pixel_values is not None:
            image_tokens = self.encode_images(pixel_values)
        view = images_of_sizes(feature_pixel_values, feature_sizes)
        if image_tokens is not None and view is not None and len(image_tokens) != len(view):
            raise ValueError(
                f"the codec sees {len(image_tokens)} images, the vision tower {len(view)}: pass both views of each (a "
                "pipeline of transformers that batches conversations keeps the first view of each: batch_size=1)"
            )
        images = ImageBatch(image_tokens, self.embed_image_tokens, view)
        parts = zip(*(encoder(images) for encoder in self.encoders.values()), strict=True)
        embeds = [torch.cat(parts_of_image) for parts_of_image in parts]
        return BaseModelOutputWithPooling(last_hidden_state=pad_sequence(embeds, True), pooler_output=embeds)

    def embed(
        self,
        input_ids: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        feature_pixel_values: torch.Tensor | None = None,
        feature_sizes: torch.Tensor | None = None,
        images: BaseModelOutputWithPooling | None = None,
        image_orders: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Inputs of the language model [B, T, H]: ids embedded, placeholders filled, places told.

        Args:
            image_tokens: of all images that have slots, by place.
            feature_pixel_values, feature_sizes: of all images that have feature placeholders.
            images: instead of both, everything already embedded by `get_image_features`.
            image_orders: [N, L], in what order an image's tokens stand in its slots; raster by default.
        """
        embeds_BTH = self.get_input_embeddings()(input_ids)
        slots_BT = input_ids == self.config.image_token_id
        features_BT = input_ids == self.config.image_feature_token_id
        if images is not None:
            return self.put_images(embeds_BTH, slots_BT, features_BT, images)
        tokens_embedded = features_embedded = embeds_BTH.new_zeros(0, embeds_BTH.shape[-1])
        if image_tokens is not None:
            if image_orders is not None:
                check_order(image_orders, image_tokens.shape[1])
                image_tokens = put_in_order(image_tokens, image_orders)
            tokens_embedded = self.embed_image_tokens(image_tokens).flatten(0, 1)
        if feature_pixel_values is not None:
            view = images_of_sizes(feature_pixel_values, feature_sizes)
            features_embedded = torch.cat(self.encoders["features"](ImageBatch(None, self.embed_image_tokens, view)))
        embeds_BTH = fill(embeds_BTH, slots_BT, tokens_embedded, "image")
        embeds_BTH = fill(embeds_BTH, features_BT, features_embedded, "feature")
        return self.with_places(embeds_BTH, places_of_slots(slots_BT, image_orders))

    def put_images(
        self,
        embeds_BTH: torch.Tensor,
        slots_BT: torch.Tensor,
        features_BT: torch.Tensor,
        images: BaseModelOutputWithPooling,
    ) -> torch.Tensor:
        """Images that are read, as `get_image_features` embeds them, into all of their placeholders."""
        embeds_BTH = fill(embeds_BTH, slots_BT | features_BT, torch.cat(images.pooler_output), "image")
        return self.with_places(embeds_BTH, places_of_slots(slots_BT))

    def with_places(self, embeds_BTH: torch.Tensor, own_BT: torch.Tensor) -> torch.Tensor:
        """Adds the places of the slots themselves, and of the slots that follow."""
        return self.image_order(embeds_BTH, own_BT, next_places(own_BT))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_pixel_values: torch.FloatTensor | None = None,
        feature_sizes: torch.LongTensor | None = None,
        image_orders: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, H]. Images come as pixels, as tokens, or already embedded; see `embed`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, and not both")
        images = (mm_encoder_outputs or {}).get("image")
        if image_tokens is None and pixel_values is not None:
            image_tokens = self.encode_images(pixel_values)
        if input_ids is not None:
            inputs_embeds = self.embed(
                input_ids, image_tokens, feature_pixel_values, feature_sizes, images, image_orders
            )
        elif images is not None or image_tokens is not None or feature_pixel_values is not None:
            images = images or self.get_image_features(
                None, image_tokens, feature_pixel_values, feature_sizes, return_dict=True
            )
            slots_BT = self.embeds_of(self.config.image_token_id, inputs_embeds)
            features_BT = self.embeds_of(self.config.image_feature_token_id, inputs_embeds)
            inputs_embeds = self.put_images(inputs_embeds, slots_BT, features_BT, images)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def embeds_of(self, token_id: int, embeds_BTH: torch.Tensor) -> torch.Tensor:
        """Where the embedding of a placeholder stands, bool [B, T]."""
        ids = torch.tensor(token_id, device=embeds_BTH.device)
        return (embeds_BTH == self.get_input_embeddings()(ids)).all(-1)  # the module: Gemma's scales its rows


def backbone(text_config: PreTrainedConfig) -> PreTrainedModel:
    """The language model alone: Chameleon's holds the encoder of its VQ-GAN too, whose work the codec does here."""
    model = AutoModel.from_config(text_config)
    if hasattr(model, "vqmodel"):
        del model.vqmodel
    return model


def images_of_sizes(pixels_RCHW: torch.Tensor | None, sizes_R2: torch.Tensor | None) -> list[torch.Tensor] | None:
    """R images [C, H, W] without the padding that made them one tensor."""
    if pixels_RCHW is None or sizes_R2 is None:
        return None if pixels_RCHW is None else list(pixels_RCHW)
    if len(sizes_R2) != len(pixels_RCHW) or bool((sizes_R2 > sizes_R2.new_tensor(pixels_RCHW.shape[-2:])).any()):
        raise ValueError(
            f"feature_sizes {sizes_R2.tolist()} do not fit feature_pixel_values {list(pixels_RCHW.shape)}: pass both "
            "as the processor made them"
        )
    return [pixels_CHW[:, :h, :w] for pixels_CHW, (h, w) in zip(pixels_RCHW, sizes_R2.tolist(), strict=True)]


def fill(embeds_BTH: torch.Tensor, holes_BT: torch.Tensor, filling_NH: torch.Tensor, kind: str) -> torch.Tensor:
    """Puts image embeddings where the placeholders are, row by row from left to right."""
    holes = int(holes_BT.sum())
    if holes != len(filling_NH):
        raise ValueError(
            f"{holes} {kind} slots in the sequence, but the images have {len(filling_NH)} tokens: "
            "pass the images the text was made with, at the same size"
        )
    if not holes:
        return embeds_BTH
    return embeds_BTH.masked_scatter(holes_BT[..., None], filling_NH.to(embeds_BTH.device, embeds_BTH.dtype))


class UnifiedForConditionalGeneration(UnifiedPreTrainedModel, UnifiedGenerationMixin):
    """Predicts the next token, of text or of an image, and draws and writes with `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    output_modalities = ("image", "text")

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.model = UnifiedModel(config)
        self.lm_head = LanguageHead(config.text_config)
        self.post_init()

    def save_pretrained(self, *args, **kwargs) -> None:
        # A config marked as derived from the model's loses what transformers does not know when it is loaded again.
        self.generation_config._from_model_config = False
        super().save_pretrained(*args, **kwargs)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, L] of pixels [N, C, H, W] in [-1, 1]."""
        return self.model.encode_images(pixel_values)

    def get_image_features(self, pixel_values: torch.Tensor | None = None, **kwargs) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    @torch.no_grad()
    def reconstruct(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels [N, C, H, W] after a round trip through the codec: the best any drawing of this model can look."""
        codec = self.model.codec
        return codec.decode(self.encode_images(pixel_values), codec.grid(*pixel_values.shape[-2:])).float()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.FloatTensor | None = None,
        image_tokens: torch.Tensor | None = None,
        feature_pixel_values: torch.FloatTensor | None = None,
        feature_sizes: torch.LongTensor | None = None,
        feature_tokens: torch.Tensor | None = None,
        image_orders: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs,
    ) -> UnifiedOutput:
        """Predictions, and losses where `labels` are given.

        Args:
            labels: [B, T], -100 where nothing is predicted, the slot's id where an image token is, a feature's id
                where the token of what that feature shows is.
            pixel_values: images [N, C, H, W] in [-1, 1], in the order of their slots over the batch.
            image_tokens: their tokens [N, L] or [N, L, D], by place, computed before, instead of pixels.
            feature_pixel_values: images [R, C, H, W] as the vision tower is shown them, in the order of their
                placeholders, padded at the right and below; `feature_sizes` [R, 2] are their true heights and widths.
            feature_tokens: image tokens [M] or [M, D] of all features, for labels on them; see `encode_read_images`,
                which makes them where they are needed and not given.
            image_orders: [N, L], in what order the tokens of each image stand in its slots. By default the model's own
                order for images that are predicted, raster for those that are read.
            skip_logits: leave out the logits, which for a large vocabulary cost more than the model; by default in
                training with labels.
            num_items_in_batch: what the summed losses are divided by; by default the number of predicted tokens.
        """
        if shift_labels is not None:  # the Trainer passes them instead of labels when it cuts sequences over devices
            raise ValueError("shift_labels are not supported, hence no context parallelism: pass labels")
        if image_tokens is None and pixel_values is not None:
            image_tokens = self.encode_images(pixel_values)
        if image_orders is None and labels is not None and image_tokens is not None and input_ids is not None:
            image_orders = self.orders_of(input_ids, labels, image_tokens)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_tokens=image_tokens,
            feature_pixel_values=feature_pixel_values,
            feature_sizes=feature_sizes,
            image_orders=image_orders,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_BTH = outputs.last_hidden_state
        logits = loss = text_loss = image_loss = None
        if not (self.training and labels is not None if skip_logits is None else skip_logits):
            last = isinstance(logits_to_keep, int)  # 0 keeps all, since slice(-0, None) does
            logits = self.lm_head(hidden_BTH[:, slice(-logits_to_keep, None) if last else logits_to_keep])
        if labels is not None:
            if image_orders is not None:
                image_tokens = put_in_order(image_tokens, image_orders)
            supervised = feature_pixel_values is not None and feature_tokens is None
            if supervised and bool((labels == self.config.image_feature_token_id).any()):
                feature_tokens = self.model.encode_read_images(feature_pixel_values, feature_sizes)
            text_loss, image_loss = self.losses(hidden_BTH, labels, input_ids, image_tokens, feature_tokens)
            predicted = max(1, len(text_loss) + len(image_loss)) if num_items_in_batch is None else num_items_in_batch
            loss = (text_loss.sum() + image_loss.sum()) / predicted
        return UnifiedOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_loss=text_loss,
            image_loss=image_loss,
        )

    def orders_of(
        self, input_ids: torch.Tensor, labels_BT: torch.Tensor, image_tokens: torch.Tensor
    ) -> torch.Tensor | None:
        """The model's own order for images with labels, raster for the others, int64 [N, L]."""
        count, length = image_tokens.shape[:2]
        slots_BT = input_ids == self.config.image_token_id
        if int(slots_BT.sum()) != count * length:
            return None  # a mistake that `fill` names
        written_N1 = labels_BT[slots_BT].view(count, length)[:, :1] == self.config.image_token_id
        drawn_NL = self.model.image_order.draw(count, length, written_N1.device)
        return torch.where(written_N1, drawn_NL, raster(count, length, written_N1.device))

    def losses(
        self,
        hidden_BTH: torch.Tensor,
        labels_BT: torch.Tensor,
        input_ids: torch.Tensor | None,
        image_tokens: torch.Tensor | None,
        feature_tokens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unreduced losses of the text and of the image tokens that `labels_BT` asks for.

        `image_tokens` are given as they stand in the slots, and so are `feature_tokens`. Losses of written tokens come
        before those of read ones.
        """
        config, head, labels_BT = self.config, self.model.image_head, labels_BT.to(hidden_BTH.device)
        slot, feature = config.image_token_id, config.image_feature_token_id
        text_BT = (labels_BT != -100) & (labels_BT != slot) & (labels_BT != feature)
        text = predicting(hidden_BTH, text_BT, 1), labels_BT[:, 1:][text_BT[:, 1:]]
        hidden, targets = [], []
        for kind, tokens, offset in ((slot, image_tokens, 1), (feature, feature_tokens, config.visual_target_offset)):
            asked_BT = labels_BT == kind
            if not bool(asked_BT.any()):
                continue
            if tokens is None or input_ids is None:
                asked = int(asked_BT.sum())
                raise ValueError(f"{asked} labels are image placeholders, but no images were passed with input_ids")
            holes_BT = input_ids == kind
            tokens = tokens.flatten(0, 1) if kind == slot else tokens
            if len(tokens) != int(holes_BT.sum()) or bool((asked_BT & ~holes_BT).any()):
                raise ValueError(
                    f"{int(asked_BT.sum())} labels on {int(holes_BT.sum())} placeholders, but {len(tokens)} image "
                    "tokens: labels stand on placeholders, and each of these has a token"
                )
            hidden.append(predicting(hidden_BTH, asked_BT, offset))
            targets.append(tokens[asked_BT[holes_BT]])
        image = (torch.cat(hidden), torch.cat(targets)) if hidden else None
        z_loss_weight = config.z_loss_weight if self.training else 0.0  # in evaluation a loss is a likelihood
        return head.losses(text, image, self.lm_head, z_loss_weight)


def predicting(hidden_BTH: torch.Tensor, targets_BT: torch.Tensor, offset: int) -> torch.Tensor:
    """Hidden states [N, H] that stand `offset` positions before the targets, in their order."""
    positions = hidden_BTH.shape[1] - offset
    return hidden_BTH[:, :positions][targets_BT[:, offset:]]


__all__ = ["UnifiedForConditionalGeneration", "UnifiedModel", "UnifiedOutput", "UnifiedPreTrainedModel"]
