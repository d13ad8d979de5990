"""How far a GGUF file may be from its model, and what is said when it is farther."""

from collections.abc import Mapping, Sequence
from typing import Any

from siftune.sections import GgufLimit
from siftune.stage import UserError


def require(types: Sequence[str], limits: Mapping[str, GgufLimit]) -> None:
    """Make sure that each GGUF type has a limit.

    Raises:
        UserError: one has none.
    """
    missing = [kind for kind in types if kind not in limits]
    if missing:
        raise UserError(
            f"params.yaml: gguf_check.limits has none for {', '.join(missing)}, which "
            f"to_gguf.types asks for. It has {', '.join(limits)}: add "
            "max_kl and min_top1_agreement."
        )


def complaints(kind: str, measured: Mapping[str, Any], limit: GgufLimit) -> list[str]:
    """What is past the limits, a sentence each; empty when the file answers like the model."""
    found = []
    if not measured["token_ids_equal"]:
        found.append(f"{kind}: other token ids, first at {measured['first_difference']!r}")
    if not measured["chat_template_equal"]:
        found.append(f"{kind}: the chat template is not the merged model's")
    if not measured["special_tokens_equal"]:
        found.append(f"{kind}: bos, eos or pad is not the merged model's")
    if not measured["mean_kl"] <= limit.max_kl:  # so that NaN is past it, too
        found.append(
            f"{kind}: mean KL {measured['mean_kl']:.3g} nats a token (max_kl {limit.max_kl:g})"
        )
    if measured["top1_agreement"] < limit.min_top1_agreement:
        found.append(
            f"{kind}: top-1 agreement {measured['top1_agreement']:.4f} "
            f"(min_top1_agreement {limit.min_top1_agreement:g})"
        )
    return found
