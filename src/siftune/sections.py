"""The sections of params.yaml: a frozen dataclass each, with the narrowest types."""

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

# Strict: YAML reads 1e-4 as text, and text is no number.
_STRICT = ConfigDict(extra="forbid", strict=True)

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _micro_batch(value: object) -> object:
    is_rows = type(value) is int and value > 0
    if is_rows or (isinstance(value, str) and re.fullmatch(r"[1-9][0-9]* tokens", value)):
        return value
    raise PydanticCustomError(
        "micro_batch", 'Input should be a number of rows (4) or a token budget ("4096 tokens")'
    )


# Rows padded to the longest, or packs of so many tokens whose rows share their prefixes.
MicroBatch = Annotated[int | str, PlainValidator(_micro_batch)]


@dataclass(frozen=True, config=_STRICT)
class Adapter:
    """LoRA that was trained on the base before; the first phase begins after it."""

    source: str  # as of Model, with PEFT's files
    revision: str | None
    trained_on: str | None = None  # what it calls its base, where that is not model.source


@dataclass(frozen=True, config=_STRICT)
class Model:
    """The base model: where it comes from and what it may be used for."""

    name: Name
    source: str  # hub id | modelscope:id | folder | file.gguf | package:module/file.gguf
    revision: str | None
    license: str
    gated: bool  # its makers want the licence accepted before it can be fetched
    stop_tokens: list[str]  # where an answer ends, besides where the model says so itself
    adapter: Adapter | None = None  # null: training begins from the base alone


RowFormat = Literal[
    "auto", "alpaca", "input-output", "sharegpt", "messages", "columns", "text", "preference",
    "labelled", "problems",
]  # fmt: skip
Column = Literal[
    "prompt", "input", "response", "system", "history", "reasoning", "messages", "tools", "text",
    "chosen", "rejected", "label", "answer", "group",
]  # fmt: skip


@dataclass(frozen=True, config=_STRICT)
class Source:
    """One of the data sets that are mixed; only `source` has no default."""

    source: str  # generate:name | hub:id | modelscope:id | local
    revision: str | None = None  # of a hub
    files: str = "**"  # glob below data.path (local), or in the fetched data set
    split: Literal["train", "validation", "test"] | None = None  # null: by file name, else by hash
    format: RowFormat = "auto"
    columns: dict[Column, str] = field(default_factory=dict)  # where the rows' own names differ
    weight: Annotated[float, Field(gt=0.0)] = 1.0  # copies of each training row; 0.5: every second
    num_examples: Positive | None = None  # of this source; null: all


@dataclass(frozen=True, config=_STRICT)
class Data:
    """The raw records: where they come from, and how their rows are read."""

    name: Name
    path: str  # what prepare reads: data/raw, where fetch puts it, or the user's own file or folder
    sources: Annotated[list[Source], Field(min_length=1)]
    reasoning_tags: Annotated[list[str], Field(min_length=2, max_length=2)]
    num_examples: Positive | None  # of all sources together, drawn by the seed; null: all
    seed: NotNegative


@dataclass(frozen=True, config=_STRICT)
class Prepare:
    """What makes a row unfit, and the split by group; what is left is for training."""

    validation: Share
    test: Share
    max_faulty: Share  # of the rows; more, and the stage fails
    near_duplicates: Share | None  # reject from this similarity on; null: do not look
    leak_words: Positive | None  # reject rows that share so many words with a held-out item
    repair_mojibake: bool
    variants: Literal["taiwan", "hongkong"] | None  # normalise 爲 → 為 as there; null: leave


@dataclass(frozen=True, config=_STRICT)
class Encode:
    """From messages to tokens, and which of them the loss looks at."""

    template: str | None  # null: the model's own; a name of chat/jinja; a file of train/templates
    system: str | None  # put before conversations that have no system message
    train_on: Literal["all_answers", "last_answer"]
    train_reasoning: bool  # false: the text between data.reasoning_tags is read, not learned
    max_length: Positive
    too_long: Literal["error", "drop", "cut_first_turns", "cut_answer"]
    max_faulty: Share  # of the rows that the template or tokenizer may refuse


@dataclass(frozen=True, config=_STRICT)
class Lora:
    """LoRA (Hu et al. 2021) by peft.LoraConfig."""

    rank: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    targets: str | list[str]
    rslora: bool  # scaled by alpha / √rank (Kalajdzievski 2023), not alpha / rank
    dora: bool  # Liu et al. 2024
    init: Annotated[
        str,
        Field(pattern=r"^(default|gaussian|orthogonal|olora|pissa(_niter_[1-9][0-9]*)?|loftq)$"),
    ]
    modules_to_save: list[str]  # trained whole, beside the adapter


