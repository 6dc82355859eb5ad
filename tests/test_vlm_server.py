"""Served vision-language models: a real HTTP server on loopback that answers, stalls and fails."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import Reply, chat, chat_server, error
from helpers import Listener, noise, write_raster
from numpy.testing import assert_array_equal

from rsseg.api import tile
from rsseg.api.opinions import ask_opinions
from rsseg.classes import Classes
from rsseg.config import TileConfig, VlmConfig
from rsseg.errors import InputError, RunError
from rsseg.io.site import Site
from rsseg.nets import vlm_server
from rsseg.nets.vision import NoAnswerError
from rsseg.nets.vlm_server import ServedModel, served_model

KEY = "sk-0123456789abcdef"
ROOF = '[{"bbox_2d": [0, 0, 500, 500], "label": "building"}]'
SMALL = VlmConfig(window=64, halo=16, side=224)
IMAGE = noise((40, 50, 3))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it was waited between attempts; no time passes."""
    waited: list[float] = []
    monkeypatch.setattr(vlm_server.time, "sleep", waited.append)
    return waited


def model_at(server, **options) -> ServedModel:
    return ServedModel(server.url, "vl", "thousandths", **options)


def in_turn(*replies):
    """Says one after the other, the last one ever after."""
    return lambda asked: replies[min(asked.count, len(replies) - 1)]


# --- One question --------------------------------------------------------------------------------


def test_what_is_sent_and_what_comes_back():
    with chat_server(lambda asked: f"answer {asked.count}") as server:
        model = model_at(server, max_tokens=77)
        assert model.ask([IMAGE, IMAGE[:8]], "What?") == ["answer 0", "answer 1"]
    first, second = server.asked
    assert_array_equal(first.image, IMAGE)
    assert_array_equal(second.image, IMAGE[:8])
    assert first.prompt == "What?"
    assert first.key == f"Bearer {KEY}"
    rest = {name: value for name, value in first.body.items() if name != "messages"}
    assert rest == {"model": "vl", "temperature": 0, "max_tokens": 77}


def test_without_a_key_none_is_sent(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with chat_server(lambda asked: "yes") as server:
        assert model_at(server).ask([IMAGE], "What?") == ["yes"]
    assert server.asked[0].key is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        (None, ""),
        ([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}], "in parts"),
    ],
)
def test_contents_of_an_answer(content, text):
    with chat_server(lambda asked: Reply(200, chat(content))) as server:
        assert model_at(server).ask([IMAGE], "What?") == [text]


PASSING = {
    "busy": Reply(429, error("slow down")),
    "failing": Reply(500, error("oops")),
    "starting": Reply(503, b"<html>loading</html>"),
    "hanging up": Reply(200, None),
    "other JSON": Reply(200, {"object": "list"}),
    "a list": Reply(200, [1, 2]),
    "no choices": Reply(200, {"choices": []}),
    "no JSON": Reply(200, b"<html>welcome</html>"),
    "cut off": Reply(200, b'{"choices": [', {"Content-Length": "500"}),
}


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_tried_again(reply, waits):
    with chat_server(in_turn(reply, reply, "at last")) as server:
        assert model_at(server, backoff=0.5).ask([IMAGE], "What?") == ["at last"]
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("reply", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_is_given_up(reply, waits):
    with chat_server(in_turn(reply)) as server, pytest.raises(NoAnswerError) as caught:
        model_at(server, retries=3).ask([IMAGE], "What?")
    assert len(server.asked) == 4
    assert waits == [1, 2, 4]
    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_says_how_long_to_wait(waits):
    busy = [Reply(429, error("later"), {"Retry-After": wait}) for wait in ("7", "9999", "Fri, 1")]
    with chat_server(in_turn(*busy, "now")) as server:
        assert model_at(server).ask([IMAGE], "What?") == ["now"]
    assert waits == [7, 60, 4]


def test_a_server_that_is_silent_is_given_up(waits):
    over = threading.Event()
    with chat_server(lambda asked: over.wait(30) and "late") as server:
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.2 s"):
            model_at(server, timeout=0.2).ask([IMAGE], "What?")
        over.set()
    assert len(server.asked) == 1
    assert waits == []


def test_a_server_that_is_gone(waits):
    with chat_server(lambda asked: "yes") as server:
        model = model_at(server, retries=1)
    with pytest.raises(NoAnswerError, match=r"no connection .*refused"):
        model.ask([IMAGE], "What?")
    assert waits == [1]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_not_repeated(status, waits):
    refused = Reply(status, error("too\nlong"))
    found = pytest.raises(NoAnswerError, match=f"{status} too long")
    with chat_server(in_turn(refused)) as server, found:
        model_at(server).ask([IMAGE], "What?")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "/v1"), (301, "/v1")],
)
def test_what_no_other_question_would_change_ends_the_run(status, message, waits):
    reply = Reply(status, error("no"), {"Location": "http://127.0.0.1:9/elsewhere"})
    found = pytest.raises(RunError, match=message)
    with chat_server(in_turn(reply)) as server, found as caught:
        model_at(server).ask([IMAGE], "What?")
    assert not isinstance(caught.value, NoAnswerError)
    assert len(server.asked) == 1


