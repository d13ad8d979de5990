"""Write the merged model as GGUF files, for llama.cpp and what is built on it."""

from pathlib import Path

from siftune import config, files, llama_cpp, stage, tracking

MERGED = Path("models/merged")
GGUF = Path("models/gguf")


def main() -> None:
    params = config.load("to_gguf", "model")
    llama_cpp.require(params.to_gguf.types)
    with tracking.stage("to_gguf", "to_gguf", "model") as run:
        with files.published_folder(GGUF) as folder:
            written = llama_cpp.write(
                MERGED, folder, name=params.model.name, types=params.to_gguf.types
            )
        run.report(**written)
        for kind, file in written.items():
            print(f"{kind}: {file['bytes'] / 2**20:.0f} MiB in {file['seconds']:.0f} s")


if __name__ == "__main__":
    stage.run(main)
