"""Write the model card: what the model is for, how it was made and measured, where it came from."""

from siftune import config, files, stage, tracking


def main() -> None:
    config.load(
        "model",
        "data",
        "encode",
        "pretrain",
        "sft",
        "dpo",
        "grpo",
        "benchmark",
        "card",
        "register",
    )
    from siftune import card

    with tracking.stage("card", *card.SECTIONS) as run:
        text = card.render(config.raw_sections(*card.SECTIONS))
        with files.published_file(card.CARD) as aside:
            aside.write_text(text, encoding="utf-8")
        run.artifact(card.CARD)


if __name__ == "__main__":
    stage.run(main)
