"""Rebuild the files of this folder from the packages they come from, byte by byte.

    python labs/data/build.py             # on Debian 12; needs rdata 1.1.0, and pip for one wheel
    python labs/data/build.py --check     # writes nothing: exit 8 if a rebuilt file differs from the one here

`rdata` reads R's files without R and is needed only here: `uv run --with rdata==1.1.0,pip labs/data/build.py`.
The packages are pinned by version and SHA-256; nothing is drawn at random, so the same packages give the same bytes.
The manifest is written by the same run. What each file is, and what is not sure about its licence: README.md.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LIBRARY = "usr/lib/R/site-library"


@dataclass(frozen=True)
class Package:
    """Where the bytes come from; `licence` is the file of licences/ that holds its text."""

    name: str
    version: str
    sha256: str
    licence: str
    wheel: bool = False


PACKAGES = {
    p.name: p
    for p in (
        Package("dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
                "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0", "fashion-mnist.txt"),
        Package("r-cran-janeaustenr", "1.0.0-1",
                "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95", "janeaustenr.txt"),
        Package("wordnet-base", "1:3.0-37",
                "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", "wordnet.txt"),
        Package("r-cran-spdata", "2.2.1-1",
                "cec45c198df2ad7dbbea61311067b09b1ffac79c062ffaa2f823b286811feaaf", "spdata.txt"),
        Package("r-cran-mlbench", "2.1-3-1",
                "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06", "mlbench.txt"),
        Package("r-cran-kernlab", "0.9-32-1",
                "ab09291d7de965e84f808e3ae646d7043fa87e1e30cfcebec6b95d14f6828b62", "kernlab.txt"),
        Package("r-cran-modeldata", "1.1.0-1",
                "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95", "modeldata.txt"),
        Package("vega-datasets", "0.9.0",
                "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d", "vega-datasets.txt", wheel=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of this folder: its bytes, and what the manifest says about it."""

    name: str
    package: str
    content: bytes
    rows: int
    columns: str
    licence: str  # SPDX, as the package states it
    unverified: str  # what nobody could re-read for us; empty when nothing is open
    attribution: str
    transformation: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files here, write nothing")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where the packages lie already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sources = {name: fetch(package, args.packages, Path(temporary)) for name, package in PACKAGES.items()}
        made = [build(sources[package], package) for package, build in BUILDERS]
        outputs = {file.name: file.content for file in made} | licences(sources)
    outputs |= {"manifest.json": manifest(made).encode(), "README.md": readme(made).encode()}
    different = [name for name, content in outputs.items() if not same(HERE / name, content)]
    for name, content in outputs.items():
        mark = "differs" if name in different and args.check else "written" if name in different else "as it was"
        print(f"{name:<32} {len(content):>9,} bytes  {mark}")
        if name in different and not args.check:
            (HERE / name).parent.mkdir(exist_ok=True)
            (HERE / name).write_bytes(content)
    return 8 if different and args.check else 0


def same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def manifest(files: Sequence[File]) -> str:
    """What the harness checks at every load, and what a reader should know before using a file elsewhere."""
    entries = {}
    for file in files:
        package = PACKAGES[file.package]
        entries[file.name] = {
            "sha256": hashlib.sha256(file.content).hexdigest(), "bytes": len(file.content), "rows": file.rows,
            "columns": file.columns, "licence": file.licence, "licence_text": f"licences/{package.licence}",
            "unverified": file.unverified, "attribution": file.attribution,
            "source": f"{'wheel' if package.wheel else 'Debian package'} {package.name} {package.version}",
            "source_sha256": package.sha256, "transformation": file.transformation,
        }  # fmt: skip
    return json.dumps({"schema": "lab-data/1", "files": entries}, indent=1, ensure_ascii=False) + "\n"


def readme(files: Sequence[File]) -> str:
    """The manifest for people."""
    parts = [README.format(size=f"{sum(len(file.content) for file in files) / 1e6:.1f} MB")]
    for file in files:
        package = PACKAGES[file.package]
        lines = [
            f"## {file.name}", "",
            f"{file.rows:,} rows, {len(file.content):,} bytes: {file.columns}.", "",
            f"- **Origin**: {file.attribution}",
            f"- **From** the {'wheel' if package.wheel else 'Debian package'} `{package.name}` {package.version}: "
            f"{file.transformation}.",
            f"- **Licence, as the package states it**: {file.licence} ([its text](licences/{package.licence})).",
        ]  # fmt: skip
        if file.unverified:
            lines.append(f"- **Not verified**: {file.unverified}.")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


