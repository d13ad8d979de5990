"""What was published is whole; what is not whole is never used, and never silently."""

import json
import os
import shutil
from pathlib import Path

import pytest

from siftune.resume import checkpoints
from siftune.resume.checkpoints import Store
from siftune.stage import UserError

MADE_OF = {"params": {"sft": {"learning_rate": 0.1}}, "inputs": {"data/tokens": "a" * 64}}
FACTS = {"max_steps": 40, "world_size": 1}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "work" / "f00" / "checkpoints", MADE_OF)


def publish(store: Store, step: int, content: str = "weights") -> Path:
    aside = store.aside(step)
    (aside / "shards").mkdir()
    (aside / "shards" / "0.safetensors").write_text(f"{content} of {step}")
    (aside / "optimizer.pt").write_text(f"moments of {step}")
    return store.publish(aside, step, FACTS)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_used_and_two_are_kept(store):
    assert store.newest() is None
    for step in (5, 10, 15, 20):
        publish(store, step)
    assert names(store.folder) == ["step-00000015", "step-00000020"]
    found = Store(store.folder, MADE_OF).newest()
    assert found.step == 20
    assert found.manifest["max_steps"] == 40


def test_of_a_finished_training_the_last_is_kept(store):
    for step in (5, 10):
        publish(store, step)
    store.drop_oldest(1)
    assert names(store.folder) == ["step-00000010"]


def test_newest_is_by_step_whatever_the_clock_says(store):
    for step, day in ((10, 2), (5, 3)):
        folder = publish(store, step)
        os.utime(folder, (day * 86400, day * 86400))
    assert store.newest().step == 10


def test_one_that_was_not_verified_in_this_start_counts_for_nothing(store):
    """Two verified ones are kept, even if an older one that nobody looked at stands between."""
    for step in (5, 10):
        publish(store, step)
    later = Store(store.folder, MADE_OF)
    assert later.newest().step == 10
    publish(later, 15)
    assert names(store.folder) == ["step-00000010", "step-00000015"]


FILES = ("optimizer.pt", "shards/0.safetensors", checkpoints.MANIFEST, checkpoints.PUBLISHED)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swap(path: Path) -> None:
    """With the same file of the checkpoint before."""
    other = Path(str(path).replace("step-00000010", "step-00000005"))
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, empty, flip_a_bit, swap, Path.unlink])
def test_each_harm_is_found_and_the_one_before_is_used(store, name, harm, capsys):
    publish(store, 5)
    harm(publish(store, 10) / name)
    found = Store(store.folder, MADE_OF).newest()
    assert found.step == 5
    assert names(store.folder) == ["broken-step-00000010-1", "step-00000005"]
    assert "step-00000010 is broken" in capsys.readouterr().err


def test_a_whole_one_under_another_name_and_an_extra_file_are_found(store):
    publish(store, 5)
    shutil.copytree(store.folder / "step-00000005", store.folder / "step-00000020")
    (publish(store, 10) / "more.pt").write_text("x")
    assert Store(store.folder, MADE_OF).newest().step == 5
    reasons = {path.name: path.read_text() for path in store.folder.glob("broken-*/broken.txt")}
    assert len(list(store.folder.glob("broken-*"))) == 2
    assert "it is the checkpoint of step 5\n" in [
        path.read_text() for path in store.folder.glob("broken-step-00000020-1/broken.txt")
    ]
    assert reasons


def test_only_broken_ones_are_an_error_now_and_later(store):
    for step in (5, 10):
        truncate(publish(store, step) / "optimizer.pt")
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint .* is broken(.|\n)*optimizer\.pt"):
            Store(store.folder, MADE_OF).newest()
    assert len(list(store.folder.glob("broken-*"))) == 2


def test_one_of_another_training_is_refused_with_both_values(store):
    publish(store, 5)
    ours = {**MADE_OF, "params": {"sft": {"learning_rate": 0.2}}}
    with pytest.raises(UserError, match=r"params\.sft\.learning_rate: 0\.1 there, 0\.2 here"):
        Store(store.folder, ours).newest()
    assert names(store.folder) == ["step-00000005"]


def test_what_a_dead_writer_left_is_removed(store):
    publish(store, 5)
    (store.aside(10) / "optimizer.pt").write_text("half")
    assert len(names(store.folder)) == 2
    assert Store(store.folder, MADE_OF).newest().step == 5
    assert names(store.folder) == ["step-00000005"]


def test_the_same_step_again_takes_the_place_of_the_old(store):
    publish(store, 5, content="old")
    folder = publish(store, 5, content="new")
    assert (folder / "shards" / "0.safetensors").read_text() == "new of 5"
    assert store.newest().step == 5


def test_a_manifest_lists_every_file_with_its_hash(store):
    manifest = json.loads((publish(store, 5) / checkpoints.MANIFEST).read_text())
    assert set(manifest["files"]) == {"optimizer.pt", "shards/0.safetensors"}
    assert manifest["step"] == 5
    assert manifest["fingerprint"] == MADE_OF
