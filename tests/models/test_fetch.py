"""Published weights over the network: a loopback server, and a file of the published form."""

from __future__ import annotations

import dataclasses
import io
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from models import __main__ as command
from models import registry
from models.contract import ModelCard, ModelError
from models.fetch import blob_sha1, fetch
from models.sfcn.network import build

NETWORK = {"channels": [2, 3, 2, 3, 2, 4], "shape": [32, 32, 32]}


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path but /missing, as its attributes say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.ranges = True  # whether it knows them
        self.breaks: list[int] = []  # after how many bytes the next answers break off
        self.asked: list[tuple[str, str | None]] = []

    def address(self, path: str = "weights.p") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append((self.path, wanted))
        if self.path == "/missing":
            return self.send_error(404)
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and server.ranges else 0
        if start and start >= len(server.content):
            return self.send_error(416)
        rest = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        if start:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        self.end_headers()
        self.wfile.write(rest[: server.breaks.pop(0)] if server.breaks else rest)
        return None

    def log_message(self, *_arguments: object) -> None:
        pass


def published(seed: int = 0) -> tuple[bytes, torch.nn.Module]:
    """A state dict as DataParallel saved it in 2019, before torch's files were archives."""
    torch.manual_seed(seed)
    network = build(NETWORK).eval()
    for key, value in network.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_()
    stream = io.BytesIO()
    state = torch.nn.DataParallel(network).state_dict()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue(), network


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        server.content = published()[0]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRAINAGE_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


def known(tmp_path: Path, content: bytes, *addresses: str) -> Path:
    """A root of models with one card, whose weights are published at these addresses."""
    this = registry.card("sfcn")
    source = {"url": "x", "addresses": list(addresses), "git_blob_sha1": blob_sha1(content)}
    contract = dataclasses.replace(this.contract, shape=tuple(NETWORK["shape"]))
    this = dataclasses.replace(this, source=source, network=NETWORK, contract=contract)
    folder = tmp_path / "root" / "sfcn"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.toml").write_text(this.to_toml())
    return folder.parent


def files(store: Path) -> list[str]:
    return sorted(path.name for path in store.rglob("*") if path.is_file())


