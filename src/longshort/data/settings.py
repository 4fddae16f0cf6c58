"""What a study says of its data, its section `data`: corpus and tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longshort.identity.strict import COMMIT, NOT_IDENTITY, Strict


class StdlibCorpus(Strict):
    """The Python sources of the running interpreter's standard library, one document a file."""

    kind: Literal["stdlib"]


class PackageCorpus(Strict):
    """The Python sources of an installed distribution, one document a file: the same text on every machine."""

    kind: Literal["package"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="distribution, as the lock pins it")
    content: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="sha256 over paths, sizes and bytes of the sources; a refusal says what is installed",
    )
    without: list[str] = Field(
        ["*/test/*", "*/tests/*"], description="patterns of paths that are left out; * stands for any letters, / too"
    )


class TextCorpus(Strict):
    """Local files: .txt (one document a file), .jsonl or .parquet (one a row); the first two packed, too."""

    kind: Literal["text"]
    path: str = Field(min_length=1, description="a folder, a file or a glob")
    column: str = Field("text", description="text column of .jsonl and .parquet files")


class HubCorpus(Strict):
    """A dataset of the hub."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1, description="dataset id")
    revision: str = Field(
        pattern=COMMIT, description="commit of the dataset repository, its 40 hexadecimal digits; no branch, no tag"
    )
    configuration: str | None = Field(None, description="configuration name; null for the default")
    split: str = Field("train", description="split to read")
    column: str = Field("text", description="text column")


class BytesTokenizer(Strict):
    """One token a byte, and one separator."""

    kind: Literal["bytes"] = "bytes"


class PretrainedTokenizer(Strict):
    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description="hub id or path of a local folder")
    revision: str | None = Field(
        None,
        pattern=COMMIT,
        description="commit of the hub repository, its 40 hexadecimal digits; null for a local folder",
    )


Corpus = StdlibCorpus | PackageCorpus | TextCorpus | HubCorpus
Tokenizer = BytesTokenizer | PretrainedTokenizer


class Data(Strict):
    """A corpus, its tokens and its division by document."""

    corpus: Annotated[Corpus, Field(discriminator="kind")] = Field(description="where the documents come from")
    tokenizer: Annotated[Tokenizer, Field(discriminator="kind")] = Field(
        BytesTokenizer(), description="how text becomes tokens"
    )
    validation: float = Field(0.05, ge=0, lt=1, description="share of the documents held out for validation")
    test: float = Field(0.1, gt=0, lt=1, description="share of the documents held out for evaluation")
    max_left_out: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the documents that may be unusable; 3 always may",
        json_schema_extra=NOT_IDENTITY,
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> Data:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave no document for training; lower one of them")
        return self
