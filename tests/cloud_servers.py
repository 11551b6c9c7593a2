"""Real HTTP servers that speak OpenAI's API as Groq, Gemini and servers of the LAN do.

For tests (``with CloudServer("groq") as server``) and by hand::

    python tests/cloud_servers.py groq --port 8001 --minute-requests 30

They compute nothing: they answer with the question. What they count, they count themselves: every
request that comes in, in a sliding minute, whatever the other side believes.
"""

from __future__ import annotations

import argparse
import base64
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

#: What each of them has, as it lists it.
MODELS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "groq": (
        {"id": "openai/gpt-oss-120b", "active": True, "context_window": 131_072},
        {"id": "qwen/qwen3-32b", "active": True, "context_window": 131_072},
        {"id": "whisper-large-v3", "active": True, "context_window": 448},
        {"id": "retired-8b", "active": False, "context_window": 8192},
    ),
    "gemini": (
        {"id": "models/gemini-2.5-pro"},
        {"id": "models/gemini-2.5-flash"},
        {"id": "models/gemini-embedding-001"},
        {"id": "models/imagen-4.0-generate-001"},
    ),
    "vllm": ({"id": "qwen3-8b", "max_model_len": 32_768, "owned_by": "vllm"},),
    "llama": ({"id": "/models/smollm2-135m.gguf", "meta": None, "owned_by": "llamacpp"},),
    "lmstudio": (
        {"id": "qwen3-4b", "owned_by": "organization_owner"},
        {"id": "text-embedding-nomic-embed-text-v1.5", "owned_by": "organization_owner"},
    ),
}
#: What Gemini knows of a request; all else is refused by name.
GEMINI_KNOWS: Final = frozenset(
    {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "top_p", "stop",
     "stream", "stream_options", "tools", "tool_choice", "response_format", "reasoning_effort", "n",
     "extra_body"}
)  # fmt: skip
GROQ_REFUSES: Final = ("logprobs", "top_logprobs", "logit_bias")
#: Where the API lies, as at the real ones.
PATHS: Final = {"groq": "/openai/v1", "gemini": "/v1beta/openai"}
SIGNATURE: Final = "c2lnbmF0dXJl"
CALL: Final = {"name": "add", "arguments": {"a": 2, "b": 3}}
Json = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """An answer that is sent in place of a right one."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: Any
    #: as this server counts them
    tokens: int = 0
    is_refused: bool = False


@dataclass
class Quota:
    """What an account allows; 0: no bound. Counted as a sliding window."""

    minute_requests: int = 0
    minute_tokens: int = 0
    day_requests: int = 0
    #: another length of the minute, for tests
    minute_s: float = 60.0


class CloudServer:
    """One service on a free port of loopback, in threads; a context manager."""

    def __init__(self, kind: str, *, key: str = "test-key-1234", port: int = 0) -> None:
        self.kind, self.key = kind, key
        self.models: Sequence[Mapping[str, Any]] = MODELS[kind]
        self.quota = Quota()
        #: answers to the next requests for chats or vectors, in order
        self.prepared: list[Prepared] = []
        #: answers to the next requests for the list
        self.prepared_lists: list[Prepared] = []
        #: raw event lines of a stream, in place of a right one; "" is a blank line
        self.events: list[str] | None = None
        #: the stream is cut, without the end of its framing, after so many events
        self.cut_after: int | None = None
        self.token_delay_s = 0.0
        self.takes_base64_only = False
        self.loads = 0  #: answers "Loading model" so many times
        self.seen: list[Seen] = []
        self.caller_left = threading.Event()
        self.has_begun = threading.Event()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", port), self)
        self.port = int(self._http.server_address[1])
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = self.root + PATHS.get(kind, "/v1")
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def asked(self) -> list[Seen]:
        """All requests that cost something, in order."""
        return [each for each in self.seen if each.body is not None]

    @property
    def bodies(self) -> list[Json]:
        return [each.body for each in self.asked]

    def most_in_a_minute(self) -> int:
        """Return how many requests came within any minute, at most; refused ones count."""
        times = [each.at for each in self.asked]
        return max(
            (
                sum(1 for at in times if first <= at < first + self.quota.minute_s)
                for first in times
            ),
            default=0,
        )

    def refused(self) -> int:
        return sum(each.is_refused for each in self.asked)

    def __enter__(self) -> CloudServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: CloudServer) -> None:
        self.owner = owner
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: callers that leave are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    timeout = 30
    _quota_headers: Mapping[str, str] = {}

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    # --- requests

    def do_GET(self) -> None:
        owner = self.server.owner
        self._note(None)
        if not self._may_come_in():
            return
        if owner.prepared_lists:
            self._prepared(owner.prepared_lists.pop(0))
        elif self.path.endswith("/api/v0/models") and owner.kind == "lmstudio":
            told = {"state": "not-loaded", "type": "vlm", "capabilities": ["tool_use"]}
            rows = [{**row, **told} for row in owner.models if "embed" not in str(row["id"])]
            self._json({"data": rows, "object": "list"})
        elif self.path.endswith("/models"):
            self._list()
        else:
            self._unknown_path()

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        refusal = self._over_quota(body)
        if not self._may_come_in():
            return
        if refusal is not None:
            self._prepared(refusal)
        elif owner.prepared:
            self._prepared(owner.prepared.pop(0))
        elif self.path.endswith("/embeddings"):
            self._vectors(body)
        elif self.path.endswith(("/chat/completions", "/completions")):
            why = self._unfit(body)
            if why is None:
                self._answer(body)
            else:
                self._prepared(why)
        else:
            self._unknown_path()

    def _note(self, body: Any, tokens: int = 0, *, is_refused: bool = False) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        now = time.monotonic()
        self.server.owner.seen.append(Seen(now, self.path, headers, body, tokens, is_refused))

    def _may_come_in(self) -> bool:
        owner = self.server.owner
        if owner.kind not in PATHS or self.headers.get("Authorization") == f"Bearer {owner.key}":
            return True
        if owner.kind == "gemini":
            message = "API key not valid. Please pass a valid API key."
            error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}
            self._json([{"error": error}], status=400)
        else:
            told = str(self.headers.get("Authorization"))
            message = f"Invalid API Key: {told.removeprefix('Bearer ')}"
            error = {"message": message, "type": "invalid_request_error", "code": "invalid_api_key"}
            self._json({"error": error}, status=401)
        return False

    # --- quotas

    def _over_quota(self, body: Json) -> Prepared | None:
        """Count this request; return what refuses it, if it is one too many."""
        owner, quota = self.server.owner, self.server.owner.quota
        model = str(body.get("model"))
        size = len(json.dumps(body.get("messages") or body.get("input") or "")) // 4
        bound = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        tokens = size + (bound if owner.kind == "groq" else 0)
        with owner.lock:
            now = time.monotonic()
            taken = [each for each in owner.asked if not each.is_refused]
            minute = [each for each in taken if now - each.at < quota.minute_s]
            used = sum(each.tokens for each in minute)
            refusal: Prepared | None = None
            if quota.minute_tokens and tokens > quota.minute_tokens:
                refusal = too_large(model, quota.minute_tokens, tokens)
            elif quota.day_requests and len(taken) >= quota.day_requests:
                refusal = day_over(owner.kind, model, quota.day_requests)
            elif quota.minute_requests and len(minute) >= quota.minute_requests:
                wait_s = minute[0].at + quota.minute_s - now
                refusal = minute_over(owner.kind, model, "requests", quota.minute_requests, wait_s)
            elif quota.minute_tokens and used + tokens > quota.minute_tokens:
                wait_s = minute[0].at + quota.minute_s - now
                refusal = minute_over(owner.kind, model, "tokens", quota.minute_tokens, wait_s)
            self._note(body, tokens, is_refused=refusal is not None)
            left = quota.day_requests - len(taken) - (refusal is None)
        if owner.kind == "groq" and (quota.day_requests or quota.minute_tokens):
            self._quota_headers = {
                "x-ratelimit-limit-requests": str(quota.day_requests or 14_400),
                "x-ratelimit-remaining-requests": str(max(0, left) if quota.day_requests else 9000),
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-limit-tokens": str(quota.minute_tokens or 6000),
                "x-ratelimit-remaining-tokens": str(max(1, quota.minute_tokens - used)),
                "x-ratelimit-reset-tokens": "7.66s",
            }
        return refusal

    # --- what is refused

    def _unfit(self, body: Json) -> Prepared | None:
        owner = self.server.owner
        if owner.loads > 0:
            owner.loads -= 1
            error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
            return Prepared(503, {"error": error})
        names = [str(row["id"]) for row in owner.models]
        prefix = "models/" if owner.kind == "gemini" else ""
        if owner.kind != "llama" and prefix + str(body["model"]).removeprefix(prefix) not in names:
            message = f"The model `{body['model']}` does not exist"
            return Prepared(404, {"error": {"message": message, "code": "model_not_found"}})
        if owner.kind == "groq":
            return _groq_refuses(body)
        if owner.kind == "gemini":
            return _gemini_refuses(body)
        return None

    def _unknown_path(self) -> None:
        if self.server.owner.kind == "lmstudio":
            message = f"Unexpected endpoint or method. ({self.command} {self.path})"
            self._json({"error": message})
        else:
            self._raw(Prepared(404, b"404 page not found", content_type="text/plain"))

    # --- right answers

    def _list(self) -> None:
        owner = self.server.owner
        answer: Json = {"object": "list", "data": [{"object": "model", **r} for r in owner.models]}
        if owner.kind == "llama":
            answer["models"] = [{"name": "x", "capabilities": ["completion"]}]
        self._json(answer)

    def _vectors(self, body: Json) -> None:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        owner, data = self.server.owner, []
        for i, text in enumerate(texts):
            vector: Any = [float(len(text)), 0.5, -1.0]
            if owner.takes_base64_only:
                vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
            data.append({"object": "embedding", "index": i, "embedding": vector})
        data.reverse()  # in any order
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self._json({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def _answer(self, body: Json) -> None:
        owner = self.server.owner
        question = body.get("prompt")
        if question is None:
            content = body["messages"][-1].get("content")
            is_parts = isinstance(content, list)
            question = " ".join(p.get("text", "") for p in content) if is_parts else content
        text = f"You asked: {question}"
        if body.get("response_format"):
            text = '{"answer": 42}'
        wants_call = bool(body.get("tools")) and body["messages"][-1]["role"] == "user"
        if owner.events is not None:
            self._stream(list(owner.events))
        elif body.get("stream"):
            self._stream(self._events(body, text, wants_call=wants_call))
        else:
            self._json(self._whole(body, text, wants_call=wants_call))

    def _whole(self, body: Json, text: str, *, wants_call: bool) -> Json:
        message: Json = {"role": "assistant", "content": text}
        if wants_call:
            message |= {"content": None, "tool_calls": [self._call()]}
        reason = "tool_calls" if wants_call else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"],
                "choices": [choice], "usage": _usage()}  # fmt: skip

    def _call(self) -> Json:
        function = {"name": CALL["name"], "arguments": json.dumps(CALL["arguments"])}
        call: Json = {"index": 0, "id": "call_abc", "type": "function", "function": function}
        if self.server.owner.kind == "gemini":
            call["extra_content"] = {"google": {"thought_signature": SIGNATURE}}
        return call

    def _events(self, body: Json, text: str, *, wants_call: bool) -> list[str]:
        kind = self.server.owner.kind
        is_chat = "messages" in body

        def chunk(delta: Json, reason: str | None = None, **more: Any) -> str:
            said = {"delta": delta} if is_chat else {"text": delta.get("content", "")}
            choice = {"index": 0, "finish_reason": reason, "logprobs": None, **said}
            part = {"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]}
            return "data: " + json.dumps(part | more)

        events = [": OPENROUTER PROCESSING", chunk({"role": "assistant", "content": ""})]
        if body.get("reasoning_effort") or body.get("reasoning_format") or kind == "llama":
            field = "reasoning_content" if kind in ("llama", "lmstudio") else "reasoning"
            events.append(chunk({field: "let me think"}))
        reason = "stop"
        if wants_call and kind == "gemini":  # whole, and all of them with the index 0
            events.append(chunk({"tool_calls": [self._call()]}))
        elif wants_call:
            call = self._call()
            first = {**call, "function": {**call["function"], "arguments": ""}}
            events.append(chunk({"tool_calls": [first]}))
            whole, reason = call["function"]["arguments"], "tool_calls"
            for part in (whole[:5], whole[5:]):
                delta = {"index": 0, "function": {"arguments": part}}
                events.append(chunk({"tool_calls": [delta]}))
        else:
            words = text.split(" ")
            events += [chunk({"content": w if i == 0 else f" {w}"}) for i, w in enumerate(words)]
        if body.get("logprobs"):
            prob = {"token": "You", "logprob": -0.1, "bytes": [89], "top_logprobs": []}
            extra = json.loads(chunk({})[6:])
            extra["choices"][0]["logprobs"] = {"content": [prob]}
            events.append("data: " + json.dumps(extra))
        bound = body.get("max_tokens") or body.get("max_completion_tokens") or 100
        events.append(chunk({}, "length" if bound < 3 else reason))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage: Json = {"id": "c-1", "choices": [], "usage": _usage()}
            if kind == "llama":
                usage["timings"] = {"prompt_n": 5, "prompt_ms": 50.0, "predicted_ms": 250.0}
            events.append("data: " + json.dumps(usage))
        return [*events, "data: [DONE]"]

    # --- writing

    def _stream(self, events: list[str]) -> None:
        owner = self.server.owner
        self.send_response(200)
        headers = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}
        for name, value in (headers | dict(self._quota_headers)).items():
            self.send_header(name, value)
        self.end_headers()
        owner.has_begun.set()
        for i, event in enumerate(events):
            if i == owner.cut_after:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._chunk(event.encode() + b"\n\n")
            if owner.token_delay_s and self._waits_in_vain(owner.token_delay_s):
                return
        self._write(b"0\r\n\r\n")

    def _json(self, answer: object, *, status: int = 200) -> None:
        self._raw(Prepared(status, answer))

    def _prepared(self, answer: Prepared) -> None:
        self._raw(answer)

    def _raw(self, answer: Prepared) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.content))}
        for name, value in (headers | dict(self._quota_headers) | dict(answer.headers)).items():
            self.send_header(name, value)
        self.end_headers()
        self._write(answer.content)

    def _chunk(self, content: bytes) -> None:
        self._write(b"%x\r\n%s\r\n" % (len(content), content))

    def _write(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
            self.wfile.flush()
        except OSError:
            self.server.owner.caller_left.set()
            raise

    def _waits_in_vain(self, seconds: float) -> bool:
        """Wait; return True if the caller left or the server closes before the time is over."""
        owner, until = self.server.owner, time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not owner.closing.is_set():
            ready, _, _ = select.select([self.connection], [], [], min(left, 0.02))
            if ready and not _peeked(self.connection):
                owner.caller_left.set()
                self.close_connection = True
                return True
        return owner.closing.is_set()


def _peeked(connection: socket.socket) -> bytes:
    try:
        return bytes(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return b""


def _usage() -> Json:
    return {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


# --- the forms in which they refuse


def minute_over(kind: str, model: str, what: str, bound: int, wait_s: float) -> Prepared:
    """Return a 429 of a minute, as Groq or Gemini has it."""
    if kind != "groq":
        quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
        if what == "tokens":
            quota = "GenerateContentInputTokensPerModelPerMinute-FreeTier"
        return gemini_429(quota, bound, f"{wait_s:.9f}s")
    short = "RPM" if what == "requests" else "TPM"
    message = (
        f"Rate limit reached for model `{model}` in organization `org_01` service tier `on_demand` "
        f"on {what} per minute ({short}): Limit {bound}, Used {bound}, Requested 1. "
        f"Please try again in {wait_s:.2f}s. Need more tokens? Upgrade to Dev Tier today"
    )
    error = {"message": message, "type": what, "code": "rate_limit_exceeded"}
    return Prepared(429, {"error": error}, {"retry-after": str(max(1, round(wait_s + 0.5)))})


def day_over(kind: str, model: str, bound: int) -> Prepared:
    """Return a 429 of a day; Gemini's delay is misleading."""
    if kind != "groq":
        return gemini_429("GenerateRequestsPerDayPerProjectPerModel-FreeTier", bound, "22s")
    message = (
        f"Rate limit reached for model `{model}` in organization `org_01` service tier `on_demand` "
        f"on requests per day (RPD): Limit {bound}, Used {bound}, Requested 1. "
        "Please try again in 7m12s. Need more tokens? Upgrade to Dev Tier today"
    )
    error = {"message": message, "type": "requests", "code": "rate_limit_exceeded"}
    return Prepared(429, {"error": error}, {"retry-after": "432"})


