"""The home folder, its settings, its token, and locks that die with their process."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stokehold.core.config import Config, describe, parse_config
from stokehold.core.errors import BusyError, ConfigError, NotFoundError, StokeholdError
from stokehold.core.records import Priority
from stokehold.store.home import Home


def test_create_makes_every_folder_and_settings_that_read_back(home: Home) -> None:
    assert all(folder.is_dir() for folder in (*home.folders, *home.inboxes.values()))
    assert home.config() == Config()
    assert Home.open(home.root) == home
    assert home.inboxes[Priority.HIGH] == home.root / "inbox" / "high"


def test_an_existing_home_is_not_overwritten_and_a_missing_one_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(StokeholdError, match="already"):
        Home.create(home.root, Config())
    with pytest.raises(NotFoundError, match="stoke init"):
        Home.open(tmp_path / "elsewhere")


def test_open_brings_back_empty_folders(home: Home) -> None:
    home.trash.rmdir()
    Home.open(home.root)
    assert home.trash.is_dir()


def test_settings_that_do_not_parse_leave_the_old_ones(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"model\.base"):
        home.write_config('[model]\nbse = "x"\n')
    with pytest.raises(ConfigError, match="not TOML"):
        home.write_config("[model\n")
    assert home.config() == Config()
    changed = parse_config({"training": {"epochs": 3}})
    assert home.write_config(describe(changed)) == home.config() == changed


def test_token_is_made_once_for_the_owner_only(home: Home) -> None:
    tokens: list[str] = []
    threads = [threading.Thread(target=lambda: tokens.append(home.token())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert len(set(tokens)) == 1
    assert len(tokens[0]) >= 40
    assert stat.S_IMODE((home.status / "token").stat().st_mode) == 0o600
    assert [path.name for path in home.status.iterdir()] == ["token"]


def test_a_lock_names_its_holder_and_is_free_after_release(home: Home) -> None:
    with home.lock("trainer", "training a.jsonl"):
        with pytest.raises(BusyError, match=rf"process {os.getpid()} \(training a\.jsonl\)"):
            home.lock("trainer", "another")
        home.lock("evaluator", "something else").release()
    home.lock("trainer", "now").release()


def test_a_lock_dies_with_its_process(home: Home) -> None:
    program = (
        "import sys, time; from pathlib import Path; from stokehold.store.home import Home\n"
        "lock = Home(Path(sys.argv[1])).lock('trainer', 'the other'); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(home.root)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match=f"process {other.pid}"):
        home.lock("trainer", "mine")
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    home.lock("trainer", "mine").release()


def test_a_lock_whose_note_finds_no_room_is_taken_and_let_go(home: Home) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from stokehold.store.home import Home\n"
        "home = Home(Path(sys.argv[1])); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with home.lock('trainer', 'the other'): print('held', flush=True); sys.stdin.read()\n"
        "home.lock('trainer', 'again')"
    )
    command = [sys.executable, "-c", program, str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match="another process"):
            home.lock("trainer", "mine")
        other.communicate()
    assert other.returncode == 0


def test_a_lock_that_cannot_be_made_is_held_by_nobody(home: Home) -> None:
    with pytest.raises(UnicodeEncodeError):
        home.lock("trainer", "a note that is no text: \udcff")
    home.lock("trainer", "now").release()
