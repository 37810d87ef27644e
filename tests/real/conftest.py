"""SmolLM2-135M-Instruct, a real pretrained model, where the package that carries it is installed."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from tokencredit.pretrained import INSTALL, PACKAGE, smollm2


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The folder of the converted model: in the user's cache, where the first run puts it.

    Where the tests run in several processes, one of them converts the model, and the others wait for it.
    """
    if find_spec(PACKAGE) is None or find_spec("gguf") is None:
        pytest.skip(f"SmolLM2 is not installed: {INSTALL}")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(shared / "smollm2.lock"):
        return smollm2()


@pytest.fixture(scope="session")
def model_and_tokenizer(folder):
    from tokencredit.cli.models import load_policy

    return load_policy(str(folder))


@pytest.fixture(scope="session")
def model(model_and_tokenizer):
    return model_and_tokenizer[0]


@pytest.fixture(scope="session")
def tokenizer(model_and_tokenizer):
    return model_and_tokenizer[1]


@pytest.fixture(scope="session")
def traces_file() -> Path:
    """Ten labelled completions of word problems: half of them right, with a redundant step, half of them wrong."""
    return Path(__file__).parent / "data" / "traces.jsonl"


@pytest.fixture(scope="session")
def short_file(traces_file, tmp_path_factory) -> Path:
    """The first four of them, of two problems: enough for what reads the model and takes long."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    path.write_text("".join(traces_file.read_text("utf-8").splitlines(keepends=True)[:4]), "utf-8")
    return path


@pytest.fixture(scope="session")
def traces(traces_file) -> list[dict]:
    return [json.loads(line) for line in traces_file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def rollouts(traces_file, tokenizer):
    """The first four of them, with their steps and answers as the file has them."""
    from tokencredit.completions import load_completions

    return load_completions(traces_file, tokenizer).rollouts.rows(slice(4))


@pytest.fixture(scope="session")
def parameters():
    """Of each method, those that it cannot do without."""
    import tokencredit as tc

    return {name: {"heads": [[12, 3], [20, 5]]} if name == "attnpo" else {} for name in tc.methods()}


@pytest.fixture(scope="session")
def reward_model(model):
    """For P2T: a reward that is a function of the embeddings, which favours one direction of them."""
    from tokencredit import RewardModel

    embeddings = model.get_input_embeddings()
    direction = 5 * embeddings.weight[1000].detach()

    def reward(embedded):
        return (embedded @ direction.to(embedded.dtype)).tanh().sum(1)

    return RewardModel(reward, embeddings=embeddings)
