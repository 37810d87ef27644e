"""What cannot run is refused when verl's trainer is made, before any worker starts."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from test_fields import BySize
from verl.trainer.ppo.utils import need_reference_policy
from verl.utils.config import validate_config

import tokencredit as tc
from tokencredit.trainers.verl.config import CreditSettings, check_run
from tokencredit.trainers.verl.trainer import CreditTrainer

EXAMPLES = Path(__file__).parents[2] / "examples"
LORA = "actor_rollout_ref.model.lora_rank=8"
FSDP = "actor_rollout_ref.actor.fsdp_config"
REFERENCE = "actor_rollout_ref.ref"
KL = "actor_rollout_ref.actor.use_kl_loss=True"
OVERLONG = ["+reward.reward_kwargs.overlong_buffer_cfg.enable=True", "reward.reward_manager.name=dapo"]


def config_of(*overrides):
    """verl's own configuration with a command line's overrides."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["algorithm.adv_estimator=grpo", *overrides])


def credit(name, **params):
    given = [f"+algorithm.credit.params.{key}={value}" for key, value in params.items()]
    return [f"+algorithm.credit.method={name}", *given]


def made(*overrides):
    config = config_of(*overrides)
    settings = CreditSettings.of(config)
    method = settings.build()
    check_run(config, method, settings)
    return method


@pytest.mark.parametrize("name", sorted(set(tc.methods()) - {"attnpo", "p2t"}))
def test_methods_are_named_by_a_word(name):
    adapter = [LORA] if tc.method(name).needs.adapter else []
    assert made(*credit(name), *adapter) == tc.method(name)


def test_parameters_are_those_of_the_method():
    assert made(*credit("rhythm", strategy="local", q=0.3, horizon="[2,8]")) == tc.method(
        "rhythm", strategy="local", q=0.3, horizon=(2, 8)
    )
    assert made(*credit("attnpo", heads="[[1,2],[3,0]]")) == tc.method("attnpo", heads=((1, 2), (3, 0)))


def test_divergence_takes_verls_reference_model():
    assert made(*credit("divergence"), "actor_rollout_ref.actor.use_kl_loss=True") == tc.method("divergence")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "name a credit method"),
        (["+algorithm.credit=rhythm"], "must be a mapping"),
        (credit("rythm"), "did you mean 'rhythm'"),
        (credit("rhythm", stategy="local"), "rhythm has no parameter 'stategy'"),
        (credit("rhythm", q=2), "q must be a number in"),
        (credit("attnpo"), "attnpo needs heads"),
        ([*credit("rhythm"), "+algorithm.credit.strategy=local"], "algorithm.credit has no 'strategy'"),
        ([*credit("rhythm"), "+algorithm.credit.splitter=words"], "splitter must be one of"),
        ([*credit("rhythm"), "+algorithm.credit.splitter=[words]"], "splitter must be one of"),
        ([*credit("rhythm"), "+algorithm.credit.answer='('"], "algorithm.credit.answer must be auto"),
        ([*credit("rhythm"), "+algorithm.credit.answer=5"], "algorithm.credit.answer must be auto"),
        ([*credit("rhythm"), "+algorithm.credit.end_of_reasoning=''"], "end_of_reasoning must be a text"),
        ([*credit("rhythm"), "+algorithm.credit.correct_reward=5"], "correct_reward must be a text"),
        ([*credit("rhythm"), "+algorithm.credit.correct_threshold=high"], "correct_threshold must be a number"),
        (credit("rhythm", amplification=0.2), "amplification must be at least alpha"),
        (credit("rhythm", horizon=5), "horizon must be"),
        ([*credit("rhythm"), "+algorithm.credit.kernels=cuda"], "kernels must be one of torch, fused, triton"),
        (["+algorithm.credit.method=rhythm", "+algorithm.credit.params=local"], "params must be a mapping"),
        (credit("p2t"), "p2t reads a reward model's gradients"),
        (credit("arca"), "reads what a LoRA adapter changes"),
        (credit("divergence"), "use_kl_loss=True"),
        ([*credit("uniform"), "algorithm.adv_estimator=gae"], "gae has advantages per token"),
        ([*credit("atpo"), "algorithm.rollout_correction.bypass_mode=True"], "leaves out"),
        ([*credit("atpo"), "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"], "reads whole sequences"),
        ([*credit("atpo"), "actor_rollout_ref.actor.strategy=veomni"], "use fsdp or fsdp2"),
        (
            [*credit("atpo"), f"+{FSDP}.tensor_model_parallel_size=2"],
            rf"{FSDP}\.tensor_model_parallel_size=2 splits them",
        ),
        ([*credit("atpo"), f"+{FSDP}.context_parallel_size=4"], rf"{FSDP}\.context_parallel_size=4 splits them"),
        (
            [*credit("surprisal"), f"{FSDP}.turbo_config.distributed.tensor_parallel_size=2"],
            "distributed.tensor_parallel_size=2 splits them",
        ),
        ([*credit("divergence"), KL, f"{REFERENCE}.ulysses_sequence_parallel_size=2"], "ref.ulysses_sequence_parallel"),
        ([*credit("divergence"), KL, f"{REFERENCE}.strategy=megatron"], "ref.strategy=megatron does not show"),
        ([*credit("attnpo", heads="[[0,1]]"), *OVERLONG], "takes a penalty off the score"),
        ([*credit("attnpo", heads="[[0,1]]"), "reward.reward_model.enable=True"], "the score that of a reward model"),
        (
            [
                *credit("surprisal"),
                "actor_rollout_ref.model.use_fused_kernels=True",
                "actor_rollout_ref.rollout.temperature=0.6",
            ],
            "use_fused_kernels=True gives those at",
        ),
    ],
)
def test_what_cannot_run_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        CreditTrainer(config_of(*overrides))


