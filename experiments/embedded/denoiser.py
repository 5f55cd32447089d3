"""What is trained: text encoder and transformer as one module, its flow loss, its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from experiments.embedded.config import TRAIN_TIMESTEPS
from experiments.embedded.tokenizer import attention_mask
from experiments.embedded.training import adamw

CAPTION_DROPOUT = 0.1
UNIFORM_SHARE = 0.25


class Denoiser(nn.Module):
    """From a noisy latent, a time and a caption to the direction from data to noise."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel):
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict `noise - data` as the pipeline would have it.

        Args:
            noisy: [B, 4, 16, 16].
            timestep: int64 [B], 0 to 999.
            tokens: int64 [B, T], padded with 0.
        """
        mask = attention_mask(tokens)
        text = self.text_encoder(tokens, attention_mask=mask)[0]
        predicted: Tensor = self.transformer(
            noisy,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            timestep=timestep,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return predicted

    def speed_up(self) -> None:
        """Fuse and compile for training; parameters and their names stay as they are."""
        self.transformer.set_attn_processor(FusedAttention())
        for block in self.transformer.transformer_blocks:
            block.compile(fullgraph=True, dynamic=False)


@torch.no_grad()
def carry_words(
    text_encoder: T5EncoderModel, earlier: Mapping[str, int], vocabulary: Mapping[str, int]
) -> T5EncoderModel:
    """The same encoder for another vocabulary (token to id); new words start as the mean word."""
    trained = text_encoder.get_input_embeddings().weight
    config = {**text_encoder.config.to_dict(), "vocab_size": len(vocabulary)}
    carried = T5EncoderModel(T5Config.from_dict(config))
    parameters = dict(carried.named_parameters())
    for name, value in text_encoder.named_parameters():
        if value is not trained:
            parameters[name].copy_(value)
    words = carried.get_input_embeddings().weight
    words.copy_(trained.mean(0).expand_as(words))
    shared = sorted(vocabulary.keys() & earlier.keys())
    words[[vocabulary[word] for word in shared]] = trained[[earlier[word] for word in shared]]
    return carried


class FusedAttention:
    """Attention of PixArt with one product for q, k, v (or k, v), on separate parameters.

    At width 320 training is bound by memory: reading the input once is worth the concatenation.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Same as diffusers' default processor for [B, N, C] inputs and a bias [B, 1, T]."""
        if encoder_hidden_states is None:
            query, key, value = _joint(hidden_states, attn.to_q, attn.to_k, attn.to_v)
        else:
            query = attn.to_q(hidden_states)
            key, value = _joint(encoder_hidden_states, attn.to_k, attn.to_v)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        bias = None
        if attention_mask is not None:
            shape = (*query.shape[:3], key.shape[2])
            bias = attention_mask.to(query.dtype).unsqueeze(1).expand(shape)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        output: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return output


def _joint(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    return F.linear(x, weight, bias).chunk(len(linears), dim=-1)


def sample_sigma(count: int, device: torch.device) -> Tensor:
    """Noise levels in (0, 1): mostly logit-normal, where there is most to learn; [count]."""
    middle = torch.randn(count, device=device).sigmoid()
    uniform = torch.rand(count, device=device)
    sigma = torch.where(torch.rand(count, device=device) < UNIFORM_SHARE, uniform, middle)
    return sigma.clamp(0.001, 0.999)


def flow_loss(denoiser: Denoiser, latents: Tensor, tokens: Tensor, empty: Tensor) -> Tensor:
    """Mean squared error of rectified flow, a scalar.

    Args:
        denoiser: predicts the direction.
        latents: float32 [B, 4, 16, 16].
        tokens: int64 [B, T].
        empty: int64 [T], put in place of a tenth of the captions for guidance.
    """
    sigma = sample_sigma(len(latents), latents.device)
    # The scheduler passes the integer part to the model, so the model learns from that.
    timestep = (sigma * TRAIN_TIMESTEPS).long()
    noise = torch.randn_like(latents)
    mix = sigma[:, None, None, None]
    noisy = (1 - mix) * latents + mix * noise
    dropped = torch.rand(len(latents), device=latents.device) < CAPTION_DROPOUT
    tokens = torch.where(dropped[:, None], empty, tokens)
    dtype = denoiser.transformer.dtype
    predicted = denoiser(noisy.to(dtype), timestep, tokens)
    return F.mse_loss(predicted.float(), noise - latents)


class Weights:
    """Weights in float32 behind a module that computes in bfloat16, and their moving average."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the module's weights; `decay` is the average's."""
        self._names = [name for name, _ in module.named_parameters()]
        self._computing: list[Tensor] = list(module.parameters())
        self._master = [p.detach().float().clone() for p in self._computing]
        self._average = [p.clone() for p in self._master]
        self._gradients = [torch.zeros_like(p) for p in self._master]
        for master, gradient in zip(self._master, self._gradients, strict=True):
            master.grad = gradient
        self._decay = decay
        self.optimizer = adamw(self._master, betas=(0.9, 0.98))

    @torch.no_grad()
    def step(self, step: int, clip: float = 1.0) -> Tensor:
        """Apply the module's gradients, of norm `clip` at most; returns their norm."""
        gradients = [p.grad for p in self._computing if p.grad is not None]
        torch._foreach_copy_(self._gradients, gradients)
        norm = torch.nn.utils.clip_grad_norm_(self._master, clip)
        self.optimizer.step()
        self.publish()
        for parameter in self._computing:
            parameter.grad = None
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._master, 1 - decay)
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Give the module its weights."""
        torch._foreach_copy_(self._computing, self._master)

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything to save, by name."""
        return dict(self._named("master", self._master)) | dict(
            self._named("average", self._average)
        )

    @torch.no_grad()
    def write_average(self, module: nn.Module) -> None:
        """Copy the average into a module of the same make."""
        for parameter, average in zip(module.parameters(), self._average, strict=True):
            parameter.copy_(average)

    def _named(self, kind: str, values: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, value in zip(self._names, values, strict=True):
            yield f"{kind}/{name}", value