def test_the_hash_is_gits() -> None:
    assert blob_sha1(b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"  # git book


def test_fetched_weights_are_found_and_predict_as_published(
    server: Server, store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, server.content, server.address())
    assert registry.available(root) == []
    path = fetch("sfcn", root=root)
    assert path.is_relative_to(store)
    assert files(store) == ["card.toml", "weights.safetensors"]
    assert registry.available(root) == registry.fetched(root) == ["sfcn"]
    assert registry.embedded(root) == []
    assert registry.card("sfcn", root).weights_sha256 != ""
    model, network = registry.load("sfcn", root=root), published()[1]
    image = torch.rand(NETWORK["shape"])
    with torch.inference_mode():
        expected = network(image[None, None]).item()
    assert model.predict(image.numpy()).predicted_age == pytest.approx(expected, abs=1e-5)
    asked = len(server.asked)
    assert fetch("sfcn", root=root) == path  # there already
    assert len(server.asked) == asked
    path.write_bytes(b"damaged")
    fetch("sfcn", root=root)
    registry.load("sfcn", root=root)


def test_a_stored_folder_is_a_model_of_its_own(
    server: Server, store: Path, tmp_path: Path
) -> None:
    path = fetch("sfcn", root=known(tmp_path, server.content, server.address()))
    assert registry.load("other", weights=path.parent).card.name == "other"


def test_a_broken_download_goes_on(server: Server, store: Path, tmp_path: Path) -> None:
    server.breaks = [1000, 500]
    fetch("sfcn", root=known(tmp_path, server.content, server.address()))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1500-"]
    assert files(store) == ["card.toml", "weights.safetensors"]


def test_a_server_that_knows_no_ranges_sends_everything_again(
    server: Server, store: Path, tmp_path: Path
) -> None:
    server.ranges, server.breaks = False, [1000]
    fetch("sfcn", root=known(tmp_path, server.content, server.address()))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-"]
    assert files(store) == ["card.toml", "weights.safetensors"]


def test_a_later_run_goes_on_where_an_earlier_one_broke_off(
    server: Server, store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, server.content, server.address())
    server.breaks = [1000, 0]
    with pytest.raises(ModelError, match="broken off after 1000 of"):
        fetch("sfcn", root=root)
    fetch("sfcn", root=root)
    assert server.asked[-1][1] == "bytes=1000-"
    assert files(store) == ["card.toml", "weights.safetensors"]


def test_a_run_that_was_killed_after_the_last_byte_needs_no_more(
    server: Server, store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, server.content, server.address())
    (store / "sfcn").mkdir(parents=True)
    (store / "sfcn" / f".{blob_sha1(server.content)}.partial").write_bytes(server.content)
    fetch("sfcn", root=root)
    assert files(store) == ["card.toml", "weights.safetensors"]


def test_another_file_is_refused_and_nothing_is_left_behind(
    server: Server, store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, server.content, server.address())
    server.content = published(seed=1)[0]
    with pytest.raises(ModelError, match="not the published file, by its git blob hash") as caught:
        fetch("sfcn", root=root)
    assert "\n" not in str(caught.value)
    assert list(store.iterdir()) == []
    assert registry.available(root) == []


def test_mirrors_are_tried_in_turn(server: Server, store: Path, tmp_path: Path) -> None:
    addresses = server.address("missing"), server.address("mirror")
    fetch("sfcn", root=known(tmp_path, server.content, *addresses))
    assert [path for path, _ in server.asked] == ["/missing", "/mirror"]


def test_without_a_network_one_sentence_says_what_to_do(
    server: Server, store: Path, tmp_path: Path
) -> None:
    closed = "http://127.0.0.1:9/weights.p"
    root = known(tmp_path, server.content, closed, server.address("missing"))
    with pytest.raises(ModelError) as caught:
        fetch("sfcn", root=root)
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(r"127\.0\.0\.1:9: .*; 127\.0\.0\.1:\d+: the server answers 404", said)
    assert f"download {closed} by other means and run python -m models fetch sfcn --from" in said
    assert list(store.iterdir()) == []


def test_a_file_that_was_downloaded_by_other_means(
    server: Server, store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, server.content, "http://127.0.0.1:9/")
    file = tmp_path / "mine.p"
    file.write_bytes(server.content[:-1])
    with pytest.raises(ModelError, match=r"mine\.p is not the published file of 'sfcn'"):
        fetch("sfcn", file, root)
    assert list(store.iterdir()) == []
    file.write_bytes(server.content)
    fetch("sfcn", file, root)
    assert registry.available(root) == ["sfcn"]
    assert file.is_file()


def test_a_published_file_that_would_run_code_is_refused(store: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "harmed",)

    stream, file = io.BytesIO(), tmp_path / "harmful.p"
    torch.save({"module.a": Harmful()}, stream)
    file.write_bytes(stream.getvalue())
    with pytest.raises(ModelError, match="holds more than tensors"):
        fetch("sfcn", file, known(tmp_path, stream.getvalue()))
    assert not (tmp_path / "harmed").exists()
    assert list(store.iterdir()) == []


def test_weights_of_another_network_are_refused(store: Path, tmp_path: Path) -> None:
    stream, file = io.BytesIO(), tmp_path / "other.p"
    torch.save(torch.nn.Linear(2, 3).state_dict(), stream)
    file.write_bytes(stream.getvalue())
    with pytest.raises(ModelError, match="does not fit its network"):
        fetch("sfcn", file, known(tmp_path, stream.getvalue()))
    assert list(store.iterdir()) == []


def test_weights_of_a_file_that_the_card_no_longer_asks_for_do_not_count(
    server: Server, store: Path, tmp_path: Path
) -> None:
    fetch("sfcn", root=known(tmp_path, server.content, server.address()))
    root = known(tmp_path, b"newer", server.address())
    assert registry.available(root) == []
    assert registry.card("sfcn", root).weights_sha256 == ""


def test_a_model_without_published_weights_has_nothing_to_fetch(
    store: Path, tmp_path: Path
) -> None:
    root = known(tmp_path, b"")
    card = dataclasses.replace(registry.card("sfcn", root), source={})
    (root / "sfcn" / "card.toml").write_text(card.to_toml())
    with pytest.raises(ModelError, match="names no published weights"):
        fetch("sfcn", root=root)


# Where they go


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No container, and a home folder that is empty."""
    monkeypatch.delenv("BRAINAGE_MODELS")
    monkeypatch.setattr(registry, "in_container", lambda: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


@pytest.mark.usefixtures("outside")
def test_outside_a_container_they_go_to_the_users_data(tmp_path: Path) -> None:
    folder = registry.store()
    assert folder is not None
    assert folder.is_relative_to(tmp_path)
    assert folder.parts[-2:] == ("brainage", "models")


@pytest.mark.usefixtures("outside")
def test_inside_a_container_never_to_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "in_container", lambda: True)
    assert registry.store() is None
    with pytest.raises(ModelError, match="container the environment variable BRAINAGE_MODELS"):
        fetch("sfcn", root=known(tmp_path, b"x"))


@pytest.mark.parametrize("name", ["APPTAINER_CONTAINER", "container"])
def test_a_container_is_known_by_its_environment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    for other in ("container", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER",
                  "KUBERNETES_SERVICE_HOST"):  # fmt: skip
        monkeypatch.delenv(other, raising=False)
    assert not registry.in_container()
    monkeypatch.setenv(name, "oci")
    assert registry.in_container()


# Command line, with the real cards


def test_the_command_answers_in_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["fetch", "sfcn", "--from", str(tmp_path / "nowhere.p")]) == 2
    assert "nowhere.p cannot be read" in capsys.readouterr().err
    assert command.main(["fetch", "wssa"]) == 0
    assert "'wssa' is ready to run (licence: CC-BY-SA-3.0)" in capsys.readouterr().out


def test_the_card_in_the_repository_can_be_fetched() -> None:
    card: ModelCard = registry.card("sfcn")
    assert re.fullmatch("[0-9a-f]{40}", card.source["git_blob_sha1"])
    assert all(address.startswith("https://") for address in card.source["addresses"])
    assert all(address.endswith(card.source["path"]) for address in card.source["addresses"])
