"""Classes that derive from diffusers' own; imported only once diffusers is."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from dirotq.checkpoint import CheckpointError, attach, check_names, install, of_layer, verify
from dirotq.linear import QuantInput, QuantLinear
from dirotq.transforms import Transform


class QuantMethod(StrEnum):
    """diffusers asks for an enumeration here."""

    DIROTQ = "dirotq"


class DiRotQConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a checkpoint; `dirotq.checkpoint` documents its fields."""

    def __init__(self, **fields: Any) -> None:
        fields.pop("quant_method", None)
        self.quant_method = QuantMethod.DIROTQ
        self.__dict__.update(fields)

    def to_diff_dict(self) -> dict[str, Any]:
        """Every field: none has a default to leave out."""
        fields: dict[str, Any] = self.to_dict()
        return fields


class DiRotQQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Loads quantized checkpoints; making one takes calibration, which `dirotq.quantize` does."""

    requires_calibration = True
    required_packages = ("accelerate",)

    def __init__(self, quantization_config: DiRotQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._layers: dict[str, QuantLinear] = {}
        self._stored: dict[str, Tensor] = {}

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """Unquantized layers keep the dtype they were saved in unless the caller names one."""
        saved: torch.dtype = getattr(torch, self.quantization_config.dtype)
        return torch_dtype or saved

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        self._layers = install(model, self.quantization_config.to_dict())

    def update_missing_keys(
        self, model: nn.Module, missing_keys: list[str], prefix: str
    ) -> list[str]:
        """Called by diffusers before it reads a tensor; raises CheckpointError if any is missing."""
        expected = set(model.state_dict())
        check_names(expected, expected.difference(missing_keys))
        return missing_keys

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, *args: Any, **kwargs: Any
    ) -> bool:
        """Whether a tensor belongs to a quantized layer and is to be taken as it is."""
        return isinstance(_owner(model, param_name), QuantLinear | QuantInput | Transform)

    def check_quantized_param_shape(
        self, param_name: str, current_param: Tensor, loaded_param: Tensor
    ) -> bool:
        """Called by diffusers only when the shapes differ, so this always raises CheckpointError."""
        found, expected = tuple(loaded_param.shape), tuple(current_param.shape)
        raise CheckpointError(f"tensor {param_name} has shape {found}, expected {expected}")

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Tensor],
        unexpected_keys: list[str],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Put a tensor in place as it is stored, straight from the file's memory to its device.

        `param_value` was already cast to the model's dtype. unexpected_keys: of the whole checkpoint; raises
        CheckpointError if there are any.
        """
        check_names(set(), set(unexpected_keys))
        self._stored[param_name] = stored = state_dict[param_name]
        # All tensors of quantized layers are buffers.
        _owner(model, param_name)._buffers[param_name.rpartition(".")[2]] = stored.to(target_device)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        config = self.quantization_config.to_dict()
        # As they were read: hooks may have moved them since, and from a GPU they would have to come back.
        verify(
            {name: of_layer(name, its, self._stored) for name, its in self._layers.items()}, config
        )
        self._stored = {}
        attach(model, {**config, "quant_method": "dirotq"})
        return model

    @property
    def is_serializable(self) -> bool:
        """`save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Rounding has no gradient."""
        return False


def _owner(model: nn.Module, tensor_name: str) -> nn.Module:
    return model.get_submodule(tensor_name.rpartition(".")[0])
