"""Which MCP servers, and how their tools appear to the agent.

A server is named by a URL, by a command (stdio), or by a YAML file that joins the tools of several and maps them onto
the kit's (see profiles/tools/web.yaml). Keys are never in the file: `${NAME}` stands for an environment variable.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...errors import KitError, unknown

VARIABLE = re.compile(r"\$\{(\w+)\}")
SHORTEST_SECRET = 6  # a shorter value ("1", "en") is no key, and hiding it would mangle answers


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ToolConfig(_Section):
    """How one tool of a server appears to the agent.

    `arguments` maps the kit's argument names onto the server's (unlisted ones are not sent), `fixed` is added to each
    request, and with `each` the server is asked once for each element of that list.
    """

    tool: str
    description: str | None = None
    arguments: dict[str, str] | None = None
    each: str | None = None
    fixed: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_is_sent(self) -> "ToolConfig":
        if self.each and self.each not in (self.arguments or {}):
            raise ValueError(f"each: {self.each!r} is not among arguments")
        return self


class ServerConfig(_Section):
    """One MCP server, by `url` or by `command`; without `tools`, all of its tools as they are."""

    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    command: str | None = None
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    tools: dict[str, ToolConfig] | None = None

    @model_validator(mode="after")
    def _one_way_in(self) -> "ServerConfig":
        if bool(self.url) == bool(self.command):
            raise ValueError("give either url or command")
        if self.url and not self.url.startswith(("http://", "https://", "${")):
            raise ValueError("url must start with http:// or https://")
        return self


class ToolsFile(_Section):
    """A config file; servers in the order in which their tools are listed."""

    servers: dict[str, ServerConfig] = Field(min_length=1)


def read_servers(source: str | Path | Sequence[str]) -> dict[str, ServerConfig]:
    """The servers that a URL, a command (a string or a list) or a YAML file names.

    Raises:
        KitError: a file that is not there, not YAML or not as described above.
    """
    if not isinstance(source, str | Path):
        return {"server": ServerConfig(command=source[0], args=list(source[1:]))}
    text = str(source)
    if text.startswith(("http://", "https://")):
        return {"server": ServerConfig(url=text)}
    if text.endswith((".yaml", ".yml")):
        return _read_file(Path(source))
    words = shlex.split(text)
    if not words:
        raise KitError("which tools? give the URL of an MCP server, a command or a file such as profiles/tools/web.yaml")
    return {"server": ServerConfig(command=words[0], args=words[1:])}


def _read_file(path: Path) -> dict[str, ServerConfig]:
    try:
        return ToolsFile.model_validate(yaml.safe_load(_find(path).read_text(encoding="utf-8"))).servers
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise KitError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise _first_error(path, error) from None


def _find(path: Path) -> Path:
    """As given, or below the repository: a notebook runs in its own folder."""
    from ...profile import repo_root

    return path if path.is_absolute() or path.exists() else repo_root() / path


def _first_error(path: Path, error: ValidationError) -> KitError:
    """The first error without the value it is about, which may be a key."""
    first = min(error.errors(include_input=False), key=lambda e: e["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        return KitError(f"{path}: {'.'.join(where) or 'file'}: {first['msg'].removeprefix('Value error, ')}")
    model = (ToolsFile, None, ServerConfig, None, ToolConfig)[len(where) - 1]
    return unknown(f"key in {path}:", ".".join(where), [".".join([*where[:-1], key]) for key in model.model_fields])


def fill_in(text: str, owner: str, secrets: set[str]) -> str:
    """`text` with each `${NAME}` replaced by that environment variable; the values are added to `secrets`.

    Raises:
        KitError: a variable is not set; the text names it, and never a value.
    """
    def value(match: re.Match) -> str:
        found = os.environ.get(match[1], "")
        if not found:
            raise KitError(f"MCP server {owner!r} needs the environment variable {match[1]}; set it to your key")
        secrets.update({found, quote(found), quote(found, safe="")})
        return found

    return VARIABLE.sub(value, text)


def hide(text: str, secrets: set[str]) -> str:
    """`text` without the secrets: a server may well quote a key that it rejects."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text
