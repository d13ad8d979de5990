"""The command line: `siftune COMMAND` (or `python -m siftune COMMAND`) in the repository's root."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siftune import stage

DECODING_FLAGS = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "no_repeat_ngram": int,
    "num_beams": int,
}


def main() -> None:
    """Run the command that was named."""
    parser = argparse.ArgumentParser(prog="siftune", description="Fine-tune a language model.")
    commands = parser.add_subparsers(required=True, metavar="command")
    # All that follows is DVC's: with "-" as the prefix, its options would be looked for here.
    repro = commands.add_parser(
        "repro", help="`dvc repro`, also after a kill -9", prefix_chars="+", add_help=False
    )
    repro.add_argument("arguments", nargs="*")
    repro.set_defaults(run=_repro)
    node = commands.add_parser("node", help="started by slurm/run.sh on the other nodes of a job")
    node.set_defaults(run=_node)
    logs = commands.add_parser("logs", help="what a Slurm job says")
    logs.add_argument("job", metavar="JOB", help="its number, as squeue shows it")
    logs.set_defaults(run=_logs)
    summary = commands.add_parser(
        "summary", help="base against tuned, what it cost, where the report is"
    )
    summary.set_defaults(run=_summary)
    status = commands.add_parser("status", help="what is done, runs, or goes on from which step")
    status.set_defaults(run=_status)
    data = commands.add_parser("data", help="which tokens are trained")
    data_commands = data.add_subparsers(required=True, metavar="command")
    show = data_commands.add_parser("show", help="rows in this terminal")
    show.add_argument("ids", nargs="+", metavar="ID", help="an id, or its beginning")
    show.set_defaults(run=_show)
    page = data_commands.add_parser("page", help="rows as a page, with all facts about the data")
    page.add_argument("ids", nargs="*", metavar="ID", help="a row to show first")
    page.set_defaults(run=_page)
    sync = commands.add_parser("sync", help="what MLflow does not have yet of the runs here")
    sync.add_argument("address", nargs="?", metavar="URI", help="instead of MLFLOW_TRACKING_URI")
    sync.set_defaults(run=_sync)
    fetch = commands.add_parser("fetch", help="what nodes without a network will need")
    fetch.add_argument(
        "--all", action="store_true", required=True, help="model, data, and data of benchmarks"
    )
    fetch.set_defaults(run=_fetch)
    doctor = commands.add_parser("doctor", help="what here would stop a job, and what to do")
    doctor.set_defaults(run=_doctor)
    bundle = commands.add_parser("bundle", help="all that a cluster without a network needs")
    bundle.add_argument(
        "words", nargs="+", metavar="PATH", help="to write, a file or a folder; or `verify PATH`"
    )
    bundle.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages to take along")
    bundle.set_defaults(run=_bundle)
    _add_samples(commands)
    _add_chat(commands)
    arguments = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = arguments.run
    stage.run(lambda: run(arguments), ends_with_dvc=False)


def _add_samples(commands: Any) -> None:
    samples = commands.add_parser("samples", help="checkpoints, and what one of them answers")
    samples.add_argument(
        "--checkpoint", metavar="WHICH", help="a name that `siftune samples` lists, or newest"
    )
    samples.add_argument(
        "--num", type=_positive, metavar="N", help="so many prompts of the test split"
    )
    samples.add_argument("--output", type=Path, metavar="FILE", help="also as JSON lines")
    samples.set_defaults(run=_samples)


def _add_chat(commands: Any) -> None:
    chat = commands.add_parser("chat", help="talk to what was trained, or to the base")
    chat.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="merged, sft, base, a GGUF type, or a checkpoint that `siftune samples` lists",
    )  # fmt: skip
    chat.add_argument("--decoding", metavar="NAME", help="one of samples.decodings")
    for name, of_type in DECODING_FLAGS.items():
        chat.add_argument(f"--{name.replace('_', '-')}", type=of_type)
    chat.add_argument("--max-new-tokens", type=_positive, metavar="N", help="the longest answer")
    chat.add_argument("--seed", type=_seed, metavar="N", help="of what is drawn")
    chat.add_argument("--system", metavar="TEXT", help="instead of encode.system")
    chat.set_defaults(run=_chat)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a whole number from 1 on, not {text}")
    return int(text)


def _seed(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"it is a whole number from 0 on, not {text}")
    return int(text)


def _samples(arguments: argparse.Namespace) -> None:
    from siftune.talk import samples

    if arguments.checkpoint is None:
        samples.show()
    else:
        samples.ask(arguments.checkpoint, num_prompts=arguments.num, output=arguments.output)


def _chat(arguments: argparse.Namespace) -> None:
    from siftune.talk import chat

    given = vars(arguments)
    wishes = chat.Wishes(
        decoding=arguments.decoding,
        settings={name: given[name] for name in DECODING_FLAGS if given[name] is not None},
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        system=arguments.system,
    )
    chat.main(arguments.model, wishes)


def _repro(arguments: argparse.Namespace) -> None:
    from siftune import repro

    repro.main(arguments.arguments)


def _node(arguments: argparse.Namespace) -> None:
    from siftune import nodes, ranks

    nodes.serve(ranks.num_processes())


def _logs(arguments: argparse.Namespace) -> None:
    from siftune import logs

    logs.follow(arguments.job)


def _summary(arguments: argparse.Namespace) -> None:
    from siftune import summary

    summary.main()


def _status(arguments: argparse.Namespace) -> None:
    from siftune import status

    status.main()


def _show(arguments: argparse.Namespace) -> None:
    from siftune.proof import terminal

    terminal.show(arguments.ids)


def _page(arguments: argparse.Namespace) -> None:
    from siftune.proof import page

    page.write(arguments.ids)


def _sync(arguments: argparse.Namespace) -> None:
    from siftune import sync

    sync.main(arguments.address)


def _fetch(arguments: argparse.Namespace) -> None:
    from siftune import fetching

    fetching.main()


def _doctor(arguments: argparse.Namespace) -> None:
    from siftune.doctor import visit

    visit.main()


def _bundle(arguments: argparse.Namespace) -> None:
    match arguments.words:
        case ["verify", path]:
            from siftune.bundle import verify

            verify.main(Path(path))
        case [path]:
            from siftune.bundle import pack

            pack.main(Path(path), arguments.wheels)
        case words:
            raise stage.UserError(
                f"siftune bundle {' '.join(words)}: it is `siftune bundle FILE [--wheels FOLDER]` "
                "or `siftune bundle verify PATH`."
            )


if __name__ == "__main__":
    main()
