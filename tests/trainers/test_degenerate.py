"""When the user is warned of credit that hardly tells tokens apart, and what the warning says."""

from __future__ import annotations

import warnings

import pytest
from peft import LoraConfig
from tiny_run import arguments, trained

import tokencredit as tc
from tokencredit.trainers.degenerate import warn_if_degenerate
from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer


def means(**changed):
    return {"broadcast": 1.0, "sparse": 0.0, "no_answer": 0.0, "no_residual": 0.0, **changed}


def told(*args, **kwargs):
    """The sentences of the warnings that are raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_degenerate(*args, **kwargs)
    return [str(w.message) for w in caught]


def test_a_warning_gives_the_reason_of_the_method():
    (arca,) = told(tc.method("arca"), means(no_residual=1.0, no_answer=1.0))
    assert "credit of arca is as good as uniform in 100%" in arca
    assert "in 100% of the completions the adapter does not change their states" in arca
    assert "answer" not in arca
    (atpo,) = told(tc.method("atpo"), means(no_answer=0.95))
    assert "in 95% of the completions no answer span was found" in atpo
    (entropy,) = told(tc.method("entropy"), means(no_answer=1.0))
    assert "Why" not in entropy


def test_a_warning_is_repeated_only_when_the_reason_changes():
    atpo, warned = tc.method("atpo"), set()
    assert len(told(atpo, means(no_answer=1.0), warned)) == 1
    assert told(atpo, means(no_answer=0.97), warned) == []
    assert len(told(atpo, means(), warned)) == 1
    assert len(told(atpo, means(broadcast=0.0, sparse=1.0), warned)) == 1
    assert told(atpo, means(broadcast=0.5), warned) == []


def test_a_new_adapter_is_warned_of_only_after_an_update():
    arca, warned = tc.method("arca"), set()
    assert told(arca, means(no_residual=1.0), warned, updates=0) == []
    assert len(told(arca, means(no_residual=1.0), warned, updates=1)) == 1


def test_methods_that_read_nothing_are_warned_of_where_they_know_why():
    assert told(tc.method("uniform"), means(no_answer=1.0)) == []
    assert told(tc.method("position", floor=1.0), means(no_answer=0.3)) == []
    assert len(told(tc.method("position"), means(no_answer=1.0))) == 1


def test_the_name_of_a_method_will_do():
    assert "credit of mine is on a few tokens only in 100%" in told("mine", {"broadcast": 0.0, "sparse": 1.0})[0]


@pytest.mark.parametrize("timing", ["rollout", "loss"])
def test_a_run_is_warned_of_once(tmp_path, timing):
    args = CreditGRPOConfig(
        **arguments(tmp_path, credit_method="atpo", credit_timing=timing), credit_answer="never written"
    )
    with pytest.warns(UserWarning, match=r"as good as uniform in 100% .* in 100% .* no answer span") as caught:
        trained(CreditGRPOTrainer, args)
    assert sum("as good as uniform" in str(w.message) for w in caught) == 1


def test_a_run_of_arca_is_not_warned_of_at_its_first_step_but_where_the_adapter_stays_new(tmp_path):
    lora = LoraConfig(r=2, target_modules="all-linear")
    small = {"per_device_train_batch_size": 4, "max_completion_length": 4, "steps_per_generation": 1, "max_steps": 2}
    given = arguments(tmp_path, credit_method="arca", **small)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(CreditGRPOTrainer, CreditGRPOConfig(**given), peft_config=lora)
    assert [w for w in caught if "as good as uniform" in str(w.message)] == []
    with pytest.warns(UserWarning, match="arca is as good as uniform .* the adapter does not change their states"):
        trained(CreditGRPOTrainer, CreditGRPOConfig(**{**given, "learning_rate": 0.0}), peft_config=lora)
