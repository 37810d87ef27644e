"""Runs `python -m verl.trainer.main_ppo`, unmodified, on a tiny policy with two workers on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from tokencredit.testbed.policy import PolicySize, build_policy, build_tokenizer

HERE = Path(__file__).parent
SIZE = PolicySize(width=32, layers=2, heads=2, kv_heads=1, feed_forward=48)
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
REWARD = """
def digits(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    return sum(map(str.isdigit, solution_str)) / max(1, len(solution_str))

def variety(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    score = len(set(solution_str)) / max(1, len(solution_str))
    return {"score": score, "acc": float(score > 0.4)}
"""


def policy_that_answers(seed=0):
    """A random policy that likes to end lines and its reasoning, so that steps and answers exist."""
    policy, tokenizer = build_policy(SIZE, seed), build_tokenizer()
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        embedding = policy.model.embed_tokens.weight
        common = 0.5 * torch.randn(embedding.shape[1], generator=noise)
        for text in ("</think>", "\n"):
            own = 0.05 * torch.randn(embedding.shape[1], generator=noise)
            embedding[tokenizer.convert_tokens_to_ids(text)] = common + own
    return policy


def write_assets(folder: Path, policy=None) -> Path:
    """A model folder, problems and a reward function; returns the folder."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (policy or policy_that_answers()).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    texts = [f"Q:a={i}+{i},b=1+{i}?a\n" + "ok" * (i % 3) for i in range(16)]
    rows = [
        {
            "data_source": "digits",
            "prompt": [{"role": "user", "content": text}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i},
        }
        for i, text in enumerate(texts)
    ]
    pd.DataFrame(rows).to_parquet(folder / "problems.parquet")
    (folder / "reward.py").write_text(REWARD)
    return folder


def arguments(assets: Path, out: Path, steps: int, **changed) -> list[str]:
    """Command line of a run; `changed` maps dotted names, with `__` for a dot, to values."""
    actor, rollout, model = (f"actor_rollout_ref.{name}" for name in ("actor", "rollout", "model"))
    settings = {
        "algorithm.adv_estimator": "grpo",
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": 2,
        "trainer.nnodes": 1,
        "data.train_files": assets / "problems.parquet",
        "data.val_files": assets / "problems.parquet",
        "data.train_batch_size": 4,
        "data.max_prompt_length": 24,
        "data.max_response_length": 16,
        "data.dataloader_num_workers": 0,
        "data.filter_overlong_prompts": False,
        "data.seed": 1,
        f"{model}.path": assets / "model",
        f"{model}.use_remove_padding": False,
        f"{model}.enable_gradient_checkpointing": False,
        f"+{model}.override_config.attn_implementation": "sdpa",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": 4,
        f"{actor}.ppo_micro_batch_size_per_gpu": 8,
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.model_dtype": "fp32",
        f"+{actor}.fsdp_config.mixed_precision.param_dtype": "fp32",
        f"{actor}.optim.lr": 1e-3,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
        f"{rollout}.name": "transformers_cpu",
        f"{rollout}.n": 4,
        f"{rollout}.tensor_model_parallel_size": 2,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": 8,
        f"{rollout}.agent.num_workers": 1,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.load_format": "auto",
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": assets / "reward.py",
        "reward.custom_reward_function.name": "digits",
        "trainer.logger": "[file]",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 10,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": steps,
        "trainer.project_name": "tests",
        "trainer.experiment_name": "cpu",
        "trainer.default_local_dir": out / "checkpoints",
        "trainer.resume_mode": "disable",
        "ray_kwargs.ray_init.num_cpus": 24,
        "+ray_kwargs.ray_init.num_gpus": 2,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 300_000_000,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }
    settings |= {name.replace("__", "."): value for name, value in changed.items()}
    return [f"{name}={value}" for name, value in settings.items() if value is not None]


@dataclass(frozen=True)
class Run:
    """What a run left behind. `metrics`: one mapping a step, with its number under "step"."""

    out: Path
    code: int
    log: str
    metrics: list[dict]

    def recorded(self, step: int, whose: str = "trained") -> dict[tuple[int, ...], dict]:
        """Token ids -> a completion of the step, with the advantages it was trained on, or that verl's own trainer
        has computed ("own")."""
        rows = torch.load(self.out / f"{whose}_{step}.pt", weights_only=True)
        return {(*row["prompts"].tolist(), -1, *row["responses"].tolist()): row for row in rows}

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """The trained weights of a checkpoint, whole: the shards of both workers, joined."""
        shards = [
            torch.load(
                self.out / f"checkpoints/global_step_{step}/actor/model_world_size_2_rank_{rank}.pt", weights_only=False
            )
            for rank in range(2)
        ]
        local = [{name: getattr(value, "_local_tensor", value) for name, value in shard.items()} for shard in shards]
        return {name: torch.cat([local[0][name], local[1][name]]) for name in local[0]}


def start(arguments: list[str], out: Path, **env_changed: str) -> subprocess.Popen:
    """A run with a Ray of its own."""
    out.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "cpu_platform,recording",
        "VERL_FILE_LOGGER_PATH": str(out / f"metrics_{time.time_ns()}.jsonl"),
        "RECORDINGS": str(out),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HYDRA_FULL_ERROR": "1",
        **env_changed,
    }
    # Ray's sockets lie there, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    command = [sys.executable, "-W", "ignore", "-m", "verl.trainer.main_ppo", *arguments]
    command.append(f"+ray_kwargs.ray_init._temp_dir={folder}")
    log = (out / "log").open("a")
    return subprocess.Popen(command, cwd=out, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen, out: Path, timeout: float = 420) -> Run:
    """Wait for a run; it is ended, with all that it started, when it takes too long."""
    try:
        process.wait(timeout)
    finally:
        stop(process)
    lines = [line for file in sorted(out.glob("metrics_*.jsonl")) for line in file.read_text().splitlines()]
    metrics = [{"step": row["step"], **row["data"]} for row in map(json.loads, lines)]
    return Run(out, process.returncode, (out / "log").read_text(), metrics)


def stop(process: subprocess.Popen) -> None:
    """End a run, and Ray's processes with it."""
    while running := processes_of(process):
        for each in running:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.poll()
        time.sleep(0.2)
    process.wait()
    for argument in process.args:
        if "_temp_dir=" in argument:
            shutil.rmtree(argument.split("=")[1], ignore_errors=True)


def processes_of(process: subprocess.Popen, name: str = "") -> list[int]:
    """The living processes of a run's session; those with `name` in their title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            number, title = int(folder.name), (folder / "cmdline").read_bytes()
            # A process that has ended, and that nobody has waited for, has no title.
            if title and os.getsid(number) == process.pid and name.encode() in title:
                found.append(number)
    return found


def run(assets: Path, out: Path, steps: int, env: dict[str, str] | None = None, **changed) -> Run:
    done = finish(start(arguments(assets, out, steps, **changed), out, **(env or {})), out)
    assert done.code == 0, done.log[-6000:]
    return done
