"""What credit logs arrives in the trackers that `report_to` names, read back from disk.

One training run, in a process of its own: trackers read where to write when they are imported.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from importlib.util import find_spec

import pytest

TRACKERS = ("tensorboard", "wandb", "trackio")
TABLES = ("wandb", "trackio")
LOGGED = ("credit/gini", "credit/effective_ratio", "credit/share_of_step")


def train(folder):
    from tiny_run import arguments, trained

    from tokencredit.trainers.trl import CreditGRPOConfig, CreditGRPOTrainer

    given = arguments(
        folder,
        max_steps=2,
        steps_per_generation=1,
        log_completions=True,
        report_to=[name for name in TRACKERS if find_spec(name)],
    )
    trainer = trained(CreditGRPOTrainer, CreditGRPOConfig(**given, credit_method="surprisal"))
    with open(os.path.join(folder, "history.json"), "w") as file:
        json.dump(trainer.state.log_history, file)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that logged to all trackers there are, none of which may reach the network."""
    folder = tmp_path_factory.mktemp("run")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRACKIO_"))}
    where = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**ours, **where},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [{tag: event.value} for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


def wandb_records(data):
    """The records of a .wandb file: 7 bytes of header, then a LevelDB log of blocks of 32 KiB."""
    block, at, record = 1 << 15, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def read_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    logged = [Record.FromString(record).history for record in wandb_records(path.read_bytes())]
    rows = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in history.item} for history in logged]
    for row in rows:
        if "completions/path" in row:
            table = json.loads((path.parent / "files" / row["completions/path"]).read_text())
            row["completions"] = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    return rows


def read_trackio(folder):
    (path,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    for row in rows:
        if "completions" in row:
            row["completions"] = row["completions"]["_value"]
    return rows


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}


def expected(run, name):
    """What the trainer itself says it logged, step after step."""
    history = json.loads((run / "history.json").read_text())
    return [row[name] for row in history if name in row]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_credit_is_logged_with_its_values(run, tracker):
    """Under TRL's own prefix, once a step; tensorboard rounds to float32."""
    pytest.importorskip(tracker)
    rows = READERS[tracker](run)
    for name in LOGGED:
        values = [row[f"train/{name}"] for row in rows if f"train/{name}" in row]
        assert values == pytest.approx(expected(run, name), rel=1e-6)
        assert len(values) == 2
        assert all(0 < value < 1 for value in values)


@pytest.mark.parametrize("tracker", TABLES)
def test_the_table_holds_the_concentration_of_each_completion(run, tracker):
    """A table for each step, of eight completions, whose mean is what is logged; TRL logs the last one twice."""
    pytest.importorskip(tracker)
    tables = {
        row["completions"][0]["step"]: row["completions"] for row in READERS[tracker](run) if "completions" in row
    }
    assert sorted(tables) == [1, 2]
    for name in ("gini", "effective_ratio"):
        columns = [[line[f"credit_{name}"] for line in tables[step]] for step in (1, 2)]
        assert all(len(set(column)) > 1 for column in columns)
        assert [sum(column) / 8 for column in columns] == pytest.approx(expected(run, f"credit/{name}"), rel=1e-5)


if __name__ == "__main__":
    train(sys.argv[1])
