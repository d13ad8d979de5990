"""The command line: `siftune summary` (or `python -m siftune summary`) in the repository's root."""

import argparse

from siftune import stage, summary


def main() -> None:
    """Run the command that was named."""
    parser = argparse.ArgumentParser(prog="siftune", description="Fine-tune a language model.")
    commands = parser.add_subparsers(required=True, metavar="command")
    commands.add_parser("summary", help="base against tuned, what it cost, where the report is")
    parser.parse_args()
    stage.run(summary.main)


if __name__ == "__main__":
    main()