def gemini_429(quota_id: str, bound: int, delay: str) -> Prepared:
    """Return Gemini's refusal: a list, with details."""
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": "gemini-2.5-pro"},
        "quotaValue": str(bound),
    }
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    message = f"You exceeded your current quota. * Quota exceeded for metric, limit: {bound}"
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}
    return Prepared(429, [{"error": error}])


def too_large(model: str, bound: int, wanted: int) -> Prepared:
    """Return Groq's 413: it can never fit."""
    message = (
        f"Request too large for model `{model}` in organization `org_01` service tier `on_demand` "
        f"on tokens per minute (TPM): Limit {bound}, Requested {wanted}, please reduce "
        "your message size and try again."
    )
    error = {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}
    return Prepared(413, {"error": error})


def _groq_refuses(body: Json) -> Prepared | None:
    def no(message: str) -> Prepared:
        return Prepared(400, {"error": {"message": message, "type": "invalid_request_error"}})

    for name in GROQ_REFUSES:
        if name in body:
            return no(f"property '{name}' is unsupported")
    for i, message in enumerate(body.get("messages", ())):
        if "name" in message:
            return no(f"property 'messages.{i}.name' is unsupported")
        if None in message.values():
            return no(f"'messages.{i}' : value must be a string")
    if "json_schema" in str(body.get("response_format")) and (body["stream"] or "tools" in body):
        return no("Structured outputs do not support streaming or tool use")
    return no("'temperature' : number must be above 0") if body.get("temperature", 1) <= 0 else None


def _gemini_refuses(body: Json) -> Prepared | None:
    def no(message: str) -> Prepared:
        error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}
        return Prepared(400, [{"error": error}])

    for name in body.keys() - GEMINI_KNOWS:
        return no(f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.')
    for message in body.get("messages", ()):
        for call in message.get("tool_calls", ()):
            signature = call.get("extra_content", {}).get("google", {}).get("thought_signature")
            if signature != SIGNATURE:
                return no("Function call is missing a thought_signature in functionCall parts.")
    return None


def _run() -> None:
    parser = argparse.ArgumentParser(description="Speak OpenAI's API on loopback, for trying.")
    parser.add_argument("kind", choices=sorted(MODELS))
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--key", default="test-key-1234")
    parser.add_argument("--minute-requests", type=int, default=0)
    parser.add_argument("--day-requests", type=int, default=0)
    options = parser.parse_args()
    with CloudServer(options.kind, key=options.key, port=options.port) as server:
        server.quota = Quota(
            minute_requests=options.minute_requests, day_requests=options.day_requests
        )
        print(f"speaking as {options.kind} at {server.url}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{len(server.asked)} requests, at most {server.most_in_a_minute()} a minute")


if __name__ == "__main__":
    _run()
