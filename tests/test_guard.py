"""Pages that carry answers stay away from the agent, and are logged."""

import pytest

from agentcpm_kit.errors import KitError
from agentcpm_kit.evaluate.guard import REFUSED, Blocklist, guarded
from agentcpm_kit.world.tools import SEPARATOR

from .test_episode import ToolBox

LIST = Blocklist.read()


@pytest.mark.parametrize("url, blocked", [
    ("https://huggingface.co/datasets/x", True), ("http://cdn.huggingface.co/x", True), ("HTTPS://HuggingFace.co./x", True),
    ("huggingface.co/x", True), ("https://user@huggingface.co:443/x", True), ("https://nothuggingface.co/x", False),
    ("https://huggingface.company/x", False), ("https://r.jina.ai/https://huggingface.co/x", True), ("//huggingface.co", True),
    ("https://hugging%66ace.co/x", True), ("https:\\\\huggingface.co", True), ("https://huggingface。co/", True),
    ("https://ｈｕｇｇｉｎｇｆａｃｅ.co/", True), ("https://x.org/browse%255Fcomp_test_set", True), ('["https://hf.co/x"]', True),
    ("https://raw.example.org/browse_comp_test_set.csv", True),
    ("https://mirror.example.org/gaia-benchmark/GAIA", True), ("https://gaia.esa.int/", False), ("https://example.org/", False),
    ("https://[broken", False), ("", False)])
def test_hosts_and_patterns(url, blocked):
    assert LIST.blocks(url) is blocked


def tools(answer):
    log = []
    factory = guarded(lambda task, episode: ToolBox(answer), LIST, lambda *what: log.append(what))
    return factory(None, "0/0/0/a"), log


def test_blocked_pages_are_refused_one_by_one():
    asked = []
    box, log = tools(lambda arguments: asked.append(arguments["url"]) or SEPARATOR.join(f"{u}\ntext" for u in arguments["url"]))
    urls = ["https://a.org/", "https://huggingface.co/x", "https://b.org/"]
    assert box.call("fetch_url", {"url": urls, "purpose": "p"}) == (
        f"https://a.org/\ntext{SEPARATOR}https://b.org/\ntext\n\nhttps://huggingface.co/x\n{REFUSED}")
    assert asked == [["https://a.org/", "https://b.org/"]] and log == [("0/0/0/a", "fetch_url", "https://huggingface.co/x")]
    assert box.call("fetch_url", {"url": "https://hf.co/x"}) == f"https://hf.co/x\n{REFUSED}" and len(asked) == 1
    assert box.call("read", {"address": {"page": "hf.co"}}) == f"hf.co\n{REFUSED}" and len(asked) == 1  # whatever tool


def test_results_that_point_to_a_blocked_page_are_left_out_with_their_snippets():
    found = ("1. [A](https://a.org/)\nsnippet of A\n2. [H](https://huggingface.co/x)\nthe answer is 42\n"
             "3. [B](https://b.org/)\nsnippet of B")
    box, log = tools(lambda _: found + SEPARATOR + "1. [H](HTTPS://HF.CO/)\nsee https://a.org/\n42" + SEPARATOR + "No results")
    text = box.call("search", {"query": ["q", "r", "huggingface.co"]})
    assert "42" not in text and "snippet of A" in text and "snippet of B" in text
    assert len(log) == 2 and all(tool == "search" for _, tool, _ in log)


def test_results_in_json_lose_the_items_that_name_a_blocked_page():
    found = ('{"results": [{"url": "https:\\/\\/huggingface.co\\/x", "text": "42"}, {"url": "https://a.org/", "text": "A"}], '
             '"n": 2}')
    box, log = tools(lambda _: found)
    assert box.call("search", {"query": ["q"]}) == '{"results": [{"url": "https://a.org/", "text": "A"}], "n": 2}'
    assert len(log) == 1


@pytest.mark.parametrize("arguments", [{}, {"url": 5}, {"url": [5]}, {"url": {"a": 1}}, {"url": []}])
def test_arguments_that_are_none_reach_the_tool(arguments):
    box, log = tools(lambda given: f"got {given}")
    assert box.call("fetch_url", arguments) == f"got {arguments}" and not log


def test_a_list_of_ones_own(tmp_path):
    (tmp_path / "b.yaml").write_text("hosts: [a.org]\npatterns: ['leak[0-9]']\n")
    own = Blocklist.read(tmp_path / "b.yaml")
    assert own.blocks("https://x.a.org/") and own.blocks("https://c.org/LEAK7") and not own.blocks("https://huggingface.co/")
    for bad in ("hostss: [a]", "hosts: huggingface.co", "hosts: ['https://a.org/']", "patterns: ['(']", "- a", "hosts: ["):
        (tmp_path / "b.yaml").write_text(bad)
        with pytest.raises(KitError, match="is no list of `hosts` and `patterns`"):
            Blocklist.read(tmp_path / "b.yaml")
