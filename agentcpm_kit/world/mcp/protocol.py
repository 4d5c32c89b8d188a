"""What the kit's server and client agree on beyond MCP.

`Tools.call` has three outcomes: an answer, a fault of the tool, a mistake of the caller. MCP has two, a result and a
result with `isError`, so ours carry a third field, `_meta["agentcpm-kit/outcome"]`. `_meta` is where the protocol wants
what is for the client and not for the model; structured content would be shown to models and would have to fit an output
schema. Clients that do not know the key still read the text.
"""

import json

OUTCOME, EPISODE = "agentcpm-kit/outcome", "agentcpm-kit/episode"  # keys in `_meta` of a result, of a request
ANSWER, FAULT, MISTAKE = "answer", "fault", "mistake"
PATH = "/mcp"  # of the HTTP endpoint


def read_result(result) -> tuple[str, str]:
    """Outcome and text of a result; one that is not marked by a server of ours is judged by what is in it."""
    parts = [_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text, marked = "\n".join(parts), (result.meta or {}).get(OUTCOME)
    if marked in (ANSWER, FAULT, MISTAKE):
        return marked, text
    if not text.strip():
        return FAULT, "empty answer"
    if result.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return ANSWER, text


def _text(block) -> str:
    """A content block as text; what is no text is named, so that the agent knows it is there."""
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[link: {block.name}, {block.uri}]"
    inner = getattr(block, "resource", block)
    if isinstance(getattr(inner, "text", None), str):
        return inner.text
    size = len(getattr(inner, "data", None) or getattr(inner, "blob", None) or "") * 3 // 4  # base64
    return f"[{block.type}, {f'{size // 1000} kB' if size >= 1000 else f'{size} bytes'}]"
