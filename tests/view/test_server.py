import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.reference.viewed import HOSTILE, write_run
from view.library import Library
from view.server import PageServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    library = Library([write_run(tmp_path / "run", 3, texts=[HOSTILE, "b", "c", "d"])], cached=False)
    server = PageServer(library)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def get(
    server: PageServer, path: str, host: str | None = None, *, with_secret: bool = True
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    prefix = f"/{server.secret}/" if with_secret else "/"
    connection.request("GET", prefix + path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), content


def test_the_page_and_its_parts_are_served_with_a_policy_against_foreign_scripts(server: PageServer) -> None:
    for name, kind in (("", "text/html"), ("app.js", "text/javascript"), ("style.css", "text/css"),
                       ("uPlot.iife.min.js", "text/javascript")):
        status, headers, content = get(server, name)
        assert status == 200 and content and headers["Content-Type"].startswith(kind)
        assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil:1"])
def test_a_host_that_is_not_this_machine_is_refused(server: PageServer, host: str) -> None:
    assert get(server, "api/overview", host)[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:8000", "localhost", "[::1]:5"])
def test_a_forwarded_port_of_this_machine_is_served(server: PageServer, host: str) -> None:
    assert get(server, "api/overview", host)[0] == 200


@pytest.mark.parametrize("path", [
    "../command.py", "..%2f..%2fpyproject.toml", "/etc/passwd", "static/app.js", "uPlot.LICENSE", "api/../app.js"])
def test_nothing_beside_the_pages_own_files_is_served(server: PageServer, path: str) -> None:
    assert get(server, path)[0] in (400, 404)


def test_without_the_secret_there_is_nothing(server: PageServer) -> None:
    assert get(server, "", with_secret=False)[0] == 404
    assert get(server, "wrong/api/overview", with_secret=False)[0] == 404
    assert urlsplit(server.url).path == f"/{server.secret}/" and len(server.secret) >= 20


def test_the_server_listens_on_this_machine_alone(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.socket.family == socket.AF_INET


def test_a_hostile_completion_arrives_as_the_text_it_is(server: PageServer) -> None:
    rows = json.loads(get(server, "api/groups?source=run&text=onerror")[2])["rows"]
    group = json.loads(get(server, f"api/group?source=run&id={rows[0]['id']}")[2])
    assert "".join(group["completions"][0]["parts"]) == HOSTILE


@pytest.mark.parametrize(("question", "message"), [
    ("nothing", "there is no 'nothing'"), ("curves", "source is missing"), ("curves?source=x", "there is no 'x'"),
    ("groups?source=run&first_step=one", "first_step: saw 'one'; expected a whole number"),
    ("groups?source=run&reward_min=much", "reward_min: saw 'much'; expected a number"),
    ("groups?source=run&sort=id--", "sort: saw 'id--'"), ("group?source=run&id=-5", "no group -5")])
def test_a_question_without_an_answer_says_why(server: PageServer, question: str, message: str) -> None:
    status, _, content = get(server, f"api/{question}")
    assert status == 400 and message in json.loads(content)["error"]


def test_filters_travel_in_the_address(server: PageServer) -> None:
    given = {"source": "run", "first_step": 2, "last_step": 3, "refused": "equal_rewards", "descending": "true",
             "limit": 1}
    answer = json.loads(get(server, f"api/groups?{urlencode(given)}")[2])
    assert answer["total"] == 2 and [row["step"] for row in answer["rows"]] == [3]


def test_what_is_appended_comes_without_being_asked_for_again(server: PageServer, tmp_path: Path) -> None:
    assert json.loads(get(server, "api/groups?source=run")[2])["total"] == 6
    (tmp_path / "more").mkdir()
    added = (write_run(tmp_path / "more" / "run", 5) / "rollouts.jsonl").read_bytes()
    with (tmp_path / "run" / "rollouts.jsonl").open("ab") as file:
        file.write(added)
    arrived = threading.Event()
    for _ in range(200):
        if json.loads(get(server, "api/overview")[2])[0]["groups"] == 16:
            break
        arrived.wait(0.05)
    assert json.loads(get(server, "api/groups?source=run")[2])["total"] == 16
