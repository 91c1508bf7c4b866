"""The unified model: one language model that reads and writes text and images. Read this file first.

    pixels --codec--> tokens --head.embed--> slots ----+
    pixels --encoders--> features ---------------------+--> language model --> lm_head: the next text token
    text ids --embedding--> everything else -----------+                   --> image head: the next image token

The hidden state at a position predicts the position after it, for text and for images. No branch here names a
paradigm: the parts are looked up once, in the constructor.

B batch, T sequence, N images or positions, L tokens of an image, C channels, H hidden size (height in pixel shapes),
W width, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .codecs_unified import CODECS
from .configuration_unified import UnifiedConfig
from .encoders_unified import ENCODERS, ImageBatch
from .generation_unified import UnifiedGenerationMixin
from .heads_unified import HEADS, CategoricalHead, token_losses
from .orders_unified import ORDERS

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
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.base_model.codec.requires_grad_(False)  # loading makes every parameter trainable
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CategoricalHead):
            init.ones_(module.active_codes)


class UnifiedModel(UnifiedPreTrainedModel):
    """The backbone with the parts around it: hidden states, no predictions."""

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.codec = CODECS[config.image_codec](config.codec_config).requires_grad_(False)
        self.encoders = nn.ModuleDict({name: ENCODERS[name](config) for name in config.image_inputs})
        self.image_head = HEADS[config.image_head](config)
        self.image_order = ORDERS[config.image_order]
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, L] of pixels [N, C, H, W] in [-1, 1]."""
        with torch.no_grad():
            return self.codec.encode(pixel_values.to(self.codec.dtype))

    def embed_image_tokens(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, L, H] of image tokens, as the language model is fed them."""
        return self.image_head.embed(image_tokens, self.get_input_embeddings())

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_tokens: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Embeddings of each image in `pooler_output`, a list of [tokens, H]; from pixels or precomputed tokens."""
        if image_tokens is None:
            image_tokens = self.encode_images(pixel_values)
        images = ImageBatch(image_tokens, self.embed_image_tokens)
        features_NLH = torch.cat([encoder(images) for encoder in self.encoders.values()], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=features_NLH, pooler_output=list(features_NLH))

    def fill_slots(
        self, embeds_BTH: torch.Tensor, input_ids: torch.Tensor | None, images: BaseModelOutputWithPooling | None
    ) -> torch.Tensor:
        """Puts image embeddings where the placeholders are, row by row from left to right."""
        features = [] if images is None else images.pooler_output
        if input_ids is None:
            slot = torch.tensor(self.config.image_token_id, device=embeds_BTH.device)
            slots_BT = (embeds_BTH == self.get_input_embeddings()(slot)).all(-1)  # the module: Gemma's scales its rows
        else:
            slots_BT = input_ids == self.config.image_token_id
        num_slots, num_features = int(slots_BT.sum()), sum(map(len, features))
        if num_slots != num_features:
            raise ValueError(
                f"{num_slots} image slots in the sequence, but the images have {num_features} tokens: "
                "pass the images the text was made with, at the same size"
            )
        if not features:
            return embeds_BTH
        filled_NH = torch.cat(features).to(embeds_BTH.device, embeds_BTH.dtype)
        return embeds_BTH.masked_scatter(slots_BT[..., None], filled_NH)

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
        image_tokens: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, H]. Images come as pixels [N, C, H, W], as tokens [N, L], or already embedded."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, and not both")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        images = (mm_encoder_outputs or {}).get("image")
        if images is None and (pixel_values is not None or image_tokens is not None):
            images = self.get_image_features(pixel_values, image_tokens, return_dict=True)
        if images is not None or input_ids is not None:
            inputs_embeds = self.fill_slots(inputs_embeds, input_ids, images)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class UnifiedForConditionalGeneration(UnifiedPreTrainedModel, UnifiedGenerationMixin):
    """Predicts the next token, of text or of an image, and draws and writes with `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    output_modalities = ("image", "text")

    def __init__(self, config: UnifiedConfig):
        super().__init__(config)
        self.model = UnifiedModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def save_pretrained(self, *args, **kwargs) -> None:
        # A config marked as derived from the model's loses what transformers does not know when it is loaded again.
        self.generation_config._from_model_config = False
        super().save_pretrained(*args, **kwargs)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens [N, L] of pixels [N, C, H, W] in [-1, 1]."""
        return self.model.encode_images(pixel_values)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
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
        image_tokens: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs,
    ) -> UnifiedOutput:
        """Predictions, and losses where `labels` are given.

        Args:
            labels: [B, T], -100 where nothing is predicted, the slot's id where an image token is.
            pixel_values: images [N, C, H, W] in [-1, 1], in the order of their slots over the batch.
            image_tokens: their tokens [N, L], computed before, instead of pixels.
            skip_logits: leave out the logits, which for a large vocabulary cost more than the model; by default in
                training with labels.
            num_items_in_batch: what the summed losses are divided by; by default the number of predicted tokens.
        """
        if shift_labels is not None:  # the Trainer passes them instead of labels when it cuts sequences over devices
            raise ValueError("shift_labels are not supported, hence no context parallelism: pass labels")
        if image_tokens is None and pixel_values is not None:
            image_tokens = self.encode_images(pixel_values)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_tokens=image_tokens,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden_BTH = outputs.last_hidden_state
        logits = loss = text_loss = image_loss = None
        if not (self.training and labels is not None if skip_logits is None else skip_logits):
            last = isinstance(logits_to_keep, int)  # 0 keeps all, since slice(-0, None) does
            logits = self.lm_head(hidden_BTH[:, slice(-logits_to_keep, None) if last else logits_to_keep])
        if labels is not None:
            text_loss, image_loss = self.losses(hidden_BTH, labels, input_ids, image_tokens)
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

    def losses(
        self,
        hidden_BTH: torch.Tensor,
        labels_BT: torch.Tensor,
        input_ids: torch.Tensor | None,
        image_tokens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unreduced losses of the text and of the image tokens that `labels_BT` asks for."""
        before_BTH, next_BT = hidden_BTH[:, :-1], labels_BT[:, 1:].to(hidden_BTH.device)
        drawn_BT = next_BT == self.config.image_token_id
        text_BT = (next_BT != -100) & ~drawn_BT
        head, rows = self.model.image_head, self.lm_head.weight.shape[0]
        text_loss = token_losses(before_BTH[text_BT], next_BT[text_BT], self.lm_head, head.closed_rows(rows))
        if not bool(drawn_BT.any()):
            return text_loss, text_loss.new_zeros(0)
        if image_tokens is None or input_ids is None:
            raise ValueError(f"{int(drawn_BT.sum())} labels are image slots, but no images were passed with input_ids")
        drawn_of_slots = drawn_BT[input_ids[:, 1:] == self.config.image_token_id]
        return text_loss, head.loss(before_BTH[drawn_BT], image_tokens.flatten(0, 1)[drawn_of_slots], self.lm_head)


__all__ = ["UnifiedForConditionalGeneration", "UnifiedModel", "UnifiedOutput", "UnifiedPreTrainedModel"]
