"""Write the report: one page that shows what was done, what it cost and whether it helped."""

from siftune import config, files, stage, tracking
from siftune.sections import SECTIONS


def main() -> None:
    config.load_all()
    from siftune import report

    with tracking.stage("report", *SECTIONS) as run:
        page = report.render(config.raw_sections(*SECTIONS))
        with files.published_file(report.PAGE) as aside:
            aside.write_text(page, encoding="utf-8")
        run.artifact(report.PAGE)


if __name__ == "__main__":
    stage.run(main)
