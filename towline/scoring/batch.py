"""A table scored whole through the predictor that serves programs and requests."""

from pathlib import Path

from towline import files
from towline.config import Frozen
from towline.data import formats
from towline.errors import ConfigError, DataError
from towline.release.predictor import Model

FORMATS = (".csv", ".csv.gz", ".parquet")


class Scored(Frozen):
    """What was written: rows, the columns added, and which model they come from."""

    rows: int
    output: str
    columns: tuple[str, ...]
    model: str
    version: int


def score(model: Model, source: Path, output: Path, separator: str = ",") -> Scored:
    """Writes the rows of a file with ``prediction``, ``probability_<class>``, ``model`` and ``version`` beside them.

    Args:
        model: what answers.
        source: CSV, CSV.gz or Parquet.
        output: CSV, CSV.gz or Parquet, by its name; replaced whole, or not at all.
        separator: of a CSV, in and out.

    Raises:
        ConfigError: an output format that is not known.
        DataError: the file cannot be read, does not fit the model's contract, or has a column of an added name.
        Unavailable: the output cannot be written.
    """
    if not output.name.endswith(FORMATS):
        raise ConfigError("unknown output format", where=str(output), remedy=f"end the name in {', '.join(FORMATS)}")
    if not source.is_file():
        raise DataError("no such file", where=str(source), remedy="give a CSV, CSV.gz or Parquet file")
    table = formats.file(source, separator).to_pandas()
    found = model.predictions(model.features(table))
    added: dict[str, object] = {"prediction": found.labels}
    if found.probabilities is not None:
        added |= {f"probability_{name}": found.probabilities[:, at] for at, name in enumerate(model.contract.classes)}
    added |= {"model": model.name, "version": model.version}
    if taken := [name for name in added if name in table.columns]:
        raise DataError(f"there is a column {taken[0]!r} already", where=str(source), remedy="rename it")
    scored = table.assign(**added)
    with files.disk(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(output) as file:
            if output.suffix == ".parquet":
                scored.to_parquet(file, index=False)
            else:
                packed = "gzip" if output.suffix == ".gz" else None
                scored.to_csv(file, index=False, sep=separator, compression=packed)
    return Scored(rows=len(table), output=str(output), columns=tuple(added), model=model.name, version=model.version)