def test_settings_reach_the_run():
    given = ["+algorithm.credit.answer='Answer:'", "+algorithm.credit.correct_threshold=-0.5"]
    settings = CreditSettings.of(config_of(*credit("atpo"), *given))
    assert (settings.answer, settings.correct_threshold) == ("Answer:", -0.5)
    assert CreditSettings.of(config_of(*credit("atpo"))).answer == "auto"


def test_parameters_are_named_by_texts():
    with pytest.raises(ValueError, match="params must be a mapping from names to values"):
        CreditSettings("rhythm", {5: 1})


def test_heads_of_the_rollouts_may_be_split():
    """Only the actor, and a reference model that is read, must see whole sequences."""
    made(*credit("atpo"), "actor_rollout_ref.rollout.tensor_model_parallel_size=4")
    made(*credit("atpo"), f"{REFERENCE}.ulysses_sequence_parallel_size=2")
    made(*credit("position"), f"+{FSDP}.tensor_model_parallel_size=2")


@pytest.mark.parametrize("changed", [OVERLONG, ["reward.reward_model.enable=True"]])
def test_a_named_reward_says_what_is_correct(changed):
    made(*credit("attnpo", heads="[[0,1]]"), *changed, "+algorithm.credit.correct_reward=acc")
    made(*credit("atpo"), *changed)


def test_a_method_that_workers_cannot_apply_is_refused():
    config = config_of(*credit("uniform"))
    with pytest.raises(ValueError, match="by size reads the attention of whole layers"):
        check_run(config, BySize(tc.method("rhythm").needs), CreditSettings.of(config))
    check_run(config, BySize(), CreditSettings.of(config))


def test_what_reads_nothing_runs_without_the_pass():
    made(
        *credit("position"), "algorithm.rollout_correction.bypass_mode=True", "actor_rollout_ref.actor.strategy=veomni"
    )


@pytest.mark.parametrize("example", ["verl_8_gpus.sh", "verl_two_nodes.sh"])
def test_examples_are_what_verl_understands(example):
    words = shlex.split((EXAMPLES / example).read_text().replace("\\\n", " "), comments=True)
    given = words[words.index("verl.trainer.main_ppo") + 1 : words.index("$@")]
    config = config_of(*(word for word in given if word != "algorithm.adv_estimator=grpo"))
    settings = CreditSettings.of(config)
    method = settings.build()
    check_run(config, method, settings)
    OmegaConf.resolve(config)
    # For an adapter verl would look at vLLM itself.
    config.actor_rollout_ref.model.lora_rank = 0
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=False)
