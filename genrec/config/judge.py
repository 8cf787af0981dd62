"""The sections of language models that are asked over a network: how they are reached, and the judge."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, PositiveInt, field_validator, model_validator

from genrec.config.section import SPEED, Section


class ChatServer(Section):
    """A language model behind an OpenAI-compatible server; null as url is none."""

    url: str | None = Field(
        default=None, description="OpenAI-compatible base, such as https://host/v1; http for this machine alone"
    )
    model: str = ""
    key_variable: str = Field(default="GENREC_JUDGE_KEY", description="environment variable that holds the key")
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: PositiveInt = Field(default=1000, description="of one reply")
    timeout_s: float = Field(default=60.0, gt=0, json_schema_extra=SPEED)
    concurrency: int = Field(default=8, ge=1, le=256, json_schema_extra=SPEED, description="questions at a time")
    retries: int = Field(
        default=5,
        ge=0,
        le=20,
        json_schema_extra=SPEED,
        description="after 429, 5xx or a timeout, waiting longer each time",
    )

    @field_validator("url")
    @classmethod
    def _sends_nothing_in_the_clear(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("a URL with a user, password or query would be written to manifests; use key_variable")
        if not parts.hostname or parts.scheme not in ("http", "https"):
            raise ValueError("wanted: https://HOST/PATH, or http://localhost:PORT/PATH")
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ValueError(
                "http sends the key and users' histories in the clear; use https, or a tunnel to localhost"
            )
        return url


class PricedServer(ChatServer):
    """A server whose tokens have a price."""

    price_in: float = Field(default=0.0, ge=0, json_schema_extra=SPEED, description="of a million prompt tokens")
    price_out: float = Field(default=0.0, ge=0, json_schema_extra=SPEED, description="of a million reply tokens")


class Judge(PricedServer):
    """A language model that scores the answers of a finished run's systems, without knowing which is whose."""

    retries: int = Field(default=2, ge=0, le=20, json_schema_extra=SPEED, description="as for every server")
    systems: tuple[str, ...] = Field(default=(), description="that are judged; empty: all of the run's answers.parquet")
    queries: int = Field(default=200, ge=6, description="test users, drawn by seed")
    answers: int = Field(default=1, ge=1, le=10, description="items of each system that the judge sees")
    history: PositiveInt = Field(default=20, description="last items of a history that the judge reads")
    passes: int = Field(
        default=2, ge=1, le=10, description="times that each user is judged, in another order; two tell how stable"
    )
    second: PricedServer = Field(default=PricedServer(), description="another judge of the same answers, in one pass")
    give_up_after: PositiveInt = Field(
        default=10, json_schema_extra=SPEED, description="replies in a row that are lost or no judgement"
    )

    @model_validator(mode="after")
    def _names_its_models(self) -> Judge:
        for place, server in (("judge", self), ("judge.second", self.second)):
            if server.url and not server.model:
                raise ValueError(f"{place}.url needs {place}.model: the name of the model that the server runs")
        return self
