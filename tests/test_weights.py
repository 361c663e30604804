"""Loading models by name, path, URL and repository; saving them."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open

from sedseg import SED, InputError, SEDConfig
from sedseg.model.official import official_name
from sedseg.model_zoo import EMBEDDED, PUBLISHED, SED_BASE, SED_LARGE, PublishedModel
from sedseg.preprocessing import Preprocessing
from sedseg.weights import ModelInfo, load_model, named_config, save_model
from test_official import CONFIG, assert_same_weights

INFO = ModelInfo(
    name="test",
    config=CONFIG,
    preprocessing=Preprocessing(320, 640, None),
    training_classes=("sky", "façade"),
    data_terms="CC0",
    figures={"mIoU": {"streets": 0.5}},
    knows_background=True,
)


@pytest.fixture(scope="module")
def model() -> SED:
    return SED(CONFIG).eval()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEDSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def saved(model: SED, tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "model.safetensors"
    save_model(model, INFO, path)
    return path


@pytest.fixture
def official(model: SED, tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    theirs = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": theirs}, path)
    return path


def test_a_saved_model_comes_back_with_all_that_was_said_of_it(model: SED, saved: Path) -> None:
    random = torch.get_rng_state()
    for source in (saved, str(saved), saved.parent):
        loaded, info = load_model(source)
        assert info == INFO
        assert not loaded.training
        assert_same_weights(loaded, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(saved.parent.iterdir()) == [saved]


def test_half_the_size_in_float16_and_float32_when_loaded(
    model: SED, saved: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.safetensors"
    save_model(model, INFO, small, dtype=torch.float16)
    assert small.stat().st_size < 0.55 * saved.stat().st_size
    loaded, _ = load_model(small)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    images, text = torch.randn(1, 3, 64, 64), model.encode_text(["sky", "road"])
    with torch.no_grad():
        exact, near = model(images, text).logits, loaded(images, text).logits
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.01)


def test_float16_leaves_alone_what_it_cannot_hold(model: SED, tmp_path: Path) -> None:
    large = SED(CONFIG)
    with torch.no_grad():
        large.decoder.embed.weight[0, 0, 0, 0] = 1e6
    save_model(large, INFO, tmp_path / "large.safetensors", dtype=torch.float16)
    assert load_model(tmp_path / "large.safetensors")[0].decoder.embed.weight[0, 0, 0, 0] == 1e6


def test_a_failed_save_leaves_the_old_file(
    model: SED, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("sedseg.weights.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save_model(model, INFO, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_model_is_not_saved_under_the_configuration_of_another(
    model: SED, tmp_path: Path
) -> None:
    info = ModelInfo("sed-base", SED_BASE, Preprocessing())
    with pytest.raises(InputError, match="sed-base"):
        save_model(model, info, tmp_path / "out.safetensors")


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_truncated_safetensors_file_is_named(saved: Path, keep: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=r"model\.safetensors is a truncated or damaged"):
        load_model(saved)


def test_a_file_of_a_later_version_is_named(saved: Path) -> None:
    text = INFO.to_json().replace('"data_terms"', '"novelty"')
    with pytest.raises(InputError, match="novelty"):
        ModelInfo.from_json(text)


def test_nothing_is_pickled_and_the_information_is_readable_json(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert ModelInfo.from_json(metadata["sedseg"]) == INFO
    assert '"sedseg_version"' in metadata["sedseg"]


def test_the_named_models_regularise_as_the_paper_does() -> None:
    def regularisation(config: SEDConfig) -> tuple[float, float]:
        with torch.device("meta"):
            visual = SED(config).encoder.visual
        drop = [m.p for m in visual.head.modules() if isinstance(m, torch.nn.Dropout)]
        paths = [m.drop_prob for m in visual.trunk.modules() if hasattr(m, "drop_prob")]
        return max(drop), max(paths, default=0.0)

    assert regularisation(SED_BASE) == (0.0, 0.0)
    assert regularisation(SED_LARGE) == pytest.approx((0.1, 0.1))
    assert named_config("sed-large") is SED_LARGE


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'sed-base'"):
        load_model("sed-bse")
    with pytest.raises(InputError, match="sed-tiny, sed-base, sed-large"):
        load_model("no/such/file.pth")


def test_the_embedded_model_is_a_file_of_the_package(
    saved: Path, model: SED, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(EMBEDDED, "sed-tiny", saved)
    assert_same_weights(load_model("sed-tiny")[0], model)
    assert named_config("sed-tiny") == CONFIG
    monkeypatch.setitem(EMBEDDED, "sed-tiny", tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="lacks sed-tiny's weights"):
        load_model("sed-tiny")


# Google Drive


@pytest.fixture
def small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    small = PublishedModel("sed-base", CONFIG, PUBLISHED["sed-base"].drive_id, {"mIoU": 31.8})
    monkeypatch.setitem(PUBLISHED, "sed-base", small)


@pytest.mark.usefixtures("small_base")
def test_a_published_model_is_fetched_and_converted_once(
    model: SED, official: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(id: str, output: str, resume: bool) -> str:  # noqa: A002
        asked.append(id)
        Path(output).write_bytes(official.read_bytes())
        return output

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    for _ in range(2):
        loaded, info = load_model("sed-base")
        assert_same_weights(loaded, model)
        assert info.name == "sed-base"
        assert info.figures == {"mIoU": 31.8}
        assert len(info.training_classes) == 171
    assert asked == ["1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw"]
    assert [path.name for path in cache.glob("[!.]*")] == ["sed-base.safetensors"]


@pytest.mark.usefixtures("small_base")
def test_without_google_drive_the_error_says_where_and_what_to_type(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = (
        "https://drive.google.com/file/d/1qx6zGZgSPkF6TObregRz4uzQqSRHrgUw/view",
        f"`sedseg convert FILE {cache / 'sed-base.safetensors'} --model sed-base`",
    )

    def offline(**_: object) -> None:
        raise ConnectionError("Name or service not known")

    def quota(output: str, **_: object) -> None:
        Path(output).write_text("<!DOCTYPE html><title>Quota exceeded</title>")

    for download, reason in ((offline, "no connection"), (quota, "web page")):
        monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
        with pytest.raises(InputError, match=reason) as caught:
            load_model("sed-base")
        assert all(part in str(caught.value) for part in by_hand)
        assert not list(cache.glob("[!.]*"))

    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(InputError, match="pip install gdown"):
        load_model("sed-base")


# A URL


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; may stop half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.stops_early = False
        self.requests = 0
        self.url = f"http://127.0.0.1:{self.server_port}/weights/model.pth?download=true"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.content
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.server.stops_early else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_url_is_downloaded_once(
    model: SED, saved: Path, official: Path, server: Server, cache: Path
) -> None:
    server.content = saved.read_bytes()
    for _ in range(2):
        loaded, info = load_model(server.url)
        assert info == INFO
        assert_same_weights(loaded, model)
    assert server.requests == 1
    server.content = official.read_bytes()
    assert_same_weights(load_model(server.url + "&v=2", CONFIG)[0], model)
    assert len(list(cache.glob("url/[!.]*"))) == 2


def test_an_interrupted_download_leaves_nothing_and_the_next_one_starts_afresh(
    model: SED, saved: Path, server: Server, cache: Path
) -> None:
    server.content, server.stops_early = saved.read_bytes(), True
    with pytest.raises(InputError, match=r"Could not download http://127\.0\.0\.1"):
        load_model(server.url)
    assert not list(cache.glob("url/[!.]*")) + list(cache.glob("url/*.part"))
    server.stops_early = False
    assert_same_weights(load_model(server.url)[0], model)


def test_a_url_that_gives_no_weights_is_an_error(server: Server, cache: Path) -> None:
    with pytest.raises(InputError, match="Not Found"):
        load_model(server.url)
    server.content = b"<html>Please log in</html>"
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:.* is a web page"):
        load_model(server.url)
    assert not list(cache.glob("url/[!.]*"))


def test_a_server_out_of_reach_is_an_error(server: Server) -> None:
    url = server.url.replace(str(server.server_port), "1")
    with pytest.raises(InputError, match="name the file instead of the address"):
        load_model(url)


# A Hugging Face repository


class Hub:
    """A repository as a local folder, behind the functions that sedseg calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.offline = False
        for name in ("hf_hub_download", "list_repo_files", "snapshot_download"):
            monkeypatch.setattr(huggingface_hub, name, getattr(self, name))

    def hf_hub_download(self, repository: str, file: str) -> str:
        if self.offline and not (self.folder / file).exists():
            raise LocalEntryNotFoundError("no connection")
        if not (self.folder / file).exists():
            raise EntryNotFoundError("404")
        return str(self.folder / file)

    def list_repo_files(self, repository: str) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def snapshot_download(self, repository: str, local_files_only: bool) -> str:
        if not any(self.folder.iterdir()):
            raise LocalEntryNotFoundError("nothing cached")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    (tmp_path / "hub").mkdir()
    return Hub(tmp_path / "hub", monkeypatch)


def test_a_repository_gives_its_own_or_official_weights(
    model: SED, saved: Path, official: Path, hub: Hub
) -> None:
    (hub.folder / "README.md").touch()
    with pytest.raises(InputError, match="user/model holds no weights"):
        load_model("user/model")
    (hub.folder / "a.pth").write_bytes(official.read_bytes())
    assert_same_weights(load_model("user/model", CONFIG)[0], model)
    hub.offline = True
    assert_same_weights(load_model("user/model", CONFIG)[0], model)
    (hub.folder / "model.safetensors").write_bytes(saved.read_bytes())
    assert load_model("user/model")[1] == INFO


def test_a_repository_out_of_reach_is_an_error(hub: Hub) -> None:
    hub.offline = True
    with pytest.raises(InputError, match=r"https://huggingface.co/user/model cannot be reached"):
        load_model("user/model")
