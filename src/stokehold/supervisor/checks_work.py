"""Checks of the model and the work: base, settings, memory, data, suites, baseline, checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from stokehold.core.config import Config
from stokehold.core.errors import NotFoundError, StokeholdError
from stokehold.core.memory import Memory, ModelShape, estimate, largest_batch, most_answers
from stokehold.core.records import Dataset
from stokehold.store import datasets
from stokehold.store.db.database import Database
from stokehold.store.files import MANIFEST, read_manifest, verify
from stokehold.store.home import Home
from stokehold.store.judged import evaluations, suites
from stokehold.store.models import checkpoints, versions
from stokehold.supervisor.checks import Check, bad, good, look, size
from stokehold.supervisor.devices import Room, card_number, main_memory, same_device
from stokehold.telemetry.readings import DeviceReadings

ROOM_SHARE = 0.9
"""Share of the free memory that an estimate may fill: allocators leave gaps, and it is an estimate."""

BYTES_PER_TOKEN = 3
"""Fewer than a token of text mostly has, so that prompts are not taken for shorter than they are."""

CUDA_ONLY = ("adamw_8bit", "paged_adamw")
MANY_REJECTED = 0.5


def base(home: Home, config: Config) -> Check:
    """The base model is there, every byte as it was imported."""
    folder = home.root / config.model.base
    if not config.model.base or not folder.is_dir():
        named = config.model.base or "model.base is empty"
        return bad("base model", f"missing: {named}", "`stoke init DIR --model …` makes a home with one")
    damaged = verify(folder)
    if damaged:
        first = damaged[0]
        fix = "restore base/ from a backup, or make another home with `stoke init`"
        return bad("base model", f"{len(damaged)} damaged: {first.path}: {first.reason}", fix)
    licence = read_manifest(folder).get("licence") or config.model.licence
    parts = (config.model.architecture, config.model.source, licence and f"licence {licence}")
    return good("base model", ", ".join(filter(None, parts)))


def settings(home: Home, config: Config, shape: ModelShape | None) -> Check:
    """What each setting allows and all of them together do not."""
    training, on_cuda = config.training, config.devices.trainer.startswith("cuda")
    if config.model.method == "qlora" and not on_cuda:
        return bad("settings", "qlora trains on CUDA only", 'set devices.trainer = "cuda:0", or model.method = "lora"')
    if training.optimizer in CUDA_ONLY and not on_cuda:
        return bad("settings", f"{training.optimizer} needs CUDA", 'set training.optimizer = "adamw"')
    if training.schedule != "constant" and not training.total_steps:
        fix = "set it to the steps of the whole run"
        return bad("settings", f"{training.schedule} decays until training.total_steps, which is 0", fix)
    if shape is not None and shape.context_tokens is not None and config.data.max_length > shape.context_tokens:
        found = f"data.max_length {config.data.max_length} is beyond the model's context of {shape.context_tokens}"
        return bad("settings", found, f"set data.max_length = {shape.context_tokens}")
    if training.micro_batch_tokens < config.data.max_length:
        found = f"rows of up to {config.data.max_length} tokens, batches of {training.micro_batch_tokens}"
        fix = "set training.micro_batch_tokens to data.max_length or more: longer rows get a batch of their own anyway"
        return look("settings", found, fix)
    return good("settings", f"{home.config_path.name} reads, {config.model.method} in {config.model.dtype}")


def device(config: Config, cards: Mapping[int, DeviceReadings], room: Room | None) -> Check:
    """The device is there, and no better one is idle."""
    if room is None:
        fix = f'this machine shows {_named(cards)}; set devices.trainer = "cpu", or install the driver'
        return bad("device", f"{config.devices.trainer} is not there", fix)
    if config.devices.trainer == "cpu" and cards:
        return look("device", "cpu, while there is a GPU", 'set devices.trainer = "cuda:0"')
    return good("device", f"{room.device}, {size(room.total)}")


def evaluator(config: Config, cards: Mapping[int, DeviceReadings]) -> Check:
    """Who judges can: the device is there, holds such weights, and is not taken by training."""
    device, four_bit = config.devices.evaluator, config.model.method == "qlora"
    if device == "share":
        return good("evaluator", "the trainer itself, between two steps")
    if device == "node":
        return good("evaluator", "another machine: `stoke node judge` must run there")
    if device == "cpu":
        if four_bit:
            fix = 'set devices.evaluator = "cuda:N" or "share"'
            return bad("evaluator", "cpu: 4-bit weights need a CUDA device", fix)
        return good("evaluator", "cpu, in a process of its own")
    if card_number(device) not in cards:
        other = '"share"' if four_bit else '"cpu" or "share"'
        fix = f"this machine shows {_named(cards)}; set devices.evaluator = {other}"
        return bad("evaluator", f"{device} is not there", fix)
    if same_device(device, config.devices.trainer):
        fix = 'set devices.evaluator = "share", or to another card'
        return look("evaluator", f"{device} trains too: it holds the memory of both", fix)
    return good("evaluator", f"{device}, in a process of its own")


def _named(cards: Mapping[int, DeviceReadings]) -> str:
    return ", ".join(f"cuda:{number}" for number in cards) or "no card"


def memory(
    home: Home, config: Config, shape: ModelShape, room: Room, evaluator_room: Room | None = None
) -> list[Check]:
    """The estimate against what is free: of the device, and on CUDA of main memory.

    `evaluator_room` is that of an evaluator in a process of its own here; where such a one is not, or is not here,
    the row `evaluation` is left out.
    """
    prompt = _longest_prompt(home, config)
    wanted = estimate(shape, config, prompt)
    found = [_training(shape, config, wanted, room, round(ROOM_SHARE * room.free))]
    if not config.devices.own_evaluator:
        found.append(_evaluation(shape, config, wanted, room, prompt))
    elif evaluator_room is not None:
        found.append(_judging(shape, config, wanted, evaluator_room, prompt))
    host = main_memory()
    if wanted.cuda and wanted.host > ROOM_SHARE * host.free:
        text = f"{size(wanted.host)} of {size(host.free)} free, to write checkpoints from"
        found.append(bad("main memory", text, 'more of it, or model.method = "lora" in a new home'))
    return found


def _training(shape: ModelShape, config: Config, wanted: Memory, room: Room, limit: int) -> Check:
    batch = wanted.activations + wanted.logits
    kept = wanted.weights + wanted.gradients + wanted.optimizer
    text = f"about {size(wanted.training)} of {size(room.free)} free: model and optimiser {size(kept)}"
    text += f", batch {size(batch)}"
    if not wanted.cuda:
        text += f", checkpoint {size(wanted.snapshot)}"
    if wanted.training <= limit:
        return good("memory", text)
    if wanted.training <= room.free:
        return look("memory", text, _way_out(shape, config, limit))
    return bad("memory", text, _way_out(shape, config, limit))


def _way_out(shape: ModelShape, config: Config, limit: int) -> str:
    """The smallest change with which training fits."""
    if tokens := largest_batch(shape, config, limit):
        return f"set training.micro_batch_tokens = {tokens}"
    less = config.training.model_copy(update={"gradient_checkpointing": True})
    if tokens := largest_batch(shape, config.model_copy(update={"training": less}), limit):
        return f"set training.gradient_checkpointing = true and training.micro_batch_tokens = {tokens}"
    for change in ({"dtype": "bfloat16"}, {"method": "lora"}, {"dtype": "bfloat16", "method": "lora"}):
        model = config.model.model_copy(update=change)
        tried = config.model_copy(update={"training": less, "model": model})
        if tokens := largest_batch(shape, tried, limit):
            said = " and ".join(f'model.{key} = "{value}"' for key, value in change.items())
            return f"in a new home: {said}, gradient_checkpointing = true, micro_batch_tokens = {tokens}"
    return "take a smaller model, a shorter data.max_length, or a larger machine"


def _evaluation(shape: ModelShape, config: Config, wanted: Memory, room: Room, prompt: int | None) -> Check:
    """In the trainer, between two steps."""
    limit = round(ROOM_SHARE * room.free)
    text = f"at most {size(wanted.evaluating)}: {config.evaluation.batch_size} answers at once"
    if wanted.evaluating <= limit:
        return good("evaluation", text)
    return look("evaluation", f"{text}, of {size(room.free)} free", _fewer_answers(shape, config, limit, prompt))


def _judging(shape: ModelShape, config: Config, wanted: Memory, room: Room, prompt: int | None) -> Check:
    """In a process of its own, while training goes on."""
    needed = wanted.judging(cuda=room.device != "cpu")
    beside = wanted.training if same_device(room.device, config.devices.trainer) else 0
    if room.device == "cpu" and wanted.cuda:
        beside = wanted.host
    text = f"at most {size(needed)} on {room.device}: {config.evaluation.batch_size} answers at once"
    text += f", beside {size(beside)} of the trainer" if beside else ""
    limit = round(ROOM_SHARE * room.free) - beside
    if needed <= limit:
        return good("evaluation", text)
    # The two differ by what training holds, however many answers there are.
    fix = _fewer_answers(shape, config, limit + wanted.evaluating - needed, prompt)
    return look("evaluation", f"{text}, of {size(room.free)} free", fix)


def _fewer_answers(shape: ModelShape, config: Config, limit: int, prompt: int | None) -> str:
    answers = most_answers(shape, config, limit, prompt)
    return f"set evaluation.batch_size = {answers}" if answers else "lower evaluation.max_new_tokens"


def _longest_prompt(home: Home, config: Config) -> int | None:
    """Tokens of the longest item of the suites that are judged, from its bytes; None where there is none."""
    names = config.evaluation.suites or suites.suite_names(home)
    files = [home.suites / f"{name}{suites.SUFFIX}" for name in names]
    longest = max((len(line) for file in files if file.is_file() for line in file.read_bytes().splitlines()), default=0)
    return longest // BYTES_PER_TOKEN or None


def data(home: Home) -> Check:
    """What was accepted and from where, and what waits."""
    accepted = datasets.list_datasets(home)
    waiting = [path for folder in (home.inbox, *home.inboxes.values()) for path in folder.glob("*.jsonl")]
    if not accepted:
        if waiting:
            return good("data", f"{_files(len(waiting))} waiting in the inbox")
        return look("data", "none yet", f"drop a JSONL file into {home.inbox}")
    rows, held, refused = (sum(getattr(d, name) for d in accepted) for name in ("accepted", "held_out", "rejected"))
    unreadable = [d.id for d in accepted if not _has_rows(home, d)]
    found = f"{_files(len(accepted))}, {rows:,} rows ({held:,} held out), {refused:,} lines refused"
    found += f"; newest {accepted[-1].file} of {accepted[-1].created[:10]}"
    if waiting:
        found += f"; {_files(len(waiting))} waiting"
    if unreadable:
        return bad("data", f"rows are missing: datasets/{unreadable[0]}", "restore the folder from a backup")
    if refused > MANY_REJECTED * (rows + refused):
        return look("data", found, "`stoke validate FILE` says why")
    return good("data", found)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _has_rows(home: Home, dataset: Dataset) -> bool:
    """Whether the rows are there in their full size; their content is read by `verify`, and when they are trained."""
    folder = datasets.dataset_folder(home, dataset.id)
    sizes = {entry["path"]: entry["bytes"] for entry in read_manifest(folder)["files"]}
    return all((folder / path).is_file() and (folder / path).stat().st_size == size for path, size in sizes.items())


def judged_on(home: Home, config: Config) -> Check:
    """Suites that read and hold something."""
    names = config.evaluation.suites or suites.suite_names(home)
    if not names:
        return look("suites", "none yet", "put held-out work into suites/, or let ingest hold a share out")
    counts = {}
    for name in names:
        try:
            counts[name] = suites.count_items(home, name)
        except StokeholdError as error:
            return bad("suites", f"{error.what}: {error.where}", error.fix)
    if empty := [name for name, count in counts.items() if not count]:
        return look("suites", f"{', '.join(empty)}: no item", "put held-out work into it, or remove it")
    return good("suites", ", ".join(f"{name} ({count:,})" for name, count in counts.items()))


def baseline(home: Home, db: Database, config: Config) -> Check:
    """The untrained model was judged on every suite, so that there is something to be better than."""
    names: Sequence[str] = config.evaluation.suites or suites.suite_names(home)
    folder = home.root / config.model.base
    if not names or not (folder / MANIFEST).is_file():
        return look(
            "baseline", "not captured: nothing to judge yet", "put a suite into suites/, then `stoke evaluate base`"
        )
    weights = checkpoints.weights_hash(read_manifest(folder)["files"])
    found = evaluations.latest_for(home, db, weights)
    lacking = [name for name in names if found is None or name not in found.suites]
    if found is None or lacking:
        return look("baseline", f"not captured: {', '.join(lacking)}", "`stoke evaluate base`")
    return good("baseline", f"captured {found.created[:10]}")


def newest_checkpoint(home: Home, db: Database) -> Check:
    """The newest checkpoint verifies; older ones are what is fallen back on."""
    found = checkpoints.latest(home, db)
    if found.passed_over:
        newest = Path(found.passed_over[0].path).name
        reason = found.passed_over[0].reason
        return look("checkpoints", f"{newest} is passed over: {reason}", "`stoke doctor` names them all")
    if found.checkpoint is None:
        return good("checkpoints", "none yet: training begins at the base model")
    return good("checkpoints", f"{Path(found.checkpoint.path).name} verifies")


def champion(home: Home, db: Database) -> Check:
    """What is served verifies."""
    named = versions.alias(db)
    if named is None:
        return good("champion", "none yet")
    try:
        damaged = versions.verify(home, Path(versions.find_version(home, named).path))
    except NotFoundError as error:
        return bad("champion", f"{named}: {error.what}", "`stoke rollback`, or restore it from a backup")
    if damaged:
        fix = "`stoke rollback`, or restore it from a backup"
        return bad("champion", f"{named}: {damaged[0].path}: {damaged[0].reason}", fix)
    return good("champion", f"{named} verifies")
