"""A training of seconds in a process of its own, as train/sft.py does it: `lesson.py FOLDER JSON`.

The JSON has keys of `load` and `lora`. Prints what was learned, as JSON.
"""

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import small

from siftune.training import engine

NUM_TOKENS = 512
ROWS = [[5, 6, 7, 8, 9], [10, 20, 30, 40]]


def main(folder: Path, changed: dict) -> None:
    of_load = asdict(small.LOAD).keys() & changed.keys()
    load = replace(small.LOAD, **{key: changed[key] for key in of_load})
    lora = {key: changed[key] for key in changed.keys() - of_load}
    section = small.sft(
        load=load, learning_rate=2e-3, num_epochs=4.0, lora=small.lora(rank=16, alpha=16, **lora)
    )
    engine.start(load)
    from siftune import merging, models
    from siftune.learning_curve import LearningCurve
    from siftune.resume.attempt import Attempt
    from siftune.resume.fingerprint import Fingerprint
    from siftune.resume.stopping import StopRequest
    from siftune.training import adapters, loading, phases, sft

    os.chdir(folder)
    base, encoded, adapter = Path("base"), Path("encoded"), Path("adapter")
    made_of = Fingerprint(changed)
    made_of.folder.mkdir(parents=True)
    start = Attempt(made_of, StopRequest(), section.save_every)
    curve = LearningCurve(Silent(), examples_per_step=section.global_batch)
    trainer = sft.make_trainer(
        loading.base(base, section, num_tokens=NUM_TOKENS),
        models.read_tokenizer(base),
        sft=section,
        encoded=encoded,
        num_new_tokens=0,
        curve=curve,
        attempt=start,
        folder=Path("scratch"),
    )
    sft.check_batches(trainer)
    trainer.train_from(start.begin())
    adapters.save(trainer.model, adapter, base="x", first=trainer.first_factors)
    trained = merging.logits(trainer.model.eval(), ROWS)
    loaded = merging.logits(merging.load_trained(base, [adapter], num_tokens=0), ROWS)
    merged = phases.merged(base, [adapter], num_tokens=0).to(models.device())
    told = {
        "losses": [row["train_loss"] for row in curve.rows.values()],
        "loaded": loading.facts(trainer.model, load),
        "merged": merging.distance(loaded, merging.logits(merged, ROWS))["mean_kl"],
        "lost": merging.distance(trained, loaded)["mean_kl"],
        "megabytes": sum(one.nbytes for one in trainer.model.get_base_model().parameters()) / 2**20,
    }
    print(json.dumps(told))


class Silent:
    """Takes what a run would log."""

    def log(self, values: dict, *, step: int) -> None: ...


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
