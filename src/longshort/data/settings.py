"""What a study says of its data, its section `data`: corpus and tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    """Local files: .txt (one document a file), .jsonl or .parquet (one a row); the first two packed, too, and .json."""

    kind: Literal["text"]
    path: str = Field(min_length=1, description="a folder, a file or a glob")
    column: str = Field(
        "text", description="text column of .jsonl and .parquet files; a dot leads into a nested field: meta.text"
    )


class HubCorpus(Strict):
    """A dataset of the hub."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1, description="dataset id")
    revision: str = Field(
        pattern=COMMIT, description="commit of the dataset repository, its 40 hexadecimal digits; no branch, no tag"
    )
    configuration: str | None = Field(None, description="configuration name; null for the default")
    split: str = Field("train", description="split to read")
    column: str = Field("text", description="text column; a dot leads into a nested field: meta.text")


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
    validation: float = Field(
        0.05, ge=0, lt=1, description="share of the documents held out for validation; 0 with a validation_corpus"
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="share of the documents held out for evaluation; 0 with a test_corpus"
    )
    validation_corpus: Annotated[Corpus, Field(discriminator="kind")] | None = Field(
        None,
        description="where the validation documents come from; null: a share of the corpus",
        json_schema_extra={"neutral": None},
    )
    test_corpus: Annotated[Corpus, Field(discriminator="kind")] | None = Field(
        None,
        description="where the test documents come from; null: a share of the corpus",
        json_schema_extra={"neutral": None},
    )
    near_copies: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of passages in common with a held-out document from which one is left out; null: not sought",
        json_schema_extra={"neutral": None},
    )
    max_left_out: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the documents that may be unusable; 3 always may",
        json_schema_extra=NOT_IDENTITY,
    )

    @model_validator(mode="before")
    @classmethod
    def _a_corpus_of_its_own_takes_no_share(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {split for split in ("validation", "test") if values.get(f"{split}_corpus") is not None}
        return {**dict.fromkeys(own, 0.0), **values}

    @model_validator(mode="after")
    def _something_is_left(self) -> Data:
        for split, share, own in (
            ("validation", self.validation, self.validation_corpus),
            ("test", self.test, self.test_corpus),
        ):
            if own and share:
                raise ValueError(
                    f"{split} = {share:g} and a {split}_corpus: the {split} documents come from one of the two; take "
                    "one out"
                )
        if not self.test and not self.test_corpus:
            raise ValueError("test = 0 leaves no document for evaluation; raise it, or give a test_corpus")
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave no document for training; lower one of them")
        return self

    @property
    def corpora(self) -> dict[str, Corpus]:
        """All that is read, by the key that names it."""
        named = {"corpus": self.corpus, "validation_corpus": self.validation_corpus, "test_corpus": self.test_corpus}
        return {key: corpus for key, corpus in named.items() if corpus is not None}