README = """# The data of the labs

Written by `build.py`, with `manifest.json`; do not edit. {size} in all, real data, so that every lab runs without a
network. A lab reads a file with `lab.read(name)`: bytes that are not the manifest's stop it with exit code 4.

`python labs/data/build.py` makes every file again, byte by byte, from the packages named here (Debian 12; it needs
`rdata`, which reads R's files without R). `--check` compares and writes nothing.

Who passes a file on should keep its origin's citation and read the lines "Not verified": a person has to look once.
"""


# ---------------------------------------------------------------------------------------------- packages


def fetch(package: Package, given: Path | None, temporary: Path) -> Path:
    """The unpacked package, after its SHA-256 was compared."""
    folder = temporary / package.name
    folder.mkdir()
    if given:
        pattern = f"{package.name.replace('-', '?')}_*.deb" if not package.wheel else "vega_datasets-*.whl"
        found = sorted(given.glob(pattern))
    else:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{package.name}=={package.version}"]
        if not package.wheel:
            download = ["apt-get", "download", "-q", f"{package.name}={package.version}"]
        subprocess.run(download, cwd=folder, check=True, stdout=sys.stderr, timeout=600)
        found = sorted(folder.iterdir())
    if len(found) != 1:
        sys.exit(f"{package.name} {package.version}: expected one file, found {[path.name for path in found]}")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{found[0].name}: expected sha256 {package.sha256}, found {digest}")
    tree = folder / "tree"
    if package.wheel:
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(tree)
    else:
        subprocess.run(["dpkg-deb", "-x", str(found[0]), str(tree)], check=True, timeout=600)
    return tree


def licences(sources: dict[str, Path]) -> dict[str, bytes]:
    """The packages' own statements, word by word, and the GPL they refer to."""
    texts = {}
    for name, package in PACKAGES.items():
        path = sources[name] / ("vega_datasets-0.9.0.dist-info/LICENSE" if package.wheel
                                else f"usr/share/doc/{name}/copyright")  # fmt: skip
        texts[f"licences/{package.licence}"] = path.read_bytes()
    texts["licences/GPL-2.txt"] = Path("/usr/share/common-licenses/GPL-2").read_bytes()
    return texts


def read_rda(path: Path, name: str) -> Any:
    import rdata

    return rdata.read_rda(path)[name]


def read_lazy(tree: Path, package: str, name: str) -> Any:
    """One object of R's lazy-load database: an index (.rdx) of offsets into a file of compressed chunks (.rdb).

    Source: R Internals, "Lazy loading", and R's serialize.c: four bytes of length, then zlib, or `2` and bzip2,
    or `Z` and a raw LZMA2 stream.
    """
    import rdata

    database = tree / LIBRARY / package / "data/Rdata.rdb"
    index = rdata.conversion.convert(
        rdata.parser.parse_data(gzip.decompress(database.with_suffix(".rdx").read_bytes()))
    )
    offset, length = map(int, index["variables"][name])
    chunk = database.read_bytes()[offset : offset + length]
    kind, rest = chunk[4:5], chunk[5:]
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}]
        content = lzma.decompress(rest, format=lzma.FORMAT_RAW, filters=filters)
    else:
        content = bz2.decompress(rest) if kind == b"2" else zlib.decompress(chunk[4:])
    return rdata.conversion.convert(rdata.parser.parse_data(content))


# ---------------------------------------------------------------------------------------------- formats


def table(columns: dict[str, Iterable[Any]]) -> bytes:
    """A gzip'd CSV without a time inside."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return gzip.compress(text.getvalue().encode(), 9, mtime=0)


def plain(column: Any) -> list[str]:
    """The cells of a data frame's column as text; what is missing is empty, whole numbers have no point."""
    cells = []
    for cell in column:
        missing = str(cell) in ("nan", "None", "<NA>")
        whole = isinstance(cell, float) and not missing and cell == int(cell)
        cells.append("" if missing else str(int(cell)) if whole else str(cell))
    return cells


