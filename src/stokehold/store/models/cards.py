"""What an exported model says of itself: a card for people, and the same facts for programs.

Both state only what the home knows: what was not judged is not judged, and what has no licence named has none named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from stokehold.core.errors import IntegrityError, NotFoundError
from stokehold.core.records import Evaluation
from stokehold.core.shares import percent
from stokehold.store import datasets
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, read_manifest
from stokehold.store.home import Home
from stokehold.store.judged import evaluations
from stokehold.store.models import checkpoints, versions
from stokehold.store.models.adapters import base_of

PROVENANCE = "stokehold.json"
"""The facts beside the weights; whoever loads the folder may ignore it."""

FORMAT = 1


def facts(home: Home, db: Database, folder: Path) -> dict[str, Any]:
    """Where the weights in a published folder come from: lineage, base, licence, data by hash, evaluation."""
    manifest = read_manifest(folder)
    model, weights = home.config().model, checkpoints.weights_hash(manifest["files"])
    judged = evaluations.latest_for(home, db, weights)
    base = base_of(folder)
    named = base.name if base else Path(manifest.get("base") or model.base).name
    original = named == Path(model.base).name and model.revision != ""
    return {
        "format": FORMAT,
        "name": folder.name,
        "weights_hash": weights,
        "created": manifest["created"],
        "step": manifest.get("step"),
        "lineage": _ancestors(home, folder.name),
        "architecture": model.architecture,
        "method": model.method,
        "base": {"name": named, "source": model.source if original else "", "revision": model.revision}
        | {"weights_hash": _weights_of(home.base / named)},
        "licence": model.licence,
        "datasets": _datasets(home, manifest.get("datasets") or []),
        "evaluation": _evaluation(judged),
        "note": manifest.get("note") or "",
    }


def provenance(told: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
    """The facts as JSON, with the BLAKE3 of every file beside it."""
    listed = [{"path": name, "blake3": digest} for name, digest in sorted(files.items())]
    return orjson.dumps({**told, "files": listed}, option=orjson.OPT_INDENT_2)


def card(told: Mapping[str, Any], form: str) -> bytes:
    """README.md as model hubs read it; `form` is full, merged or adapter."""
    base = told["base"]
    head = {
        "license": told["licence"] or None,
        "base_model": base["source"] or None,
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["stokehold"],
    }
    lines = ["---"]
    lines += [f"{key}: {orjson.dumps(value).decode()}" for key, value in head.items() if value is not None]
    lines += ["---", "", f"# {told['name']}", "", _forms(form), ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in _rows(told)]
    lines += ["", "## Training data", "", *_data(told["datasets"])]
    lines += ["", "## Evaluation", "", *_judged(told["evaluation"])]
    return ("\n".join(lines) + "\n").encode()


def _forms(form: str) -> str:
    whole = "All weights; `AutoModelForCausalLM.from_pretrained` loads this folder."
    return {
        "full": whole,
        "merged": f"{whole} They are the base's with the adapters added.",
        "adapter": "Adapters for the base below; `PeftModel.from_pretrained(base, folder)` loads them.",
    }[form]


def _rows(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    base = told["base"]
    at = f" at {base['revision']}" if base["source"] and base["revision"] else ""
    return [
        ("weights (BLAKE3)", told["weights_hash"]),
        ("architecture", told["architecture"]),
        ("base", f"{base['source'] or base['name']}{at}, weights {base['weights_hash'] or 'unknown'}"),
        ("licence of the base", told["licence"] or "not named by the base's card"),
        ("training", f"{told['method']}, step {told['step']}" if told["step"] is not None else told["method"]),
        ("lineage", " ← ".join(told["lineage"]) or told["name"]),
        ("created", told["created"]),
        ("note", told["note"] or "none"),
    ]


def _data(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    if not listed:
        return ["None is on record."]
    rows = [f"| {_cell(d['file'])} | {d['rows']} | {d['blake3']} |" for d in listed]
    return ["| file | rows | BLAKE3 of the file |", "|---|---:|---|", *rows]


def _judged(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["These weights were not judged."]
    rows = [
        f"| {_cell(name)} | {one['n']} | {_share(one['exact'], one['exact_ci'])} | {_number(one['nll_per_token'])} |"
        f" {one['state']} |"
        for name, one in evaluation["suites"].items()
    ]
    head = ["| suite | items | exact [95 %] | nats per token | state |", "|---|---:|---|---:|---|"]
    return [f"Held-out items, greedy answers; fingerprint {evaluation['fingerprint']}.", "", *head, *rows]


def _share(exact: float | None, interval: Sequence[float] | None) -> str:
    if exact is None or interval is None:
        return "-"
    return f"{percent(exact)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _cell(value: Any) -> str:
    """Text that stays in its cell."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _ancestors(home: Home, name: str) -> list[str]:
    found: list[str] = []
    while versions.NAME.fullmatch(name) and name not in found:
        found.append(name)
        try:
            name = versions.find_version(home, name).parent or ""
        except (NotFoundError, IntegrityError):
            break  # deleted since; its children still name it
    return found


def _datasets(home: Home, ids: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for dataset in ids:
        try:
            one = datasets.load_dataset(home, dataset)
        except (NotFoundError, IntegrityError):
            found.append({"id": dataset, "file": "no longer here", "rows": None, "blake3": None})
        else:
            found.append({"id": one.id, "file": one.file, "rows": one.accepted, "blake3": one.content_hash})
    return found


def _evaluation(judged: Evaluation | None) -> dict[str, Any] | None:
    if judged is None:
        return None
    kept = ("n", "exact", "exact_ci", "nll_per_token")
    suites = {
        name: {key: getattr(r, key) for key in kept} | {"state": r.state.value} for name, r in judged.suites.items()
    }
    return {"id": judged.id, "fingerprint": judged.fingerprint, "suites": suites}


def _weights_of(base: Path) -> str | None:
    if not (base / MANIFEST).is_file():
        return None
    return checkpoints.weights_hash(read_manifest(base)["files"]) or None
