"""Settings of a decoding: which contradict each other, and how they are told."""

from siftune import wording
from siftune.sections import Decoding, Samples
from siftune.stage import UserError


def require(samples: Samples) -> None:
    """Refuse settings of `samples.decodings` that contradict each other or repeat another's.

    Raises:
        UserError: the first such setting.
    """
    names: dict[Decoding, str] = {}
    for name, decoding in samples.decodings.items():
        refuse_contradictions(decoding, f"params.yaml: samples.decodings.{name}")
        if decoding in names:
            raise UserError(
                f"params.yaml: samples.decodings: {names[decoding]} and {name} are the same "
                "setting. Change one of them, or leave it out."
            )
        names[decoding] = name


def refuse_contradictions(decoding: Decoding, place: str) -> None:
    """Refuse what would have no effect, or has no meaning.

    Args:
        place: where the setting stands, for the message.

    Raises:
        UserError: it says which two keys contradict each other.
    """
    if decoding.temperature == 0:
        for key in ("top_k", "top_p"):
            if getattr(decoding, key) != getattr(Decoding(), key):
                raise UserError(
                    f"{place}: {key} says among which tokens one is drawn, but temperature is 0: "
                    f"none is drawn. Set temperature above 0, or leave {key} out."
                )
    elif decoding.num_beams > 1:
        raise UserError(
            f"{place}: num_beams looks for the likeliest answer, temperature above 0 draws one. "
            "Set one of them: num_beams, or temperature with top_k and top_p."
        )


def words(decoding: Decoding) -> str:
    """What is set, in one line: `drawn, temperature 0.8, top-p 0.9`."""
    if decoding.temperature > 0:
        said = [f"drawn, temperature {wording.small(decoding.temperature)}"]
    elif decoding.num_beams > 1:
        said = [f"the likeliest answer of {decoding.num_beams} beams"]
    else:
        said = ["the likeliest token each time"]
    if decoding.top_k:
        said.append(f"top-k {decoding.top_k}")
    if decoding.top_p < 1:
        said.append(f"top-p {wording.small(decoding.top_p)}")
    if decoding.repetition_penalty != 1:
        said.append(f"repetition penalty {wording.small(decoding.repetition_penalty)}")
    if decoding.no_repeat_ngram:
        said.append(f"no {decoding.no_repeat_ngram} tokens in a row twice")
    return ", ".join(said)