@dataclass(frozen=True, config=_STRICT)
class Load:
    """How the base is loaded for training; `auto` is chosen by device and architecture."""

    engine: Literal["hf", "unsloth"]
    dtype: Literal["auto", "bf16", "fp16", "fp32"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"]
    quantise: Literal["nf4", "fp4", "int8"] | None
    double_quantise: bool  # the constants of nf4 and fp4, too


@dataclass(frozen=True, config=_STRICT)
class Training:
    """What every phase of training has; `trainer` goes to TRL's own configuration as it is."""

    seed: NotNegative
    learning_rate: Annotated[float, Field(gt=0.0)]
    num_epochs: Annotated[float, Field(gt=0.0)]
    global_batch: Positive
    micro_batch: MicroBatch
    eval_every: Positive  # steps
    save_every: Annotated[str, Field(pattern=r"^[1-9][0-9]* (steps|minutes)$")]
    keep: Literal["last", "best"]  # best: the lowest validation loss
    patience: Positive | None  # evaluations without a better one, then training ends; null: never
    lora: Lora | None  # null: all weights are trained
    load: Load
    trainer: dict[str, Any]

    @property
    def phase(self) -> str:
        """The section's name, which is its stage's, too."""
        return type(self).__name__.lower()


@dataclass(frozen=True, config=_STRICT)
class Pretrain(Training):
    """Pre-training that goes on, on plain text; by trl.SFTConfig."""

    micro_batch: Positive  # blocks have neither padding nor prefixes in common
    block_size: Annotated[int, Field(ge=2)]  # tokens of each row that is trained on


@dataclass(frozen=True, config=_STRICT)
class Sft(Training):
    """Supervised fine-tuning on conversations; by trl.SFTConfig."""


@dataclass(frozen=True, config=_STRICT)
class Dpo(Training):
    """Preferences between answers (Rafailov et al. 2023); by trl.DPOConfig, or trl.KTOConfig."""

    micro_batch: MicroBatch  # rows are pairs; of kto, answers
    loss: Literal[
        "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
        "apo_zero", "apo_down", "sigmoid_norm", "kto", "simpo", "orpo",
    ]  # fmt: skip
    beta: Annotated[float, Field(gt=0.0)]
    gamma: Annotated[float, Field(gt=0.0)] | None  # of simpo: by how much the better should win


@dataclass(frozen=True, config=_STRICT)
class Reward:
    """One of rewards.choosing.REWARDS, or file.py:function of the user's."""

    name: str
    weight: float  # 0: only logged
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Grpo(Training):
    """Reinforcement learning by groups (Shao et al. 2024); by trl.GRPOConfig.

    The batches are counted in completions: a step has global_batch / num_generations prompts.
    """

    micro_batch: MicroBatch  # rows are completions
    num_generations: Annotated[int, Field(ge=2)]  # completions a prompt, compared with each other
    max_new_tokens: Positive
    rewards: Annotated[list[Reward], Field(min_length=1)]
    generate: Literal["transformers", "vllm"]


@dataclass(frozen=True, config=_STRICT)
class Merge:
    """How far the merged model may be from base + adapter, on real prompts."""

    num_prompts: Positive
    max_kl: Annotated[float, Field(gt=0.0)]
    min_top1_agreement: Share


@dataclass(frozen=True, config=_STRICT)
class Benchmark:
    """lm-eval: any of its task names, or a local one from eval/tasks."""

    tasks: Annotated[list[str], Field(min_length=1)]
    num_fewshot: NotNegative | None
    limit: Positive | None
    batch_size: Positive
    max_new_tokens: Positive
    chat_template: bool


@dataclass(frozen=True, config=_STRICT)
class Decoding:
    """How an answer is chosen, token by token; left out, a key changes nothing."""

    temperature: Annotated[float, Field(ge=0.0)] = 0.0  # 0: the likeliest token each time
    top_k: Positive | None = None  # drawn among so many; null: all
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # among those that make up so much
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0  # of what was said
    no_repeat_ngram: Positive | None = None  # so many tokens in a row never come twice
    num_beams: Positive = 1


@dataclass(frozen=True, config=_STRICT)
class Samples:
    """Answers to read: the same prompts, base against tuned, by each of the decodings."""

    num_prompts: Positive
    max_new_tokens: Positive
    seed: NotNegative
    decodings: Annotated[dict[Name, Decoding], Field(min_length=1)]


@dataclass(frozen=True, config=_STRICT)
class Compare:
    """The paired test between base and tuned."""

    alpha: Annotated[float, Field(gt=0.0, lt=1.0)]
    num_resamples: Annotated[int, Field(ge=100)]
    seed: NotNegative


GgufType = Literal["f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m"]


@dataclass(frozen=True, config=_STRICT)
class ToGguf:
    """Which GGUF files to write."""

    types: Annotated[list[GgufType], Field(min_length=1)]


@dataclass(frozen=True, config=_STRICT)
class GgufLimit:
    """How far a GGUF file may be from the merged model."""

    max_kl: Annotated[float, Field(gt=0.0)]
    min_top1_agreement: Share


@dataclass(frozen=True, config=_STRICT)
class GgufCheck:
    """Limits by GGUF type, on held-out prompts."""

    num_prompts: Positive
    limits: dict[GgufType, GgufLimit]


@dataclass(frozen=True, config=_STRICT)
class Card:
    """What the model card says beyond what was measured."""

    title: str
    language: list[str]
    intended_use: str


@dataclass(frozen=True, config=_STRICT)
class Register:
    """The name in MLflow's registry, and the metric that the alias `best` follows."""

    name: Name
    metric: str


# What is trained, in this order; a section that is null is a phase that is left out.
PHASES: dict[str, type[Training]] = {
    "pretrain": Pretrain, "sft": Sft, "dpo": Dpo, "grpo": Grpo
}  # fmt: skip

SECTIONS: dict[str, type] = {
    "data": Data,
    "prepare": Prepare,
    "model": Model,
    "encode": Encode,
    **PHASES,
    "merge": Merge,
    "benchmark": Benchmark,
    "samples": Samples,
    "compare": Compare,
    "to_gguf": ToGguf,
    "gguf_check": GgufCheck,
    "card": Card,
    "register": Register,
}
