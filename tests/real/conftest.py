"""SmolLM2-135M-Instruct, a real pretrained model, where the package that carries it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tokencredit.pretrained import INSTALL, PACKAGE, smollm2


@pytest.fixture(scope="session")
def folder() -> Path:
    """Of the converted model: in the user's cache, where the first run puts it."""
    if find_spec(PACKAGE) is None or find_spec("gguf") is None:
        pytest.skip(f"SmolLM2 is not installed: {INSTALL}")
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
def traces(traces_file) -> list[dict]:
    return [json.loads(line) for line in traces_file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="session")
def rollouts(traces, tokenizer, tmp_path_factory):
    """The first four of them, as plain text whose spans are found."""
    from tokencredit.completions import load_completions

    rows = [
        {"prompt": t["prompt"], "completion": "".join(t["steps"]) + t["answer"], "correct": t["correct"]}
        for t in traces[:4]
    ]
    path = tmp_path_factory.mktemp("traces") / "plain.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return load_completions(path, tokenizer).rollouts


@pytest.fixture(scope="session")
def methods():
    """Every method, with the parameters that it cannot do without."""
    import tokencredit as tc

    needed = {"attnpo": {"heads": ((12, 3), (20, 5))}}
    return {name: tc.method(name, **needed.get(name, {})) for name in tc.methods()}


@pytest.fixture(scope="session")
def reward_model(model):
    """For P2T: a reward that is a function of the embeddings, which favours one direction of them."""
    from tokencredit import RewardModel

    embeddings = model.get_input_embeddings()
    direction = embeddings.weight[1000].detach()

    def reward(embedded):
        return (embedded @ direction.to(embedded.dtype)).tanh().mean(1)

    return RewardModel(reward, embeddings=embeddings)
