"""verl's FSDP engine, whose log-prob passes show signals when they are asked to. FSDP and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from tokencredit.trainers.verl.fields import ASKED
from tokencredit.trainers.verl.passes import States, WatchedPass, watch_pass


class CreditEngine(FSDPEngineWithLMHead):
    """Makes no pass of its own, and leaves verl's as they are: its output has some fields more."""

    _watched: WatchedPass | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._states: States = {}

    def forward_backward_batch(self, data: TensorDict, loss_function: Callable, forward_only: bool = False) -> Any:
        asked = tu.get_non_tensor_data(data, ASKED, default=None)
        if asked is not None and not asked.reference:
            self._states.clear()
        try:
            return super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        finally:
            if asked is not None and asked.reference:
                self._states.clear()

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        asked = tu.get_non_tensor_data(micro_batch, ASKED, default=None)
        if asked is None or not forward_only:
            return super().forward_step(micro_batch, loss_function, forward_only)
        on_device = micro_batch.to(get_device_id())
        tokenizer = self.model_config.tokenizer
        with watch_pass(self.module, on_device, asked, tokenizer, self._states) as self._watched:
            try:
                return super().forward_step(on_device, loss_function, forward_only)
            finally:
                self._watched = None

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        found = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        return found if self._watched is None else found | self._watched.fields(output, found)
