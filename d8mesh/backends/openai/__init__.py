"""OpenAI-compatible services: Groq and Gemini in the cloud, vLLM, llama.cpp, LM Studio on the LAN.

What is peculiar to each is data, in `providers`. In the cloud an account says how much may be
asked (`backends.accounts`): what would pass its bounds is not sent, and what the service refuses is
obeyed. What it is asked and answers is bounded as `backends.streaming` says.
"""

from __future__ import annotations

from d8mesh.backends.accounts import service_id_of
from d8mesh.backends.accounts.account import Account
from d8mesh.backends.openai.providers import GEMINI, GROQ, LAN, Provider
from d8mesh.backends.openai.service import OpenAIBackend
from d8mesh.config import Config


def groq_of(config: Config) -> list[OpenAIBackend]:
    """Return Groq, if the settings have a key of it and let it be used."""
    return _cloud(GROQ, config, (config.groq_base_url, config.groq_api_key, config.groq_model))


def gemini_of(config: Config) -> list[OpenAIBackend]:
    """Return Gemini, if the settings have a key of it and let it be used."""
    return _cloud(
        GEMINI, config, (config.gemini_base_url, config.gemini_api_key, config.gemini_model)
    )


def servers_of(config: Config) -> list[OpenAIBackend]:
    """Return the servers of the LAN that are set, one backend each."""
    return [
        OpenAIBackend(LAN, url, key=config.openai_key, config=config) for url in config.openai_hosts
    ]


def _cloud(
    provider: Provider, config: Config, row: tuple[str, str | None, str | None]
) -> list[OpenAIBackend]:
    url, key, model = row
    is_asked_for = config.worker_type == provider.kind or config.cloud != "never"
    if key is None or not is_asked_for:
        return []
    account = Account(
        provider.kind,
        service_id_of(provider.kind, key),
        limits=config.cloud_limits,
        day=provider.day,
    )
    return [
        OpenAIBackend(provider, url, key=key, config=config, account=account, default_model=model)
    ]
