"""What verl lacks to run without a GPU: a platform for the CPU, and rollouts by transformers' own `generate`.

verl imports this in every process (VERL_USE_EXTERNAL_MODULES). Rollouts are a function of prompt, step and how often
the prompt was asked, so that runs can be compared.
"""

from __future__ import annotations

import contextlib
import functools
import os
import types
import zlib
from collections import Counter

import ray
import torch
import torch.distributed.fsdp._init_utils as fsdp
import verl.utils.distributed as distributed
import verl.utils.fsdp_utils as fsdp_utils
from torch.distributed.fsdp import OffloadPolicy
from transformers import AutoModelForCausalLM
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

# verl would ask for "cpu:gloo,cpu:gloo", which torch refuses.
distributed.initialize_global_process_group_ray = functools.partial(
    distributed.initialize_global_process_group_ray, backend="cpu:gloo"
)

# FSDP would have parameters on a GPU before it sends them round; gloo sends those of the CPU as well.
fsdp._check_module_states_for_sync_module_states = lambda states: None
# It would move them to "cpu:cpu".
fsdp_utils.load_fsdp_model_to_gpu = lambda module: None
# A reference model is kept in pinned memory, which only an accelerator has.
fsdp_utils.CPUOffloadPolicy = lambda pin_memory: OffloadPolicy()


class DeviceModule(types.ModuleType):
    """torch.cpu, and nothing happens where it lacks what torch.cuda has."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        known = {
            "is_available": lambda: False,
            "get_device_name": lambda *_: "CPU",
            "mem_get_info": lambda *_: (1 << 34, 1 << 34),
        }
        return getattr(torch.cpu, name, known.get(name, lambda *_, **__: 0))


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DeviceModule("cpu_device"))

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return os.environ.get("VERL_PLATFORM") == "cpu"

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, message):
        yield

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def ray_resource_options(self, number):
        return {"num_gpus": number}

    def is_ipc_supported(self):
        return False

    def nothing(self, *_, **__):
        return None

    set_device = synchronize = set_allocator_settings = empty_cache = nothing
    profiler_start = profiler_stop = cudart = nothing


@ray.remote(num_cpus=0)
class Server:
    """Holds a copy of the policy, and completes prompts one at a time."""

    def __init__(self, path):
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.step, self.asked = 0, Counter()

    def load(self, state, step):
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        tied = {name for name in missing if name == "lm_head.weight"}
        assert not unexpected, unexpected
        assert set(missing) == tied, missing
        self.step = step

    async def generate(self, request_id, prompt_ids, sampling_params, image_data=None, video_data=None, **_):
        prompt, limit = (
            list(prompt_ids),
            sampling_params.get("max_tokens") or sampling_params.get("max_new_tokens") or 16,
        )
        self.asked[self.step, *prompt] += 1
        torch.manual_seed(zlib.crc32(repr((self.step, prompt, self.asked[self.step, *prompt])).encode()))
        given = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=True,
                temperature=float(sampling_params.get("temperature", 1.0)),
                top_k=0,
                max_new_tokens=limit,
                return_dict_in_generate=True,
                output_scores=True,
            )
        ids = out.sequences[0, len(prompt) :]
        logprobs = torch.stack([scores[0] for scores in out.scores]).float().log_softmax(-1)
        return TokenOutput(
            token_ids=ids.tolist(),
            log_probs=logprobs.gather(1, ids[:, None])[:, 0].tolist(),
            stop_reason="completed",
            extra_fields={"global_steps": self.step},
        )

    async def nothing(self, *_, **__):
        return None

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = nothing


class Replica(RolloutReplica):
    async def launch_servers(self):
        config = self.model_config
        path = config.path if hasattr(config, "path") else config["path"]
        self._server_handle = Server.options(name=f"rollouts_{self.replica_rank}").remote(path)
        self.servers, self._server_address = [self._server_handle], f"hf://{self.replica_rank}"


class Adapter(BaseRollout):
    """Sends the trained weights to the server of its replica, from one of the replica's workers."""

    async def resume(self, tags):
        pass

    async def release(self):
        pass

    async def update_weights(self, weights, wire_format="named_tensors", **kwargs):
        state = {name: tensor.detach().cpu().float() for name, tensor in weights}
        size = self.config.tensor_model_parallel_size
        replica, place = divmod(torch.distributed.get_rank(), size)
        if place == 0:
            server = ray.get_actor(f"rollouts_{replica}")
            await server.load.remote(state, kwargs.get("global_steps") or 0)


RolloutReplicaRegistry.register("transformers_cpu", lambda: Replica)
_ROLLOUT_REGISTRY[("transformers_cpu", "async")] = "cpu_platform.Adapter"


def register_own_engine():
    """verl's own engine, which workers get where VERL_ENGINE_VENDOR names a vendor that nobody has registered for."""
    # Not before there is a platform.
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithLMHead)


register_own_engine()
