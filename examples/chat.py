"""A conversation of several turns: the cache is kept, so a turn costs only what is new in it.

python examples/chat.py [MODEL]
"""

import sys

import llama_ext

llm = llama_ext.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2", progress=True)

messages = [{"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}]
for question in ("What is the capital of France?", "And what is the capital of Italy?"):
    messages.append({"role": "user", "content": question})
    answer = llm.chat(messages, max_new_tokens=64)
    messages.append({"role": "assistant", "content": answer.text})
    seen, new = answer.timings.cached_tokens, answer.timings.prompt_tokens - answer.timings.cached_tokens
    print(f"> {question}\n{answer}\n  ({seen} tokens were in the cache, {new} were new)")
