"""Secrets are nowhere in what is written, hostile names lead nowhere, tokens are private."""

import logging
import random
import secrets as random_secrets
import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from ledgers import SPACE, fill, made_spec

from cluster.connect import protect_token
from search.cli import RedactingFormatter, main
from search.folder import SearchFolder
from search.recorded import create_ledger, open_ledger
from search.tracking import redact
from spaces import SpaceError, load_search_space
from trainables.errors import InputError

CANARIES = [random_secrets.token_hex(12) for _ in range(20)]
PLACES = (
    "# uri: postgresql://me:{}@host/db",
    "# http://user:{}@host:5000/path",
    "# https://host/?api_key={}",
    "# https://host/?X-Amz-Signature={}&other=1",
    "# token={}",
    "# password: {}",
    "# secret_key: '{}'",
    '# access_token: "{}"',
    "# Authorization: Bearer {}",
    "# ghp_{}",
    "# hf_{}",
    "# MLFLOW_TRACKING_PASSWORD={}",
)


@pytest.mark.parametrize(
    ("place", "canary"), list(zip(PLACES, CANARIES, strict=False)), ids=range(len(PLACES))
)
def test_a_secret_in_the_yaml_is_in_no_copy(tmp_path: Path, place: str, canary: str) -> None:
    text = SPACE + place.format(canary) + "\n"
    spec, folder = made_spec(tmp_path, text=text), SearchFolder(tmp_path / "runs", "made")
    ledger = create_ledger(spec, folder, text)
    fill(spec, ledger)
    ledger.close()
    again = open_ledger(folder, write=True)[1]
    again.close()
    kept = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert kept
    assert not [p for p in kept if canary.encode() in p.read_bytes()]


@pytest.mark.parametrize("name", ["MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "LEDGER"])
def test_what_the_environment_keeps_secret_is_hidden_everywhere(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    canary = CANARIES[-1] + "/@"
    address = f"postgresql://me:{quote(canary, safe='')}@host/db"
    monkeypatch.setenv(name, address if name == "LEDGER" else canary)
    text = f"it said {canary} twice"
    assert redact(text) == "it said *** twice"
    line = logging.LogRecord("x", logging.ERROR, "", 0, text, None, None)
    assert CANARIES[-1] not in RedactingFormatter().format(line)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/?api_key={}",
        "https://host/?sig={}",
        "https://host/?access_token={}",
        "postgresql://me:{}@host/db",
        "s3://me:{}@bucket/prefix",
    ],
)
@pytest.mark.parametrize("key", ["tracking.uri", "storage.ledger", "storage.checkpoints"])
def test_an_address_with_a_secret_is_refused(tmp_path: Path, uri: str, key: str) -> None:
    path = tmp_path / "made.yaml"
    path.write_text(SPACE)
    with pytest.raises(SpaceError, match="must not hold a password") as refused:
        load_search_space(path, (f"{key}={uri.format(CANARIES[0])}",))
    assert CANARIES[0] not in str(refused.value)


def hostile_names(count: int) -> list[str]:
    rng = random.Random(7)
    whole = ["", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", "a\0b", "x" * 300, "x" * 65, "é",
             ".hidden", "CON", "nul.txt", "a b", "a\n", "\n", "~", "$HOME", "%2e%2e", "-rf",
             "--name", "a:b", "a*", "..%2f", "\u202eabc", "COM1", "lpt9"]  # fmt: skip
    alphabet = "./\\\0\n ~$%:*-_aé名\u202e"
    while len(whole) < count:
        whole.append("".join(rng.choices(alphabet, k=rng.randint(1, 80))))
    return whole


def test_five_hundred_hostile_names_write_nothing_outside(tmp_path: Path) -> None:
    made_spec(tmp_path)
    runs = tmp_path / "deep" / "runs"
    runs.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    file = str(tmp_path / "made.yaml")
    commands = (
        ["status"], ["best"], ["report"], ["resume"], ["sync"], ["promote"],
        ["compare", "made"],
        ["stop"], ["new", "--dataset", "digits", "--name"],
        ["train", "--from"],
        ["search", file, "--name"], ["submit", file, "--address", "http://127.0.0.1:1", "--name"],
    )  # fmt: skip
    runner = CliRunner()
    for index, name in enumerate(hostile_names(500)):
        command = commands[index % len(commands)]
        if command[0] == "search" and _allowed(name):
            command = ["search", file, "--dry-run", "--name"]
        end = [name] if command[-1].startswith("--") else ["--", name]
        # What is submitted has its runs on the cluster; a new file has none yet.
        option = [] if command[0] in ("submit", "new") else ["--runs", str(runs)]
        done = runner.invoke(main, [*command[:1], *option, *command[1:], *end])
        printed = command[0] == "new" and _allowed(name)
        refused = done.exit_code in (1, 2) or "--dry-run" in command or name == "" or printed
        assert refused, (command, name, done.output)
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, name)
    assert sorted(tmp_path.rglob("*")) == before


def _allowed(name: str) -> bool:
    try:
        SearchFolder(Path("runs"), name)
    except InputError:
        return False
    return True


def test_every_command_that_takes_a_name_is_in_that_test() -> None:
    known = {
        "status", "best", "report", "resume", "sync", "promote", "train", "search", "submit",
        "compare",
        "stop", "new",
    }  # fmt: skip
    named = {
        name
        for name, command in main.commands.items()
        if any(p.name in ("name", "names", "source") for p in command.params)
    }
    assert named - {"data", "convert"} <= known


@pytest.mark.parametrize("there", [False, True])
def test_the_token_file_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    path = tmp_path / "home" / "token"
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    if there:
        path.parent.mkdir()
        path.write_text("given")
        path.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "given" if there else len(path.read_text()) == 64
