"""Whatever is adapted, and however: what was trained is what is saved, loaded again and merged."""

from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from siftune import files, merging, models, tokens
from siftune.learning_curve import LearningCurve, summarise
from siftune.stage import UserError
from siftune.training import adapters, phases, sft

NUM_OLD, NUM_NEW = 96, 2
EMBEDDINGS = ["embed_tokens", "lm_head"]
ROWS = [[5, 6, 7, 8, 9, NUM_OLD], [10, 20, 30, NUM_OLD + 1, 4]]


class Sink:
    def log(self, values, *, step):
        pass


@pytest.fixture(params=["tied", "untied"])
def base(request, tmp_path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=NUM_OLD, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
            pad_token_id=2, tie_word_embeddings=request.param == "tied", initializer_range=0.3,
        )
    ).save_pretrained(tmp_path / "base")  # fmt: skip
    return tmp_path / "base"


@pytest.fixture
def train(base, tokenizer, tmp_path, begin_attempt, monkeypatch):
    """A function: the trainer of a training that is done, on a base with two new tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(tokenizer), "__len__", lambda _: NUM_OLD + NUM_NEW)
    draw = torch.Generator().manual_seed(0)
    for split in tokens.SPLITS:
        rows = []
        for number in range(12):
            ids = torch.randint(3, NUM_OLD + NUM_NEW, (9,), generator=draw).tolist()
            rows.append((str(number), ids, [-100, *ids[1:]]))
        with tokens.write(split, tmp_path) as out:
            out.write_batch(tokens.batch(rows))

    def run(**changed):
        curve = LearningCurve(Sink(), examples_per_step=4)
        start = begin_attempt()
        trainer = sft.make_trainer(
            models.load_model(base, num_tokens=NUM_OLD + NUM_NEW),
            tokenizer,
            sft=small.sft(**changed),
            encoded=tmp_path,
            num_new_tokens=NUM_NEW,
            curve=curve,
            attempt=start,
            folder=tmp_path / "scratch",
        )
        trainer.train_from(start.begin())
        trainer.model.eval()
        return trainer, curve

    return run


@pytest.fixture
def export(base, tmp_path):
    """A function: save what was trained; the logits of what is loaded again, and of the merged."""

    def write(trainer) -> tuple[merging.Logits, merging.Logits]:
        folder, size = tmp_path / "adapter", {"num_tokens": NUM_OLD + NUM_NEW}
        adapters.save(trainer.model, folder, base="x", first=trainer.first_factors)
        loaded = merging.logits(merging.load_trained(base, [folder], **size), ROWS)
        phases.merged(base, [folder], **size).save_pretrained(tmp_path / "merged")
        return loaded, merging.logits(models.load_model(tmp_path / "merged"), ROWS)

    return write


VARIANTS = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora, rslora": {"dora": True, "rslora": True},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "olora": {"init": "olora"},
    "pissa": {"init": "pissa"},
    "pissa, fast": {"init": "pissa_niter_4"},
    "pissa, rslora": {"init": "pissa", "rslora": True},
    "names": {"targets": ["q_proj", "v_proj"]},
    "regex": {"targets": r".*\.layers\.1\..*_proj"},
    "embeddings": {"modules_to_save": EMBEDDINGS},
    "the embedding alone": {"modules_to_save": ["embed_tokens"]},
    "the head alone": {"modules_to_save": ["lm_head"]},
    "a norm": {"modules_to_save": ["model.norm"]},
    "pissa, embeddings": {"init": "pissa", "modules_to_save": EMBEDDINGS},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_what_was_trained(variant, base, train, export):
    trainer, _ = train(lora=small.lora(**VARIANTS[variant]))
    trained = merging.logits(trainer.model, ROWS)
    loaded, merged = export(trainer)
    for other in (loaded, merged):
        measured = merging.distance(trained, other)
        assert measured["max_logit_difference"] < 1e-4
        assert measured["mean_kl"] < 1e-9
    before = merging.logits(models.load_model(base, num_tokens=NUM_OLD + NUM_NEW), ROWS)
    assert merging.distance(trained, before)["mean_kl"] > 1e-4


def test_all_weights_are_merged_as_they_were_trained(base, train, export, tmp_path):
    trainer, curve = train(lora=None)
    before = models.load_model(base, num_tokens=NUM_OLD + NUM_NEW).state_dict()
    trained = trainer.model.state_dict()
    assert all((weight != before[name]).any() for name, weight in trained.items())
    logits = merging.logits(trainer.model, ROWS)
    loaded, merged = export(trainer)
    assert merging.distance(logits, loaded)["max_logit_difference"] == 0
    assert merging.distance(logits, merged)["max_logit_difference"] == 0
    ours, of_base = (files.read_json(tmp_path / one / "config.json") for one in ("merged", "base"))
    assert ours == of_base | {"vocab_size": NUM_OLD + NUM_NEW}
    summary = summarise(trainer, curve)
    assert summary["trainable_share"] == 1.0
    assert summary["trainable_parameters"] == trainer.model.num_parameters()


def test_a_half_precision_base_stays_one(base, train, export, tmp_path):
    models.load_model(base).to(torch.bfloat16).save_pretrained(base)
    trainer, _ = train(lora=None)
    assert trainer.model.dtype == torch.float32
    _, merged = export(trainer)
    kept = load_file(tmp_path / "merged/model.safetensors")
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}
    assert merging.distance(merging.logits(trainer.model, ROWS), merged)["mean_kl"] < 1e-3


@pytest.mark.parametrize("modules", [EMBEDDINGS, ["embed_tokens"], ["lm_head"]], ids=" ".join)
def test_tied_weights_stay_tied(modules, base, train, export, tmp_path):
    is_tied = AutoConfig.from_pretrained(base).tie_word_embeddings
    trainer, _ = train(lora=small.lora(modules_to_save=modules))
    export(trainer)
    merged = models.load_model(tmp_path / "merged")
    embedding, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (embedding.data_ptr() == head.data_ptr()) == is_tied
    old = models.load_model(base, num_tokens=NUM_OLD + NUM_NEW)
    for ours, theirs, name in (
        (embedding, old.get_input_embeddings().weight, "embed_tokens"),
        (head, old.get_output_embeddings().weight, "lm_head"),
    ):
        assert (ours[:NUM_OLD] != theirs[:NUM_OLD]).any() == (is_tied or name in modules)
        assert (ours[NUM_OLD:] != theirs[NUM_OLD:]).any()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"targets": ["q_proj", "query"]}, r"lora\.targets: no layer is called query.*q_proj, up_"),
        ({"targets": ".*query"}, r"lora\.targets: no layer is called \.\*query"),
        ({"targets": ["lm_head"]}, r"lora\.targets: lm_head is not.*lora\.modules_to_save"),
        ({"targets": ["mlp"]}, r"lora\.targets: model\.layers\.0\.mlp is not"),
        ({"modules_to_save": ["wte"]}, r"lora\.modules_to_save: no module.*called wte.*embed_tok"),
        ({"targets": ["q_proj"], "modules_to_save": ["q_proj"]}, r"q_proj is in lora\.targets"),
    ],
)
def test_what_the_model_does_not_have_is_refused_without_its_weights(wrong, told, base):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    with pytest.raises(UserError, match=told):
        adapters.require(model, small.lora(**wrong))
    adapters.require(model, small.lora(targets=["q_proj"], modules_to_save=EMBEDDINGS))
