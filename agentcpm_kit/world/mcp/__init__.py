"""The tools over MCP: `server` offers the kit's own, `client` uses any server's; `config` names servers, `protocol` is
what both sides agree on beyond MCP, `session` is the way to one server."""

from .client import RemoteTools

__all__ = ["RemoteTools"]
