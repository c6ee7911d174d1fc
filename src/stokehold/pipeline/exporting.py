"""`stoke versions export`: weights of this home as a folder, or a GGUF file, that others load.

`python -m stokehold.pipeline.exporting --home H REF DIR [--merged|--adapter] [--gguf] [--type T] [--json]`
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from stokehold.core.config import Config
from stokehold.core.errors import ConfigError, IntegrityError, NotFoundError, UsageError
from stokehold.pipeline.foreground import Meter, told
from stokehold.pipeline.suites import open_suites
from stokehold.pipeline.worker import use_threads
from stokehold.store.db.database import Database, connect
from stokehold.store.files import MANIFEST, hash_file
from stokehold.store.home import Home
from stokehold.store.housekeeping import compaction
from stokehold.store.models import cards, exports, versions
from stokehold.store.models.adapters import base_of
from stokehold.store.models.references import resolve

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
PROBES = 200
"""Texts of the home's suites that are cut both ways where llama.cpp has only a near pattern."""

Form = Literal["full", "merged", "adapter"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `worst_nats` is the largest difference of a log-probability between the version and the merged
    folder, None where nothing was merged; `gguf` is None, or the file's facts."""

    version: str
    path: str
    form: Form
    files: int
    bytes: int
    weights_hash: str
    worst_nats: float | None = None
    gguf: dict[str, Any] | None = None


def export(
    home: Home, db: Database, config: Config, ref: str, target: Path, asked: Form | None, gguf: str | None, meter: Meter
) -> Exported:
    """Writes the weights that `ref` names to `target`, which must not have content; see `exports.publish_plain`.

    Adapters are merged unless `asked` is adapter; `gguf` is a type to convert to as well. Raises IntegrityError where
    the version is damaged or what was merged answers otherwise; then nothing is written.
    """
    folder = resolve(home, db, ref, paths=False)
    if not (folder / MANIFEST).is_file():
        raise NotFoundError("nothing published goes by this name", ref, "name a version, a step or `base`")
    exports.check_free(target)
    folder = compaction.whole(home, folder)
    form = _form(folder, asked, gguf)
    facts = cards.facts(home, db, folder)
    worst, converted = None, None

    def write(stage: Path) -> exports.Files:
        nonlocal worst, converted
        meter.show(folder.name, 0.0, f"writing {form} to {target}")
        if form == "merged":
            files, worst = write_merged(home, config, folder, stage)
        elif form == "adapter":
            files = exports.copy_adapters(home, folder, stage, home.disk)
        else:
            files = exports.copy_model(folder, stage, home.disk)
        if gguf:
            meter.show(folder.name, 0.5, f"converting to GGUF {gguf}")
            converted = _convert(home, stage, folder.name, gguf, config.model.licence)
            files |= {converted["file"]: converted["blake3"]}
        return exports.describe(facts | {"worst_nats": worst}, form, files, stage, home.disk)

    exports.publish_plain(target, write, home.disk)
    written = [path for path in target.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    return Exported(folder.name, str(target), form, len(written), size, facts["weights_hash"], worst, converted)


def write_merged(home: Home, config: Config, folder: Path, stage: Path) -> tuple[exports.Files, float]:
    """The adapters of `folder` added to their base, in `stage`, and by how many nats it answers otherwise at most.

    The folder is loaded again as anybody would, and asked what the version was asked. Raises IntegrityError where the
    version is damaged, or the answers differ by more than the type of the weights explains.
    """
    if bad := versions.verify(home, folder):
        raise IntegrityError(f"{bad[0].path}: {bad[0].reason}", str(folder), "export another version")
    # what follows loads torch and peft, which copying needs none of
    from stokehold.data.profile import profile_of
    from stokehold.inference.registry import load
    from stokehold.training.golden import agreement, golden
    from stokehold.training.model import open_model

    use_threads(config)
    model, adapters = open_model(folder, config)
    assert adapters is not None
    said = golden(model)
    adapters.merge().save_pretrained(stage)
    del model, adapters  # before the same weights come from disk
    files = {path.name: hash_file(path) for path in stage.iterdir()}
    files |= exports.copy_tokenizer(folder, stage, home.disk)
    again = load(stage, config.model.dtype, config.devices.trainer, profile_of(config.data))
    found = agreement(said, golden(again.engine.model, said))
    if not found.worst <= found.tolerance:
        what = f"the merged weights answer otherwise, by {found.worst:.3g} nats where {found.tolerance:g} is allowed"
        raise IntegrityError(what, str(folder), "export it with --adapter; nothing was written")
    return files, found.worst


def _form(folder: Path, asked: Form | None, gguf: str | None) -> Form:
    whole = base_of(folder) is None
    if whole and asked is not None:
        fix = "leave out --merged and --adapter"
        raise UsageError("these weights are whole, there are no adapters to export", folder.name, fix)
    if asked == "adapter" and gguf:
        raise UsageError("adapters alone are no GGUF", folder.name, "export them merged, or leave out --gguf")
    return "full" if whole else (asked or "merged")


def _convert(home: Home, stage: Path, name: str, kind: str, licence: str) -> dict[str, Any]:
    try:
        from stokehold.pipeline.gguf_export import write_gguf
        from stokehold.pipeline.gguf_tokenizer import cut_alike
    except ImportError as error:
        raise ConfigError("GGUF needs the package gguf", "--gguf", "pip install 'stokehold[gguf]'") from error
    target = stage / f"{name}-{kind}.gguf"
    written = write_gguf(stage, target, kind, name, licence)
    texts = _texts(home) if not written.exact else []
    return {
        "file": target.name,
        "type": kind,
        "bytes": target.stat().st_size,
        "blake3": hash_file(target),
        "tensors": written.tensors,
        "pre_tokenizer": written.pre,
        "pre_tokenizer_exact": written.exact,
        "texts": len(texts) or None,
        "texts_alike": cut_alike(stage, written.pre, texts) if texts else None,
    }


def _texts(home: Home) -> list[str]:
    """Held-out messages of this home."""
    samples = (sample for suite in open_suites(home) for sample in suite.samples)
    found = (message.content for sample in samples for message in sample.messages)
    return [text for text, _ in zip(found, range(PROBES), strict=False)]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="stokehold.pipeline.exporting")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("ref")
    parser.add_argument("folder", type=Path)
    forms = parser.add_mutually_exclusive_group()
    for form in ("merged", "adapter"):
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form)
    parser.add_argument("--gguf", action="store_true")
    parser.add_argument("--type", choices=GGUF_TYPES, default="f16")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(given)
    with told("export", arguments.home), Meter() as meter:
        home = Home.open(arguments.home)
        kind = arguments.type if arguments.gguf else None
        done = export(home, connect(home), home.config(), arguments.ref, arguments.folder, arguments.form, kind, meter)
    sys.stdout.write(orjson.dumps(done).decode() + "\n" if arguments.json else "\n".join(_lines(done)) + "\n")


def _lines(done: Exported) -> list[str]:
    lines = [
        f"{done.version} ({done.form}) is in {done.path}: {done.files} files, {done.bytes / 1e6:,.1f} MB, verified"
    ]
    if done.worst_nats is not None:
        lines.append(f"merged: log-probabilities differ from the version's by {done.worst_nats:.2g} nats at most")
    if done.gguf:
        lines.append(f"GGUF: {done.gguf['file']}, {done.gguf['bytes'] / 1e6:,.1f} MB, {done.gguf['tensors']} tensors")
        if not done.gguf["pre_tokenizer_exact"]:
            lines.append(_near(done.gguf))
    return lines


def _near(gguf: dict[str, Any]) -> str:
    said = f"note: llama.cpp has no pattern like this tokenizer's; {gguf['pre_tokenizer']}'s is the nearest"
    if gguf["texts"]:
        said += f", and {gguf['texts_alike']} of {gguf['texts']} texts of the suites become the same tokens"
    return said


if __name__ == "__main__":
    main()
