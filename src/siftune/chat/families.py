"""The named chat templates, and what each needs of a tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What a named template needs of a tokenizer: tokens that are added where they are missing.

    `stop` ends each answer; None: the tokenizer's own end-of-sequence token, as published.
    """

    stop: str | None
    markers: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family("<|im_end|>", ("<|im_start|>",)),
    "llama-2": Family(None),
    "llama-3": Family("<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    # Text before v0.3, where "][" of two neighbours is one token: no place where a prompt can end.
    "mistral": Family(
        None,
        (
            *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
    ),
    "mistral-v7": Family(None, ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]")),
    "gemma-2": Family("<end_of_turn>", ("<start_of_turn>",)),
    "gemma-3": Family("<end_of_turn>", ("<start_of_turn>",)),
    "phi-3": Family("<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "phi-4": Family("<|im_end|>", ("<|im_start|>", "<|im_sep|>")),
    "phi-4-mini": Family("<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")),
    "qwen-2.5": Family("<|im_end|>", ("<|im_start|>",)),
    "qwen-3": Family("<|im_end|>", ("<|im_start|>",)),
    "alpaca": Family(None),
    "vicuna": Family(None),
    "zephyr": Family(None),
}