def test_coordinates_decide_the_frame():
    model = ServedModel("http://127.0.0.1:9/v1", "vl", "pixels")
    assert model.frame((896, 448)) == (896, 448)
    assert replace(model, coordinates="thousandths").frame((896, 448)) == (1000, 1000)


# --- The key -------------------------------------------------------------------------------------


def test_the_key_is_shown_nowhere(caplog, capfd, waits):
    caplog.set_level(logging.DEBUG)
    echo = Reply(401, error(f"the key {KEY} is wrong"))
    with chat_server(in_turn("yes", Reply(500, f"by {KEY}".encode()), echo)) as server:
        model = model_at(server)
        assert model.ask([IMAGE], "What?") == ["yes"]
        with pytest.raises(RunError) as caught:
            model.ask([IMAGE], "What?")
    assert "the key *** is wrong" in str(caught.value)
    shown = capfd.readouterr()
    seen = [str(caught.value), repr(model), str(model.identity), caplog.text, shown.out, shown.err]
    assert caplog.records  # of urllib3
    assert all(KEY not in text for text in seen)
    assert KEY.encode() not in pickle.dumps(model)


def test_a_key_with_a_line_break_is_not_quoted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with chat_server(lambda asked: "yes") as server:
        assert model_at(server).ask([IMAGE], "What?") == ["yes"]
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-More: header")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        served_model("http://127.0.0.1:9/v1", "vl")
    assert KEY not in str(caught.value)


# --- The server that a user names ----------------------------------------------------------------


def test_the_only_model_of_a_server_needs_no_name():
    with chat_server(in_turn("yes"), ["qwen2.5-vl"]) as server:
        assert served_model(server.url, None) == (server.url, "qwen2.5-vl")
        assert served_model(f"{server.url}/", "mine") == (server.url, "mine")
        whole = f"{server.url}/chat/completions"
        assert served_model(whole, "mine") == (server.url, "mine")


@pytest.mark.parametrize(
    ("models", "message"), [(["a", "b"], "it has a, b"), ([], "does not say"), (None, "not say")]
)
def test_a_model_must_be_named(models, message):
    with chat_server(in_turn("yes"), models) as server:
        with pytest.raises(InputError, match=f"{message}.*--vlm-model"):
            served_model(server.url, None)
        assert served_model(server.url, "b") == (server.url, "b")


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "ftp://here/v1", "http:///v1"])
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="not an address"):
        served_model(url, "vl")


@pytest.mark.parametrize("url", ["http://me:pw42@here/v1", "http://here/v1?key=pw42", "me:pw42@x"])
def test_an_address_with_a_secret_is_refused_and_not_quoted(url):
    with pytest.raises(InputError, match="OPENAI_API_KEY") as caught:
        served_model(url, "vl")
    assert "pw42" not in str(caught.value)


def test_nobody_at_the_address():
    with chat_server(in_turn("yes")) as server:
        pass
    with pytest.raises(InputError, match=r"no connection .*refused.*start the server"):
        served_model(server.url, "vl")


# --- All windows of a site -----------------------------------------------------------------------