def arrays(**values: np.ndarray) -> bytes:
    """An .npz: deflated like np.savez_compressed, with a fixed time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, value in values.items():
            content = io.BytesIO()
            np.save(content, value, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue(),
                             zipfile.ZIP_DEFLATED)  # fmt: skip
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------- the files


def fashion(tree: Path, package: str) -> File:
    """Fashion-MNIST: the first images of each class, in the order of the original files."""

    def idx(name: str) -> np.ndarray:  # yann.lecun.com/exdb/mnist: magic, sizes as big-endian uint32, then bytes
        raw = gzip.decompress((tree / "usr/share/datasets/fashion-mnist" / name).read_bytes())
        sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)

    def first(part: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = idx(f"{part}-images-idx3-ubyte.gz"), idx(f"{part}-labels-idx1-ubyte.gz")
        kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
        return images[kept], labels[kept]

    x_train, y_train = first("train", 600)
    x_test, y_test = first("t10k", 200)
    return File(
        "fashion_8k.npz", package, arrays(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test), 8000,
        "x_train (6000, 28, 28) uint8, y_train (6000,), x_test (2000, 28, 28), y_test (2000,)", "MIT", "",
        "Fashion-MNIST. Copyright 2017 Zalando SE. Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for "
        "Benchmarking Machine Learning Algorithms, arXiv:1708.07747, 2017.",
        "the first 600 training and 200 test images of each class, original order",
    )  # fmt: skip


def austen(tree: Path, package: str) -> File:
    novels = {
        "Sense and Sensibility": "sensesensibility", "Pride and Prejudice": "prideprejudice",
        "Mansfield Park": "mansfieldpark", "Emma": "emma", "Northanger Abbey": "northangerabbey",
        "Persuasion": "persuasion",
    }  # fmt: skip
    text = "".join(f"\f{title}\n" + "\n".join(read_lazy(tree, "janeaustenr", name)) + "\n"
                   for title, name in novels.items())  # fmt: skip
    return File(
        "austen.txt.xz", package, lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME), len(novels),
        "text; each novel after a form feed and a line with its title", "MIT", "",
        "Jane Austen's six novels, first published 1811-1818, public domain; texts by Project Gutenberg, collected by "
        "Julia Silge in the R package janeaustenr.",
        "the lines of the six novels, joined",
    )  # fmt: skip


def wordnet(tree: Path, package: str) -> File:
    """Nouns with their definitions.

    A line of data.noun is: offset, lexicographer file, n, count (hex), then lemma and id each, |, gloss (wndb(5WN)).
    """
    names = dict(enumerate(LEXNAMES, 3))
    by_category: dict[str, list[tuple[str, str, str]]] = {}
    for line in (tree / "usr/share/wordnet/data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        lemmas = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
        definition = gloss.partition('; "')[0].strip()  # without the examples
        by_category.setdefault(names[int(fields[1])], []).append((fields[0], ", ".join(lemmas), definition))
    kept = sorted(name for name, _ in Counter({k: len(v) for k, v in by_category.items()}).most_common(12))
    rows = []
    for category in kept:  # by the hash of the offset: a fair sample that no random generator's version changes
        chosen = sorted(by_category[category], key=lambda entry: hashlib.sha256(entry[0].encode()).digest())[:1200]
        rows += [f"{category}\t{lemmas}\t{definition}" for _, lemmas, definition in chosen]
    text = "category\tlemmas\tdefinition\n" + "\n".join(rows) + "\n"
    return File(
        "wordnet_glosses.tsv.gz", package, gzip.compress(text.encode(), 9, mtime=0), len(rows),
        "category, lemmas (separated by comma), definition", "LicenseRef-WordNet-3.0", "",
        "WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved.",
        "the 12 largest categories (lexicographer files) of nouns, 1,200 entries of each by the hash of their offset; "
        "definitions without examples",
    )  # fmt: skip


LEXNAMES = (  # lexnames(5WN), the nouns: numbers 3 to 28
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip


def houses(tree: Path, package: str) -> File:
    found = read_lazy(tree, "spData", "house")
    leaks = {"avalue"} | {name for name in found.data.columns if name.startswith("s199")}
    columns = {name: plain(found.data[name]) for name in found.data.columns if name not in leaks}
    for axis, name in enumerate(("east_m", "north_m")):
        columns[name] = [f"{value:.1f}" for value in found.coords.to_numpy()[:, axis]]
    return File(
        "houses.csv.gz", package, table(columns), len(found.data),
        ", ".join(columns), "CC0-1.0",
        "the origin's own terms (the county's auditor; the Spatial Econometrics toolbox) could not be re-read",
        "Single-family homes sold in Lucas County, Ohio, 1993-1998; county auditor; Spatial Econometrics toolbox (J. "
        "LeSage); R package spData (R. Bivand, J. Nowosad, R. Lovelace).",
        "without the assessor's value (it leaks the price) and the year dummies; coordinates in metres (Lambert)",
    )  # fmt: skip


def shuttle(tree: Path, package: str) -> File:
    found = read_rda(tree / LIBRARY / "mlbench/data/Shuttle.rda", "Shuttle")
    names = list(found["Class"].cat.categories)
    x, y = found.drop(columns="Class").to_numpy(), found["Class"].cat.codes.to_numpy()
    assert (x == x.astype(np.int32)).all()
    return File(
        "shuttle.npz", package, arrays(x=x.astype(np.int32), y=y.astype(np.uint8), names=np.array(names)), len(x),
        "x (58000, 9) int32, y (58000,) index into names (7,)", "GPL-2.0-only", UCI,
        "Statlog (Shuttle), NASA; UCI Machine Learning Repository, Dua and Graff 2019; R package mlbench (F. Leisch, "
        "E. Dimitriadou).",
        "all rows, whole numbers; class names as in the package",
    )  # fmt: skip


UCI = "UCI is said to label the set CC BY 4.0; its page could not be opened from here. A person should look once"
ROLL_CALLS = (
    "handicapped-infants", "water-project-cost-sharing", "adoption-of-the-budget-resolution", "physician-fee-freeze",
    "el-salvador-aid", "religious-groups-in-schools", "anti-satellite-test-ban", "aid-to-nicaraguan-contras",
    "mx-missile", "immigration", "synfuels-corporation-cutback", "education-spending", "superfund-right-to-sue",
    "crime", "duty-free-exports", "export-administration-act-south-africa",
)  # fmt: skip


def votes(tree: Path, package: str) -> File:
    found = read_rda(tree / LIBRARY / "mlbench/data/HouseVotes84.rda", "HouseVotes84")
    columns = {"party": plain(found["Class"])}
    columns |= {name: plain(found[f"V{i}"]) for i, name in enumerate(ROLL_CALLS, 1)}
    return File(
        "votes.csv.gz", package, table(columns), len(found), "party, then y, n or empty for 16 roll calls",
        "GPL-2.0-only", UCI,
        "1984 United States Congressional Voting Records, Congressional Quarterly Almanac 1985, donated by "
        "J. Schlimmer; UCI Machine Learning Repository, Dua and Graff 2019; R package mlbench.",
        "all rows; columns named as in the repository's description",
    )  # fmt: skip


def spam(tree: Path, package: str) -> File:
    found = read_rda(tree / LIBRARY / "kernlab/data/spam.rda", "spam")
    columns = {name: plain(found[name]) for name in found.columns}
    return File(
        "spambase.csv.gz", package, table(columns), len(found),
        "57 frequencies and run lengths, then type (spam, nonspam)", "GPL-2.0-only", UCI,
        "Spambase: M. Hopkins, E. Reeber, G. Forman, J. Suermondt, Hewlett-Packard Labs, 1999; UCI Machine Learning "
        "Repository, Dua and Graff 2019; R package kernlab (A. Karatzoglou, A. Smola, K. Hornik).",
        "all rows and columns",
    )  # fmt: skip


def credit(tree: Path, package: str) -> File:
    found = read_lazy(tree, "modeldata", "credit_data")
    columns = {name: plain(found[name]) for name in found.columns}
    return File(
        "credit.csv.gz", package, table(columns), len(found), ", ".join(columns), "MIT",
        "the origin, a textbook data set of a Spanish university, states no terms that could be re-read here",
        "Loan customers of a bank, collected by L. Belanche (UPC Barcelona); R package modeldata (M. Kuhn, RStudio).",
        "all rows and columns; empty = missing",
    )  # fmt: skip


def weather(tree: Path, package: str) -> File:
    text = (tree / "vega_datasets/_data/seattle-weather.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    names = {"date": "date", "precipitation": "rain_mm", "temp_max": "max_c", "temp_min": "min_c", "wind": "wind_m_s"}
    columns = {new: [row[old] for row in rows] for old, new in names.items()}
    columns["date"] = [date.replace("/", "-") for date in columns["date"]]
    return File(
        "seattle_weather.csv.gz", package, table(columns), len(rows), ", ".join(columns), "MIT",
        "the observations are NOAA's, as far as we know in the US public domain; NOAA's page could not be opened here",
        "Daily weather in Seattle 2012-2015, NOAA National Centers for Environmental Information; packaged by "
        "vega-datasets (J. VanderPlas).",
        "without the derived column `weather`; columns named with units",
    )  # fmt: skip


BUILDERS = (
    ("dataset-fashion-mnist", fashion), ("r-cran-janeaustenr", austen), ("wordnet-base", wordnet),
    ("r-cran-spdata", houses), ("r-cran-mlbench", shuttle), ("r-cran-kernlab", spam), ("r-cran-mlbench", votes),
    ("r-cran-modeldata", credit), ("vega-datasets", weather),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
