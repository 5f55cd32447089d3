"""How well images fit their prompts: CLIP score and ImageReward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dirotq.metrics.unavailable import required

IMAGE_REWARD = "ImageReward-v1.0"


@dataclass(frozen=True)
class Clip:
    """A CLIPModel of transformers in evaluation mode, and the processor of its inputs."""

    model: Any
    processor: Any


def load_clip(path: str, device: torch.device) -> Clip:
    """The model and processor of a folder or hub id.

    Raises:
        UnavailableError: they cannot be loaded.
    """
    with required(f"the CLIP model {path}"):
        from transformers import CLIPModel, CLIPProcessor

        model, processor = CLIPModel.from_pretrained(path), CLIPProcessor.from_pretrained(path)
    return Clip(model.to(device).eval(), processor)


def clip_score(clip: Clip, images: Tensor, texts: Sequence[str]) -> Tensor:
    """``100 max(cos, 0)`` of an image's and its text's embedding, higher fits better.

    Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021, with weight 100 instead
    of 2.5, as torchmetrics has it. Texts are cut to the model's length.

    Args:
        clip: from :func:`load_clip`.
        images: uint8 ``[B, H, W, 3]``.
        texts: B prompts.

    Returns:
        float64 ``[B]`` on the CPU.

    Raises:
        ValueError: another number of texts than of images.
    """
    _check_number(images, texts)
    inputs = clip.processor(
        text=list(texts),
        images=[image.numpy() for image in images],
        padding=True,
        truncation=True,
        max_length=clip.model.config.text_config.max_position_embeddings,
        return_tensors="pt",
    )
    with torch.inference_mode():
        output = clip.model(**inputs.to(clip.model.device))
    cosine: Tensor = (output.image_embeds.double() * output.text_embeds.double()).sum(dim=-1)
    return 100 * cosine.clamp(min=0).cpu()


def load_image_reward(device: torch.device) -> Any:
    """ImageReward-v1.0 by the package ``image-reward``.

    Version 1.5 of the package imports names that transformers 5 no longer has; it is unavailable beside it.

    Raises:
        UnavailableError: the package or its weights are not here.
    """
    with required(f"{IMAGE_REWARD} (package image-reward)"):
        import ImageReward

        return ImageReward.load(IMAGE_REWARD, device=str(device))


def image_reward(model: Any, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Human preference as ImageReward predicts it, about -2 to 2, higher is better (Xu et al., 2023).

    Args:
        model: from :func:`load_image_reward`; its ``score`` takes a prompt and a PIL image.
        images: uint8 ``[B, H, W, 3]``.
        texts: B prompts.

    Returns:
        float64 ``[B]``.

    Raises:
        ValueError: another number of texts than of images.
    """
    _check_number(images, texts)
    pictures = [Image.fromarray(image.numpy()) for image in images]
    scores = [model.score(text, picture) for text, picture in zip(texts, pictures, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


def _check_number(images: Tensor, texts: Sequence[str]) -> None:
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images need as many texts, got {len(texts)}")