def site_of(folder: Path, height: int, width: int) -> Site:
    """A site of noise, with cores of 32 px."""
    raster = write_raster(folder / "ortho.tif", noise((3, height, width)))
    return tile(
        [raster], folder / "s.zarr", Classes.parse("building,other"), config=TileConfig(64, 0.5)
    )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Four windows."""
    return site_of(tmp_path, 64, 64)


def ask(site, server, **options):
    return ask_opinions(
        site.path, url=server.url, model="vl", sam="boxes", config=SMALL, device="cpu", **options
    )


def test_questions_side_by_side_are_bounded(tmp_path):
    site = site_of(tmp_path, 64, 128)  # eight windows
    met = threading.Barrier(4, timeout=20)  # breaks if there are never four at once

    def says(asked):
        met.wait()
        time.sleep(0.2)  # time for one too many to come
        return ROOF

    with chat_server(says) as server:
        report = ask(site, server)
    assert report.answered == 8
    assert server.most == 4


def test_answers_are_asked_once(site):
    with chat_server(in_turn(ROOF)) as server:
        first = ask(site, server)
        assert len(server.asked) == 4
        again = ask(site, server)
        assert len(server.asked) == 4
    assert again == first
    assert first.boxes == {"building": 4}
    assert first.parse_rate == 1


def test_an_interrupted_run_goes_on_without_asking_again(site, waits):
    with chat_server(in_turn(ROOF, ROOF, Reply(401, error("expired")))) as server:
        with pytest.raises(RunError, match="expired"):
            ask(site, server)
        kept = sorted(Path(site.path / "answers").glob("*/ortho/*.json"))
        assert len(kept) == 2
        times = [path.stat().st_mtime_ns for path in kept]
        asked = len(server.asked)
        server.says = in_turn(ROOF)
        assert ask(site, server).answered == 4
        assert len(server.asked) == asked + 2
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_a_server_that_keeps_failing_ends_the_run(tmp_path, waits):
    site = site_of(tmp_path, 64, 128)
    failing = in_turn(ROOF, Reply(500, error("out of memory")))
    found = pytest.raises(RunError, match=r"500 out of memory; all answers .* run again")
    with chat_server(failing) as server, found as caught:
        ask(site, server)
    assert "\n" not in str(caught.value)
    assert len(list((site.path / "answers").glob("*/ortho/*.json"))) == 1


def test_a_window_without_an_answer_stops_no_other_and_is_asked_again(site, waits):
    refused = Reply(400, error("the picture is not nice"))
    listener = Listener()
    with chat_server(in_turn(ROOF, refused, ROOF)) as server:
        report = ask(site, server, progress=listener)
        assert (report.windows, report.answered) == (4, 3)
        assert "1 windows have no answer" in listener.warnings[0]
        assert "not nice" in listener.warnings[0]
        assert ask(site, server).answered == 4
        assert len(server.asked) == 5


def test_answers_that_say_nothing_are_counted(site):
    odd = (
        '[{"bbox_2d": [5, 5, 1, 1], "label": "building"}, {"bbox_2d": [0, 0, 9, 9], "label": "x"}]'
    )
    with chat_server(in_turn("", "I cannot see.", odd, ROOF)) as server:
        report = ask(site, server)
    assert (report.answered, report.empty, report.readable) == (4, 1, 2)
    assert report.parse_rate == pytest.approx(2 / 3)
    assert report.boxes == {"building": 1}
    assert report.unknown == {"x": 1}
    assert report.rejected == {"reversed": 1}
    assert "building 1" in report.summary()
    assert "67%" in report.summary()


def test_what_is_wrong_is_said_before_anything_is_asked(site, tmp_path):
    with chat_server(in_turn(ROOF)) as server:
        for options, message in [
            ({"sam": "nowhere.pt"}, "nowhere.pt"),
            ({"vlm": "folder"}, "either"),
            ({"bits": 4}, "--vlm-bits"),
            ({"url": None}, "either"),
            ({"url": None, "vlm": "folder"}, "--vlm-model"),
            ({"config": VlmConfig(side=100)}, "side"),
        ]:
            given = {"url": server.url, "model": "vl", "sam": "boxes", "config": SMALL} | options
            with pytest.raises(InputError, match=message):
                ask_opinions(site.path, device="cpu", **given)
        assert server.asked == []
    assert not (site.path / "answers").exists()
