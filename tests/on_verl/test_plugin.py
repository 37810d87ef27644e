"""verl finds the plugin by itself, in any process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("verl", reason="verl lives in an environment of its own: make test-verl")

SEEN = """
import json, verl
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.engine import EngineRegistry
engines = [EngineRegistry.get_engine_cls("language_model", s).__name__ for s in ("fsdp", "fsdp2")]
print(json.dumps([sorted(TRAINER_REGISTRY), engines]))
"""


def seen(**env):
    import os

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEEN],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("platform", ["", "nvidia", "amd"])
def test_importing_verl_registers_trainer_and_engine(platform):
    """On a node without a GPU, where verl believes in one of NVIDIA's, and on AMD's."""
    trainers, engines = seen(VERL_PLATFORM=platform, VERL_USE_EXTERNAL_MODULES="")
    assert "tokencredit" in trainers
    assert engines == ["CreditEngine", "CreditEngine"]


def test_plugins_can_be_switched_off():
    trainers, engines = seen(VERL_PLATFORM="", VERL_USE_EXTERNAL_MODULES="", VERL_USE_EXTERNAL_PLUGINS="none")
    assert "tokencredit" not in trainers
    assert engines == ["FSDPEngineWithLMHead", "FSDPEngineWithLMHead"]
