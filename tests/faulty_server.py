"""An OpenAI-compatible server on this machine that answers from prompt and seed alone, and fails in every way asked of it."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
Tokens = Callable[[Any, int, int], tuple[str, list[int], str]]
"(prompt, seed, max_tokens) -> text, token ids, finish reason; of the prompt, token ids or messages."


def number(prompt: Any, seed: int) -> int:
    "A number that hangs on prompt and seed alone."
    return int(hashlib.sha256(json.dumps([prompt, seed]).encode()).hexdigest()[:8], 16)


def letters(
    tokens: list[int],  # ids of single letters, to write answers with
    end: int,  # id of the end-of-text token
    decode: Callable[[list[int]], str],
) -> Tokens:
    "Answers of one to six letters, cut at `max_tokens`."

    def answer(prompt: Any, seed: int, max_tokens: int) -> tuple[str, list[int], str]:
        n = number(prompt, seed)
        ids = [tokens[(n >> 4 * i) % len(tokens)] for i in range(1 + n % 6)] + [end]
        cut = ids[:max_tokens]
        return decode([i for i in cut if i != end]), cut, "stop" if cut == ids else "length"

    return answer


def _with(choice: dict[str, Any] | None = None, **message: Any) -> Callable[[dict], dict]:
    "An answer with other fields in its choice and its message."

    def change(whole: dict) -> dict:
        first = whole["choices"][0] | (choice or {})
        return whole | {"choices": [first | ({"message": first["message"] | message} if message and "message" in first else {})]}

    return change


def _without(*names: str) -> Callable[[dict], dict]:
    return lambda whole: whole | {"choices": [{k: v for k, v in whole["choices"][0].items() if k not in names}]}


BROKEN: dict[str, Callable[[dict], Any]] = {
    "no choices": lambda whole: whole | {"choices": []},
    "choices missing": lambda whole: {"object": "text_completion"},
    "choices null": lambda whole: whole | {"choices": None},
    "an error with status 200": lambda whole: {"error": {"message": "upstream is gone", "code": 502}},
    "no text": _without("text", "message"),
    "message null": _with({"text": 7, "message": None}),
    "text of a wrong type": _with({"text": 7, "message": {"content": 7}}),
    "a part that is an image": _with({"text": 7}, content=[{"type": "text", "text": "a"}, {"type": "image_url"}]),
    "a call without a name": _with({"text": 7}, content=None, tool_calls=[{"function": {"arguments": "{}"}}]),
    "aborted": _with({"finish_reason": "abort"}),
    "an unknown end": _with({"finish_reason": "tired"}),
    "an end of a wrong type": _with({"finish_reason": 5}),
    "a list": lambda whole: [whole],
    "a stream that breaks off": lambda whole: b'data: {"choices": [{"text": "a", "delta": {"content": "a"}}]}\n\n',
    "a stream with an error": lambda whole: b'data: {"error": {"message": "upstream is gone"}}\n\ndata: [DONE]\n\n',
}
"Answers that are JSON and not what they should be."


def _stream(whole: dict) -> bytes:
    "The same answer as a proxy that streams sends it: a comment, two pieces, the count, the end."
    c = whole["choices"][0]
    text, form = (c["message"]["content"], "delta") if "message" in c else (c["text"], "text")
    pieces = [{"delta": {"content": t}} if form == "delta" else {"text": t} for t in (text[:1], text[1:])]
    pieces[1]["finish_reason"] = c["finish_reason"]
    chunks = [{"choices": [p]} for p in pieces] + [{"choices": [], "usage": whole["usage"]}]
    return (": waiting\n\n" + "".join(f"data: {json.dumps(x)}\n\n" for x in chunks) + "data: [DONE]\n\n").encode()


CALL = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"of": "x"}'}}
AS_JSON = '[{"name": "look_up", "arguments": {"of": "x"}}]'


def _streamed(*deltas: dict[str, Any]) -> Callable[[dict], bytes]:
    "A stream of parts of a message, and the count in a chunk whose choices are null."

    def change(whole: dict) -> bytes:
        chunks = [{"choices": [{"delta": d}]} for d in deltas] + [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
        return b"".join(f"data: {json.dumps(c)}\n\n".encode() for c in [*chunks, {"choices": None, "usage": whole["usage"]}])

    return change


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": "4"},
    {"type": "text", "text": "2"},
]

ODD_CHATS: dict[str, tuple[Callable[[dict], Any], str | None, str | None, str]] = {
    **{
        f"thoughts in {name}": (_with(content=None, **{name: "hm"}), "", None, f"no text but {name}")
        for name in ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
    },
    "thoughts as details": (_with(content=None, reasoning_details=[{"text": "hm"}]), "", None, "no text but reasoning_details"),
    "cut in its thoughts": (
        _with({"finish_reason": "length"}, content=None, reasoning="hm"), "", "length", "no text but reasoning",
    ),
    "thoughts and a text": (_with(reasoning_content="hm"), None, None, ""),
    "null": (_with(content=None), "", None, "no text"),
    "no content": (_with({"message": {"role": "assistant"}}), "", None, "no text"),
    "parts": (_with(content=PARTS), "42", None, ""),
    "parts without words": (_with(content=PARTS[:1]), "", None, "no text"),
    "no parts": (_with(content=[]), "", None, "no text"),
    "a text in a list": (_with(content=["4", "2"]), "42", None, ""),
    "one part": (_with(content=PARTS[1]), "4", None, ""),
    "a refusal": (_with(content=None, refusal="I cannot."), "I cannot.", None, "refusal"),
    "a refusal as a part": (_with(content=[{"type": "refusal", "refusal": "No."}]), "No.", None, ""),
    "a call": (_with({"finish_reason": "tool_calls"}, content=None, tool_calls=[CALL]), AS_JSON, "stop", "tool calls"),
    "an object as arguments": (
        _with({"finish_reason": "tool_calls"}, content=None, tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]),
        '[{"name": "f", "arguments": {"x": 1}}]', "stop", "tool calls",
    ),
    "broken arguments": (
        _with(content="", tool_calls=[{"function": {"name": "f", "arguments": '{"x": '}}]),
        '[{"name": "f", "arguments": {"x":}]', None, "tool calls",
    ),
    "a streamed call": (
        _streamed(
            {"content": None, "tool_calls": [{"index": 0, "id": "1", "function": {"name": "look_up", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"of": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]},
        ),
        AS_JSON, "stop", "tool calls",
    ),
    "a streamed text beside no calls": (_streamed({"content": "4", "tool_calls": []}, {"content": [PARTS[2]]}), "42", "stop", ""),
    "a streamed refusal": (_streamed({"refusal": "I "}, {"refusal": "cannot."}), "I cannot.", "stop", "refusal"),
    "streamed thoughts": (_streamed({"reasoning": "h"}, {"reasoning": "m"}), "", "stop", "no text but reasoning"),
    "a call of the older form": (_with(content=None, function_call=CALL["function"]), AS_JSON, None, "tool calls"),
    "no usage": (lambda whole: {k: v for k, v in whole.items() if k != "usage"}, None, None, "tokens not counted"),
    "usage null": (lambda whole: whole | {"usage": None}, None, None, "tokens not counted"),
    "usage without the count": (lambda whole: whole | {"usage": {"total_tokens": 3}}, None, None, "tokens not counted"),
    "usage of a wrong type": (lambda whole: whole | {"usage": {"completion_tokens": "3"}}, None, None, "tokens not counted"),
    "negative usage": (lambda whole: whole | {"usage": {"completion_tokens": -3}}, None, None, "tokens not counted"),
}  # fmt: skip
"Chat answers that are unusual and answers: how they are made, their text and end (None = as always), what is counted."

ENDS = {
    **dict.fromkeys(
        ("stop", "eos_token", "stop_sequence", "end_turn", "STOP", "COMPLETE", "tool_calls", "function_call"), "stop"
    ),
    **dict.fromkeys(("length", "max_tokens", "MAX_TOKENS", "model_length", "content_filter", "SAFETY"), "length"),
}
ODD: dict[str, tuple[Callable[[dict], Any], str | None, str | None, str]] = {
    **{
        f"end {reason}": (
            _with({"finish_reason": reason}),
            None,
            end,
            "filtered" if reason in ("content_filter", "SAFETY") else "",
        )
        for reason, end in ENDS.items()
    },
    "end null": (_with({"finish_reason": None}), None, None, ""),
    "no end": (_without("finish_reason"), None, None, ""),
    "several choices": (lambda whole: whole | {"choices": [{"index": 1, "text": "b"}, *whole["choices"]]}, None, None, ""),
    "log-probabilities that nobody asked for": (_with({"logprobs": [1, None, "x"]}), None, None, ""),
    "a stop reason of a wrong type": (_with({"stop_reason": {"x": 1}}), None, None, ""),
    "a stream": (_stream, None, None, ""),
    "a byte-order mark": (lambda whole: b"\xef\xbb\xbf" + json.dumps(whole).encode(), None, None, ""),
    "white space first": (lambda whole: b"\n \n" + json.dumps(whole).encode(), None, None, ""),
}
"Answers of both interfaces that are unusual and answers."


NO_HTTP = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no status": b"HTTP/1.1 many things\r\n\r\n",
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
    "broken compression": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "a circle": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /circle\r\nContent-Length: 0\r\n\r\n",
}
"Answers that are not HTTP, or lead nowhere."


class FaultyServer:
    "A server that can be told to fail: `plan` is used up one fault a request, then `fault` is for good."

    def __init__(
        self,
        answer: Tokens,
        models: tuple[str, ...] = ("tiny",),
        context: int | None = 256,  # None: it does not tell, as other servers than vLLM
        tells_ids: bool = True,
        tells_usage: bool = True,
        knows: bool = True,  # takes what is not in OpenAI's interface
        key: str = "",  # the key that it asks for
        delay: Callable[[int], float] = lambda n: 0.0,  # seconds, from the request's number
        scores: Callable[[list[int]], list[tuple[float, float]]] | None = None,  # for "echo", which it ignores without
    ):
        self.answer, self.models, self.context, self.tells_ids, self.tells_usage = answer, models, context, tells_ids, tells_usage
        self.knows, self.key, self.delay = knows, key, delay
        self.scores = scores  # of a prompt: log-probabilities of its tokens but the first, and of the likeliest in each place
        self.fault, self.plan, self.refuse = "", list[str](), {}  # refuse: fault for prompts that hold this token id (or message)
        self.slow, self.message, self.headers = 30.0, "out of order", {"Retry-After-Ms": "10"}
        self.code: int | str | None = None  # in the body of an error; None: its status
        self.lock, self.port = threading.Lock(), 0
        self.asked: list[dict] = []  # bodies, in the order of arrival
        self.given: list[tuple[Any, int]] = []  # prompt and seed of each whole answer that was sent
        self.looks = self.under_way = self.most = 0
        self.live: set[socket.socket] = set()
        self.http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def start(self, **changed: Any) -> "FaultyServer":
        "Listen; after `die` on the same port as before."
        for name, value in changed.items():
            setattr(self, name, value)
        server = self

        class Handler(_Handler):
            faulty = server

        class Http(ThreadingHTTPServer):
            daemon_threads, block_on_close, allow_reuse_address, request_queue_size = True, False, True, 256

            def handle_error(self, *_: Any) -> None:
                "A connection that was broken on purpose is no news."

        self.http = Http((HOST, self.port), Handler)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def die(self) -> None:
        "Stop listening and break every connection."
        http, self.http = self.http, None
        if http:
            http.socket.close()
            threading.Thread(target=http.shutdown, daemon=True).start()
        with self.lock:
            live, self.live = self.live, set()
        for s in live:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        "Forget what was asked."
        self.asked, self.given, self.most, self.looks = [], [], 0, 0

    def whole(self, chat: bool, asked: dict) -> dict:
        "The answer as it should be."
        prompt = asked["messages" if chat else "prompt"]
        text, ids, finish = self.answer(prompt, asked["seed"], asked["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if asked.get("return_token_ids") and self.tells_ids:
            choice |= {"token_ids": ids, "stop_reason": None}
        if asked.get("echo") and self.scores:
            told = [{"said": value, "likeliest": most} for value, most in self.scores(prompt)]
            values = [None, *(t["said"] for t in told), -0.5]
            choice["logprobs"] = {"token_logprobs": values, "top_logprobs": [None, *told, {"x": -0.5}]}
        elif asked.get("logprobs"):
            values = [-0.25 * (1 + i) for i in range(len(ids))]
            choice["logprobs"] = (
                {"content": [{"token": "x", "logprob": v} for v in values]} if chat else {"token_logprobs": values}
            )
        usage = {"usage": {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}} if self.tells_usage else {}
        return {"id": "x", "object": "text_completion", "model": asked["model"], "choices": [choice], **usage}


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        "Nothing."

    def setup(self) -> None:
        super().setup()
        with self.faulty.lock:
            self.faulty.live.add(self.connection)

    def send(self, status: int, value: Any, promised: int = 0) -> None:
        "An answer; `promised` bytes more are announced than come."
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data) + promised)}
        for name, text in (headers | (self.faulty.headers if status >= 400 else {})).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        if promised:
            self.gone()

    def gone(self) -> None:
        "Break this connection."
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def error(self, status: int, message: str) -> None:
        self.send(status, {"error": {"message": message, "type": "x", "code": self.faulty.code or status}})

    def allowed(self) -> bool:
        if self.faulty.key and self.headers.get("Authorization") != f"Bearer {self.faulty.key}":
            self.error(401, f"wrong key: {self.headers.get('Authorization')}")
            return False
        return True

    def do_GET(self) -> None:
        self.faulty.looks += 1
        if not self.allowed():
            return
        if self.path != "/v1/models":
            return self.error(404, f"no {self.path}")
        more = {} if self.faulty.context is None else {"max_model_len": self.faulty.context}
        self.send(200, {"object": "list", "data": [{"id": m, "object": "model", **more} for m in self.faulty.models]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/circle":  # a redirected request leads there again, and is no other one
            self.wfile.write(NO_HTTP["a circle"])
            return
        it = self.faulty
        with it.lock:
            number = len(it.asked)
            it.asked.append(asked)
            prompt = asked.get("prompt") or [m["content"] for m in asked["messages"]]
            fault = next((f for part, f in it.refuse.items() if part in prompt), "")
            fault = fault or (it.plan.pop(0) if it.plan else it.fault)
            it.under_way += 1
            it.most = max(it.most, it.under_way)
        try:
            if self.allowed():
                time.sleep(it.delay(number))
                self.answer(asked, fault)
        finally:
            with it.lock:
                it.under_way -= 1

    def answer(self, asked: dict, fault: str) -> None:
        it, chat = self.faulty, self.path == "/v1/chat/completions"
        if not chat and self.path != "/v1/completions":
            return self.error(404, f"no {self.path}")
        if asked["model"] not in it.models:
            return self.error(404, f"The model `{asked['model']}` does not exist.")
        if not it.knows and {"top_k", "min_p", "repetition_penalty", "return_token_ids"} & asked.keys():
            return self.error(400, "Unrecognized request argument supplied: top_k")
        if fault.startswith("status "):
            return self.error(int(fault.split()[1]), it.message)
        if fault in ("reset", "die"):
            return it.die() if fault == "die" else self.gone()
        if fault == "slow":
            time.sleep(it.slow)
        whole = it.whole(chat, asked)
        if fault in NO_HTTP:
            self.wfile.write(NO_HTTP[fault])
            return self.gone()
        if fault == "garbage":
            return self.send(200, b"<html>bad gateway</html>")
        if fault == "truncated":
            return self.send(200, json.dumps(whole).encode()[:40], promised=99)
        if fault in BROKEN:
            return self.send(200, BROKEN[fault](whole))
        odd = (ODD | ODD_CHATS).get(fault)
        with it.lock:
            it.given.append((asked["messages" if chat else "prompt"], asked["seed"]))
        self.send(200, odd[0](whole) if odd else whole)
